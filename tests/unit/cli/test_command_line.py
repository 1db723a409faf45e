"""Version, completion, start-up time, and what the command line does to its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tsugiki.experiment.run.stage_names import STAGE_NAMES

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TOKENIZERS_"))}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", **variables},
    )  # fmt: skip


def complete(line: str, cwd: Path = ROOT) -> list[str]:
    """What bash would offer at the end of this line."""
    words = line.split(" ")
    answer = run(
        "-c", "import sys; sys.argv = ['tsugiki']; from tsugiki.cli.main import app; app(prog_name='tsugiki')", cwd=cwd,
        _TSUGIKI_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1),
    )  # fmt: skip
    return answer.stdout.split()


def test_version_of_a_checkout() -> None:
    answer = run("-m", "tsugiki", "--version")
    assert answer.returncode == 0, answer.stderr
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stdout.startswith("tsugiki 0.1.0")
    assert head.stdout.strip() in answer.stdout


@pytest.mark.parametrize("option", ["run smoke --from ", "run smoke --until ", "submit smoke --until "])
def test_stages_are_completed(option: str) -> None:
    assert complete(f"tsugiki {option}") == list(STAGE_NAMES)
    assert complete(f"tsugiki {option}to") == ["tokenizer", "tokens"]


def test_clusters_and_gpus_are_completed() -> None:
    assert complete("tsugiki submit smoke --cluster lo") == ["local"]
    assert complete("tsugiki plan smoke --gpu h") == ["h100", "h200"]


def test_experiments_are_completed_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "swallow-mine.yaml").touch()
    (tmp_path / "swallow.txt").touch()
    (tmp_path / "swallow-runs").mkdir()
    found = complete("tsugiki run swallow-", cwd=tmp_path)
    assert {"swallow-7b", "swallow-70b-nve", "swallow-mine.yaml", "swallow-runs/"} <= set(found)
    assert "swallow.txt" not in found
    assert complete("tsugiki corpus smo", cwd=tmp_path) == ["smoke"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.yml").touch()
    assert complete("tsugiki run deep/", cwd=tmp_path) == ["deep/one.yml"]


@pytest.mark.parametrize(
    ("shell", "file"), [("bash", ".bash_completions/tsugiki.sh"), ("zsh", ".zfunc/_tsugiki")]
)
def test_completion_is_installed(shell: str, file: str, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['tsugiki', '--install-completion', sys.argv[1]]; from tsugiki.cli.main import app; app(prog_name='tsugiki')"
    answer = run("-c", code, shell, HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "_TSUGIKI_COMPLETE" in (tmp_path / file).read_text()


def test_help_starts_in_half_a_second() -> None:
    """The best of five: what else runs on the machine is not what is measured."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        answer = run("-m", "tsugiki", "--help")
        times.append(time.perf_counter() - start)
        assert answer.returncode == 0
    # A bare interpreter, for scale: on a loaded machine both take longer.
    start = time.perf_counter()
    run("-c", "import typer.rich_utils")
    bare = time.perf_counter() - start
    assert min(times) < max(0.5, 1.5 * bare), f"{min(times):.2f} s, of which typer alone {bare:.2f} s"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tsugiki', '--help']\n"
        "try:\n    from tsugiki.cli.main import app; app()\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'pydantic', 'numpy', 'pyarrow', 'jinja2'} & set(sys.modules)))"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_imports_set_no_variable_and_the_command_does() -> None:
    code = "import os; before = dict(os.environ); import tsugiki, tsugiki.cli.main; print(dict(os.environ) == before)"
    assert run("-c", code).stdout.strip() == "True"
    code = (
        "import os, sys; sys.argv = ['tsugiki', 'doctor']; from tsugiki.cli import main, doctor; import typer\n"
        "try: main.main()\n"
        "except SystemExit: print(os.environ['HF_HUB_OFFLINE'], os.environ['TOKENIZERS_PARALLELISM'])"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "1 true"
    assert run("-c", code, HF_HUB_OFFLINE="0").stdout.splitlines()[-1] == "0 true"


@pytest.mark.parametrize(
    ("path", "given", "after"),
    [("hf://datasets/a/b.jsonl", None, "0"), ("a.jsonl", None, "1"), ("hf://datasets/a", "1", "1")],
)
def test_sources_on_the_hub_can_be_read(
    path: str, given: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE=1 forbids hf:// addresses too; what the user has set stays."""
    from tsugiki.cli import hub

    # Set before it is deleted, so that monkeypatch takes away what go_offline sets.
    monkeypatch.setenv("HF_HUB_OFFLINE", given or "")
    if given is None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.go_offline()
    hub.go_online_for([path])
    assert os.environ["HF_HUB_OFFLINE"] == after


def test_loading_an_experiment_leaves_the_hub_alone() -> None:
    """huggingface_hub reads HF_HUB_OFFLINE once, when it is imported: it must not be there before the sources are known."""
    code = "import sys; from tsugiki.pipeline import load_experiment; load_experiment('smoke'); print('huggingface_hub' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False", run("-c", code).stderr
