"""Fast attention, norm and rotation against plain torch and transformers, forward and backward."""

import os

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from tsugiki.pretrain.model.fused_attention import (
    BlockMasks,
    causal_attention,
    mask_function,
    masked_attention,
)
from tsugiki.pretrain.model.fused_loss import logit_gradient, statistics
from tsugiki.pretrain.model.kernels import rms_norm, rotate_both

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def reference(query, key, value, mask, scale):
    """Scores, mask, softmax, in fp64."""
    query, key, value = (part.detach().double().requires_grad_() for part in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, 1).mT * scale
    output = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(repeats, 1)
    return output, (query, key, value)


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
def test_causal_attention_without_repeated_keys(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    length = 33
    query = torch.randn(2, heads[0], length, 16).to(dtype).requires_grad_()
    key, value = (torch.randn(2, heads[1], length, 16).to(dtype).requires_grad_() for _ in range(2))
    outgoing = torch.randn(2, heads[0], length, 16).to(dtype)
    ours = causal_attention(query, key, value, 0.3)
    theirs, leaves = reference(query, key, value, torch.ones(length, length).tril().bool(), 0.3)
    ours.backward(outgoing)
    theirs.backward(outgoing.double())
    assert difference(ours, theirs) < LIMIT[dtype]
    for part, leaf in zip((query, key, value), leaves, strict=True):
        assert difference(part.grad, leaf.grad) < LIMIT[dtype]


def allowed(start: int, queries: int, window: int | None, documents: list[list[int]] | None) -> torch.Tensor:
    """Who may see whom, pair by pair."""
    batch = 1 if documents is None else len(documents)
    mask = torch.zeros(batch, queries, start + queries, dtype=torch.bool)
    for number in range(batch):
        for row in range(queries):
            position = start + row
            for key in range(position + 1):
                near = window is None or position - key < window
                same = documents is None or documents[number][position] == documents[number][key]
                mask[number, row, key] = near and same
    return mask[:, None]


DOCUMENTS = [[0] * 10 + [1] * 22, [0] * 3 + [1] * 4 + [2] * 25]


@pytest.mark.parametrize("start", [0, 16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_windows_and_documents(start: int, window: int | None, documents: list[list[int]] | None) -> None:
    """The second half of the queries is what a context-parallel rank computes."""
    queries, device = 32 - start, torch.device("cpu")
    expected = allowed(start, queries, window, documents)
    tensor = None if documents is None else torch.tensor(documents)
    dense = create_mask(
        mask_function(start, window, tensor),
        None if documents is None else 2,
        None,
        queries,
        32,
        device="cpu",
    )
    assert torch.equal(dense.expand(expected.shape), expected)
    query, key, value = torch.randn(2, 4, queries, 16), torch.randn(2, 2, 32, 16), torch.randn(2, 2, 32, 16)
    with torch.no_grad():
        mask = BlockMasks().get(queries, start, window, tensor, device)
        ours = masked_attention(query, key, value, mask, 0.3)
    assert difference(ours, reference(query, key, value, expected, 0.3)[0].detach()) < 1e-5


def test_block_masks_are_made_once_a_micro_batch() -> None:
    masks, device = BlockMasks(), torch.device("cpu")
    window = masks.get(32, 0, 5, None, device)
    assert masks.get(32, 0, 5, None, device) is window
    batch, other = torch.tensor([DOCUMENTS, DOCUMENTS]), torch.zeros(2, 2, 32, dtype=torch.long)
    first = masks.get(32, 0, None, batch[0], device)
    assert masks.get(32, 0, None, batch[0], device) is first  # a new view of the same batch
    assert masks.get(32, 0, None, other[0], device) is not first
    assert masks.get(32, 0, None, batch[0], device) is not first


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
def test_norm_and_rotation_are_those_of_transformers(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

    norm = LlamaRMSNorm(24, eps=1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight, 1.0)
    hidden = torch.randn(5, 3, 24).to(dtype)
    assert difference(rms_norm(hidden, norm.weight, 1e-6), norm(hidden)) < LIMIT[dtype]
    length, width = 9, 8
    query, key = torch.randn(length, 2, 4, width).to(dtype), torch.randn(length, 2, 2, width).to(dtype)
    angles = torch.rand(length, width // 2) * 6
    cosine, sine = (part.to(dtype)[:, None, None] for part in (angles.cos(), angles.sin()))
    ours = rotate_both(query, key, cosine, sine)
    whole = torch.cat([angles, angles], -1)[None]
    theirs = apply_rotary_pos_emb(
        query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), whole.cos().to(dtype), whole.sin().to(dtype)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine.permute(1, 2, 0, 3), other) < LIMIT[dtype]


def test_the_compiler_takes_every_kernel_whole() -> None:
    """Traced and partitioned as for a GPU, without code generation; no break in the graph."""
    hidden, weight, labels = torch.randn(7, 32), torch.rand(32), torch.randint(-1, 32, (7,))
    query, key, angles = torch.randn(7, 2, 4, 8), torch.randn(7, 2, 2, 8), torch.rand(2, 7, 1, 1, 4)
    cases = [
        (rms_norm, (hidden, weight, 1e-6), 2),
        (rotate_both, (query, key, *angles), 2),
        (statistics, (hidden, labels), 0),
        (logit_gradient, (hidden, hidden.sum(-1), hidden[:, 0], hidden[:, 1], labels), 0),
    ]
    for function, arguments, leaves in cases:
        results = []
        for run in (
            function,
            torch.compile(function, backend="aot_eager_decomp_partition", fullgraph=True),
        ):
            inputs = [
                part.clone().requires_grad_() if number < leaves else part
                for number, part in enumerate(arguments)
            ]
            output = run(*inputs)
            output = output if isinstance(output, tuple) else (output,)
            if leaves:
                torch.autograd.backward(output, [torch.ones_like(part) for part in output])
            results.append([*(part.detach() for part in output), *(part.grad for part in inputs[:leaves])])
        for plain, fast in zip(*results, strict=True):
            assert difference(fast, plain) < 1e-5
