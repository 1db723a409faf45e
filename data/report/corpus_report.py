"""``report.json`` and ``report.html`` of the corpus: what was removed, by which rule, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data.common.stats import DocumentStats, StatsBySource
from tsugiki.data.config import CorpusConfig, SourceConfig
from tsugiki.data.dedup.decontamination import Contamination
from tsugiki.data.filters.base import ordered_filters
from tsugiki.data.profiles import Profile
from tsugiki.data.report.corpus_page import TEMPLATE, corpus_page
from tsugiki.experiment.files import atomic_file, write_json_atomically
from tsugiki.experiment.pages.page import render

_NOT_IN_METRICS = re.compile(r"[^\w. :/-]")


@dataclass(frozen=True)
class CorpusReport:
    """Numbers of the corpus stage.

    Attributes:
        values: what ``report.json`` holds.
    """

    values: dict[str, Any]

    @classmethod
    def build(
        cls,
        config: CorpusConfig,
        profiles: dict[str, Profile],
        stats_by_source: StatsBySource,
        seconds: dict[str, float],
        contamination: Contamination | None = None,
    ) -> CorpusReport:
        """Put together the counts of all sources."""
        sources = []
        for source in config.sources:
            first, last = stats_by_source[source.name]
            sources.append(
                {
                    "name": source.name,
                    "language": source.language,
                    "kind": source.kind,
                    "read": vars(first.read),
                    "offered": first.read.documents * _directions(source),
                    "extracted": vars(first.extracted),
                    "filtered": vars(first.kept),
                    "kept": vars(last.kept),
                    "train": _pair(last, "train"),
                    "heldout": _pair(last, "heldout"),
                    "dropped": {
                        rule: vars(count)
                        for stats in (first, last)
                        for rule, count in sorted(stats.dropped.items())
                    },
                    "counters": {
                        name: value
                        for name, value in sorted((first.counters | last.counters).items())
                        if not name.startswith(("train_", "heldout_"))
                    },
                    "histograms": first.histograms | last.histograms,
                    "contamination": _hits(last),
                    "limits": _limits(config, profiles.get(source.name)),
                    "seconds": {name: round(value, 3) for name, value in first.seconds.items()},
                    "samples": [*first.samples(), *last.samples()],
                }
            )
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        values = {"schema_version": 1, "sources": sources, "seconds": rounded}
        if contamination is not None:
            values["evaluation"] = {"items": len(contamination.items), "too_short": contamination.too_short}
        return cls(values)

    def totals(self) -> dict[str, int]:
        """Counts for the manifest."""
        sources = self.values["sources"]
        return {
            f"{part}_{unit}": sum(source[part][unit] for source in sources)
            for part in ("read", "extracted", "kept", "train", "heldout")
            for unit in ("documents", "bytes")
        }

    def metrics(self) -> dict[str, float]:
        """The same numbers for tracking, by source and rule."""
        result: dict[str, float] = {}
        for source in self.values["sources"]:
            name = source["name"]
            for part in ("read", "extracted", "kept", "train", "heldout"):
                result[f"corpus/{name}/{part}_documents"] = source[part]["documents"]
                result[f"corpus/{name}/{part}_bytes"] = source[part]["bytes"]
            for rule, count in source["dropped"].items():
                shown = _NOT_IN_METRICS.sub("_", rule)  # an evaluation set's file may be called anything
                result[f"corpus/{name}/dropped/{shown}"] = count["documents"]
                result[f"corpus/{name}/dropped_bytes/{shown}"] = count["bytes"]
            for counter, value in source["counters"].items():
                result[f"corpus/{name}/{counter}"] = value
        for key, value in self.values.get("evaluation", {}).items():
            result[f"corpus/evaluation/{key}"] = value
        return result

    def summary(self) -> tuple[str, ...]:
        """One line per source."""
        lines = []
        for source in self.values["sources"]:
            worst = sorted(source["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))
            reasons = ", ".join(f"{rule} {count['documents']:,}" for rule, count in worst[:3])
            lines.append(
                f"{source['name']}: kept {source['kept']['documents']:,} of "
                f"{source['offered']:,} documents, {source['kept']['bytes'] / 1e6:,.2f} MB, "
                f"{source['heldout']['documents']:,} held out"
                + (f"; dropped by {reasons}" if reasons else "")
            )
        return tuple(lines)


def _limits(config: CorpusConfig, profile: Profile | None) -> dict[str, str]:
    """What a profile lets through, in words, by histogram."""
    result: dict[str, str] = {}
    for entry in ordered_filters():
        section = getattr(profile, entry.name, None)
        for histogram in entry.facts.get("histograms", ()):
            parts = [
                f"{word} {value:g}"
                for word, name in (("at least", histogram.least), ("at most", histogram.most))
                if name is not None and (value := getattr(section, name, None)) is not None
            ]
            if parts:
                result[histogram.name] = ", ".join(parts)
    identification = config.language_identification
    if profile is not None and profile.language_identification is not None:
        if identification.minimum_score is not None:
            result["language_share"] = f"at least {identification.minimum_score:g}"
        elif identification.model is not None:
            result["language_share"] = f"at least {profile.language_identification.minimum_probability:g}"
    return result


def _directions(source: SourceConfig) -> int:
    """Documents that one record becomes."""
    return 2 if source.parallel is not None and source.parallel.both_directions else 1


def _hits(stats: DocumentStats) -> dict[str, dict[str, int]]:
    """Per evaluation set: hits, and how many of its items and of the documents they are in."""
    sets = sorted({hit["evaluation_set"] for hit in stats.hits})
    result = {}
    for name in sets:
        hits = [hit for hit in stats.hits if hit["evaluation_set"] == name]
        result[name] = {
            "hits": len(hits),
            "items": len({hit["item"] for hit in hits}),
            "documents": len({hit["id"] for hit in hits}),
        }
    return result


def _pair(stats: DocumentStats, split: str) -> dict[str, int]:
    return {
        "documents": stats.counters.get(f"{split}_documents", 0),
        "bytes": stats.counters.get(f"{split}_bytes", 0),
    }


def write_report(report: CorpusReport, output_dir: Path) -> tuple[str, ...]:
    """Write both files; returns their names."""
    write_json_atomically(output_dir / "report.json", report.values, indent=None, errors="replace")
    with atomic_file(output_dir / "report.html") as file:
        file.write(render(corpus_page(report.values), TEMPLATE))
    return ("report.json", "report.html")
