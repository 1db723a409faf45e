"""Plans the training mixture in tokens: shares, planned tokens and epochs of every source."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsugiki.data.config import MixtureConfig
from tsugiki.experiment.errors import ConfigError

_DEFAULT_EPOCHS = 4.0


@dataclass(frozen=True)
class Available:
    """Tokens of a source.

    Attributes:
        name: source.
        language: its language.
        weight: the source's ``weight``.
        tokens: tokens of its training split.
    """

    name: str
    language: str
    weight: float
    tokens: int


def plan_tokens(config: MixtureConfig, sources: Sequence[Available]) -> dict[str, int]:
    """Planned tokens per source; they add up to ``total_tokens`` exactly.

    Sources that no weight names are left out of the result.

    Raises:
        ConfigError: a weight that names nothing, or more epochs than allowed.
    """
    if config.changes:
        amounts: dict[str, float] = {}
        for start, end, shares in plan_stretches(config, sources):
            for name, share in shares.items():
                amounts[name] = amounts.get(name, 0.0) + share * (end - start)
    elif config.weights == "unimax":
        amounts = _unimax(config, sources)
    else:
        amounts = {name: share * config.total_tokens for name, share in _shares(config, sources).items()}
    planned = _rounded(amounts, config.total_tokens)
    _check_epochs(config, sources, planned)
    return planned


def plan_stretches(
    config: MixtureConfig, sources: Sequence[Available]
) -> list[tuple[int, int, dict[str, float]]]:
    """First token, end and shares of each stretch of a mixture that changes.

    Raises:
        ConfigError: a weight that names nothing.
    """
    starts = [0, *(change.from_tokens for change in config.changes)]
    weights = [config.weights, *(change.weights for change in config.changes)]
    return [
        (start, end, _shares(config.model_copy(update={"weights": given}), sources))
        for start, end, given in zip(starts, [*starts[1:], config.total_tokens], weights, strict=True)
    ]


def maximum_epochs(config: MixtureConfig, source: Available) -> float:
    """Most repetitions of a source: by its name, its language, or the default."""
    if isinstance(config.max_epochs, Mapping):
        by_language = config.max_epochs.get(source.language, _DEFAULT_EPOCHS)
        return config.max_epochs.get(source.name, by_language)
    return config.max_epochs


def _shares(config: MixtureConfig, sources: Sequence[Available]) -> dict[str, float]:
    """Shares that add up to 1."""
    if config.weights is None:
        return _normalised({source.name: source.weight for source in sources})
    languages = list(dict.fromkeys(source.language for source in sources))
    if isinstance(config.weights, str):  # temperature
        sizes = {name: sum(s.tokens for s in sources if s.language == name) for name in languages}
        by_language = {name: size ** (1 / config.temperature) for name, size in sizes.items()}
        return _normalised(_spread(by_language, sources))
    names = {source.name for source in sources}
    for key in config.weights:
        if key not in names and key not in languages:
            near = difflib.get_close_matches(key, [*languages, *names], n=1, cutoff=0.5)
            raise ConfigError(
                "a mixture weight names neither a source nor a language",
                where=f"tokens.mixture.weights.{key}",
                got=key,
                expected=f"one of {', '.join(sorted(names | set(languages)))}",
                fix=f"did you mean '{near[0]}'?" if near else None,
            )
    own = {name: weight for name, weight in config.weights.items() if name in names}
    shared = {name: weight for name, weight in config.weights.items() if name not in names}
    rest = [source for source in sources if source.name not in own]
    for name in shared:
        if not any(source.language == name for source in rest):
            raise ConfigError(
                "a language has a weight, but each of its sources has its own",
                where=f"tokens.mixture.weights.{name}",
                fix=f"remove '{name}' or the weights of its sources",
            )
    return _normalised(own | _spread(shared, rest))


def _spread(by_language: Mapping[str, float], sources: Sequence[Available]) -> dict[str, float]:
    """Divide each language's amount among its sources in proportion to ``weight x tokens``."""
    result: dict[str, float] = {}
    for language, amount in by_language.items():
        members = [source for source in sources if source.language == language]
        total = sum(source.weight * source.tokens for source in members)
        for source in members:
            result[source.name] = amount * source.weight * source.tokens / total
    return result


def _normalised(values: Mapping[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total for name, value in values.items()}


def _unimax(config: MixtureConfig, sources: Sequence[Available]) -> dict[str, float]:
    """UniMax (arXiv 2304.09151): languages as equal as their sizes allow.

    Ascending by what a language can give (tokens x epochs), each takes the smaller of that and an
    equal share of what is left of the budget.
    """
    capacity: dict[str, float] = {}
    for source in sources:
        room = source.tokens * maximum_epochs(config, source)
        capacity[source.language] = capacity.get(source.language, 0.0) + room
    left = float(config.total_tokens)
    by_language: dict[str, float] = {}
    for position, name in enumerate(sorted(capacity, key=lambda item: (capacity[item], item))):
        by_language[name] = min(capacity[name], left / (len(capacity) - position))
        left -= by_language[name]
    if left >= 1:
        everything = int(sum(capacity.values()))
        raise ConfigError(
            "the mixture asks for more tokens than all sources have at `max_epochs`",
            where="tokens.mixture.total_tokens",
            got=f"{config.total_tokens:,}",
            expected=f"at most {everything:,}",
            fix="lower total_tokens, raise max_epochs, or add text",
        )
    result: dict[str, float] = {}
    for name, amount in by_language.items():
        members = [source for source in sources if source.language == name]
        rooms = {s.name: s.tokens * maximum_epochs(config, s) for s in members}
        for member in members:
            result[member.name] = amount * rooms[member.name] / sum(rooms.values())
    return result


def _rounded(amounts: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers with the given sum: largest remainders are rounded up."""
    floors = {name: int(amount) for name, amount in amounts.items()}
    missing = total - sum(floors.values())
    order = sorted(amounts, key=lambda name: (floors[name] - amounts[name], name))
    for name in order[:missing]:
        floors[name] += 1
    return floors


def _check_epochs(config: MixtureConfig, sources: Sequence[Available], planned: Mapping[str, int]) -> None:
    lines: list[str] = []
    possible = config.total_tokens
    for source in sources:
        wanted = planned.get(source.name, 0)
        limit = maximum_epochs(config, source)
        # Rounding to whole tokens may exceed the limit by less than one token.
        if wanted <= source.tokens * limit + 1:
            continue
        room = int(source.tokens * limit)
        possible = min(possible, int(room * config.total_tokens / wanted))
        lines.append(
            f"{source.name}: {wanted:,} tokens = {wanted / source.tokens:.2f} epochs of "
            f"{source.tokens:,}; {limit:g} epochs give {room:,}"
        )
    if lines:
        raise ConfigError(
            "the mixture repeats sources more often than `max_epochs` allows",
            where="tokens.mixture",
            got="\n            ".join(lines),
            fix=f"total_tokens of at most {possible:,} at these weights, lower weights for these "
            "sources, a higher max_epochs, or `weights: unimax`",
        )
