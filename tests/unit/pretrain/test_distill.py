"""Token Distillation against plain transformers, snippets counted by hand, and the graft stage with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_material import CASES, SMALL, Case, make_model, read_weights, same_bits, write_tokenizer
from safetensors.torch import save_file
from tokenizer_material import fixture_texts, mistral_base, write_corpus
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import tsugiki.pretrain.graft
from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.load import RawConfig
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.files import sha256_json
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.pipeline import load_experiment, stages
from tsugiki.pretrain.conversion.distill import Student, load_model
from tsugiki.pretrain.conversion.distill_contexts import Expansion, find_contexts
from tsugiki.pretrain.conversion.new_rows import Piece, read_pieces
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint
from tsugiki.pretrain.convert_config import DistillationConfig, ExportConfig, GraftConfig

ROOT = Path(__file__).resolve().parents[3]
CASE = {case.name: case for case in CASES}
ROWS = 97
# The last but one is reserved; the last stands in no text.
BASE_IDS = [[1, 2], [3, 4, 5], [6, 7], [], [8, 9]]
PIECES = [Piece(ROWS + number, tuple(ids)) for number, ids in enumerate(BASE_IDS)]
FAST = {"learning_rate": 0.01, "epochs": 5, "batch": 4, "contexts_per_piece": 1000, "context_tokens": 12}


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def initial_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Any rows will do for a gradient: other multiples of other base rows."""
    return matrix[:5].float() * torch.arange(1, 6).unsqueeze(1)


@pytest.mark.parametrize(
    ("name", "padding"),
    [("llama", 0), ("llama-tied-odd", 0), ("mistral", 0), ("gemma", 0), ("gemma-untied", 0), ("qwen2", 4)],
)
def test_losses_and_gradients_are_those_of_plain_transformers(
    name: str, padding: int, tmp_path: Path
) -> None:
    case = CASE[name]
    first = {**SMALL, **case.changes}["vocab_size"] - padding  # new ids go on over rows of padding
    base = make_model(case, tmp_path / "base")
    pieces = [Piece(first + number, tuple(group)) for number, group in enumerate(BASE_IDS)]
    # Each text in both vocabularies, and where the base tokens end that each token stands for, by hand.
    texts = [
        ([10, first, 11, first + 1], [10, 1, 2, 11, 3, 4, 5], [0, 2, 3, 6]),
        ([first + 2, 12], [6, 7, 12], [1, 2]),
    ]
    start = 50
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    tied = reference.config.tie_word_embeddings
    input_rows = initial_rows(reference.get_input_embeddings().weight.data)
    output_rows = None if tied else initial_rows(reference.get_output_embeddings().weight.data) * 0.5

    model = load_model(base, DistillationConfig(dtype="fp32"))
    student = Student(model, pieces, [start], input_rows, output_rows)
    losses = student.losses([ids(*new) for new, _, _ in texts])
    losses.hidden.backward()

    states, targets, logits, following = [], [], [], []
    with torch.no_grad():
        for _, old, ends in texts:
            found = reference(torch.tensor([[start, *old]]), output_hidden_states=True).hidden_states[-1][0]
            targets.append(found[[0, *(end + 1 for end in ends)]])
    reference.resize_token_embeddings(first + 5, mean_resizing=False)
    table, head = reference.get_input_embeddings().weight, reference.get_output_embeddings().weight
    with torch.no_grad():
        table[first:] = input_rows
        if output_rows is not None:
            head[first:] = output_rows
    for new, _, _ in texts:
        answer = reference(torch.tensor([[start, *new]]), output_hidden_states=True)
        states.append(answer.hidden_states[-1][0])
        logits.append(answer.logits[0, :-1])
        following += new
    expected = (torch.cat(states) - torch.cat(targets)).square().mean()
    torch.testing.assert_close(losses.hidden.detach(), expected.detach())
    (wanted,) = torch.autograd.grad(expected, table, retain_graph=True)
    torch.testing.assert_close(student.input_rows.grad, wanted[first:], rtol=1e-4, atol=1e-7)
    assert wanted[first : first + 3].abs().sum() > 0, "the gradient that is compared is not all zero"
    assert not student.input_rows.grad[3:].any(), "pieces that are not in the texts"
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    if output_rows is None:
        assert losses.next_token is None and student.parameters == [student.input_rows]
        return
    before = student.input_rows.grad.clone()
    assert losses.next_token is not None and student.output_rows is not None
    losses.next_token.backward()
    assert torch.equal(student.input_rows.grad, before), "predicting the next token moves output rows only"
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(following))
    torch.testing.assert_close(losses.next_token.detach(), expected.detach())
    (wanted,) = torch.autograd.grad(expected, head)
    torch.testing.assert_close(student.output_rows.grad, wanted[first:], rtol=1e-4, atol=1e-6)


