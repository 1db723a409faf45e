"""Recipes against what was published, written down here once more, and through the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tsugiki.evaluation.benchmarks.suites import has_chat_template
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import ExperimentConfig, load_experiment
from tsugiki.pretrain.model.context_extension import extended_context
from tsugiki.pretrain.planning.flops import Gpu
from tsugiki.pretrain.planning.layouts import Machine

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
STEP = 1024 * 4096

# Swallow: scripts/abci of rioyokotalab/Megatron-Llama2. GPUs, data, tensor, pipeline, learning rate, minimum.
SWALLOW = {
    "swallow-7b": (16, 4, 2, 2, 1e-4, 3.3e-6),
    "swallow-13b": (64, 8, 2, 4, 1e-4, 3.3e-6),
    "swallow-70b": (256, 4, 8, 8, 5e-5, 1.6e-6),
}
# Without extension: scripts Llama-2-7b/2node, Llama-2-13b/8node, Llama-2-70b/16node there. Data, tensor, pipeline,
# steps between checkpoints.
SWALLOW_NVE = {
    "swallow-7b": (4, 2, 2, 500),
    "swallow-13b": (8, 2, 4, 500),
    "swallow-70b": (2, 8, 8, 500),
}
# BiLLa: train_codes/*_args.py of Neutralzz/BiLLa. GPUs, sequences per GPU, learning rate, steps.
BILLA = {
    "billa-7b-stage1": (8, 20, 3e-5, 100_000),
    "billa-7b-stage2": (8, 20, 2e-5, 20_000),
    "billa-7b-stage3": (2, 24, 2e-5, 20_000),
}


def recipe(name: str) -> ExperimentConfig:
    return load_experiment(ROOT / "configs" / "recipes" / f"{name}.yaml").config


def test_every_system_has_its_recipe() -> None:
    names = {path.stem for path in RECIPES}
    swallow = {*SWALLOW, *(f"{name}-nve" for name in SWALLOW), "swallow-7b-plus"}
    others = {"seallm-7b-v2", "seallm-7b-v2.5", *BILLA, "sus-chat-34b", "llama3-8b-ja", "mistral-7b-sea"}
    assert names == swallow | others
    for path in RECIPES:
        assert recipe(path.stem).name == path.stem


@pytest.mark.parametrize("name", SWALLOW)
def test_swallow(name: str) -> None:
    gpus, data, tensor, pipeline, peak, minimum = SWALLOW[name]
    config = recipe(name)
    train = config.train
    parallel = train.parallel
    assert (parallel.data, parallel.tensor, parallel.pipeline) == (data, tensor, pipeline)
    assert parallel.model_processes * data == gpus
    assert parallel.sequence
    assert (train.optimizer.learning_rate, train.optimizer.minimum_learning_rate) == (peak, minimum)
    assert (train.sequence_length, train.global_batch, train.micro_batch) == (4096, 1024, 1)
    assert (train.optimizer.weight_decay, train.optimizer.clip_grad_norm) == (0.1, 1.0)
    assert train.optimizer.betas == (0.9, 0.95)
    assert train.optimizer.distributed
    assert train.save_interval_steps == (100 if name == "swallow-70b" else 500)
    assert (train.schedule.kind, train.schedule.warmup_tokens) == ("cosine", 1000 * STEP)
    assert (train.precision, train.recompute) == ("bf16", "selective")
    assert config.tokens.mixture.total_tokens == 25_000 * STEP
    extend = config.tokenizer.extend
    assert extend is not None
    assert (extend.size, extend.multiple_of, extend.normalize) == (11_176, 8, "nfkc")
    assert extend.languages == {"ja": 1.0}
    assert config.graft.init == "mean"
    splits = 10_605_477_142 + 10_464_907_226 + 12_465_407_213 + 16_446_568_076 + 38_345_096_470
    _check_swallow_mixture(config, splits, 1_672_543_873)


def _check_swallow_mixture(config: ExperimentConfig, web: int, wiki: int) -> None:
    weights = config.tokens.mixture.weights
    assert isinstance(weights, dict)
    assert weights == {"ja-web": web, "ja-wiki": wiki, "en-arxiv": 5e9, "en-refinedweb": 5e9}
    assert web + wiki == pytest.approx(90e9, rel=1e-4)


@pytest.mark.parametrize("name", SWALLOW)
def test_swallow_without_extension(name: str) -> None:
    """As the scripts of the runs without extension: 70B has half the data-parallel size and saves less often."""
    extended, plain = recipe(name), recipe(f"{name}-nve")
    assert plain.tokenizer.extend is None
    splits = 10_414_138_710 + 10_310_340_698 + 12_327_844_508 + 16_269_817_007 + 38_018_807_005
    _check_swallow_mixture(plain, splits, 2_659_052_072)
    data, tensor, pipeline, save_interval = SWALLOW_NVE[name]
    parallel = plain.train.parallel
    assert (parallel.data, parallel.tensor, parallel.pipeline) == (data, tensor, pipeline)
    assert plain.train.save_interval_steps == save_interval
    same = {"save_interval_steps": save_interval, "parallel": parallel}
    assert plain.train == extended.train.model_copy(update=same)
    assert parallel == extended.train.parallel.model_copy(update={"data": data})
    assert plain.base == extended.base
    assert plain.corpus == extended.corpus
    assert plain.tokens.mixture.total_tokens == extended.tokens.mixture.total_tokens


def test_swallow_plus_is_twice_the_training() -> None:
    plus, plain = recipe("swallow-7b-plus"), recipe("swallow-7b")
    assert plus.tokens.mixture.total_tokens == 2 * plain.tokens.mixture.total_tokens
    assert plus.train == plain.train


@pytest.mark.parametrize("name", BILLA)
def test_billa(name: str) -> None:
    gpus, per_gpu, peak, steps = BILLA[name]
    config = recipe(name)
    train = config.train
    assert train.global_batch == gpus * per_gpu
    assert train.parallel.model_processes == 1
    assert train.sequence_length == 1024
    assert train.optimizer.learning_rate == peak
    assert train.optimizer.minimum_learning_rate == pytest.approx(peak / 10)
    assert (train.optimizer.weight_decay, train.optimizer.clip_grad_norm) == (0.1, 2.0)
    assert train.optimizer.betas == (0.9, 0.95)
    assert train.schedule.warmup_tokens == 2000 * train.global_batch * 1024
    assert config.tokens.mixture.total_tokens == steps * train.global_batch * 1024
    assert train.recompute == "full"


def test_billa_mixtures() -> None:
    first, second, third = (recipe(name) for name in BILLA)
    assert first.tokens.mixture.weights == {"wudao": 4, "pile": 4, "wmt": 2}
    weights = second.tokens.mixture.weights
    assert isinstance(weights, dict)
    text = {"wudao", "pile", "wmt"}
    tasks = {source.name for source in second.corpus.sources} - text
    # Task data one to one with text.
    assert weights.keys() == tasks | text
    assert sum(weights[name] for name in tasks) == sum(weights[name] for name in text) == 10
    for config in (first, second):
        # Translations are learned as answers, as task data are; each stage has a form of its own.
        kinds = {source.name: source.kind for source in config.corpus.sources}
        assert {name for name in kinds if kinds[name] == "text"} == {"wudao", "pile"}
        assert config.tokens.chat is not None
        assert (config.tokens.chat.template, config.tokens.chat.answers) == (
            "configs/chat_templates/billa-task.jinja", "separate",
        )  # fmt: skip
    pairs = [
        next(item for item in config.corpus.sources if item.name == "wmt").paths for config in (first, second)
    ]
    assert pairs[0] != pairs[1]
    assert third.tokens.mixture.weights == {
        "code-alpaca-en": 1, "cot-en": 2, "leet-code-zh": 1, "mwp-en": 1, "mwp-zh": 1, "others": 6,
    }  # fmt: skip
    assert first.tokenizer.extend is not None
    assert first.tokenizer.extend.size == 46_943 - 32_000
    assert second.tokenizer.extend is None
    assert second.base.path == "runs/billa-7b-stage1/export"
    assert third.base.path == "runs/billa-7b-stage2/export"


def test_seallm() -> None:
    second = recipe("seallm-7b-v2")
    assert second.base.architecture == "configs/models/mistral-7b-v0.1.json"
    assert second.tokenizer.extend is not None
    assert 32_000 + second.tokenizer.extend.size == 48_384  # vocab_size of SeaLLM-7B-v2's config.json
    languages = {source.language for source in second.corpus.sources}
    assert languages == {"en", "zh", "vi", "id", "th", "ms", "km", "lo", "my", "tl"}
    newer = recipe("seallm-7b-v2.5")
    assert newer.base.architecture == "configs/models/gemma-7b.json"
    assert newer.tokenizer.extend is None


def test_sus_chat() -> None:
    config = recipe("sus-chat-34b")
    # The grafted model is Yi-34B with the positions and the rope of the released SUS-Chat-34B.
    assert config.base.architecture == "configs/models/yi-34b.json"
    grafted = extended_context(ModelSpec.from_hf(ROOT / config.base.architecture), config.graft)
    assert grafted == ModelSpec.from_hf(ROOT / "configs/models/sus-chat-34b.json")
    assert (grafted.max_positions, grafted.rope_theta, grafted.rope_scaling) == (8192, 5e6, None)
    assert config.tokenizer.extend is None
    assert config.tokens.mixture.total_tokens == 1_400_000_000
    assert config.train.sequence_length == 8192
    assert not config.train.reset_attention_mask
    learned = config.tokens.mixture.weights
    assert isinstance(learned, dict)
    kinds = {source.name: source.kind for source in config.corpus.sources}
    assert {kinds[name] for name in learned} == {"instruction"}


def test_published_rows_of_the_report_exist() -> None:
    from tsugiki.evaluation.benchmarks.suites import published_perplexities, suites

    rows = {row for suite in suites().values() for row in suite.get("published") or {}}
    rows |= set(published_perplexities()["published"])
    for path in RECIPES:
        assert set(recipe(path.stem).report.published) <= rows, path.stem
    assert recipe("swallow-70b").report.published == ["Llama 2 70B", "Swallow 70B"]


def test_every_recipe_measures_what_its_source_published() -> None:
    """Suites that exist, with columns for the rows that the report shows beside them."""
    from tsugiki.evaluation.benchmarks.suites import benchmarks, suites

    tables = {
        "swallow": {"swallow-ja", "swallow-en"},
        "seallm": {"seallm-knowledge", "seallm-math", "seallm-mgsm", "seallm-commonsense"},
        "mistral-7b-sea": {"seallm-knowledge", "seallm-math", "seallm-mgsm", "seallm-commonsense"},
        "sus-chat": {"sus-chat-knowledge", "sus-chat-reasoning", "sus-chat-other"},
        "llama3-8b-ja": {"swallow-ja", "swallow-en"},
    }
    for path in RECIPES:
        config = recipe(path.stem)
        wanted = next((suite for start, suite in tables.items() if path.stem.startswith(start)), set())
        harness = config.evaluate.harness
        if not wanted:
            # BiLLa published perplexities (and LogiQA-v2 and C3, for which there is no task).
            assert path.stem.startswith("billa") and harness is None
            assert {"english", "mixed"} <= set(config.evaluate.perplexity_sets)
            assert "BiLLa-7B-LLM" in config.report.published
            continue
        assert harness is not None and set(harness.tasks) == wanted, path.stem
        assert {item.suite for item in benchmarks(harness)} == wanted
        for suite in wanted:
            rows = suites()[suite]["published"]
            assert set(rows) & set(config.report.published), (path.stem, suite)


def _tables(page: str) -> list[list[str]]:
    """Cells of all table lines of a recipe's page, the headings among them."""
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _numbers(cells: list[str]) -> list[float]:
    return [float(part) for cell in cells for part in cell.split(" / ")]


