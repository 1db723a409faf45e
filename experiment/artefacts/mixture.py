"""The tokens artefact as the other stages see it: ``tokens/mixture.json`` beside ``.bin/.idx`` pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tsugiki.experiment.artefacts.contents import Contents
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError


class TokenSource(StrictModel):
    """An encoded source. Prefixes are relative to the tokens directory."""

    name: str
    language: str
    kind: Literal["text", "parallel", "instruction", "preference"] = "text"
    prefix: str = Field(description="Megatron indexed dataset: <prefix>.bin and <prefix>.idx")
    heldout_prefix: str | None = Field(description="None when no document was held out")
    documents: int
    tokens: int = Field(description="tokens in the training split, specials included")
    bytes: int = Field(description="UTF-8 bytes of text in the training split")
    heldout_documents: int
    heldout_tokens: int
    heldout_bytes: int


class MixtureSource(TokenSource):
    """One source of the training mixture."""

    share: float = Field(gt=0, le=1, description="share of the tokens of the mixture; shares sum to 1")
    planned_tokens: int = Field(description="share x total_tokens")
    epochs: float = Field(description="planned_tokens / tokens")


class MixtureChange(StrictModel):
    """The shares of a stretch of the training."""

    from_tokens: int = Field(ge=0, description="tokens of the training at which it begins")
    shares: dict[str, float] = Field(description="by source; they sum to 1, the other sources have none")


class Mixture(Contents):
    """Contents of ``tokens/mixture.json``."""

    stage = "tokens"
    what = "mixture"
    file_name = "mixture.json"
    schema_version: Literal[1] = 1
    vocabulary_size: int
    bos_id: int | None
    eod_id: int
    total_tokens: int
    sources: list[MixtureSource]
    changes: list[MixtureChange] = Field(
        default=[],
        description="stretches, the first from token 0, of a mixture that changes; a source's share is then that "
        "of the whole training",
    )
    untrained: list[TokenSource] = Field(
        default=[], description="sources that no weight names: validated on, not trained on"
    )

    @property
    def validated(self) -> list[TokenSource]:
        """The sources whose held-out documents give a validation loss."""
        return [source for source in (*self.sources, *self.untrained) if source.heldout_prefix is not None]


def save_document_bytes(tokens_dir: Path, prefix: str, sizes: Sequence[int] | NDArray[np.int64]) -> None:
    """Write the UTF-8 bytes of text of each document of a dataset: ``<prefix>.bytes.npy``."""
    np.save(tokens_dir / f"{prefix}.bytes.npy", np.asarray(sizes, np.int64))


def load_document_bytes(tokens_dir: Path, prefix: str) -> NDArray[np.int64]:
    """UTF-8 bytes of text of each document of a dataset: [documents].

    Raises:
        DataError: the file is missing or unreadable.
    """
    path = tokens_dir / f"{prefix}.bytes.npy"
    try:
        sizes: NDArray[np.int64] = np.load(path)
    except (OSError, ValueError) as error:
        raise DataError(
            "unreadable sizes of held-out documents",
            where=path,
            got=error,
            expected="a file of the tokens stage",
            fix="run the tokens stage again",
        ) from error
    return sizes
