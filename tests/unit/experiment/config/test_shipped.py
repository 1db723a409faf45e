"""What ships is found by name wherever one is, and what lies in the working directory neither hides it nor stands for it."""

import subprocess
from pathlib import Path

import pytest

from tsugiki.experiment.config import shipped
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run import manifest
from tsugiki.slurm.config import load_cluster


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("name: mine\n")


def test_a_folder_of_ones_own_called_configs_hides_no_shipped_experiment():
    write("configs/mine.yaml")
    assert shipped.experiment_path(Path("mine")) == Path("configs/mine.yaml")
    assert shipped.experiment_path(Path("smoke")) == shipped.shipped_folder("configs") / "smoke.yaml"


def test_a_folder_of_ones_own_called_clusters_hides_no_shipped_cluster():
    write("configs/clusters/mine.yaml")
    assert load_cluster("mine")[0].name == "mine"
    assert load_cluster("local")[0].name == "local"


def test_ones_own_file_of_a_shipped_name_goes_first():
    write("configs/recipes/swallow-7b.yaml")
    assert shipped.experiment_path(Path("swallow-7b")) == Path("configs/recipes/swallow-7b.yaml")


def test_a_folder_of_the_name_is_no_experiment():
    Path("smoke").mkdir()
    assert shipped.experiment_path(Path("smoke")).name == "smoke.yaml"


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean swallow-7b-nve"):
        shipped.experiment_path(Path("swallow-7b-nev"))


def test_the_revision_is_ours_or_none(tmp_path, monkeypatch):
    """A wheel, or a copy without .git, may lie inside a repository of the user's."""
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(
        ["git", "-c", "user.name=u", "-c", "user.email=u@h", "commit", "-q", "--allow-empty", "-m", "theirs"],
        check=True,
    )
    package = tmp_path / "env" / "site-packages" / "tsugiki"
    package.mkdir(parents=True)
    revision = manifest.git_revision.__wrapped__
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert revision() is None
    write(package / "setup.py")  # a copy of the tree
    (package / "tsugiki").mkdir()
    assert revision() is None
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    write("setup.py")
    (tmp_path / "tsugiki").mkdir()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert revision() == head