def test_expansion_by_hand() -> None:
    expansion = Expansion(PIECES)
    text = ids(10, 98, 99, 11, 100, 97)
    assert expansion.lengths(text).tolist() == [1, 3, 2, 1, 0, 2]
    assert expansion.expand(text).tolist() == [10, 3, 4, 5, 6, 7, 11, 1, 2]


@pytest.mark.slow
def test_expanding_new_pieces_is_the_segmentation_of_the_base(tmp_path: Path) -> None:
    from tsugiki.tokenizer.config import TokenizerConfig
    from tsugiki.tokenizer.extend import run

    languages = ["ja", "vi", "km", "th"]
    corpus = write_corpus(tmp_path / "corpus", {name: fixture_texts(name) for name in [*languages, "en"]})
    base = mistral_base(tmp_path / "base")
    (tmp_path / "tokenizer").mkdir()
    extend = {"size": 300, "languages": dict.fromkeys(languages, 1.0), "minimum_count": 2}
    config = TokenizerConfig.model_validate({"extend": extend, "report_bytes_per_language": 2000})
    run(config, {"base": base, "corpus": corpus}, tmp_path / "tokenizer", StageContext(workers=1))
    pieces = read_pieces(tmp_path / "tokenizer")
    old, new = (
        Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("base", "tokenizer")
    )
    expansion, used = Expansion(pieces), 0
    for text in (text for name in languages for text in fixture_texts(name)):
        encoded = ids(*new.encode(text, add_special_tokens=False).ids)
        used += int((encoded >= pieces[0].id).sum())
        assert expansion.expand(encoded).tolist() == old.encode(text, add_special_tokens=False).ids
    assert used > 1000
    contexts = find_contexts(corpus, tmp_path / "tokenizer", pieces, DistillationConfig(), 1)
    assert contexts.start_ids == [1], "BOS"


def corpus_of(directory: Path, documents: list[str], heldout: list[str] | None = None) -> Path:
    """Training documents and held-out ones (by default one without new pieces) of one language."""
    heldout = heldout or ["w1 w2"]
    return write_corpus(directory, {"ja": [*documents, *heldout]}, heldout=len(heldout))


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def contexts_of(
    tmp_path: Path, documents: list[str], heldout: list[str] | None = None, **settings: Any
) -> Any:
    corpus = corpus_of(tmp_path / "corpus", documents, heldout)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", ROWS, BASE_IDS)
    return find_contexts(corpus, tokenizer, PIECES, DistillationConfig.model_validate(settings), 1)


def test_a_context_has_the_piece_in_its_middle_and_counts_for_all_its_pieces(tmp_path: Path) -> None:
    text = [*range(20, 40), 98, *range(40, 43), 97, *range(43, 60)]
    found = contexts_of(tmp_path, [words(*text)], context_tokens=11)
    # Of 11 base tokens, four stand before w98, three are its own and four stand behind: w40, w41, w42, and half
    # of w97, which is left out. The search goes on there: four base tokens before w97 begin inside w98, so it is
    # three, two of its own, and six behind.
    assert [snippet.tolist() for snippet in found.snippets] == [
        [36, 37, 38, 39, 98, 40, 41, 42],
        [40, 41, 42, 97, 43, 44, 45, 46, 47, 48],
    ]
    assert found.counts.tolist() == [1, 1, 0, 0, 0]


def test_enough_contexts_are_enough_and_heldout_text_is_not_read(tmp_path: Path) -> None:
    documents = [words(20, 97, 21), words(22, 97, 23), words(24, 97, 98), words(25, 97, 26)]
    found = contexts_of(tmp_path, documents, [words(99, 27)], contexts_per_piece=2)
    assert [snippet.tolist() for snippet in found.snippets] == [[20, 97, 21], [22, 97, 23], [24, 97, 98]]
    assert found.counts.tolist() == [3, 1, 0, 0, 0]
    assert found.start_ids == []


