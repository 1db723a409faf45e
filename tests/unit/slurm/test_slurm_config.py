"""Cluster files: defaults, layers of resources, errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.stage_names import STAGE_NAMES
from tsugiki.pipeline import load_experiment
from tsugiki.slurm.config import ClusterConfig, Resources, load_cluster, split_overrides

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "configs" / "clusters").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_valid(path: Path) -> None:
    assert load_cluster(str(path))[0].name


def test_template_says_the_defaults_and_its_examples_are_valid(tmp_path: Path) -> None:
    text = next(path for path in SHIPPED if path.stem == "template").read_text()
    template = load_cluster(str(_write(tmp_path, text)))[0]
    assert template.restart == ClusterConfig().restart
    assert template.resources("train") == Resources(time_limit_hours=24)
    # every commented line uncommented, but for the second of the two containers
    head, _, tail = text.partition("  # container:\n  #   kind: pyxis")
    rest = tail[tail.index("\nrestart:") :]
    lines = [re.sub(r"^(\s+)# ", r"\1", line) for line in (head + rest).splitlines()]
    full = load_cluster(str(_write(tmp_path, "\n".join(lines))))[0]
    assert full.resources("train").nodes == 4
    assert full.resources("export").memory == "512G"
    assert full.environment.container is not None
    assert full.arrays["corpus"].tasks == 64


def _write(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_resources_go_from_the_general_to_the_special() -> None:
    site = ClusterConfig.model_validate(
        {
            "common": {"partition": "any", "time_limit_hours": 2, "memory": "1G"},
            "cpu": {"partition": "cpu"},
            "train": {"partition": "gpu", "nodes": 4, "gpus_per_node": 8},
            "stages": {"export": {"memory": "512G"}},
        }
    )
    assert site.resources("corpus").partition == "cpu"
    assert site.resources("evaluate").partition == "any"
    assert (site.resources("export").partition, site.resources("export").memory) == ("cpu", "512G")
    train = site.resources("train")
    assert (train.memory, train.time_limit_minutes, train.processes) == ("1G", 120, 32)


@pytest.mark.parametrize(("hours", "minutes"), [(24, 1440), (0.5, 30), (1 / 60, 1), (0.001, 1), (1.999, 120)])
def test_time_limit_is_rounded_up_to_minutes(hours: float, minutes: int) -> None:
    assert Resources(time_limit_hours=hours).time_limit_minutes == minutes


def test_unknown_cluster_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster("gpuu")
    assert "gpu, local, template" in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrong_value_names_file_and_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "name: x\ntrain:\n  gpu_per_node: 8\n")
    with pytest.raises(ConfigError) as caught:
        load_cluster(str(path))
    assert f"{path}:3" in str(caught.value)
    assert "did you mean 'gpus_per_node'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("stages:\n  eval: {nodes: 1}\n", 1, "stages among corpus, base, tokenizer, "),
        ("common:\n  time_limit_hours: 24:00:00\n", 2, "hours as a number up to 744 (31 days): 24, not 24:00:00"),
        ('common:\n  time_limit_hours: "1:30:00"\n', 2, "hours as a number up to 744"),
        ("cpu: {time_limit_hours: 0.1}\nrestart: {stop_seconds_before_limit: 360}\n", None, "it is 360 s, the limit"),
    ],
)  # fmt: skip
def test_slips_are_refused_with_what_is_expected(
    text: str, line: int | None, message: str, tmp_path: Path
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(str(path))
    assert f"{path}:{line}\n" in str(caught.value) if line else str(path) in str(caught.value)
    assert message in str(caught.value)


def test_stages_are_those_of_the_pipeline() -> None:
    graph = load_experiment(ROOT / "configs/smoke.yaml").graph()
    assert tuple(graph.stages) == tuple(name for name in STAGE_NAMES if name != "reference")


@pytest.mark.parametrize(("written", "memory"), [("0", "0"), ("64000", "64000"), ("64G", "64G")])
def test_memory_needs_no_quotes(written: str, memory: str, tmp_path: Path) -> None:
    site = load_cluster(str(_write(tmp_path, f"common: {{memory: {written}}}\n")))[0]
    assert site.resources("train").memory == memory


def test_overrides_of_the_cluster_file_carry_a_prefix() -> None:
    ours, theirs = split_overrides(["train.micro_batch=2", "cluster.train.nodes=4"])
    assert (ours, theirs) == (["train.micro_batch=2"], ["cluster.train.nodes=4"])
    assert load_cluster("gpu", theirs)[0].resources("train").nodes == 4