def _published(row: str, *names: str) -> list[float]:
    from tsugiki.evaluation.benchmarks.suites import suites

    return [value for name in names for value in suites()[name]["published"][row]]


def _rows(start: str, *names: str) -> set[str]:
    """Rows of these suites that the pages show."""
    from tsugiki.evaluation.benchmarks.suites import suites

    return {row for name in names for row in suites()[name]["published"] if re.match(start, row)}


def test_the_page_of_swallow_has_the_scores_of_the_report() -> None:
    found: dict[str, list[float]] = {}
    for name, *cells in _tables("swallow"):
        if re.fullmatch(r"(Swallow|Llama 2) \d+B( Plus| NVE)?", name):
            row = re.sub(r"Swallow (\d+B) (Plus|NVE)", r"Swallow-\2 \1", name)
            found.setdefault(row, []).extend(_numbers(cells))
    assert set(found) == _rows("", "swallow-ja", "swallow-en")
    for row, values in found.items():
        assert values == _published(row, "swallow-ja", "swallow-en"), row


def test_the_page_of_seallm_has_the_scores_of_the_report() -> None:
    found: dict[str, list[float]] = {}
    for name, *cells in _tables("seallm"):
        if name.startswith("SeaLLM-7B"):
            found.setdefault(name, []).extend(_numbers(cells))
    assert set(found) == _rows("SeaLLM", "seallm-knowledge", "seallm-mgsm", "seallm-math")
    for row, values in found.items():
        assert values == _published(row, "seallm-knowledge", "seallm-mgsm", "seallm-math"), row
    page = (ROOT / "docs" / "recipes" / "seallm.md").read_text(encoding="utf-8")
    line = re.search(r"ARC-C, Winogrande, HellaSwag \(v2\): ([\d., ]+)\. ", page)
    assert line is not None
    assert [float(part) for part in line[1].split(", ")] == _published("SeaLLM-7B-v2", "seallm-commonsense")


