"""The binary cross entropy of logits: exact on both tails, whatever the operands are and lie like,
with the semantics of torch's function."""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fused_sigmoid
from fused_sigmoid import FusedBCEWithLogitsLoss, binary_cross_entropy_with_logits
from fused_sigmoid._extension import KERNEL_DTYPES, extension
from fused_sigmoid.binary_cross_entropy import composed_loss

HALVES = (torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
every_set = pytest.mark.parametrize("instruction_set", extension.instruction_sets())


@pytest.fixture
def selected(instruction_set: str) -> Iterator[str]:
    before = extension.instruction_set()
    extension.select_instruction_set(instruction_set)
    yield instruction_set
    extension.select_instruction_set(before)


def exact(x: Tensor, t: Tensor | float) -> tuple[Any, Any]:
    target = oracle.exact(t) if isinstance(t, Tensor) else np.longdouble(t)
    return oracle.cross_entropy(oracle.exact(x.detach()), target)


def loss_and_gradient(x: Tensor, t: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    loss = binary_cross_entropy_with_logits(leaf, t, **others)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


# Numerics


@every_set
@every_half
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_every_half_is_the_nearest(
    selected: str, dtype: torch.dtype, target: float, reduction: str
) -> None:
    x = oracle.every_finite_half(dtype)
    t = torch.full_like(x, target)
    loss, gradient = loss_and_gradient(x, t, reduction=reduction)
    true_loss, true_gradient = exact(x, target)
    assert oracle.error_in_ulp(gradient, true_gradient).max() <= 0.5
    if reduction == "none":
        finite = loss.isfinite()
        assert oracle.error_in_ulp(loss[finite], true_loss[finite.numpy()]).max() <= 0.5
        largest = torch.finfo(dtype).max
        assert (true_loss[~finite.numpy()] > largest).all()


@every_half
def test_a_mean_of_every_half_has_the_nearest_gradients(dtype: torch.dtype) -> None:
    """Over a power of two of elements, where 1 / n is a number of the dtype."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = torch.where(x.isfinite(), x, torch.zeros_like(x))
    for target in (0.0, 1.0):
        _, gradient = loss_and_gradient(x, torch.full_like(x, target))
        _, true_gradient = exact(x, target)
        assert oracle.error_in_ulp(gradient, true_gradient / 2**16).max() <= 0.5


def float32_logits() -> Tensor:
    """Every 4,093rd number, and what lies at the ends of the algorithm and of the format."""
    patterns = torch.arange(0, 2**31, 4093, dtype=torch.int64).to(torch.int32).view(torch.float32)
    edges = torch.tensor([0.0, 87.3, 88.0, 103.9, 104.0, 104.1, 3.4e38])
    numbers = torch.cat((patterns[patterns.isfinite()], edges))
    return torch.cat((numbers, -numbers))


@every_set
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_float32_is_within_its_bounds(selected: str, target: float) -> None:
    x = float32_logits()
    loss, gradient = loss_and_gradient(x, torch.full_like(x, target), reduction="none")
    true_loss, true_gradient = exact(x, target)
    assert oracle.error_in_ulp(loss, true_loss).max() <= 2.5
    assert oracle.error_in_ulp(gradient, true_gradient).max() <= 2.5


@every_set
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_float64_is_within_its_bounds(selected: str, target: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat(
        [torch.randn(100_000, dtype=torch.float64, generator=generator) * s for s in (1, 20, 300)]
    )
    loss, gradient = loss_and_gradient(x, torch.full_like(x, target), reduction="none")
    true_loss, true_gradient = exact(x, target)
    assert oracle.error_in_ulp(loss, true_loss).max() <= 3.5
    assert oracle.error_in_ulp(gradient, true_gradient).max() <= 3.5


@every_set
@every_dtype
def test_soft_targets(selected: str, dtype: torch.dtype) -> None:
    """A gradient between two that are not 0 is off by some units of the larger term."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(50_000, dtype=torch.float64, generator=generator) * 6).to(dtype)
    t = torch.rand(50_000, dtype=torch.float64, generator=generator).to(dtype)
    loss, gradient = loss_and_gradient(x, t, reduction="none")
    true_loss, true_gradient = exact(x, t)
    assert oracle.error_in_ulp(loss, true_loss).max() <= 3.5
    positive, negative = exact(x, 1.0)[1], exact(x, 0.0)[1]
    target = t.double().numpy()
    terms = (1 - target) * negative - target * positive
    error = np.abs(gradient.double().numpy() - true_gradient)
    assert (error <= 2 * torch.finfo(dtype).eps * terms).all()


@every_set
@every_dtype
def test_infinite_logits_and_nan(selected: str, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([inf, inf, -inf, -inf, nan, nan, inf, -inf, 1.0], dtype=dtype)
    t = torch.tensor([0, 1, 0, 1, 0, 1, 0.5, 0.5, nan], dtype=dtype)
    loss, gradient = loss_and_gradient(x, t, reduction="none")
    torch.testing.assert_close(
        loss, torch.tensor([inf, 0, 0, inf, nan, nan, inf, inf, nan], dtype=dtype), equal_nan=True
    )
    expected = torch.tensor([1, 0, 0, -1, nan, nan, 0.5, -0.5, nan], dtype=dtype)
    torch.testing.assert_close(gradient, expected, equal_nan=True)
    composed = composed_loss(x, t, None, None, "none")
    torch.testing.assert_close(composed, loss, equal_nan=True)


@every_set
@every_dtype
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_every_nan_of_a_weight_gives_nan(selected: str, dtype: torch.dtype, name: str) -> None:
    """Also those whose bits a rounding to bfloat16 would carry over into the sign."""
    patterns = [0x7FFF_FFFF, -1, 0x7FFF_9000, 0x7FC0_0000, 0x7F80_0001]
    weight = torch.tensor(patterns * 20, dtype=torch.int32).view(torch.float32)
    x, t = torch.ones(100, dtype=dtype), torch.ones(100, dtype=dtype)
    for result in loss_and_gradient(x, t, reduction="none", **{name: weight}):
        assert result.isnan().all()


@every_dtype
def test_every_instruction_set_gives_the_same_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(10_007, dtype=torch.float64, generator=generator) * 8).to(dtype)
    t, w, p = (torch.rand(10_007, generator=generator).to(dtype) for _ in range(3))
    before = extension.instruction_set()
    found = []
    try:
        for name in extension.instruction_sets():
            extension.select_instruction_set(name)
            found.append(
                [
                    *loss_and_gradient(x, t, reduction="none"),
                    *loss_and_gradient(x, t, weight=w, pos_weight=p, reduction="none"),
                ]
            )
    finally:
        extension.select_instruction_set(before)
    for others in found[1:]:
        for result, other in zip(found[0], others, strict=True):
            assert torch.equal(result, other)


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_is_rounded_once(dtype: torch.dtype, reduction: str) -> None:
    """Up to the errors of the losses themselves, which nearly cancel: 16 Mi of one kind."""
    count = 2**24
    x = torch.full((), -12.0, dtype=dtype).expand(count).contiguous()
    t = torch.zeros_like(x)
    if dtype == torch.float16 and reduction == "sum":
        x.fill_(-5.0)
    loss = binary_cross_entropy_with_logits(x, t, reduction=reduction)
    alone = binary_cross_entropy_with_logits(x[:1].double(), t[:1].double(), reduction="none")
    # In float32 and wider a loss by itself is off by up to 2.5 ulp.
    truth = alone.item() * (count if reduction == "sum" else 1)
    if dtype in HALVES:
        assert loss == torch.tensor(truth, dtype=torch.float64).to(dtype)
    else:
        # A sum in float64 has roundings of its own.
        bound = 2.5 if dtype == torch.float32 else 30
        assert abs(loss.item() - truth) <= bound * torch.finfo(dtype).eps * truth


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_is_that_of_the_losses(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3_000_001, generator=generator) * 5
    t = (torch.rand(3_000_001, generator=generator) < 0.1).float()
    losses = binary_cross_entropy_with_logits(x, t, reduction="none")
    loss = binary_cross_entropy_with_logits(x, t, reduction=reduction)
    truth = math.fsum(losses.tolist()) / (len(x) if reduction == "mean" else 1)
    assert loss == torch.tensor(truth, dtype=torch.float64).float()


def ticks_of_threads() -> dict[str, int]:
    """The processor time of each thread of this process."""
    ticks = {}
    for stat in Path("/proc/self/task").glob("*/stat"):
        _, fields = stat.read_text().rsplit(")", 1)
        ticks[stat.parent.name] = sum(map(int, fields.split()[11:13]))
    return ticks


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_torchs_threads_share_the_work() -> None:
    x, t = torch.randn(2**23), torch.rand(2**23)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = ticks_of_threads()
        for _ in range(60):
            binary_cross_entropy_with_logits(x, t)
        after = ticks_of_threads()
    finally:
        torch.set_num_threads(threads)
    *_, second, first = sorted(after[each] - before.get(each, 0) for each in after)
    assert second > first / 4


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", "every second"])
def test_the_sum_does_not_depend_on_threads(dtype: torch.dtype, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * 300_001, generator=generator).to(dtype)
    t = torch.rand(2 * 300_001, generator=generator).to(dtype)
    step = 2 if layout == "every second" else 1
    x, t = x[::step], t[::step]
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            loss, gradient = loss_and_gradient(x, t, reduction="sum")
            found.add((loss.item(), gradient.double().numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


# Operands


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Views of other memory with the same elements."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3).contiguous().transpose(1, 3),
        "every second": wide[..., ::2],
    }


@every_dtype
@every_reduction
def test_layouts(dtype: torch.dtype, reduction: str) -> None:
    torch.manual_seed(0)
    shape = (3, 5, 7, 19)
    x, t = torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)
    w, p = torch.rand(5, 1, 1), torch.rand(19)
    others = {"weight": w, "pos_weight": p, "reduction": reduction}
    expected = loss_and_gradient(x, t, **others)
    for (of_x, laid_x), (_, laid_t) in itertools.product(layouts(x).items(), layouts(t).items()):
        loss, gradient = loss_and_gradient(laid_x, laid_t, **others)
        # A sum is one of blocks in the order of memory.
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(loss, expected[0], rtol=tolerance, atol=0)
        assert torch.equal(gradient, expected[1])
        torchs = F.binary_cross_entropy_with_logits(laid_x, laid_t, reduction=reduction)
        assert loss.stride() == torchs.stride()
        if of_x != "every second":
            assert gradient.stride() == laid_x.stride()


@every_reduction
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("of_target", KERNEL_DTYPES, ids=str)
def test_mixed_dtypes(dtype: torch.dtype, of_target: torch.dtype, reduction: str) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(40, 3).to(dtype), torch.rand(40, 3).to(of_target)
    leaf, torchs_leaf = (x.clone().requires_grad_() for _ in range(2))
    w = torch.rand(3, dtype=torch.float64)
    loss, probability = binary_cross_entropy_with_logits(
        leaf, t, w, reduction=reduction, return_probability=True
    )
    torchs = F.binary_cross_entropy_with_logits(torchs_leaf, t, w, reduction=reduction)
    loss.sum().backward()
    torchs.sum().backward()
    assert (loss.dtype, leaf.grad.dtype) == (torchs.dtype, torchs_leaf.grad.dtype)
    assert probability.dtype == dtype
    wide = x.double().requires_grad_()
    truth = F.binary_cross_entropy_with_logits(wide, t.double(), w, reduction=reduction)
    truth.sum().backward()
    eps = torch.finfo(of_target).eps
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=4 * max(eps, 1e-7), atol=1e-9)
    torch.testing.assert_close(
        leaf.grad.double(), wide.grad, rtol=0, atol=2 * max(torch.finfo(dtype).eps, 1e-7)
    )


@every_dtype
@every_reduction
@pytest.mark.parametrize("size", [0, 1, 2, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 70_001])
def test_sizes(dtype: torch.dtype, reduction: str, size: int) -> None:
    """Of every size the last block and vector are computed as the others, and nothing beside."""
    torch.manual_seed(0)
    x, t, w = (torch.rand(size + 2).to(dtype) for _ in range(3))
    loss, gradient = loss_and_gradient(x[1:-1], t[1:-1], weight=w[1:-1], reduction=reduction)
    losses, gradients = loss_and_gradient(x, t, weight=w, reduction="none")
    expected = losses[1:-1]
    if reduction != "none":
        total = expected.double().sum()
        expected = (total / size if reduction == "mean" else total).to(dtype)
    tolerance = 0 if reduction == "none" else torch.finfo(dtype).eps * 8
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0, equal_nan=True)
    if reduction != "mean":
        assert torch.equal(gradient, gradients[1:-1])
    else:
        scaled = (gradients[1:-1].double() / max(size, 1)).to(dtype)
        torch.testing.assert_close(gradient, scaled, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@every_dtype
def test_nothing_is_written_beside_the_results(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for size in (1, 7, 33, 1000):
        x, t = torch.randn(size).to(dtype), torch.rand(size).to(dtype)
        before = x.clone(), t.clone()
        loss_and_gradient(x, t, reduction="none")
        assert torch.equal(x, before[0])
        assert torch.equal(t, before[1])


@every_dtype
@every_reduction
def test_the_probability_is_the_sigmoid(dtype: torch.dtype, reduction: str) -> None:
    torch.manual_seed(0)
    shape = (3, 4, 50, 7)
    for x in layouts(torch.randn(shape).to(dtype) * 5).values():
        x = x.requires_grad_()
        loss, probability = binary_cross_entropy_with_logits(
            x, torch.rand(shape).to(dtype), reduction=reduction, return_probability=True
        )
        assert torch.equal(probability, fused_sigmoid.sigmoid(x.detach()))
        assert loss.requires_grad
        assert not probability.requires_grad


@every_dtype
def test_a_sum_that_overflows_is_infinite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.full((4,), largest, dtype=dtype, requires_grad=True)
    loss = binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="sum")
    loss.backward(torch.full_like(loss, largest))
    assert loss == math.inf
    assert torch.equal(x.grad, torch.full_like(x, largest))


def test_targets_outside_of_0_and_1() -> None:
    x, t = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64) * 3
    for others in ({}, {"pos_weight": torch.tensor(2.5, dtype=torch.float64)}):
        loss = binary_cross_entropy_with_logits(x, t, reduction="none", **others)
        torchs = F.binary_cross_entropy_with_logits(x, t, reduction="none", **others)
        torch.testing.assert_close(loss, torchs)


