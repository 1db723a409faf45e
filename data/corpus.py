"""The corpus stage: raw sources to clean, deduplicated shards with a held-out split and a report.

Passes, each over independent tasks with completion markers, so that a killed run continues:

1. ``filter``: read, extract, identify the language, apply the quality profile; per shard.
2. ``exact``: find repeated texts and addresses; per language.
3. ``signatures``, ``buckets``, ``clusters``: MinHash; per shard, per bucket, per language.
4. ``heldout``: choose the held-out documents; per source.
5. ``write``: drop duplicates, write the shards.

What is done depends on the files and the configuration only, never on the number of workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.executor import (
    INLINE_BELOW_BYTES,
    ProcessExecutor,
    ShardProgress,
    Stopwatch,
    available_workers,
)
from tsugiki.data.common.jsonl_shards import ShardWriter
from tsugiki.data.common.segmentation import Segmentation, default_segmentation
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats, StatsBySource
from tsugiki.data.common.workspace import Workspace, open_work
from tsugiki.data.config import CorpusConfig, SourceConfig
from tsugiki.data.dedup.decontamination import Contamination, load_contamination
from tsugiki.data.dedup.exact import FindExactDuplicates, Groups
from tsugiki.data.dedup.heldout import SelectHeldout
from tsugiki.data.dedup.line_dedup import FindRepeatedLines
from tsugiki.data.dedup.minhash import Buckets, Clusters, Signatures
from tsugiki.data.filters.language import require_model
from tsugiki.data.formatters.pii import masked
from tsugiki.data.inputs.planning import plan_fingerprint, plan_shards
from tsugiki.data.passes.filter import FilterShards
from tsugiki.data.passes.finalise import FinaliseShards, shard_paths
from tsugiki.data.passes.own_steps import check_steps
from tsugiki.data.profiles import Profile, load_profile
from tsugiki.data.report.corpus_report import CorpusReport, write_report
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import atomic_file, read_json
from tsugiki.experiment.run.stage import StageContext, StageResult


def run(
    config: CorpusConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Build the corpus.

    Args:
        config: the corpus section.
        inputs: none.
        output_dir: gets the shards, ``index.json``, ``report.json`` and ``report.html``; ``.work``
            below it holds intermediate files and lets a killed run continue.
        context: workers and tracking.

    Raises:
        ConfigError: a source without files, an unknown profile, a missing evaluation set or model.
        DataError: bad input with ``on_error: fail``; a source with no document left.
        EnvironmentError_: a full disk, a killed worker, a Debian package that cannot be had.
    """
    profiles = load_profiles(config)
    contamination = check_inputs(config)
    shards = plan_shards(config)
    workspace = open_workspace(config, profiles, shards, output_dir)
    stages = _Passes(config, shards, profiles, workspace, context)
    stages.run_all(output_dir)
    stats_by_source = _collect(config, shards, workspace)
    index = _index(config, shards, stats_by_source, output_dir)
    _require_documents(config, index, stats_by_source)
    _write_dropped(config, stats_by_source, output_dir)
    _write_contamination(config, stats_by_source, output_dir)
    index.save(output_dir)
    report = CorpusReport.build(config, profiles, stats_by_source, stages.watch.seconds, contamination)
    artifacts = write_report(report, output_dir)
    return StageResult(
        counts=report.totals(), metrics=report.metrics(), artifacts=artifacts, summary=report.summary()
    )


def load_profiles(config: CorpusConfig) -> dict[str, Profile]:
    """Quality profile of each source that is filtered, by source name."""
    return {
        source.name: load_profile(source.profile or source.language, config.profile_folders)
        for source in config.sources
        if source.filter and source.kind == "text"
    }


