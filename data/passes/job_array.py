"""The first pass of the corpus stage as work for a job array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from tsugiki.data.config import CorpusConfig
from tsugiki.data.corpus import check_inputs, load_profiles, open_workspace
from tsugiki.data.inputs.planning import plan_shards
from tsugiki.data.passes.filter import FilterShards


@dataclass(frozen=True)
class FilterPass:
    """A datatrove step with independent tasks.

    Attributes:
        step: the step; task ``rank`` filters shard ``rank``.
        tasks: number of shards.
        logging_dir: where completion markers go; the stage looks there for tasks that are done.
    """

    step: PipelineStep
    tasks: int
    logging_dir: Path


def filter_pass(config: CorpusConfig, output_dir: Path) -> FilterPass:
    """The first pass of :func:`tsugiki.data.corpus.run` over the same working folder.

    Args:
        config: the corpus section.
        output_dir: the stage's partial directory.

    Raises:
        ConfigError: a source without files, an unknown profile.
    """
    profiles = load_profiles(config)
    check_inputs(config)
    shards = plan_shards(config)
    workspace = open_workspace(config, profiles, shards, output_dir)
    step = FilterShards(config, shards, profiles, workspace)
    return FilterPass(step, len(shards), workspace.logs("filter"))
