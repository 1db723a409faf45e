"""A finished export onto a hub: checked, with its whole card, and in one commit.

One commit, so that the repository holds the whole model or what it held before. Files that the hub has already are not
sent again, so the same command goes on after an interruption. The token is that of ``hf auth login`` or ``HF_TOKEN``;
no option takes it, and no message shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.card import complete_card
from tsugiki.experiment.errors import CheckpointError, ConfigError, EnvironmentError_
from tsugiki.experiment.files import sha256_file, write_json_atomically, write_text_atomically
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.provenance import BOM_NAME, provenance
from tsugiki.results import open_run

CARD_NAME = "README.md"
FOLDER = "push"
"""Folder in the run for what is made for the hub: card and bill of materials."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKEN = re.compile(r"hf_\w{4,}")
_DENIED = (401, 403)


@dataclass(frozen=True)
class Upload:
    """What goes to a hub.

    Attributes:
        repo: ``owner/name``.
        files: name in the repository -> file.
        url: of the commit; None before it is made.
    """

    repo: str
    files: dict[str, Path]
    url: str | None = None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def lines(self) -> Iterator[str]:
        """For the console."""
        for name, path in self.files.items():
            yield f"{path.stat().st_size:>15,}  {name}"
        yield f"{self.bytes:>15,}  bytes in {len(self.files)} files"


def prepare(run_dir: Path | str, repo: str) -> Upload:
    """Check the export against its manifest, and write card and bill of materials into ``RUN/push``.

    Raises:
        ConfigError: no run here, or a name that no repository has.
        CheckpointError: the export is not finished, or a file is not the one that was written.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise ConfigError("no name of a repository", where="--repo", got=repo, expected="owner/name")
    run = open_run(run_dir)
    directory = run.directory / "export"
    manifest = Manifest.load(directory)
    if manifest is None:
        raise CheckpointError(
            "the run has no finished export",
            where=directory,
            got="no manifest",
            fix="run it: tsugiki run CONFIG --until export",
        )
    problem = manifest.damage(directory) or next(
        (
            f"{name} is not the file that was written"
            for name, file in manifest.outputs.items()
            if sha256_file(directory / name) != file.sha256
        ),
        None,
    )
    if problem:
        raise CheckpointError(
            "the export is damaged and is not sent",
            where=directory,
            got=problem,
            fix="remove the folder and run the experiment again",
        )
    folder = run.directory / FOLDER
    write_text_atomically(folder / CARD_NAME, complete_card(run, repo.partition("/")[2]))
    write_json_atomically(folder / BOM_NAME, provenance(run.directory))
    made = {name: folder / name for name in (CARD_NAME, BOM_NAME)}
    return Upload(repo, {name: directory / name for name in manifest.outputs} | made)


def push(upload: Upload, *, private: bool = False, message: str = "Upload model") -> Upload:
    """Make the repository where it is not there, and commit all files at once.

    Args:
        upload: from :func:`prepare`.
        private: of a repository that is made.
        message: of the commit.

    Raises:
        ConfigError: not logged in, or no permission to write there.
        EnvironmentError_: the hub cannot be reached, or ended the transfer; the repository holds what it held before.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _told(api, upload.repo):
        api.create_repo(upload.repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
        done = api.create_commit(upload.repo, operations, commit_message=message)
    return Upload(upload.repo, upload.files, done.commit_url)


@contextmanager
def _told(api: Any, repo: str) -> Iterator[None]:
    """What the hub's library raises, as errors that tell what to do and no token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # Below are httpx, ssl and hf_xet, each with errors of its own. Their chain is cut: it holds requests with headers.
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        said = f"{type(cause or error).__name__}: {_without_tokens(str(cause or error))}"[:500]
        if status in _DENIED:
            raise ConfigError(
                "the hub does not let this account write there",
                where=repo,
                got=f"HTTP {status}",
                expected="a token with permission to write to the repository, or to make it",
                fix="hf auth login with a token of the kind `write`, or set HF_TOKEN",
            ) from None
        raise EnvironmentError_(
            "the model was not sent; the repository holds what it held before",
            where=f"{api.endpoint}/{repo}",
            got=said,
            fix="run the same command again; files that arrived whole are not sent again",
        ) from None


def _without_tokens(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    shown = text.replace(token, "…") if token else text
    return _TOKEN.sub("…", shown)