def check_inputs(config: CorpusConfig) -> Contamination | None:
    """What the later passes need is there: asked before the hours of the first one.

    Returns:
        The evaluation sets, None where there are none.

    Raises:
        ConfigError: no such evaluation set or model; a step of the user's own that cannot be made.
        DataError: an evaluation set cannot be read.
    """
    check_steps(config)
    identification, sets = config.language_identification, config.decontamination
    if identification.enabled and identification.model is not None:
        require_model(identification.model)
    return load_contamination(tuple(sets.paths), sets.ngram_characters) if sets.paths else None


class _Passes:
    """Runs the passes in order."""

    def __init__(
        self,
        config: CorpusConfig,
        shards: list[Shard],
        profiles: dict[str, Profile],
        workspace: Workspace,
        context: StageContext,
    ) -> None:
        self.config = config
        self.shards = shards
        self.profiles = profiles
        self.workspace = workspace
        self.watch = Stopwatch()
        self.input_bytes = sum(shard.size_bytes for shard in shards)
        self.workers = available_workers(context.workers, self.input_bytes)
        sources = {source.name: source for source in config.sources}
        self.groups: Groups = {}
        for shard in shards:
            self.groups.setdefault(_group(sources[shard.source]), []).append(shard)

    def run_all(self, output_dir: Path) -> None:
        """All passes; those that are complete are skipped by their markers."""
        config, shards, workspace, groups = self.config, self.shards, self.workspace, self.groups
        self._run("filter", FilterShards(config, shards, self.profiles, workspace), len(shards), shards)
        self._run("exact", FindExactDuplicates(config, groups, workspace), len(groups))
        if config.deduplication.line_dedup.enabled:
            find = FindRepeatedLines(config, shards, workspace)
            self._run("line_dedup", find, len(config.sources))
        near = self._minhash_groups()
        if near:
            order = [shard for group in sorted(near) for shard in near[group]]
            segmentations = {group: self._segmentation(near[group]) for group in near}
            signatures = Signatures(config, near, segmentations, workspace)
            self._run("signatures", signatures, len(order), order)
            buckets = Buckets(config, near, workspace, together=self.input_bytes < INLINE_BELOW_BYTES)
            self._run("buckets", buckets, len(buckets.tasks))
            self._run("clusters", Clusters(config, near, workspace), len(near))
        self._run("heldout", SelectHeldout(config, shards, groups, workspace), len(config.sources))
        finalise = FinaliseShards(config, shards, workspace, output_dir)
        self._run("write", finalise, len(shards), shards)

    def _run(self, name: str, step: PipelineStep, tasks: int, shards: Sequence[Shard] | None = None) -> None:
        start = time.monotonic()
        executor = ProcessExecutor([step], tasks, self.workers, self.workspace.logs(name), f"corpus {name}")
        if shards is None:
            executor.run()
        else:
            megabytes = [shard.size_bytes / 1e6 for shard in shards]
            documents = partial(self._read if name == "filter" else self._filtered, shards)
            with ShardProgress(f"corpus {name}", megabytes, documents) as progress:
                executor.run(progress.finished)
        self.watch.measure(name, start)

    def _read(self, shards: Sequence[Shard], rank: int) -> int:
        count: int = read_json(self.workspace.stats("filtered", shards[rank]))["read"]["documents"]
        return count

    def _filtered(self, shards: Sequence[Shard], rank: int) -> int:
        return len(np.load(self.workspace.keys(shards[rank]), mmap_mode="r"))

    def _minhash_groups(self) -> Groups:
        if not self.config.deduplication.minhash.enabled:
            return {}
        return {name: shards for name, shards in self.groups.items() if "+" not in name}

    def _segmentation(self, shards: list[Shard]) -> tuple[Segmentation, float]:
        for shard in shards:
            if (profile := self.profiles.get(shard.source)) is not None:
                return profile.segmentation, profile.units_per_word
        language = next(s.language for s in self.config.sources if s.name == shards[0].source)
        return default_segmentation(language)


def _group(source: SourceConfig) -> str:
    """Documents are compared within a language; rendered pairs and chats among themselves."""
    return source.language if source.kind == "text" else f"{source.language}+{source.kind}"


