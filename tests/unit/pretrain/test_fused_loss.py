"""The fused output layer and loss against torch's cross entropy and against the plain path."""

import os

import pytest
import torch

from tsugiki.pretrain.model.fused_loss import chunk_tokens, linear_cross_entropy
from tsugiki.pretrain.model.kernels import TorchGradientAccumulation, accumulate_weight_gradient
from tsugiki.pretrain.model.loss import vocabulary_parallel_loss

TOKENS, HIDDEN, ROWS, TRUE = 37, 16, 56, 51
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, padded weight, labels, and the weight of every token's loss (some masked)."""
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype)
    labels = torch.randint(0, TRUE, (TOKENS,), generator=generator)
    mask = (torch.rand(TOKENS, generator=generator) > 0.2).float()
    return hidden, weight, labels, mask


def reference(hidden, weight, labels, mask, z_loss: float):
    """torch alone, in fp64, on the rows that are not padding."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = hidden @ weight[:TRUE].t()
    entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    objective = entropy + z_loss * logits.logsumexp(-1).square()
    (objective * mask).sum().backward()
    return entropy.detach(), objective.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("keep", [True, False])
def test_agrees_with_torch(dtype: torch.dtype, z_loss: float, chunk: int | None, keep: bool) -> None:
    hidden, weight, labels, mask = problem(dtype)
    expected = reference(hidden, weight, labels, mask, z_loss)
    hidden.requires_grad_()
    weight.requires_grad_()
    objective, entropy = linear_cross_entropy(
        hidden, weight, labels, first=0, vocabulary_size=TRUE, z_loss=z_loss, chunk=chunk, keep=keep
    )
    (objective * mask).sum().backward()
    assert objective.dtype == entropy.dtype == torch.float32
    for ours, theirs in zip((entropy, objective, hidden.grad, weight.grad), expected, strict=True):
        assert difference(ours.detach(), theirs) < LIMIT[dtype]
    assert not weight.grad[TRUE:].any()  # padding


def test_agrees_with_the_plain_path() -> None:
    hidden, weight, labels, _ = problem(torch.float32)
    logits = (hidden @ weight.t())[:, None]
    _, plain = vocabulary_parallel_loss(logits, labels[:, None], first=0, vocabulary_size=TRUE)
    _, fused = linear_cross_entropy(hidden, weight, labels, first=0, vocabulary_size=TRUE)
    torch.testing.assert_close(fused, plain[:, 0])


@pytest.mark.parametrize("chunk", [None, 8])
def test_adds_the_weight_gradient_to_megatrons_buffer(chunk: int | None) -> None:
    hidden, weight, labels, mask = problem(torch.bfloat16)
    expected = reference(hidden, weight, labels, mask, 0.0)[3]
    before = torch.rand(ROWS, HIDDEN)
    parameter = torch.nn.Parameter(weight)
    parameter.main_grad = before.clone()
    objective, _ = linear_cross_entropy(
        hidden.requires_grad_(),
        parameter,
        labels,
        first=0,
        vocabulary_size=TRUE,
        chunk=chunk,
        accumulate=True,
    )
    (objective * mask).sum().backward()
    assert parameter.grad_added_to_main_grad
    assert parameter.main_grad.dtype == torch.float32
    assert difference(parameter.main_grad - before, expected) < 1e-2
    assert torch.equal(parameter.main_grad[TRUE:], before[TRUE:])


def test_a_tied_matrix_gets_zeros_from_autograd() -> None:
    """Megatron adds autograd's gradient of the embedding to the buffer in that case."""
    hidden, weight, labels, _ = problem(torch.float32)
    parameter = torch.nn.Parameter(weight)
    parameter.main_grad = torch.zeros(ROWS, HIDDEN)
    parameter.zero_out_wgrad = True
    objective, _ = linear_cross_entropy(
        hidden.requires_grad_(), parameter, labels, first=0, vocabulary_size=TRUE, accumulate=True
    )
    objective.sum().backward()
    assert not parameter.grad.any()
    assert parameter.main_grad.any()


def test_a_frozen_matrix_needs_no_gradient() -> None:
    hidden, weight, labels, _ = problem(torch.float32)
    objective, _ = linear_cross_entropy(
        hidden.requires_grad_(), weight, labels, first=0, vocabulary_size=TRUE
    )
    objective.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_labels_of_another_rank_count_as_zero() -> None:
    """One of two ranks alone: entropy is its log partition for labels it does not hold."""
    hidden, weight, _, _ = problem(torch.float32)
    labels = torch.full((TOKENS,), 3)
    _, entropy = linear_cross_entropy(hidden, weight, labels, first=ROWS, vocabulary_size=2 * ROWS)
    torch.testing.assert_close(entropy, (hidden @ weight.t()).logsumexp(-1))


def test_chunks_are_equal_and_small() -> None:
    assert chunk_tokens(4096, 32_000, 2) == 4096  # 262 MB: one chunk
    assert chunk_tokens(4096, 43_176, 2) == 2048  # 354 MB: two
    assert chunk_tokens(100, 101, 4) == 100
    assert chunk_tokens(32_768, 128_256, 2) % 128 == 0
    assert chunk_tokens(32_768, 128_256, 2) * 128_256 * 2 <= (1 << 28) + 128 * 128_256 * 2


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
def test_weight_gradients_add_up_in_fp32(dtype: torch.dtype) -> None:
    inputs, gradient = torch.randn(9, 5).to(dtype), torch.randn(9, 7).to(dtype)
    total = torch.rand(7, 5)
    expected = total.double() + gradient.double().t() @ inputs.double()
    TorchGradientAccumulation.wgrad_gemm_accum_fp32(inputs, gradient, total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    half = total.to(dtype)
    accumulate_weight_gradient(inputs, gradient, half)
    assert half.dtype == dtype
