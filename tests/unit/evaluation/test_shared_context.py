"""Options that share one reading of their question, against the harness's own way and a forward pass of each."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from evaluation_material import needs_harness, write_model

CONTEXT = list(range(5, 25))
REQUESTS = [
    (("a", "b"), CONTEXT, [30, 31, 32]),
    (("a", "c"), CONTEXT, [33]),
    (("d", "e"), CONTEXT[:7], [34, 35]),  # alone with its context
    (("a", "f"), CONTEXT, [36, 30, 31, 32, 33]),
    (("g", "h"), CONTEXT * 3, [3, 4]),  # longer than the window
    (("g", "i"), CONTEXT * 3, [4, 3]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tsugiki.evaluation.benchmarks.shared_context import SharedContextLM

    directory: Path = write_model(tmp_path_factory.mktemp("shared") / "model", max_positions=32)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    return SharedContextLM(
        pretrained=str(directory), tokenizer=tokenizer, dtype="float32", device="cpu", batch_size=2
    )


@pytest.fixture
def read(model: Any) -> Any:
    """Tokens that the model has read."""
    count = [0]

    def add(_module: object, _inputs: object, options: dict[str, Any]) -> None:
        count[0] += options["input_ids"].numel()

    hook = model.model.base_model.register_forward_pre_hook(add, with_kwargs=True)
    yield count
    hook.remove()


@needs_harness
def test_figures_are_the_harnesss(model: Any, read: list[int]) -> None:
    ours = model._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    shared, read[0] = read[0], 0
    theirs = super(type(model), model)._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    torch.testing.assert_close(
        torch.tensor([total for total, _ in ours]), torch.tensor([total for total, _ in theirs]),
        rtol=0, atol=1e-5,
    )  # fmt: skip
    assert shared < read[0] - len(CONTEXT)  # the question was read once
    for (_, context, option), (total, _) in zip(REQUESTS[:4], ours, strict=False):
        with torch.no_grad():
            scores = model.model(torch.tensor([context + option])).logits[0].log_softmax(-1)
        expected = sum(float(scores[len(context) - 1 + at, token]) for at, token in enumerate(option))
        assert total == pytest.approx(expected, abs=1e-5)


@needs_harness
def test_what_greedy_decoding_would_say(model: Any) -> None:
    with torch.no_grad():
        best = int(model.model(torch.tensor([CONTEXT])).logits[0, -1].argmax())
    requests = [(("a", "b"), CONTEXT, [best]), (("a", "c"), CONTEXT, [(best + 1) % 40])]
    assert [greedy for _, greedy in model._loglikelihood_tokens(requests, disable_tqdm=True)] == [True, False]


@needs_harness
@pytest.mark.parametrize(
    "settings",
    [{"sliding_window": 8}, {"rope_parameters": {"rope_type": "longrope"}}],
    ids=["window", "longrope"],
)
def test_what_depends_on_the_rest_is_read_as_the_harness_does(
    model: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a context that a longer input changes, or that a window has left behind."""
    known = model.model.config.to_dict()
    monkeypatch.setattr(type(model.model.config), "to_dict", lambda _: {**known, **settings})
    assert not model._shares(len(CONTEXT), 3)
    monkeypatch.undo()
    assert model._shares(len(CONTEXT), 3)
