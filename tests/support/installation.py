"""A wheel of the tree under test, installed where the checkout cannot be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "data",
    "tokenizer",
    "experiment",
    "pipeline",
    "slurm",
    "evaluation",
    "pretrain",
    "configs",
    "tsugiki",
)
"""Names that a user's own files may have, and that ours have or had."""


def clean_environment() -> dict[str, str]:
    """The environment without what points at the checkout."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "TSUGIKI", "VIRTUAL_ENV"))
    }


def tracked_files() -> list[str]:
    """Files of the tree that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted({name for name in listing.stdout.split("\0") if name and (CHECKOUT / name).is_file()})


def copy_tree(folder: Path) -> Path:
    """A clean copy of the tree: no build folder, no egg-info."""
    for name in tracked_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target)
    return folder


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a clean copy, without network."""
    source = copy_tree(folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--wheel-dir", str(folder / "wheel"), str(source)],
        check=True, timeout=900, env=clean_environment(),
    )  # fmt: skip
    shutil.rmtree(source)
    (wheel,) = (folder / "wheel").glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel in it, and a working directory full of traps."""

    wheel: Path
    venv: Path
    work: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its commands."""
        kept = clean_environment()
        return {**kept, "PATH": f"{self.venv / 'bin'}:{kept['PATH']}", "COLUMNS": "200", "NO_COLOR": "1"}

    def run(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in the working directory."""
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def install(folder: Path) -> Installation:
    """Build the wheel and install it into an environment of its own.

    The other packages are those of the present environment: a .pth file adds its folder to the path without reading the
    .pth files in it, so the editable install of the checkout is not there.
    """
    wheel = build_wheel(folder)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=600)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet",
         "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)],
        check=True, timeout=600, env=clean_environment(),
    )  # fmt: skip
    site = next((venv / "lib").glob("python*/site-packages"))
    present = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "present.pth").write_text("\n".join(present) + "\n")
    work = folder / "work"
    work.mkdir()
    for name in HOSTILE:
        (work / name).mkdir()
        (work / name / "__init__.py").write_text(
            f"raise RuntimeError('{name} of the working directory was imported')\n"
        )
    (work / "experiment.py").write_text("raise RuntimeError('experiment.py was imported')\n")
    (work / "pipeline.py").write_text("raise RuntimeError('pipeline.py was imported')\n")
    # The user's own repository around it all.
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=u", "-c", "user.email=u@h", "commit", "-q", "--allow-empty", "-m", "theirs"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return Installation(wheel, venv, work)


def contents(wheel: Path) -> set[str]:
    """Names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}