def test_the_page_of_sus_chat_has_the_scores_of_the_report() -> None:
    lines = _tables("sus-chat")
    start = next(at for at, cells in enumerate(lines) if cells[1:] == ["SUS-Chat-34B", "Yi-34B-Chat"])
    names = ("sus-chat-knowledge", "sus-chat-reasoning", "sus-chat-other")
    for column, row in enumerate(lines[start][1:], start=1):
        values = _numbers([cells[column] for cells in lines[start + 1 :]])
        assert values == _published(row, *names), row


def test_the_page_of_billa_has_the_perplexities_of_the_report() -> None:
    from tsugiki.evaluation.benchmarks.suites import published_perplexities

    for row, values in published_perplexities()["published"].items():
        (cells,) = [cells for cells in _tables("billa") if cells[0] == row]
        written = [None if cell == "–" else float(cell) for cell in cells[1:]]
        assert written == [values["mixed"], values["english"]]


def test_the_plan_on_the_page_of_swallow_is_what_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from typer.testing import CliRunner

    from tsugiki.cli.main import app

    monkeypatch.chdir(ROOT)
    lines = {cells[0]: cells[1:] for cells in _tables("swallow") if cells[0] in SWALLOW and len(cells) == 4}
    assert set(lines) == set(SWALLOW)
    for name, (parameters, fullest, days) in lines.items():
        command = ["plan", f"configs/recipes/{name}.yaml", "--gpu", "a100-40gb", "--mfu", "0.4", "--json"]
        plan = json.loads(CliRunner().invoke(app, command).stdout)
        assert f"{plan['parameters']:,}" == parameters
        assert f"{max(plan['gpu_memory_bytes']) / 2**30:.1f} GiB" == fullest
        assert f"{plan['hours'] / 24:.1f}" == days