def test_a_byte_budget_takes_a_share_of_the_documents(tmp_path: Path) -> None:
    documents = [words(20, 97, 10 + number % 80) for number in range(400)]
    size = sum(map(len, documents))
    found = contexts_of(tmp_path, documents, corpus_bytes_per_language=size // 4, contexts_per_piece=1000)
    assert 60 <= len(found.snippets) <= 140, "a quarter of 400, give or take"
    other = find_contexts(
        tmp_path / "corpus", tmp_path / "tokenizer", PIECES,
        DistillationConfig(corpus_bytes_per_language=size // 4, contexts_per_piece=1000), 2,
    )  # fmt: skip
    assert [item.tolist() for item in other.snippets] != [item.tolist() for item in found.snippets]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizer and a corpus in which w97, w98 and w99 stand among random words; w101 is held out."""
    run = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(40):
        text = generator.integers(10, 60, 16)
        text[[4, 9, 12]] = 97 + generator.permutation(3)
        documents.append(words(*text.tolist()))
    corpus = corpus_of(run / "corpus", documents, [words(20, 101, 21)])
    return {"corpus": corpus, "tokenizer": write_tokenizer(run / "tokenizer", ROWS, BASE_IDS)}


def graft(
    inputs: dict[str, Path], base: Path, output: Path, experiment_seed: int = 7, **settings: Any
) -> tuple[StageResult, dict[str, Any], dict[str, torch.Tensor]]:
    """Run the stage; its result, ``graft.json``, and the weights exported again."""
    output.mkdir()
    config = GraftConfig.model_validate({"init": "distillation", "distillation": {**FAST, **settings}})
    context = StageContext(workers=2, seed=experiment_seed)
    result = tsugiki.pretrain.graft.run(config, {**inputs, "base": base}, output, context)
    export = output.parent / f"{output.name}-export"
    export_checkpoint(
        output, export, tokenizer_dir=inputs["tokenizer"], base_dir=base, config=ExportConfig(verify=False)
    )
    return result, json.loads((output / "graft.json").read_text()), read_weights(export)


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "case", [CASE["llama"], Case("tied", "Llama", {"tie_word_embeddings": True})], ids=["untied", "tied"]
)
def test_only_new_input_rows_change_and_the_loss_falls(
    case: Case, inputs: dict[str, Path], tmp_path: Path
) -> None:
    base = make_model(case, tmp_path / "base")
    result, report, after = graft(inputs, base, tmp_path / "graft")
    done = report["distillation"]
    assert done["pieces_trained"] == 3 and done["pieces_without_context"] == 1
    assert done["reserved_pieces"] == 1 and done["steps"] == 5 * -(-done["contexts"] // 4)
    assert done["hidden_loss"]["after"] < 0.8 * done["hidden_loss"]["before"]
    assert any("3 pieces" in line and "1 pieces in no context" in line for line in result.summary)

    before = read_weights(base)
    for name, old in before.items():
        assert same_bits(old, after[name][: len(old)].clone()), name
    (tmp_path / "mean").mkdir()
    import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=inputs["tokenizer"])
    export_checkpoint(
        tmp_path / "megatron", tmp_path / "mean-export", tokenizer_dir=inputs["tokenizer"], base_dir=base,
        config=ExportConfig(verify=False),
    )  # fmt: skip
    mean = read_weights(tmp_path / "mean-export")
    assert (after[TABLE][ROWS : ROWS + 3] != mean[TABLE][ROWS : ROWS + 3]).any(dim=1).all()
    assert same_bits(after[TABLE][ROWS + 3 :].clone(), mean[TABLE][ROWS + 3 :].clone())
    assert done["output_rows"] == ("mean" if HEAD in mean else "tied")
    if HEAD in mean:
        assert same_bits(after[HEAD], mean[HEAD])
    assert report["row_norms"][TABLE]["new_mean"] == pytest.approx(
        after[TABLE][ROWS:].norm(dim=1).mean().item(), rel=1e-5
    )


@pytest.mark.slow
def test_a_seed_decides_every_bit(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(CASE["llama"], tmp_path / "base")
    _, first, weights = graft(inputs, base, tmp_path / "1", epochs=1)
    _, second, again = graft(inputs, base, tmp_path / "2", epochs=1)
    _, _, other = graft(inputs, base, tmp_path / "3", experiment_seed=8, epochs=1)
    _, _, own = graft(inputs, base, tmp_path / "4", seed=8, epochs=1)
    assert first == second and all(same_bits(weights[name], again[name]) for name in weights)
    assert not same_bits(weights[TABLE], other[TABLE])
    assert same_bits(own[TABLE], other[TABLE])


@pytest.mark.slow
def test_output_rows_learn_to_predict(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(CASE["llama"], tmp_path / "base")
    _, report, after = graft(inputs, base, tmp_path / "graft", output_rows="next_token")
    _, _, plain = graft(inputs, base, tmp_path / "plain")
    loss = report["distillation"]["next_token_loss"]
    assert loss["after"] < loss["before"] - 0.1
    assert same_bits(after[TABLE], plain[TABLE]), "the input rows do not know of it"
    assert same_bits(after[HEAD][:ROWS].clone(), plain[HEAD][:ROWS].clone())
    assert (after[HEAD][ROWS : ROWS + 3] != plain[HEAD][ROWS : ROWS + 3]).any(dim=1).all()
    tied = make_model(Case("tied", "Llama", {"tie_word_embeddings": True}), tmp_path / "tied")
    with pytest.raises(ConfigError, match="share one matrix"):
        graft(inputs, tied, tmp_path / "refused", output_rows="next_token")


def test_a_learning_rate_that_is_too_high_is_told(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(CASE["llama"], tmp_path / "base")
    for rate, worse in ((0.003, False), (3.0, True)):
        result, report, _ = graft(inputs, base, tmp_path / str(rate), learning_rate=rate, epochs=1)
        loss = report["distillation"]["hidden_loss"]
        assert (loss["after"] > loss["before"]) == worse
        assert any("worse than the mean" in line for line in result.summary) == worse


@pytest.mark.slow
def test_bf16_base_keeps_its_type(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(CASE["llama-mha-bf16"], tmp_path / "base")
    _, report, after = graft(inputs, base, tmp_path / "graft", dtype="bf16")
    assert after[TABLE].dtype == torch.bfloat16
    assert report["distillation"]["hidden_loss"]["after"] < report["distillation"]["hidden_loss"]["before"]


def test_errors(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(CASE["llama"], tmp_path / "base")
    with pytest.raises(ConfigError, match="learns from a corpus, and there is none"):
        config = GraftConfig(init="distillation")
        import_checkpoint(base, tmp_path / "m", tokenizer_dir=inputs["tokenizer"], config=config)
    for number, (documents, message) in enumerate(
        [([], "no training text to learn"), ([words(20, 21)], "holds any of the new pieces")]
    ):
        corpus = corpus_of(tmp_path / f"corpus-{number}", documents)
        with pytest.raises(DataError, match=message):
            graft({**inputs, "corpus": corpus}, base, tmp_path / f"no-{number}")
    with pytest.raises(EnvironmentError_, match="device cannot be used"):
        graft(inputs, base, tmp_path / "device", device="cuda:7")
    broken = make_model(CASE["llama"], tmp_path / "broken")
    weights = read_weights(broken)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"not finite\n.*step 1"):
        graft(inputs, broken, tmp_path / "infinite")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "num_key_value_heads": 3}))
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        load_model(base, DistillationConfig())
    with pytest.raises(ConfigError, match="belongs to init: distillation"):
        validate(GraftConfig, RawConfig({"distillation": {"epochs": 2}}, {}))


def test_the_corpus_is_an_input_of_distillation_only_and_other_keys_stay() -> None:
    smoke = ROOT / "configs" / "smoke.yaml"
    plain = next(stage for stage in stages(load_experiment(smoke).config) if stage.name == "graft")
    config = load_experiment(smoke, ["graft.init=distillation"]).config
    distilled = next(stage for stage in stages(config) if stage.name == "graft")
    assert plain.inputs == ("base", "tokenizer") and distilled.inputs == ("base", "tokenizer", "corpus")
    assert config.graft.distillation == DistillationConfig()
    # As it was before the option existed: its fields and no others.
    without = GraftConfig().model_dump()
    assert without.pop("distillation") is None
    assert fingerprint(GraftConfig()) == sha256_json(without)
    assert fingerprint(config.graft) != fingerprint(
        GraftConfig.model_validate({"init": "distillation", "distillation": {"epochs": 2}})
    )
