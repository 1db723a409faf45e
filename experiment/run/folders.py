"""Folders that may hold what is not ours: whether one is, and removing one so that a kill leaves it recognisable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.manifest import MANIFEST_NAME

KEY_NAME = ".key.json"
"""File of an unfinished stage: what decides its output, and the sign that the folder is ours."""
_MARKS = (KEY_NAME, MANIFEST_NAME)


def refuse_foreign_stage(directory: Path, name: str) -> None:
    """Refuse the folder of a finished stage when no manifest in it says that we made it.

    A folder without any content passes; so does one whose files are damaged, which the stage then replaces.

    Raises:
        ConfigError: it is a file, a link that leads nowhere, or has content and no manifest of this stage.
    """
    if not _has_content(directory, f"the folder of stage '{name}'") or _is_stage(directory, name):
        return
    raise ConfigError(
        f"the folder of stage '{name}' was not made by Tsugiki, and would be replaced",
        where=directory,
        got=f"a folder with content, without a {MANIFEST_NAME} of this stage",
        expected="no such folder, or one that an earlier run of this experiment made",
        fix="give another run_dir, or move the folder away",
    )


def refuse_foreign_partial(partial: Path, name: str) -> None:
    """Refuse the folder of an unfinished stage when it lacks the key by which we know it.

    Raises:
        ConfigError: it is a file, a link that leads nowhere, or has content and no key file.
    """
    what = f"the folder of stage '{name}' while it is unfinished"
    if not _has_content(partial, what) or (partial / KEY_NAME).is_file() or _is_stage(partial, name):
        return
    if all(
        entry.name.startswith(KEY_NAME) for entry in partial.iterdir()
    ):  # killed while the key was written
        return
    raise ConfigError(
        f"{what} was not made by Tsugiki, and would be replaced",
        where=partial,
        got=f"a folder with content, without {KEY_NAME}",
        expected="no such folder, or one that an interrupted run of this experiment left",
        fix="give another run_dir, or move the folder away",
    )


def refuse_overlap(inputs: Iterable[Path], output: Path) -> None:
    """Refuse an output that is, holds, or lies in what it is made from; links are followed.

    Raises:
        ConfigError: naming both.
    """
    written = output.resolve()
    for path in inputs:
        read = path.resolve()
        if read == written or read in written.parents or written in read.parents:
            how = "is" if read == written else "lies in" if read in written.parents else "holds"
            raise ConfigError(
                f"the output {how} what it is made from",
                where=output,
                got=f"input {path}",
                expected="two folders of which neither holds the other",
                fix="write into a folder of its own",
            )


def refuse_other_than(folder: Path, what: str, known: Sequence[str]) -> None:
    """Refuse to replace a folder that holds something else than the result that would take its place.

    Args:
        folder: what was asked to be replaced.
        what: what the result is, e.g. ``a model directory``.
        known: patterns of files; an earlier result has all of one item's (separated by spaces) at its top.

    Raises:
        ConfigError: it is a file or a link, or has content and none of the patterns.
    """
    if folder.is_symlink():
        raise ConfigError(
            "the output is a link", where=folder, got="a link", fix="name the folder that it leads to"
        )
    if not _has_content(folder, "the output directory"):
        return
    if not any(all(any(folder.glob(pattern)) for pattern in item.split()) for item in known):
        raise ConfigError(
            f"the output directory is not {what}, and is not replaced",
            where=folder,
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
            expected=f"{what}: " + ", or ".join(item.replace(" ", " and ") for item in known),
            fix="choose another output, or remove the folder yourself",
        )


def refuse_stage_folder(folder: Path, what: str) -> None:
    """Refuse to write other files into the folder of a stage, which would be damaged by them.

    Raises:
        ConfigError: it has a manifest or a key, or cannot become a folder.
    """
    refuse_unusable(folder, what)
    found = [mark for mark in _MARKS if (folder / mark).exists()]
    if found:
        raise ConfigError(
            f"{what} is the folder of a stage",
            where=folder,
            got=f"a folder with {found[0]}",
            expected="a folder for this output",
            fix="choose another one",
        )


def is_ours(folder: Path, name: str) -> bool:
    """Whether a folder carries the mark of a stage: its manifest, or the key of its unfinished work."""
    return (folder / KEY_NAME).is_file() or _is_stage(folder, name)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours, the files by which it is known as ours last: a kill leaves what we still recognise.

    Of a link only the link goes.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    for entry in folder.iterdir():
        if entry.name not in _MARKS:
            remove_entry(entry)
    shutil.rmtree(folder)


def remove_entry(entry: Path) -> None:
    """Remove a file, or a folder with all that is in it; of a link only the link goes."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def replace_folder(new: Path, output: Path, earlier: Path) -> None:
    """Let a result take its name; what stood there is renamed first, and comes back when the result cannot.

    A kill between the two renames leaves the earlier output under its other name: :func:`bring_back`, called before
    anything else is done with these folders, ends that.

    Args:
        new: the result.
        output: its name.
        earlier: where what it replaces goes, on the same file system; nothing is there. The caller removes it.

    Raises:
        OSError: it cannot be renamed; the earlier output is in its place.
    """
    if output.exists():
        output.rename(earlier)
    try:
        new.rename(output)
    except BaseException:
        bring_back(earlier, output)
        raise


def bring_back(earlier: Path, output: Path) -> None:
    """Give an earlier output its name again if its replacement was stopped; see :func:`replace_folder`."""
    if earlier.is_dir() and not output.exists():
        earlier.rename(output)


def refuse_unusable(folder: Path, what: str) -> None:
    """Refuse a path that cannot become a folder.

    Raises:
        ConfigError: it or a folder above it is a file, a link that leads nowhere, or a circle of links.
    """
    for place in (folder, *folder.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise ConfigError(f"{what} cannot be used", where=repr(str(folder)), got=error) from error
        if place.is_dir():
            return
        got = "a link that leads nowhere" if place.is_symlink() else "not a folder"
        raise ConfigError(
            f"{what} cannot be used",
            where=folder,
            got=f"{place} is {got}",
            expected="a folder, or nothing yet",
        )


def _has_content(folder: Path, what: str) -> bool:
    refuse_unusable(folder, what)
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{what} cannot be read", where=folder, got=error.strerror) from error


def _is_stage(directory: Path, name: str) -> bool:
    """Whether a manifest says so, even one of another version of ours."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(manifest, dict) and manifest.get("stage") == name and {"key", "outputs"} <= manifest.keys()
    )
