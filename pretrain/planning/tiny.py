"""``--scale tiny``: a recipe shrunk until it runs on a laptop in a minute or two.

What makes the recipe itself stays: architecture family, stages, sources with their kinds and languages,
mixture, vocabulary method, optimizer, schedule, phases, packing, chat format, and which axes are parallel.
What costs shrinks: the base becomes a random model of a few layers, the text a handful of short documents,
the layout four processes.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tsugiki.experiment.config.load import load_raw
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.shipped import shipped_folder
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.run.folders import refuse_unusable

PROCESSES = 4
STEPS = 4
SEQUENCE_LENGTH = 64
GLOBAL_BATCH = 8
_STEP_TOKENS = SEQUENCE_LENGTH * GLOBAL_BATCH
_AXES = ("tensor", "pipeline", "context", "data")


def tiny_layout(parallel: Mapping[str, Any]) -> dict[str, Any]:
    """The layout on four processes: every axis that was parallel stays so while processes last.

    Swallow-70b's tensor 8 x pipeline 8 x data 4 becomes 2 x 2 x 1; what is left over is data-parallel.
    """
    shrunk: dict[str, Any] = {}
    left = PROCESSES
    for axis in _AXES:
        size = 2 if (parallel.get(axis) or 1) > 1 and left > 1 else 1
        shrunk[axis] = size
        left //= size
    shrunk["data"] *= left
    shrunk["virtual_pipeline"] = 2 if parallel.get("virtual_pipeline") and shrunk["pipeline"] > 1 else None
    shrunk["sequence"] = bool(parallel.get("sequence")) and shrunk["tensor"] > 1
    return shrunk


def tiny_architecture(config: Mapping[str, Any], positions: int = 2 * SEQUENCE_LENGTH) -> dict[str, Any]:
    """A ``config.json`` of the same family with the same features in miniature.

    Grouped queries, heads wider than hidden_size / heads, tied embeddings, rope and window stay as they are.
    """
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    wide = config.get("head_dim", 0) * heads > config["hidden_size"]
    return {
        **config,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kv_heads in (None, heads) else 2,
        **({"head_dim": 32} if wide else {}),
        "max_position_embeddings": positions,
        "vocab_size": 32_000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def write_tiny_base(
    architecture: Path, output_dir: Path, *, seed: int = 1234, longer: int | None = None
) -> None:
    """Write a random model of an architecture in miniature as a Hugging Face directory.

    Its vocabulary is that of Mistral-7B-v0.1, which needs no download. A recipe that makes the context
    longer (``longer``: its ``graft.max_positions``) gets a base shorter than its sequences by as much.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

    full = json.loads(architecture.read_text(encoding="utf-8"))
    positions = 2 * SEQUENCE_LENGTH
    if longer is not None:
        positions = SEQUENCE_LENGTH * full["max_position_embeddings"] // longer
    shrunk = tiny_architecture(full, positions)
    shrunk.pop("architectures", None)
    dtype = shrunk.pop("torch_dtype")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shrunk), dtype=getattr(torch, dtype))
        model.save_pretrained(output_dir)
    write_hf_tokenizer(mistral_v1_model(), output_dir)


def write_tiny(config: Path, overrides: Sequence[str] = (), text_dir: Path | None = None) -> Path:
    """Write a recipe's tiny configuration and what it reads beside the run directory.

    Args:
        config: YAML file of the recipe.
        overrides: ``--set`` options, applied before shrinking.
        text_dir: documents to train on; None takes the short texts of the test fixtures.

    Returns:
        ``<run directory>-tiny.inputs/config.yaml``, with ``base/`` and ``text/`` beside it.

    Raises:
        ConfigError: the recipe cannot be read, names no architecture, or the folder holds something else.
        DataError: there is no text of one of its languages.
    """
    values = load_raw(config, overrides).values
    run_dir = expand_path(values.get("run_dir") or f"runs/{values.get('name', config.stem)}")
    work_dir = run_dir.with_name(f"{run_dir.name}-tiny.inputs")
    tiny_run_dir = str(run_dir.with_name(f"{run_dir.name}-tiny"))
    path = work_dir / "config.yaml"
    _refuse_foreign(work_dir, path, tiny_run_dir)
    write_text_atomically(path, yaml.safe_dump({"run_dir": tiny_run_dir}))  # the folder is ours from now on
    tiny = tiny_recipe(values, work_dir, text_dir or shipped_folder("tests/fixtures") / "text")
    tiny["run_dir"] = tiny_run_dir
    if "path" in tiny["base"]:
        write_tiny_base(
            expand_path(values["base"]["architecture"]),
            work_dir / "base",
            seed=int(values.get("seed", 1234)),
            longer=(values.get("graft") or {}).get("max_positions"),
        )
    write_text_atomically(path, yaml.safe_dump(tiny, sort_keys=False, allow_unicode=True))
    return path


