"""Where a tensor of a Hugging Face weight file lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

# Bytes of an element by safetensors name. Only floating types can be weights here; the others
# are known so that files holding them can be read.
ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


@dataclass(frozen=True)
class HfTensor:
    """Where a tensor lies.

    Attributes:
        dtype: safetensors name.
        offset: of the first byte in the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of axis 0."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
