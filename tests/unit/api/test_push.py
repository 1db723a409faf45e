"""`tsugiki push` against a stand-in hub: one commit, resumed after a cut line, no token in what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, hub_server
from test_provenance import run, seal

from tsugiki.card import metadata_of
from tsugiki.experiment.errors import ConfigError, EnvironmentError_, TsugikiError
from tsugiki.push import prepare, push

__all__ = ["run"]
CARD = "---\nlibrary_name: transformers\nlanguage: [en, ja]\n---\n\n# mine\n\nFacts.\n"


@pytest.fixture
def finished(run: Path) -> Path:
    """A run with an export worth sending and an evaluation."""
    export = run / "export"
    (export / "manifest.json").unlink()
    (export / "README.md").write_text(CARD, encoding="utf-8")
    (export / "model.safetensors").write_bytes(b"weights" * 5000)
    (export / "tokenizer.model").write_bytes(b"pieces" * 900)
    seal(export, "export")
    kept = {"pieces": 0, "vocabulary_size": 32000, "gates": []}  # `tokenizer.extend: null`
    (run / "tokenizer").mkdir(exist_ok=True)
    (run / "tokenizer" / "report.json").write_text(json.dumps(kept))
    (run / "tokenizer" / "pieces.tsv").touch()
    (run / "tokenizer" / "manifest.json").unlink(missing_ok=True)
    seal(run / "tokenizer", "tokenizer")
    (run / "evaluate").mkdir()
    sides = {"base": {"bits_per_byte": {"ja": 2.5}}, "result": {"bits_per_byte": {"ja": 1.25}}}
    difference = {"ja": {"bits_per_byte": -1.25, "interval": [-1.5, -1.0]}}
    results = {**sides, "difference": difference, "documents": {"ja": 3}}
    (run / "evaluate" / "results.json").write_text(json.dumps(results))
    seal(run / "evaluate", "evaluate")
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library of this process asks, over plain HTTP and without pauses between attempts."""
    import huggingface_hub
    from huggingface_hub import _commit_api, constants
    from huggingface_hub.utils import _http

    with hub_server() as made:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", made.token)
        assert huggingface_hub.get_token() == made.token
        yield made


def test_everything_in_one_commit(finished: Path, hub: Hub) -> None:
    upload = prepare(finished, "me/mine")
    done = push(upload)
    assert done.url is not None and done.url.startswith(f"{hub.url}/me/mine/commit/") and hub.commits == 1
    held = hub.files["me/mine"]
    assert set(held) == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.model", "provenance.cdx.json"),
    }
    assert held["model.safetensors"] == b"weights" * 5000
    card = held["README.md"].decode()
    metadata = metadata_of(card)
    assert metadata["license"] == "Apache-2.0" and metadata["language"] == ["en", "ja"]
    assert "vocabulary-extension" not in metadata["tags"], "no piece was added"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.25
    assert (
        "| src-en | CC-BY-SA-4.0 | 5 |" in card
        and "| ja | 2.500 | 1.250 | -1.250 |" in card
        and "Facts." in card
    )
    assert json.loads(held["provenance.cdx.json"])["bomFormat"] == "CycloneDX"
    assert str(finished) not in card + held["provenance.cdx.json"].decode(), "no place on this machine"
    push(prepare(finished, "me/mine"))
    assert len(hub.received) == 2, "files that are there are not sent again"


def test_a_cut_line_leaves_nothing_and_the_next_attempt_goes_on(finished: Path, hub: Hub) -> None:
    hub.cut_after = 1
    upload = prepare(finished, "me/mine")
    with pytest.raises(EnvironmentError_, match="run the same command again") as caught:
        push(upload)
    assert hub.token not in str(caught.value) and caught.value.__cause__ is None
    assert hub.commits == 0 and hub.files["me/mine"] == {}, "nothing half-uploaded is there"
    assert len(hub.received) == 1
    hub.cut_after = None
    push(upload)
    assert hub.commits == 1 and len(hub.received) == len(set(hub.received)) == 2


def test_no_permission_and_no_token_in_what_is_said(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "hf_mayReadOnly"
    with pytest.raises(ConfigError, match="HTTP 403") as caught:
        monkeypatch.setenv("HF_TOKEN", wrong)
        push(prepare(finished, "me/mine"))
    assert wrong not in str(caught.value) and hub.files == {}


def test_the_command(finished: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user has it; the hub's answer repeats the token, the command does not."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with hub_server() as hub:

        def command(token: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "tsugiki", "push", str(finished), "--repo", "me/mine", *arguments],
                env={**environment, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)},
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip

        dry = command(hub.token, "--dry-run")
        assert dry.returncode == 0 and "nothing sent to me/mine" in dry.stdout and hub.files == {}
        refused = command("hf_another")
        assert refused.returncode == 2 and "does not let this account write" in refused.stderr
        assert "hf_another" not in refused.stdout + refused.stderr and "Traceback" not in refused.stderr
        sent = command(hub.token)
        assert sent.returncode == 0, sent.stderr
        assert hub.token not in sent.stdout + sent.stderr and len(hub.files["me/mine"]) == 5


@pytest.mark.parametrize("damage", ["content", "card", "unfinished"])
def test_what_is_not_whole_is_not_sent(damage: str, finished: Path) -> None:
    weights = finished / "export" / "model.safetensors"
    if damage == "content":
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
    elif damage == "card":
        (finished / "export" / "README.md").write_text("no metadata")
        (finished / "export" / "manifest.json").unlink()
        seal(finished / "export", "export")
    else:
        (finished / "export" / "manifest.json").unlink()
    said = {
        "content": "damaged and is not sent",
        "card": "no model card",
        "unfinished": "no finished export",
    }[damage]
    with pytest.raises(TsugikiError, match=said):
        prepare(finished, "me/mine")
    assert not (finished / "push").exists()


def test_a_name_that_no_repository_has(finished: Path) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        prepare(finished, "mine")