def _refuse_foreign(folder: Path, config: Path, tiny_run_dir: str) -> None:
    """Only inputs of the same miniature are written anew: their configuration names its run."""
    refuse_unusable(folder, "the folder for the inputs of the run in miniature")
    if not folder.is_dir() or not any(entry.name != f"{config.name}.partial" for entry in folder.iterdir()):
        return
    try:
        named = yaml.safe_load(config.read_text(encoding="utf-8"))["run_dir"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        named = None
    if named != tiny_run_dir:
        raise ConfigError(
            "the folder for the inputs of the run in miniature was not made by Tsugiki",
            where=folder,
            got=f"a folder with content, whose {config.name} does not name {tiny_run_dir}",
            expected="no such folder, or one that an earlier run in miniature made",
            fix="give another run_dir, or move the folder away",
        )


def tiny_recipe(values: Mapping[str, Any], work_dir: Path, text_dir: Path) -> dict[str, Any]:
    """The values of a recipe, shrunk.

    Args:
        values: a merged configuration, as ``tsugiki.experiment.config.load_raw`` gives it.
        work_dir: gets the text of every source and is where the base is expected, in ``base/``.
        text_dir: folder of ``<language>.jsonl`` with documents of the languages.

    Raises:
        ConfigError: the recipe names no architecture.
        DataError: there is no text of a language.
    """
    recipe = copy.deepcopy(dict(values))
    base = recipe.get("base") or {}
    if "architecture" not in base and "scratch" not in base:
        raise ConfigError(
            "a recipe runs at tiny scale only when it says what its base is like",
            where="base.architecture",
            fix="name the base's config.json, e.g. one of configs/models/",
        )
    if "architecture" in base:
        recipe["base"] = {"path": str(work_dir / "base")}
    recipe["name"] = f"{recipe['name']}-tiny"
    recipe["corpus"] = _tiny_corpus(recipe["corpus"], work_dir / "text", text_dir)
    extend = (recipe.get("tokenizer") or {}).get("extend")
    if extend is not None:
        extend.update(size=128, sample_bytes=200_000)
    if (recipe.get("graft") or {}).get("max_positions"):
        recipe["graft"]["max_positions"] = SEQUENCE_LENGTH
    _shrink_training(recipe)
    recipe["evaluate"] = {
        **(recipe.get("evaluate") or {}),
        "harness": None,  # a random model of a few layers answers nothing
        "dtype": "float32",
        "maximum_bytes_per_language": 1000,
        "samples": {"heldout_prompts_per_language": 1, "maximum_new_tokens": 4},
        "bootstrap_resamples": 20,
    }
    return recipe


def _shrink_training(recipe: dict[str, Any]) -> None:
    train = recipe.setdefault("train", {})
    mixture = recipe["tokens"]["mixture"]
    total = mixture["total_tokens"]
    mixture.update(total_tokens=STEPS * _STEP_TOKENS, max_epochs=10_000)
    schedule = train.get("schedule") or {}
    if schedule.get("warmup_tokens"):
        schedule["warmup_tokens"] = _STEP_TOKENS
    phases = train.get("phases") or []
    for position, phase in enumerate(phases[:-1], start=1):
        # Phases keep their order and at least a step each.
        share = round(phase["until_tokens"] / total * STEPS)
        phase["until_tokens"] = max(position, min(share, STEPS - len(phases) + position)) * _STEP_TOKENS
    train.update(
        parallel=tiny_layout(train.get("parallel") or {}),
        sequence_length=SEQUENCE_LENGTH,
        micro_batch=2,  # half as many passes, whose cost is not their arithmetic
        global_batch=GLOBAL_BATCH,
        save_interval_steps=STEPS // 2,
        log_interval_steps=1,
        validation_interval_steps=STEPS,
        validation_bytes_per_language=2_000,
        threads=1,
    )


def _tiny_corpus(corpus: dict[str, Any], output_dir: Path, text_dir: Path) -> dict[str, Any]:
    """The corpus with every source read from short documents, no document in two sources."""
    sources = corpus["sources"]
    uses: dict[str, list[str]] = {}
    for source in sources:
        for language in _languages(source):
            uses.setdefault(language, []).append(source["name"])
    output_dir.mkdir(parents=True, exist_ok=True)
    for source in sources:
        pools = []
        for language in _languages(source):
            documents = _documents(text_dir, language)
            own, among = uses[language].index(source["name"]), len(uses[language])
            pools.append(documents[own::among])
        path = output_dir / f"{source['name']}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for record in _records(source, pools):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        source.update(format="jsonl", path=str(path), filter=False)
    corpus["heldout"] = {"fraction": 0.1}
    corpus["deduplication"] = {"minhash": {"enabled": False}}
    return corpus


def _languages(source: Mapping[str, Any]) -> list[str]:
    parallel = source.get("parallel")
    return [source["language"], *([parallel["target_language"]] if parallel else [])]


def _documents(text_dir: Path, language: str) -> list[dict[str, Any]]:
    path = text_dir / f"{language}.jsonl"
    if not path.is_file():
        raise DataError("no text of this language for tiny runs", where=path, got=language)
    lines = path.read_text(encoding="utf-8").splitlines()
    unique = {item["text"]: item for item in map(json.loads, lines)}
    # An order that has nothing to do with how the file was written, the same on every machine.
    return sorted(unique.values(), key=lambda item: zlib.crc32(item["id"].encode()))


def _records(source: Mapping[str, Any], pools: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Documents as the kind of the source wants them."""
    reader = source.get("reader") or {}
    kind = source.get("kind", "text")
    if kind == "parallel":
        keys = source["parallel"]
        return [
            {
                "id": left["id"],
                keys.get("source_key", "source"): left["text"],
                keys.get("target_key", "target"): right["text"],
            }
            for left, right in zip(*pools, strict=False)
        ]
    if kind == "preference":
        return [
            {
                "id": item["id"],
                reader.get("prompt_key", "prompt"): item["text"][:20],
                reader.get("chosen_key", "chosen"): item["text"][20:60] or item["text"],
                reader.get("rejected_key", "rejected"): item["text"][20:60][::-1] or item["text"][::-1],
            }
            for item in pools[0]
        ]
    if kind == "instruction":
        return [
            {
                "id": item["id"],
                reader.get("messages_key", "messages"): [
                    {"role": "user", "content": item["text"][:40]},
                    {"role": "assistant", "content": item["text"][40:] or item["text"]},
                ],
            }
            for item in pools[0]
        ]
    return [{"id": item["id"], reader.get("text_key", "text"): item["text"]} for item in pools[0]]
