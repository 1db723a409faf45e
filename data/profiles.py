"""Quality profiles: one YAML per language, the rules it names and where their thresholds come from.

Adding a language is adding a file: see ``docs/corpus.md``. Its sections are those of ``data/filters``; one that is
absent or null is not run. Every section carries ``source``: one text for all its thresholds, or one per threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from tsugiki.data.filters.base import FilterContext, ProfileHead, RuleSection, ordered_filters
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.shipped import shipped
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep


def profile_model() -> type[ProfileHead]:
    """The model of a profile: its head and a field for every registered section."""
    fields: dict[str, Any] = {
        entry.name: (entry.facts["section"] | None, Field(default=None, description=entry.facts["title"]))
        for entry in ordered_filters()
    }
    model: type[ProfileHead] = create_model(
        "Profile", __base__=ProfileHead, __module__=__name__, __doc__="A quality profile.", **fields
    )
    return model


if TYPE_CHECKING:
    Profile = ProfileHead
else:
    Profile = profile_model()  # a name of this module, so that a profile can be sent to worker processes


def sections(profile: Profile) -> dict[str, RuleSection]:
    """The sections a profile has, in the order of their steps."""
    found = ((entry.name, getattr(profile, entry.name)) for entry in ordered_filters())
    return {name: section for name, section in found if section is not None}


def up_to_language() -> frozenset[str]:
    """The sections whose steps come before the identification of the language, and that one."""
    names = [entry.name for entry in ordered_filters()]
    return frozenset(names[: names.index("language_identification") + 1])


def profile_steps(context: FilterContext) -> list[tuple[str, PipelineStep]]:
    """The steps of a profile by the name of their section, cheap ones first."""
    steps: list[tuple[str, PipelineStep]] = []
    for entry in ordered_filters():
        section = getattr(context.profile, entry.name)
        section = entry.facts.get("default") if section is None else section
        step: Any = None if section is None else entry.thing(section, context)
        if step is not None:
            steps.append((entry.name, step))
    return steps


def _resolved(profile: Profile, path: Path) -> Profile:
    """The profile with what its sections name in other files."""
    return profile.model_copy(
        update={name: section.resolved(path) for name, section in sections(profile).items()}
    )


def load_profile(name: str, folders: Sequence[str]) -> Profile:
    """Read ``<folder>/<name>.yaml`` from the first folder that has it.

    Relative folders are looked up from the working directory, then among what ships with Tsugiki.

    Raises:
        ConfigError: no folder has it, or it does not validate.
    """
    tried: list[Path] = []
    for folder in folders:
        for base in dict.fromkeys([expand_path(folder), shipped(Path(folder))]):
            if base is None:
                continue
            candidate = base / f"{name}.yaml"
            if candidate.is_file():
                return _resolved(load_config(Profile, candidate), candidate)
            tried.append(candidate)
    available = sorted({item.stem for path in tried for item in path.parent.glob("*.yaml")})
    raise ConfigError(
        f"no quality profile '{name}'",
        where="corpus.profiles",
        got=", ".join(folders),
        expected=f"one of {', '.join(available)}" if available else "a folder of profiles",
        fix=f"add {name}.yaml (see docs/corpus.md), or set `filter: false` on the source",
    )