# What torch rejects


def raised(call: Callable[[], object]) -> type[BaseException]:
    with pytest.raises(Exception) as info:
        call()
    return info.type


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "shape": ((torch.rand(3), torch.rand(4)), {}),
    "broadcast target": ((torch.rand(2, 3), torch.rand(3)), {}),
    "reduction": ((torch.rand(3), torch.rand(3)), {"reduction": "average"}),
    "integer target": ((torch.rand(3), torch.ones(3, dtype=torch.int64)), {}),
    "bool target": ((torch.rand(3), torch.ones(3, dtype=torch.bool)), {}),
    "integer input": ((torch.ones(3, dtype=torch.int64), torch.rand(3)), {}),
    "weight": ((torch.rand(3), torch.rand(3), torch.rand(4)), {}),
    "larger weight": ((torch.rand(3), torch.rand(3), torch.rand(2, 3)), {}),
    "larger pos_weight": ((torch.rand(3), torch.rand(3)), {"pos_weight": torch.rand(2, 3)}),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_of_torchs_types(name: str) -> None:
    positional, others = WRONG[name]
    expected = raised(lambda: F.binary_cross_entropy_with_logits(*positional, **others))
    assert raised(lambda: binary_cross_entropy_with_logits(*positional, **others)) is expected


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="argument 'target' must be Tensor, not int"):
        binary_cross_entropy_with_logits(torch.rand(3), 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument 'input' must be Tensor, not list"):
        binary_cross_entropy_with_logits([1.0], torch.rand(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument 'pos_weight' must be Tensor, not float"):
        binary_cross_entropy_with_logits(torch.rand(1), torch.rand(1), pos_weight=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("legacy", "wanted"),
    [
        ({"size_average": False}, "sum"),
        ({"size_average": True}, "mean"),
        ({"reduce": False}, "none"),
        ({"reduce": True}, "mean"),
    ],
)
def test_torchs_old_names_are_refused_with_the_new_one(legacy: Any, wanted: str) -> None:
    for call in (
        lambda: binary_cross_entropy_with_logits(torch.rand(2), torch.rand(2), **legacy),
        lambda: FusedBCEWithLogitsLoss(**legacy),
    ):
        with pytest.raises(TypeError, match=f"write reduction='{wanted}'"):
            call()


# Autograd


@every_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_of_every_kind(reduction: str, weighted: bool) -> None:
    torch.manual_seed(0)
    x, t, w, p = (torch.rand(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    x.detach().sub_(0.5).mul_(8)

    def loss(x: Tensor, t: Tensor, w: Tensor, p: Tensor) -> Any:
        others = {"weight": w, "pos_weight": p} if weighted else {}
        return binary_cross_entropy_with_logits(x, t, reduction=reduction, **others)

    fixed = t.detach(), w.detach(), p.detach()

    def of_logits(x: Tensor) -> Any:
        return loss(x, *fixed)

    checks: dict[str, bool] = {"check_batched_grad": True}
    operands = (x, t, w, p)
    assert torch.autograd.gradcheck(of_logits, x, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(of_logits, x, check_fwd_over_rev=True, **checks)
    assert torch.autograd.gradcheck(loss, operands, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(loss, operands, check_fwd_over_rev=True, **checks)


@every_dtype
@every_reduction
def test_an_incoming_gradient_multiplies(dtype: torch.dtype, reduction: str) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(64, 8).to(dtype), torch.rand(64, 8).to(dtype)
    for factor in (1.0, 0.5, -3.0, 1024.0):
        leaf = x.clone().requires_grad_()
        loss = binary_cross_entropy_with_logits(leaf, t, reduction=reduction)
        loss.backward(torch.full_like(loss, factor))
        wide = x.double().clone().requires_grad_()
        truth = F.binary_cross_entropy_with_logits(wide, t.double(), reduction=reduction)
        truth.backward(torch.full_like(truth, factor))
        scale = wide.grad.abs().max().item()
        torch.testing.assert_close(
            leaf.grad.double(), wide.grad, rtol=0, atol=2 * torch.finfo(dtype).eps * scale
        )


def test_a_scaled_mean_in_float16_does_not_underflow() -> None:
    """1 / n of a gradient of 1 / 1000 is none in float16; times the scale it is a normal number."""
    count, scale = 2**20, 2.0**16
    x = torch.full((count,), -7.0, dtype=torch.float16, requires_grad=True)
    loss = binary_cross_entropy_with_logits(x, torch.zeros_like(x))
    (loss.float() * scale / 2).backward()
    expected = scale / 2 / count / (1 + math.exp(7.0))
    torch.testing.assert_close(x.grad.float(), torch.full((count,), expected), rtol=2**-10, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("size", [1e-5, 1e-8, 2e5])
def test_weighted_losses_in_float16_neither_underflow_nor_overflow(
    reduction: str, size: float
) -> None:
    """A masked mean by weights of 1 / count, then scaled: the product alone has to be a float16."""
    torch.manual_seed(0)
    x, t = torch.randn(5000).half(), torch.randint(0, 2, (5000,)).half()
    w, scale = torch.full((5000,), size), 1024.0 if size < 1 else 2.0**-15
    for target in (t, t.float()):
        leaf = x.clone().requires_grad_()
        loss = binary_cross_entropy_with_logits(leaf, target, w, reduction=reduction)
        loss.backward(torch.full_like(loss, scale))
        truth = exact(x, t)[1] * np.longdouble(np.float32(size)) * scale
        assert oracle.error_in_ulp(leaf.grad, truth).max() <= 1


@every_reduction
def test_a_reduction_that_is_not_interned_reaches_the_kernels(reduction: str) -> None:
    name = "".join([reduction[:1], reduction[1:]])
    x, t = torch.randn(5, requires_grad=True), torch.rand(5)
    loss = binary_cross_entropy_with_logits(x, t, reduction=name)
    assert "FusedBCEWithLogitsLoss" in str(loss)
    module = pickle.loads(pickle.dumps(FusedBCEWithLogitsLoss(reduction=name)))
    assert "FusedBCEWithLogitsLoss" in str(module(x, t))


def test_integer_weights_reach_the_kernels() -> None:
    x, t = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3)
    loss = binary_cross_entropy_with_logits(
        x, t, torch.tensor(2), pos_weight=torch.tensor([1, 2, 3])
    )
    assert "FusedBCEWithLogitsLoss" in str(loss)
    torchs = F.binary_cross_entropy_with_logits(
        x, t, torch.tensor(2), pos_weight=torch.tensor([1, 2, 3])
    )
    torch.testing.assert_close(loss, torchs)


@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((5000, 1), (1,)),
        ((2, 3000, 1, 1), ()),
        ((3000, 2), (2,)),
        ((40, 1, 3, 50), (40, 1, 1, 50)),
        ((7, 5, 3, 20), (5, 1, 20)),
    ],
)
def test_weights_of_any_shape(shape: tuple[int, ...], weights: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, t, w = torch.randn(shape), torch.rand(shape), torch.rand(weights)
    for laid_x in (x, torch.stack([x, x], -1)[..., 1]):
        ours = loss_and_gradient(laid_x, t, weight=w, pos_weight=w, reduction="none")
        wide = w.expand(shape).contiguous()
        expected = loss_and_gradient(x, t, weight=wide, pos_weight=wide, reduction="none")
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_gradient_of_a_target_is_no_nan() -> None:
    x = torch.tensor([math.inf, -math.inf, math.inf, 3.0])
    t = torch.tensor([1.0, 0.0, 0.0, 0.3], requires_grad=True)
    loss = binary_cross_entropy_with_logits(x, t, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), t)
    assert not gradient.isnan().any()
    assert gradient[3] == -3


def test_the_graph_may_be_kept() -> None:
    x, t = torch.randn(100, requires_grad=True), torch.rand(100)
    for reduction in ("none", "mean", "sum"):
        loss = binary_cross_entropy_with_logits(x, t, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        kept = first.clone()
        first.zero_()  # it is the caller's
        (second,) = torch.autograd.grad(loss, x)
        assert torch.equal(second, kept)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, x)


def test_logits_may_change_after_the_loss() -> None:
    """A first gradient needs the logits no more; a second one says that they have changed."""
    x, t = torch.randn(100, requires_grad=True), torch.rand(100)
    expected = loss_and_gradient(x, t)[1]
    logits = x.clone()
    loss = binary_cross_entropy_with_logits(logits, t)
    logits.detach().zero_()
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_hooks_see_what_is_kept() -> None:
    x, t = torch.randn(100, requires_grad=True), torch.rand(100)
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = binary_cross_entropy_with_logits(x, t)
    assert len(packed) == 3  # the gradient, and for a second one logits and targets
    loss.backward()
    assert torch.equal(x.grad, loss_and_gradient(x, t)[1])


def bytes_held(call: Callable[[], object]) -> tuple[int, Any]:
    """How many bytes more are allocated after a call than were before, and its result."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = call()
    return sum(event.self_cpu_memory_usage for event in profile.events()), result


@pytest.mark.parametrize("count", [2**12, 2**18])
def test_kept_is_one_tensor_which_becomes_the_gradient(count: int) -> None:
    x, t = torch.randn(count, requires_grad=True), torch.rand(count)
    binary_cross_entropy_with_logits(x, t).backward()
    x.grad = None
    beside = 64  # the loss, a number
    forward, loss = bytes_held(lambda: binary_cross_entropy_with_logits(x, t))
    assert 4 * count <= forward <= 4 * count + beside
    backward, _ = bytes_held(lambda: loss.backward())
    assert backward <= beside
    with torch.no_grad():
        nothing, _ = bytes_held(lambda: binary_cross_entropy_with_logits(x, t))
    assert nothing <= beside


# Company


@every_dtype
def test_autocast_computes_halves_in_float32(dtype: torch.dtype) -> None:
    x, t = torch.randn(50).to(dtype).requires_grad_(), torch.rand(50).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = binary_cross_entropy_with_logits(x, t)
        torchs = F.binary_cross_entropy_with_logits(x, t)
    assert loss.dtype == torchs.dtype
    torch.testing.assert_close(loss, torchs)
    loss.backward()
    assert x.grad.dtype == dtype


@every_half
def test_autocast_widens_every_operand_and_keeps_what_is_asked_for(dtype: torch.dtype) -> None:
    x, t, w, p = (torch.rand(50).to(dtype) for _ in range(4))

    def results(x: Tensor, t: Tensor, w: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return binary_cross_entropy_with_logits(
            x, t, w, pos_weight=p, reduction="sum", return_probability=True
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(x, t, w, p)
    expected = results(x.float(), t.float(), w.float(), p.float())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "jacrev", "hessian", "per sample"])
def test_transforms(transform: str) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)

    def ours(x: Tensor, t: Tensor) -> Any:
        return binary_cross_entropy_with_logits(x, t)

    def torchs(x: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x, t)

    def run(loss: Callable[[Tensor, Tensor], Any]) -> Any:
        if transform == "vmap":
            return torch.func.vmap(loss)(x.view(2, 3), t.view(2, 3))
        if transform == "jvp":
            return torch.func.jvp(lambda x: loss(x, t), (x,), (torch.ones_like(x),))[1]
        if transform == "per sample":
            return torch.func.vmap(torch.func.grad(loss))(x.view(2, 3), t.view(2, 3))
        return getattr(torch.func, transform)(lambda x: loss(x, t))(x)

    torch.testing.assert_close(run(ours), run(torchs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_it_is_exact_in_one_graph(dtype: torch.dtype) -> None:
    x = torch.tensor([-20.0, -60.0, 20.0, 0.0, 3.0], dtype=dtype, requires_grad=True)
    t = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.3], dtype=dtype)

    @torch.compile(fullgraph=True)
    def step(x: Tensor, t: Tensor) -> Any:
        return binary_cross_entropy_with_logits(x, t, reduction="sum")

    loss = step(x, t)
    (gradient,) = torch.autograd.grad(loss, x)
    expected, eager = loss_and_gradient(x, t, reduction="sum")
    torch.testing.assert_close(loss.detach(), expected)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(gradient, eager, rtol=tolerance, atol=0)


def test_traced_with_sizes_as_symbols() -> None:
    x, t = torch.randn(4, 3), torch.rand(4, 3)
    for transform in (torch.func.grad, torch.func.vmap):

        def transformed(x: Tensor, t: Tensor) -> Any:
            return transform(binary_cross_entropy_with_logits)(x, t)  # noqa: B023

        graph = make_fx(transformed, tracing_mode="symbolic")(x, t)
        torch.testing.assert_close(graph(x, t), transformed(x, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiled_autograd_over_several_sizes(dtype: torch.dtype) -> None:
    for size in (4, 7, 9):
        x, t = torch.randn(size, 3).to(dtype).requires_grad_(), torch.rand(size, 3).to(dtype)
        loss = binary_cross_entropy_with_logits(x * 1, t)
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            loss.backward()
        torch.testing.assert_close(x.grad, loss_and_gradient(x, t)[1])


def test_old_names_under_override_and_compiled() -> None:
    x, t = torch.full((3,), -20.0), torch.zeros(3)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x, t, size_average=False)

    with fused_sigmoid.override():
        assert loss(x, t).item() == pytest.approx(3 * math.exp(-20.0), rel=1e-6)


def test_scripted_in_a_model_that_computes_with_the_loss() -> None:
    class Model(nn.Module):
        def __init__(self, criterion: nn.Module) -> None:
            super().__init__()
            self.criterion = criterion

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.criterion(x, t) * 2

    x, t, w, p = torch.randn(5), *(torch.rand(5) for _ in range(3))
    weighted: dict[str, Any] = {"weight": w, "pos_weight": p, "reduction": "sum"}
    for others in ({}, weighted):
        scripted = torch.jit.script(Model(FusedBCEWithLogitsLoss(**others)))
        expected = F.binary_cross_entropy_with_logits(x, t, **others) * 2
        torch.testing.assert_close(scripted(x, t), expected)


def test_exported() -> None:
    x, t = torch.randn(5), torch.rand(5)
    exported = torch.export.export(FusedBCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), (x, t))
    eager = binary_cross_entropy_with_logits(x, t, pos_weight=torch.tensor(2.0))
    torch.testing.assert_close(exported.module()(x, t), eager)


@every_reduction
def test_composed_as_the_kernels(reduction: str) -> None:
    torch.manual_seed(0)
    for dtype in KERNEL_DTYPES:
        x, t = (torch.randn(500) * 10).to(dtype), torch.rand(500).to(dtype)
        w, p = torch.rand(500), torch.rand(())
        for others in ((None, None), (w, None), (w, p), (None, p)):
            leaf = x.clone().requires_grad_()
            composed = composed_loss(leaf, t, *others, reduction)
            composed.sum().backward()
            named = {"weight": others[0], "pos_weight": others[1], "reduction": reduction}
            loss, gradient = loss_and_gradient(x, t, **named)
            torch.testing.assert_close(composed.detach(), loss)
            torch.testing.assert_close(leaf.grad, gradient)


@every_reduction
@every_dtype
@pytest.mark.parametrize("of_target", KERNEL_DTYPES, ids=str)
def test_a_target_with_a_gradient_has_the_results_of_the_kernels(
    of_target: torch.dtype, dtype: torch.dtype, reduction: str
) -> None:
    """For it the loss is composed of ATen's operations."""
    x = torch.tensor([-math.inf, math.inf, -20.0, 20.0, 0.5, -3.0]).to(dtype)
    t = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.3, 1.0]).to(of_target)
    others = {"weight": torch.rand(6), "pos_weight": torch.rand(()), "reduction": reduction}
    leaf, target = x.clone().requires_grad_(), t.clone().requires_grad_()
    loss, probability = binary_cross_entropy_with_logits(
        leaf, target, **others, return_probability=True
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    expected, expected_gradient = loss_and_gradient(x, t, **others)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(probability, fused_sigmoid.sigmoid(x))
    assert not probability.requires_grad


# The module


def test_the_module_is_turned_and_turned_back() -> None:
    criterion = nn.BCEWithLogitsLoss(
        weight=torch.rand(3), pos_weight=torch.rand(3), reduction="sum"
    )
    calls: list[int] = []
    criterion.register_forward_hook(lambda *_: calls.append(1))
    model = nn.ModuleDict({"sigmoid": nn.Sigmoid(), "loss": criterion, "same": criterion})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, t = torch.randn(4, 3), torch.rand(4, 3)
    expected = criterion(x, t)
    assert fused_sigmoid.replace_sigmoid(model) == 2
    assert type(criterion) is FusedBCEWithLogitsLoss
    torch.testing.assert_close(criterion(x, t), expected)
    assert len(calls) == 2
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert fused_sigmoid.replace_sigmoid(model) == 0
    assert fused_sigmoid.restore_sigmoid(model) == 2
    assert type(criterion) is nn.BCEWithLogitsLoss
    assert criterion.__dict__.keys() == nn.BCEWithLogitsLoss().__dict__.keys()


def test_an_attribute_named_saved_stays() -> None:
    criterion = nn.BCEWithLogitsLoss()
    criterion.saved = "somewhere"
    for turn in (fused_sigmoid.replace_sigmoid, fused_sigmoid.restore_sigmoid):
        assert turn(criterion) == 1
        assert criterion.saved == "somewhere"


def test_subclasses_are_turned_if_so_wished() -> None:
    class Weighted(nn.BCEWithLogitsLoss):
        pass

    class Own(nn.BCEWithLogitsLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return input.sum()

    model = nn.ModuleList([Weighted(), Own()])
    assert fused_sigmoid.replace_sigmoid(model) == 0
    assert fused_sigmoid.replace_sigmoid(model, subclasses=True) == 1
    assert type(model[0]) is FusedBCEWithLogitsLoss
    assert fused_sigmoid.restore_sigmoid(model) == 1
    assert [type(each) for each in model] == [Weighted, Own]


def test_override_catches_the_function_and_its_old_names() -> None:
    x = torch.tensor([-20.0, -30.0], requires_grad=True)
    t = torch.zeros(2)
    exact_sum = math.exp(-20.0) + math.exp(-30.0)
    calls: dict[str, Callable[[], Tensor]] = {
        "module": lambda: nn.BCEWithLogitsLoss(reduction="sum")(x, t),
        "function": lambda: F.binary_cross_entropy_with_logits(x, t, reduction="sum"),
    }
    for call in calls.values():
        assert call() == 0
        with fused_sigmoid.override():
            loss = call()
        assert loss.item() == pytest.approx(exact_sum, rel=1e-6)
    with fused_sigmoid.override(), pytest.warns(UserWarning, match="reduction='sum'"):
        loss = F.binary_cross_entropy_with_logits(x, t, None, False)
    assert loss.item() == pytest.approx(exact_sum, rel=1e-6)


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("size_average", [None, False, True])
@pytest.mark.parametrize("reduce", [None, False, True])
def test_old_names_mean_in_a_block_what_torch_means(
    size_average: bool | None, reduce: bool | None
) -> None:
    x, t = torch.randn(9), torch.rand(9)

    def loss() -> Tensor:
        return F.binary_cross_entropy_with_logits(x, t, None, size_average, reduce)

    expected = loss()
    with fused_sigmoid.override():
        torch.testing.assert_close(loss(), expected)


@every_reduction
def test_a_block_hands_on_every_argument(reduction: str) -> None:
    x, t, w, p = torch.randn(9), *(torch.rand(9) for _ in range(3))

    def results() -> tuple[Tensor, Tensor]:
        return binary_cross_entropy_with_logits(
            x, t, w, pos_weight=p, reduction=reduction, return_probability=True
        )

    expected = results()
    with fused_sigmoid.override():
        found = results()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("overridden", [False, True])
def test_checkpoints(reentrant: bool, overridden: bool) -> None:
    x, t = torch.randn(50, requires_grad=True), torch.rand(50)
    function = (
        F.binary_cross_entropy_with_logits if overridden else binary_cross_entropy_with_logits
    )

    def loss(x: Tensor) -> Any:
        return function(x * 1, t)

    with fused_sigmoid.override() if overridden else contextlib.nullcontext():
        result = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=reentrant)
    result.backward()
    torch.testing.assert_close(x.grad, loss_and_gradient(x, t)[1])


@every_reduction
def test_beside_a_block_in_a_checkpoint_torchs_loss_is_computed_again(reduction: str) -> None:
    x, t, w, p = torch.randn(9, requires_grad=True), *(torch.rand(9) for _ in range(3))

    def loss(x: Tensor) -> Tensor:
        with fused_sigmoid.override():
            y = torch.sigmoid(x * 1)
        return y.sum() + F.binary_cross_entropy_with_logits(
            x * 2, t, w, pos_weight=p, reduction=reduction
        )

    (expected,) = torch.autograd.grad(loss(x).sum(), x)
    torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, expected)


class Watching(TorchDispatchMode):
    """A mode that sees every operation, and changes none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("watched", ["first", "second", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_checkpoint_keeps_the_same_in_a_mode_and_without(
    dtype: torch.dtype, watched: str
) -> None:
    x, t = torch.randn(50).to(dtype).requires_grad_(), torch.rand(50).to(dtype)

    def loss(x: Tensor) -> Any:
        return binary_cross_entropy_with_logits(x * 1, t)

    mode = Watching()
    with mode if watched != "second" else contextlib.nullcontext():
        result = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)
    with mode if watched != "first" else contextlib.nullcontext():
        result.backward()
    expected, gradient = loss_and_gradient(x, t)
    torch.testing.assert_close(result.detach(), expected)
    torch.testing.assert_close(x.grad, gradient)
    assert "aten.log1p.default" in mode.seen


@pytest.mark.parametrize("differentiated", ["target", "weight", "pos_weight"])
def test_an_overridden_checkpoint_whichever_operand_has_a_gradient(differentiated: str) -> None:
    operands = {name: torch.rand(8) for name in ("target", "weight", "pos_weight")}
    x, leaf = torch.randn(8), operands[differentiated].requires_grad_()

    def loss(x: Tensor, t: Tensor, w: Tensor, p: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x, t, w, pos_weight=p)

    with fused_sigmoid.override():
        arguments = (x, *operands.values())
        torch.utils.checkpoint.checkpoint(loss, *arguments, use_reentrant=False).backward()
        (expected,) = torch.autograd.grad(loss(*arguments), leaf)
    torch.testing.assert_close(leaf.grad, expected)


def test_a_parametrized_loss_is_left_alone() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    criterion = nn.BCEWithLogitsLoss(weight=torch.rand(8))
    nn.utils.parametrize.register_parametrization(criterion, "weight", Doubled(), unsafe=True)
    assert fused_sigmoid.replace_sigmoid(criterion, subclasses=True) == 0
    criterion(torch.randn(8), torch.rand(8))


def test_confident_negatives_are_counted_where_torch_loses_them() -> None:
    torch.manual_seed(0)
    x = torch.empty(2**20).normal_(-12, 1.5).bfloat16()
    t = torch.zeros_like(x)
    truth = F.softplus(x.double()).mean().item()
    assert F.binary_cross_entropy_with_logits(x, t) == 0
    loss = binary_cross_entropy_with_logits(x, t).item()
    assert loss == pytest.approx(truth, rel=2**-8)


def test_composed_probability_keeps_its_tail() -> None:
    """What a GPU without Triton runs; ATen's sigmoid of the first two is 0."""
    logits = torch.tensor([-100.0, -90.0, 0.0, 90.0, math.inf, -math.inf, math.nan])
    composed = extension.composed_loss(logits, torch.zeros(7), None, None, 0, False, True)
    exact = torch.tensor([3.720076e-44, 8.194013e-40, 0.5, 1.0, 1.0, 0.0, math.nan])
    torch.testing.assert_close(composed[1], exact, rtol=1e-5, atol=0, equal_nan=True)
