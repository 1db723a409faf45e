"""The container files against what they install: nothing of the package left out, the pinned sets, no root."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "slurm" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (FOLDER / "tsugiki.def").read_text(encoding="utf-8")


def section(name: str) -> list[str]:
    """Lines of a section of the Apptainer definition."""
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def test_apptainer_copies_what_the_package_is_made_of() -> None:
    rooms = re.search(
        r"ROOMS = {(.*?)^}", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert rooms is not None
    needed = {name for name in re.findall(r'"([\w/]+)"', rooms[1]) if (ROOT / name).is_dir()}
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    needed |= {path.name for path in ROOT.glob("constraints-*.txt")}
    copied = [line.split() for line in section("files")]
    assert {source for source, _ in copied} == needed
    for source, target in copied:
        assert (ROOT / source).exists()
        assert Path(target) == Path("/opt/tsugiki/source") / Path(source).parent


def test_both_are_made_alike() -> None:
    """Same base, same packages of the system, same script, whose options exist."""
    assert re.findall(r"^ARG BASE=docker.io/library/(\S+)", DOCKERFILE, re.MULTILINE) == [
        line.removeprefix("BASE=") for line in section("arguments") if line.startswith("BASE=")
    ]
    install = r"apt-get install -y --no-install-recommends ((?:[a-z0-9+-]+ ?)+[a-z0-9])"
    assert re.findall(install, DOCKERFILE) == re.findall(install, DEFINITION) != []
    called = r"bash /opt/tsugiki/source/(slurm/environment.sh) /opt/tsugiki/venv \S+"
    assert [match for text in (DOCKERFILE, DEFINITION) for match in re.findall(called, text)] == [
        "slurm/environment.sh"
    ] * 2
    flags = re.search(r"^ARG FLAGS=(.*)", DOCKERFILE, re.MULTILINE)
    assert flags is not None and f"FLAGS={flags[1]}" in section("arguments")
    answer = subprocess.run(
        ["bash", ROOT / "slurm" / "environment.sh", "/nowhere/venv", flags[1], "--dry-run"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0 and "-c" in answer.stdout and "constraints-py3" in answer.stdout, (
        answer.stderr
    )


def test_the_image_runs_without_root_and_without_what_lies_around() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users == ["tsugiki"] and f"--uid 1000 {users[0]}" in DOCKERFILE
    assert DOCKERFILE.index(
        "RUN bash" if "RUN bash" in DOCKERFILE else "environment.sh /opt"
    ) < DOCKERFILE.index("USER")
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv*", "runs"} <= set(ignored)
    needed = [line.split()[0] for line in section("files")]
    assert not [name for name in needed if name in ignored]
