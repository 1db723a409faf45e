"""What a phase of staged training trains, as the configuration names it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tsugiki.experiment.errors import ConfigError


def base_rows(graft_dir: Path, vocabulary_size: int) -> int:
    """Rows of the vocabulary that the base model had; all of them where nothing was added."""
    try:
        report = json.loads((graft_dir / "graft.json").read_text(encoding="utf-8"))
        return int(report["kept_rows"])
    except (OSError, ValueError, KeyError):
        return vocabulary_size


@dataclass(frozen=True)
class Selection:
    """What a phase trains.

    Attributes:
        everything: all parameters.
        new_input: rows the extension added to the input embedding.
        new_output: rows it added to the output layer.
        embeddings: both matrices whole.
        final_norm: the norm before the output layer.
        layers: transformer layers, from 0.
    """

    everything: bool
    new_input: bool
    new_output: bool
    embeddings: bool
    final_norm: bool
    layers: frozenset[int]

    @classmethod
    def parse(cls, selectors: tuple[str, ...], layers: int) -> Selection:
        """From the names in `train.phases[].trains`.

        Raises:
            ConfigError: an unknown name or a layer that the model does not have.
        """
        chosen: set[int] = set()
        names = set()
        for selector in selectors:
            if not selector.startswith("layers:"):
                names.add(selector)
                continue
            for text in selector.removeprefix("layers:").split(","):
                try:
                    number = int(text)
                    chosen.add(range(layers)[number])
                except (ValueError, IndexError):
                    raise ConfigError(
                        "no such layer",
                        where="train.phases.trains",
                        got=selector,
                        expected=f"numbers from {-layers} to {layers - 1}, e.g. layers:0,1,-2,-1",
                    ) from None
        known = {"all", "new_input_rows", "new_output_rows", "embeddings", "final_norm"}
        if names - known:
            raise ConfigError(
                "no such part of the model",
                where="train.phases.trains",
                got=", ".join(sorted(names - known)),
                expected=f"{', '.join(sorted(known))}, or layers:<numbers>",
            )
        return cls(
            everything="all" in names,
            new_input="new_input_rows" in names,
            new_output="new_output_rows" in names,
            embeddings="embeddings" in names,
            final_norm="final_norm" in names,
            layers=frozenset(chosen),
        )
