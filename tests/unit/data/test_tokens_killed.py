"""kill -9 in the middle of the tokens stage, through the stage graph: the next run goes on and gives the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_tokens_stage import make_corpus

from tsugiki.data.config import TokensConfig
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

ROOT = Path(__file__).parents[3]
SHARDS = 30
# The stage in a process of its own, with two workers however little the text is.
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from tsugiki.data.common import executor as execution
    from test_tokens_killed import graph
    execution.INLINE_BELOW_BYTES = 0
    stages = graph(Path({folder!r}), Path({run_dir!r}))
    config = stages.stages["tokens"].config
    stages.run(list(stages.stages.values()), config)
"""


def graph(folder: Path, run_dir: Path) -> Graph:
    config = TokensConfig.model_validate({"mixture": {"total_tokens": 100}, "batch_documents": 2})
    external = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer"}
    stage = Stage(
        "tokens", config, tuple(external), "tsugiki.data.tokens:run", external=external, keep_partial=True
    )
    return Graph([stage], run_dir, StageContext(workers=2), announce=print)


@contextlib.contextmanager
def started(folder: Path, run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """The stage in a session of its own, of which nothing is left afterwards."""
    script = folder / "run.py"
    names = {"tests": str(Path(__file__).parent)}
    script.write_text(RUN.format(folder=str(folder), run_dir=str(run_dir), **names))
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=600)


def watch(process: subprocess.Popen[str], meanwhile: Callable[[], object], seconds: float = 90) -> None:
    """Look at something until it is true or the process has ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not meanwhile():
        assert time.monotonic() < deadline, f"goes on after {seconds:.0f} s"
        time.sleep(0.005)


def workers(session: int) -> list[int]:
    """Processes of a session that are children of its fork server."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            parents[int(entry.parent.name)] = int(fields[1])
    return [pid for pid, parent in parents.items() if parent in parents and parent != session]


def kill_a_worker(process: subprocess.Popen[str]) -> None:
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "a worker process died during tokens encode" in output
    assert "finished shards are kept" in output


def kill_everything(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed")
    rng = random.Random(3)
    texts = ["".join(rng.choices("abcdefghij klmnop\n", k=40_000)) for _ in range(SHARDS)]
    make_corpus(path / "corpus", {"en": texts})
    write_hf_tokenizer(mistral_v1_model(), path / "tokenizer")
    graph(path, path / "whole").run(
        [graph(path, path / "whole").stages["tokens"]], TokensConfig(mixture={"total_tokens": 1})
    )  # type: ignore[arg-type]
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize("kill", [kill_a_worker, kill_everything])
def test_killed_run_goes_on(folder: Path, tmp_path: Path, kill: Callable[..., None]) -> None:
    run_dir = tmp_path / "run"
    markers = run_dir / "tokens.partial/.work/logs/completions"
    with started(folder, run_dir) as process:
        watch(process, lambda: markers.is_dir() and len(list(markers.iterdir())) >= 3)
        assert process.poll() is None, process.communicate()[0]
        kill(process)
    done = {int(path.name) for path in markers.iterdir()}
    assert 3 <= len(done) < SHARDS
    assert not (run_dir / "tokens").exists()
    parts = run_dir / "tokens.partial/.work/src-en"
    finished = {
        path: path.stat().st_mtime_ns for path in parts.glob("train-*.ids") if int(path.stem[-5:]) in done
    }
    assert len(finished) >= 3

    again = graph(folder, run_dir)
    assert again.decide(again.stages["tokens"]).action == "resume"

    def not_done_again() -> None:
        for path, modified in finished.items():  # gone when the stage is complete
            with contextlib.suppress(FileNotFoundError):
                assert path.stat().st_mtime_ns == modified

    with started(folder, run_dir) as second:
        watch(second, not_done_again)
        output = second.communicate()[0]
        assert second.returncode == 0, output
    assert "interrupted earlier, continues" in output
    for name in ("src-en.bin", "src-en.idx", "src-en.heldout.bin", "src-en.heldout.idx", "mixture.json"):
        assert (run_dir / "tokens" / name).read_bytes() == (folder / "whole/tokens" / name).read_bytes()