def test_a_plan_for_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes and GPUs of the training come from the cluster file, as `submit` takes them."""
    import json

    from typer.testing import CliRunner

    from tsugiki.cli.main import app

    monkeypatch.chdir(ROOT)
    cluster = tmp_path / "site.yaml"
    cluster.write_text("name: site\ntrain: {nodes: 8, gpus_per_node: 4}\n")
    seen: list[int] = []

    def machine(gpu: Gpu, gpus_per_node: int, mfu: float) -> Machine:
        seen.append(gpus_per_node)
        return Machine(gpu, gpus_per_node, mfu)

    monkeypatch.setattr("tsugiki.pipeline.Machine", machine)

    def gpus(*options: str) -> int:
        command = ["plan", "configs/recipes/swallow-7b.yaml", "--json", "--cluster", str(cluster), *options]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (done.output, done.exception)
        return int(json.loads(done.stdout)["world_size"])

    assert gpus() == 32
    assert gpus("--set", "cluster.train.nodes=2") == 8
    assert gpus("--gpus", "64", "--gpus-per-node", "8") == 64
    assert seen == [4, 4, 8]


def test_every_recipe_dry_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As `tsugiki run RECIPE --dry-run` does, in one process."""
    from typer.testing import CliRunner

    from tsugiki.cli.main import app

    monkeypatch.chdir(ROOT)
    for path in RECIPES:
        done: Any = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
        assert done.exit_code == 0, (path.name, done.output, done.exception)
        assert "is valid" in done.output


