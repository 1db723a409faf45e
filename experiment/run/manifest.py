"""``manifest.json``: the file that marks a stage's directory complete, and tells where it came from."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from tsugiki.experiment.config.shipped import checkout
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.run.digest import digest_files, digest_outputs, list_files

MANIFEST_NAME = "manifest.json"
_PACKAGES = (
    "tsugiki", "torch", "megatron-core", "transformers", "tokenizers", "sentencepiece", "datatrove", "mlflow",
    "numpy", "safetensors", "apex", "transformer-engine",
)  # fmt: skip


class OutputFile(StrictModel):
    """One file of a finished stage."""

    bytes: int
    sha256: str


class Manifest(StrictModel):
    """What a finished stage was made from and what it made."""

    # A metric may be NaN or infinite; pydantic would write null, which no number can be read from.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    schema_version: Literal[1] = 1
    stage: str
    key: str = Field(description="hash of configuration, inputs, seed and stage version")
    key_parts: dict[str, str] = Field(description="the hashes the key was made of, to say what changed")
    config: dict[str, Any] | None
    inputs: dict[str, str] = Field(description="content hash of every input artefact")
    outputs: dict[str, OutputFile]
    digest: str = Field(description="content hash of the outputs, reports and logs left out")
    versions: dict[str, str]
    git_revision: str | None
    counts: dict[str, Any]
    metrics: dict[str, float]
    started: str = Field(description="UTC, ISO 8601")
    seconds: float

    @classmethod
    def load(cls, directory: Path) -> Manifest | None:
        """The manifest of a stage directory; None when absent or unreadable (then it is not complete)."""
        try:
            return cls.model_validate_json((directory / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError):
            return None

    def save(self, directory: Path) -> None:
        """Write the manifest atomically."""
        write_text_atomically(directory / MANIFEST_NAME, self.model_dump_json(indent=2) + "\n")

    @property
    def lists_its_outputs(self) -> bool:
        """Whether ``outputs`` are those that ``digest`` was made of; an edited list hides missing files."""
        return digest_outputs({name: file.sha256 for name, file in self.outputs.items()}) == self.digest

    def damage(self, directory: Path) -> str | None:
        """What is wrong with the files of the directory (missing, other size, no longer listed), or None.

        `tsugiki verify` reads them.
        """
        if not self.lists_its_outputs:
            return f"{MANIFEST_NAME} was changed: its list of outputs does not have its digest"
        for name, expected in self.outputs.items():
            try:
                size = (directory / name).stat().st_size
            except (OSError, ValueError):  # ValueError: a damaged manifest may hold a null byte in a name
                return f"{name} is missing"
            if size != expected.bytes:
                return f"{name} has {size:,} bytes, expected {expected.bytes:,}"
        return None


def describe_outputs(directory: Path, left_out: Sequence[str] = ()) -> tuple[dict[str, OutputFile], str]:
    """Sizes and hashes of all files below a directory, and the content hash of the whole.

    Args:
        directory: of the stage.
        left_out: files directly in it that are not part of the result.
    """
    names = [name for name in list_files(directory) if name not in (MANIFEST_NAME, *left_out)]
    digests = digest_files(directory, names)
    outputs = {
        name: OutputFile(bytes=(directory / name).stat().st_size, sha256=digest)
        for name, digest in digests.items()
    }
    return outputs, digest_outputs(digests)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_revision() -> str | None:
    """Commit of this checkout, with ``-dirty`` when it was changed; None outside git, or from a wheel."""
    root = checkout()
    # A wheel, or a copy of the tree, may lie inside a repository of the user's own, of which git would tell.
    if root is None or not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
