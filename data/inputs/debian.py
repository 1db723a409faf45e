"""Text from Debian packages: ``debian:<package>/<glob inside the package>``.

A package is fetched with ``apt-get download`` and unpacked with ``dpkg-deb -x`` into a cache
folder; neither needs root. The cache is ``$TSUGIKI_CACHE`` or ``~/.cache/tsugiki``, below it
``debian/<package>/``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, EnvironmentError_

SCHEME = "debian:"
_OWN_TEXT = (
    "use your own text instead: set `format: text` (or html, jsonl) and `path: /folder/**/*.txt` "
    "in `corpus.sources`, or unpack the package elsewhere and name its folder"
)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")


def cache_folder() -> Path:
    """Folder of unpacked packages."""
    root = os.environ.get("TSUGIKI_CACHE") or "~/.cache/tsugiki"
    return expand_path(root) / "debian"


def split_path(path: str) -> tuple[str, str]:
    """Package and glob of a ``debian:`` path.

    Raises:
        ConfigError: no package name, or nothing behind it.
    """
    package, _, inside = path.removeprefix(SCHEME).partition("/")
    if not _PACKAGE.fullmatch(package) or not inside:
        raise ConfigError(
            "malformed path of a Debian package",
            got=path,
            expected="debian:<package>/<glob inside the package>",
        )
    return package, inside


def unpacked(package: str) -> Path:
    """Folder with the contents of a package, downloaded and unpacked unless cached.

    Raises:
        EnvironmentError_: apt is not there, knows no such package or cannot reach its server.
    """
    target = cache_folder() / package
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise EnvironmentError_(
                f"the source is the Debian package {package}, but this machine has no {tool}",
                expected=f"{tool}, or the unpacked package at {target}",
                fix=_OWN_TEXT,
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=target.parent) as scratch:
            _download(package, Path(scratch))
            archive = next(Path(scratch).glob("*.deb"))
            contents = Path(scratch) / "contents"
            _checked(["dpkg-deb", "-x", str(archive), str(contents)], package, None)
            try:
                contents.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was quicker
                    raise
    except OSError as error:
        raise EnvironmentError_(
            "cannot write the package cache",
            where=target.parent,
            got=error,
            fix="set TSUGIKI_CACHE to a folder with space",
        ) from error
    return target


def _download(package: str, folder: Path) -> None:
    # apt's sandbox user may not enter the folder; as root it then warns and downloads anyway.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
    result = _run(command, folder)
    if result.returncode != 0:
        # The package lists are empty (a fresh container) or older than the archive: get new ones, without
        # root into a folder of our own.
        private = [] if _is_root() else _private_lists(folder)
        _run(["apt-get", *private, "update", "-q"], folder)
        result = _run([command[0], *private, *command[1:]], folder)
    if result.returncode != 0 or not any(folder.glob("*.deb")):
        raise _failed(command, package, result)


def _private_lists(folder: Path) -> list[str]:
    """Options that make apt keep its package lists below ``folder``."""
    lists, caches = folder / "lists", folder / "cache"
    for path in (lists / "partial", caches / "archives" / "partial"):
        path.mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={caches}", "-o", "Debug::NoLocking=true"]


def _checked(command: list[str], package: str, folder: Path | None) -> None:
    result = _run(command, folder)
    if result.returncode != 0:
        raise _failed(command, package, result)


def _failed(command: list[str], package: str, result: subprocess.CompletedProcess[str]) -> EnvironmentError_:
    lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
    return EnvironmentError_(
        f"cannot get the Debian package {package}",
        where=" ".join(command[:2]),
        got=lines[-1] if lines else f"exit status {result.returncode}",
        fix=f"run `apt-get update` as root and try again, or {_OWN_TEXT}",
    )


def _run(command: list[str], folder: Path | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
