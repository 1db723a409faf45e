"""``pytorch_model.bin``: where the tensors of a ``torch.save`` archive lie in the file.

Such a file is an uncompressed zip with one entry per storage, so a tensor can be read by byte
range as from safetensors. ``torch.load`` maps the file and gives the tensors without reading them;
their addresses relative to each other are their positions relative to each other.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.formats.hf_tensor import HfTensor

LEGACY_INDEX_NAME = "pytorch_model.bin.index.json"
LEGACY_NAME = "pytorch_model.bin"
_LOCAL_HEADER_BYTES = 30


def legacy_tensors(path: Path) -> dict[str, HfTensor]:
    """Tensors of a ``torch.save`` file of a state dictionary.

    Raises:
        CheckpointError: missing, truncated, not such a file, or tensors that are not contiguous.
    """
    import torch

    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    try:
        loaded = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        positions = _storage_positions(path)
    except FileNotFoundError:
        raise CheckpointError("missing weight file", where=path) from None
    except (
        OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, struct.error,
        pickle.UnpicklingError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise CheckpointError(
            "not a whole PyTorch weight file",
            where=path,
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="download it again; files older than PyTorch 1.6 must be saved again, best as safetensors",
        ) from error
    held = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {
        name: value for name, value in held if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(
            "no tensors by name in this file", where=path, got=type(loaded).__name__,
            expected="a state dictionary", fix="save it as safetensors",
        )  # fmt: skip
    addresses = sorted({tensor.untyped_storage().data_ptr() for tensor in tensors.values()})
    places = [item - positions[0] for item in positions]
    if [address - addresses[0] for address in addresses] != places:
        raise CheckpointError(
            "cannot find the tensors in this file", where=path, fix="save it as safetensors"
        )
    result: dict[str, HfTensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise CheckpointError(
                "tensor is not contiguous",
                where=f"{path}: {name} {list(tensor.shape)}",
                fix="save the model again with save_pretrained",
            )
        offset = positions[0] + tensor.data_ptr() - addresses[0]
        dtype = names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        result[name] = HfTensor(name, path, dtype, tuple(tensor.shape), offset)
    return result


def _storage_positions(path: Path) -> list[int]:
    """Offsets of the raw data of all storages, ascending."""
    positions = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for item in archive.infolist():
            if "/data/" not in item.filename:
                continue
            stream.seek(item.header_offset)
            header = stream.read(_LOCAL_HEADER_BYTES)
            # The last two fields are the lengths of the name and of the extra field that follow.
            name, extra = struct.unpack_from("<HH", header, 26)
            positions.append(item.header_offset + _LOCAL_HEADER_BYTES + name + extra)
    return sorted(positions)
