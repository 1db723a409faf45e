"""Norm, SwiGLU, rotation and loss as a CPU trains with them, against torch's own operations in fp64."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tsugiki.pretrain.model import blocked_loss, cpu_kernels, kernels
from tsugiki.pretrain.model.blocked_loss import blocked_cross_entropy

TOKENS, HIDDEN, ROWS, TRUE = 37, 16, 56, 51


def agree(ours, theirs, *inputs: torch.Tensor) -> None:
    """Results and gradients of both for the same inputs, relative to 1e-5."""
    found = []
    for function, dtype in ((ours, torch.float32), (theirs, torch.float64)):
        leaves = [item.detach().to(dtype).requires_grad_() for item in inputs]
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(result.shape, generator=generator).to(dtype) for result in results]
        sum((result * weight).sum() for result, weight in zip(results, weights, strict=True)).backward()
        found.append([item.detach() for item in (*results, *(leaf.grad for leaf in leaves))])
    for own, expected in zip(*found, strict=True):
        assert own.dtype == torch.float32
        assert float((own.double() - expected).norm() / expected.norm()) < 1e-5


def test_rms_norm() -> None:
    hidden, weight = torch.randn(5, 3, HIDDEN), torch.randn(HIDDEN)
    agree(
        lambda *both: cpu_kernels.rms_norm(*both, 1e-2),
        lambda hidden, weight: F.rms_norm(hidden, weight.shape, weight, 1e-2),
        hidden,
        weight,
    )


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu(bias: bool) -> None:
    def plain(both: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        gate, up = (both if added is None else both + added).chunk(2, dim=-1)
        return F.silu(gate) * up

    agree(cpu_kernels.swiglu, plain, torch.randn(5, 3, 2 * HIDDEN), *[torch.randn(2 * HIDDEN)] * bias)


@pytest.mark.parametrize("batch", [1, 3])
def test_rotation(batch: int) -> None:
    """With the same angles for all sequences and with their own."""
    angles = torch.randn(5, batch, 1, HIDDEN // 2)
    agree(
        lambda query, key: cpu_kernels.rotate_both(query, key, angles.cos(), angles.sin()),
        lambda query, key: kernels.rotate_both(query, key, angles.double().cos(), angles.double().sin()),
        torch.randn(5, 3, 4, HIDDEN),
        torch.randn(5, 3, 2, HIDDEN),
    )


@pytest.mark.parametrize("buffer", [False, True])
def test_embedding_adds_up_the_rows_of_an_id_that_comes_twice(buffer: bool) -> None:
    ids, gradient = torch.tensor([[3, 0, 3], [5, 3, 0]]), torch.randn(2, 3, HIDDEN)
    weight = torch.nn.Parameter(torch.randn(ROWS, HIDDEN))
    before = torch.rand(ROWS, HIDDEN) if buffer else torch.zeros(ROWS, HIDDEN)
    if buffer:
        weight.main_grad = before.clone()
    result = cpu_kernels.embedding(weight, ids)
    assert torch.equal(result, weight[ids])
    result.backward(gradient)
    expected = before.double()
    for place, id_ in enumerate(ids.flatten().tolist()):
        expected[id_] += gradient.flatten(0, 1)[place]
    assert (weight.grad is None) == buffer
    torch.testing.assert_close((weight.main_grad if buffer else weight.grad).double(), expected)


@pytest.fixture(params=[(1024, 512), (16, 20), (37, 51)], ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_loss, "_TOKENS", request.param[0])
    monkeypatch.setattr(blocked_loss, "_ROWS", request.param[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_its_gradients(z_loss: float) -> None:
    """Two micro-batches are under way at once; the second comes back first."""
    weight = torch.randn(ROWS, HIDDEN)
    parameter = torch.nn.Parameter(weight.clone())
    before = torch.rand(ROWS, HIDDEN)
    parameter.main_grad = before.clone()
    reference = weight.double().requires_grad_()
    passes = []
    for _ in range(2):
        hidden, labels = torch.randn(TOKENS, HIDDEN), torch.randint(0, TRUE, (TOKENS,))
        mask = (torch.rand(TOKENS) > 0.2).float()
        own, theirs = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
        objective, entropy = blocked_cross_entropy(
            own, parameter, labels, first=0, vocabulary_size=TRUE, z_loss=z_loss, accumulate=True
        )
        logits = theirs @ reference[:TRUE].t()
        expected = F.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(entropy.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        ((expected + z_loss * logits.logsumexp(-1).square()) * mask).sum().backward()
        passes.append(((objective * mask).sum(), own, theirs))
    for total, own, theirs in reversed(passes):
        total.backward()
        torch.testing.assert_close(own.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)
    assert parameter.grad_added_to_main_grad
    torch.testing.assert_close((parameter.main_grad - before).double(), reference.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(parameter.main_grad[TRUE:], before[TRUE:])  # padding


@pytest.mark.usefixtures("blocks")
def test_loss_without_gradients_keeps_nothing() -> None:
    hidden, weight = torch.randn(TOKENS, HIDDEN), torch.randn(ROWS, HIDDEN).requires_grad_()
    labels = torch.full((TOKENS,), 3)
    free = len(blocked_loss._buffers._free)
    with torch.no_grad():
        _, entropy = blocked_cross_entropy(hidden, weight, labels, first=0, vocabulary_size=TRUE)
        expected = F.cross_entropy(hidden @ weight[:TRUE].t(), labels, reduction="none")
        _, elsewhere = blocked_cross_entropy(hidden, weight, labels, first=ROWS, vocabulary_size=2 * ROWS)
    torch.testing.assert_close(entropy, expected)
    assert len(blocked_loss._buffers._free) == free
    # One of two ranks alone: labels that it does not hold count as zero.
    torch.testing.assert_close(elsewhere, (hidden @ weight.t()).logsumexp(-1).detach())


def test_a_frozen_matrix_needs_no_gradient() -> None:
    hidden, weight = torch.randn(TOKENS, HIDDEN, requires_grad=True), torch.randn(ROWS, HIDDEN)
    labels = torch.zeros(TOKENS, dtype=torch.long)
    blocked_cross_entropy(hidden, weight, labels, first=0, vocabulary_size=TRUE)[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults of the GNU C library's allocator")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """512 MB in pieces of 8 MB, made and freed twice: 4 KB pages of the second time are there already."""
    script = """
import resource, sys
from tsugiki.pretrain.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [bytes([1]) * (8 << 20) for _ in range(64)]
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step(), step()
print(step())
"""
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, way], capture_output=True, text=True, check=True
            ).stdout
        )
        for way in ("keep", "as it is")
    ]
    assert faults[0] < 0.1 * faults[1]