def open_workspace(
    config: CorpusConfig, profiles: Mapping[str, Profile], shards: list[Shard], output_dir: Path
) -> Workspace:
    """The folder of intermediate files; what another plan left there is removed."""
    return Workspace(open_work(output_dir, plan_fingerprint(config, profiles, shards)))


def _collect(config: CorpusConfig, shards: list[Shard], workspace: Workspace) -> StatsBySource:
    """Per source, the counts of the first and of the last pass, shards added up."""
    limit = config.dropped_samples
    result = {source.name: (DocumentStats(limit), DocumentStats(limit)) for source in config.sources}
    for shard in shards:
        for phase, total in zip(("filtered", "final"), result[shard.source], strict=True):
            total.merge(DocumentStats.from_json(read_json(workspace.stats(phase, shard)), limit))
    if config.pii.enabled:  # what was dropped was so before masking
        kinds = tuple(config.pii.kinds)
        for source in config.sources:
            for stats in result[source.name]:
                stats.change_samples(partial(masked, language=source.language, kinds=kinds))
    return result


def _index(
    config: CorpusConfig,
    shards: list[Shard],
    stats_by_source: StatsBySource,
    output_dir: Path,
) -> CorpusIndex:
    entries: list[CorpusSource] = []
    for source in config.sources:
        paths = [shard_paths(output_dir, shard) for shard in shards if shard.source == source.name]
        counters = stats_by_source[source.name][1].counters
        entries.append(
            CorpusSource(
                name=source.name,
                language=source.language,
                kind=source.kind,
                weight=source.weight,
                train=[str(path.relative_to(output_dir)) for path, _ in paths if path.exists()],
                heldout=[str(path.relative_to(output_dir)) for _, path in paths if path.exists()],
                **{
                    key: counters.get(key, 0)
                    for key in ("train_documents", "train_bytes", "heldout_documents", "heldout_bytes")
                },
            )
        )
    return CorpusIndex(sources=entries)


def _require_documents(config: CorpusConfig, index: CorpusIndex, stats_by_source: StatsBySource) -> None:
    if config.allow_empty:
        return
    for entry in index.sources:
        if entry.train_documents:
            continue
        first, last = stats_by_source[entry.name]
        dropped = {**first.dropped, **last.dropped}
        ranking = sorted(dropped.items(), key=lambda item: (-item[1].documents, item[0]))[:3]
        reasons = ", ".join(f"{rule} {count.documents}" for rule, count in ranking)
        raise DataError(
            f"no documents of source '{entry.name}' are left after filtering",
            where=f"corpus.sources.{entry.name}",
            got=f"{first.read.documents} documents read; removed by {reasons or 'nothing'}",
            expected=f"at least one document in language '{entry.language}'",
            fix="check `language` and `reader.text_key`, relax the profile, or set `filter: false`; "
            "corpus.allow_empty=true goes on without it",
        )


def _write_contamination(config: CorpusConfig, stats_by_source: StatsBySource, output_dir: Path) -> None:
    """Every overlap with an evaluation set, one JSON object a line."""
    if not config.decontamination.paths:
        return
    with atomic_file(output_dir / "contamination.jsonl") as file:
        for source in config.sources:
            for hit in stats_by_source[source.name][1].hits:
                line = json.dumps({"source": source.name, **hit}, ensure_ascii=False)
                file.write(line.encode() + b"\n")


def _write_dropped(config: CorpusConfig, stats_by_source: StatsBySource, output_dir: Path) -> None:
    for source in config.sources:
        samples = [record for stats in stats_by_source[source.name] for record in stats.samples()]
        with ShardWriter(output_dir / source.name / "dropped.jsonl.zst") as writer:
            for record in samples:
                about = {key: value for key, value in record.items() if key not in ("id", "text")}
                writer.write(record["id"], record["text"], about)
