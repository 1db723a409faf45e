"""Settings of every test process, and the order of the files."""

from __future__ import annotations

import os

import pytest

# Several test processes share the cores. With a thread per core in each of them, torch's threads wait for one
# another: a test of two seconds then takes minutes. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = (
    "test_slurm_submit", "test_slurm_jobs", "test_recipes_tiny", "test_train_survival", "test_smoke", "test_train_layouts",
    "test_slurm_accounting", "test_rank_failures", "test_train_observed", "test_wheel", "test_slurm_wheel", "test_slurm_tokens",
    "test_train_anomalies", "test_train_reference", "test_plan_measured", "test_train_phases", "test_tokenizer_stage",
    "test_evaluation_benchmark_harness", "test_plan_memory", "test_convert_megatron", "test_layout_property",
    "test_tokenizer_word_lists", "test_tokens_stage", "test_training", "test_distill", "test_how_to_add",
)  # fmt: skip
"""Files that take the longest: first, so that none of them runs alone at the end. Tests of a real Slurm mostly wait:
the two longest of them come at the very beginning, beside them others use the cores. Hence `make test` has two
processes more than a small machine has cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first (`--no-loadscope-reorder` keeps that order among processes)."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