def test_an_unreadable_tokenizer_of_the_base_is_named(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    for broken in ("{broken", "[]", b"\xff\xfe"):
        settings.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
        with pytest.raises(DataError, match=r"(?s)tokenizer_config\.json.*expected: a JSON object"):
            has_chat_template(tmp_path)
    settings.write_text('{"chat_template": "x"}')
    assert has_chat_template(tmp_path)


def test_missing_benchmarks_are_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dry run, and as a warning when a run begins: not hours later, and not as an error."""
    from typer.testing import CliRunner

    from tsugiki.cli.main import app
    from tsugiki.experiment.run.graph import Graph, Stage

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tsugiki.pipeline.is_installed", lambda: False)
    started: list[list[str]] = []

    def start(
        self: Graph, stages: Sequence[Stage], *_: object, begin: Callable[[], None], **__: object
    ) -> None:
        begin()
        started.append([item.name for item in stages])

    monkeypatch.setattr(Graph, "run", start)
    (tmp_path / "niilc.jsonl").write_text("{}")
    command = [
        "run", "configs/smoke.yaml", "--set", f"run_dir={tmp_path / 'run'}",
        "--set", "evaluate.harness.tasks=[jsquad, niilc]", "--set", f"evaluate.harness.data={tmp_path}",
    ]  # fmt: skip
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "evaluate.harness = lm-evaluation-harness: pip install 'tsugiki[eval]'" in dry.stdout
    assert f"not on this machine: evaluate.harness.data = {tmp_path}/jsquad-valid.json\n" in dry.stdout
    assert not started
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and len(started) == 1, done.output
    assert (
        f"warning: not on this machine: evaluate.harness.data = {tmp_path}/jsquad-valid.json" in done.stderr
    )
    chat = [*command, "--dry-run", "--set", "evaluate.harness.chat_template=result"]
    assert "evaluate.harness.chat_template = a template" in CliRunner().invoke(app, chat).stdout
    chat += ["--set", "tokens.chat.template=configs/chat_templates/billa.jinja"]
    assert "chat_template" not in CliRunner().invoke(app, chat).stdout
    early = CliRunner().invoke(app, [*command, "--until", "train"])
    assert early.exit_code == 0 and "warning" not in early.output


def test_every_recipe_plans_and_fits_a_large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from typer.testing import CliRunner

    from tsugiki.cli.main import app

    monkeypatch.chdir(ROOT)
    for path in RECIPES:
        done = CliRunner().invoke(app, ["plan", str(path), "--json", "--gpu", "h100"])
        assert done.exit_code == 0, (path.name, done.output, done.exception)
        assert json.loads(done.stdout)["fits"] is True, path.name


def test_a_recipe_dry_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "run", "configs/recipes/swallow-7b.yaml", "--dry-run"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
