"""What a user has who installs the wheel anywhere: nothing of the checkout, and nothing of theirs in the way."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from installation import (
    CHECKOUT,
    Installation,
    clean_environment,
    contents,
    copy_tree,
    install,
    tracked_files,
)

ROOMS = (
    "tsugiki",
    "data",
    "tokenizer",
    "pretrain",
    "evaluation",
    "experiment",
    "slurm",
    "configs",
    "tests/fixtures",
)
# One process, a few steps, one language to learn: everything that starts a process is still started.
SHORT = [
    "base.scratch.train_tokens=1024", "tokens.mixture.total_tokens=2048", "train.parallel={data: 2}",
    "evaluate.maximum_bytes_per_language=300",
    "train.save_interval_steps=2", "train.validation_interval_steps=2", "tokenizer.extend.size=64",
    "tokenizer.extend.languages={ja: 1, th: 1}",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(tmp_path_factory.mktemp("wheel"))


def in_package(name: str) -> str:
    """Where a tracked file of a room lies in the wheel."""
    name = name.removeprefix("tests/")
    return name if name.startswith("tsugiki/") else f"tsugiki/{name}"


def test_the_wheel_holds_the_rooms_and_nothing_else(installed: Installation) -> None:
    found = contents(installed.wheel)
    outside = {name for name in found if not name.startswith(("tsugiki/", "tsugiki-0.1.0.dist-info/"))}
    assert outside == set()
    expected = {
        in_package(name) for name in tracked_files() if name.startswith(tuple(f"{room}/" for room in ROOMS))
    }
    assert {name for name in found if name.startswith("tsugiki/")} == expected
    kinds = {Path(name).suffix for name in expected}
    assert {".py", ".yaml", ".json", ".jsonl", ".jinja", ".sh", ".sbatch", ".typed"} <= kinds


def test_what_is_imported_is_installed(installed: Installation) -> None:
    code = "import tsugiki, tsugiki.data, tsugiki.experiment; print(tsugiki.__file__, tsugiki.data.__file__, list(tsugiki.__path__))"
    answer = installed.run("python", "-P", "-c", code)
    assert answer.returncode == 0, answer.stderr
    assert str(CHECKOUT) not in answer.stdout
    assert answer.stdout.count(str(installed.venv)) == 3


def test_doctor(installed: Installation) -> None:
    answer = installed.run("tsugiki", "doctor")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert str(CHECKOUT) not in answer.stdout
    scripts = re.findall(r"`bash (\S+) DIR`", answer.stdout)
    assert all((installed.work / script).is_file() for script in scripts), (
        "it names a script that is not there"
    )


def test_plan_of_a_shipped_recipe(installed: Installation) -> None:
    answer = installed.run("tsugiki", "plan", "swallow-7b", "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert json.loads(answer.stdout)


def test_a_whole_run_and_where_it_says_it_comes_from(installed: Installation) -> None:
    answer = installed.run("tsugiki", "run", "smoke", *(f"--set={item}" for item in SHORT))
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-6000:]
    run_dir = installed.work / "runs" / "smoke"
    assert (run_dir / "report" / "index.html").is_file()
    theirs = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=installed.work, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert theirs
    for file in run_dir.glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        assert manifest["git_revision"] is None, f"{manifest['git_revision']} is of the user's repository"
        assert manifest["versions"]["tsugiki"] == "0.1.0"


def test_metadata(installed: Installation) -> None:
    (file,) = installed.venv.glob("lib/python*/site-packages/tsugiki-*.dist-info/METADATA")
    metadata = email.message_from_string(file.read_text(encoding="utf-8"))
    assert metadata["Name"] == "tsugiki"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Graft" in str(metadata.get_payload()) or "graft" in str(metadata.get_payload())


def test_a_checkout_on_the_path_is_enough(installed: Installation, tmp_path: Path) -> None:
    """A container with the dependencies alone: PYTHONPATH=<checkout>; what else is installed does not matter."""
    for command in (
        ["-P", "-m", "tsugiki", "plan", "swallow-7b"],
        ["-P", "-c", "import tsugiki.data as d; print(d.__file__)"],
    ):
        answer = subprocess.run(
            [str(installed.python), *command], cwd=installed.work, capture_output=True, text=True, check=False,
            env={**installed.environment, "PYTHONPATH": str(CHECKOUT)}, timeout=600,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(CHECKOUT / "data" / "__init__.py")


def test_source_distribution(tmp_path: Path) -> None:
    """It holds what a wheel is built from: a wheel made of it has the same files."""
    source = copy_tree(tmp_path / "source")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-P", "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True,
        env=clean_environment(),
    )  # fmt: skip
    (archive,) = tmp_path.glob("tsugiki-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {os.path.relpath(name, archive.name.removesuffix(".tar.gz")) for name in opened.getnames()}
    needed = {name for name in tracked_files() if name.startswith(tuple(f"{room}/" for room in ROOMS))}
    assert {*needed, "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
