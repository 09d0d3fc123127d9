"""The binary cross entropy of logits on a GPU: the CPU's results in any layout and dtype, without
waiting for the device, captured as a CUDA graph and compiled.

How the kernels compute, test_loss_triton.py tries under Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fused_sigmoid import FusedBCEWithLogitsLoss, binary_cross_entropy_with_logits, override
from tests import oracle, parameters
from tests.parameters import DEVICE
from tests.test_gpu_kernels import on_device
from tests.test_loss_triton import (
    DTYPES,
    LAYOUTS,
    assert_same,
    draw_logits,
    draw_targets,
    draw_weights,
    every_dtype,
    every_reduction,
    run_step,
)

pytestmark = [parameters.of_a_gpu, pytest.mark.filterwarnings("ignore")]

every_trained = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)


def _assert_same_as_on_the_cpu(
    *operands: Tensor | None, reduction: str, grad: Tensor | None = None
) -> None:
    """Loss, gradient and probability: to the bit, in float64 to 8 of its eps."""
    moved = [None if each is None else on_device(each, DEVICE) for each in (*operands, grad)]
    expected = run_step(*operands, reduction=reduction, grad=grad)
    found = run_step(*moved[:-1], reduction=reduction, grad=moved[-1])
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE
        if one.dtype != torch.float64:
            assert_same(one.cpu(), other)
            continue
        assert one.stride() == other.stride()
        tolerance = 8 * torch.finfo(torch.float64).eps
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance, equal_nan=True)


# In parts, for a memory checker, which is slow.
SIZES = {"few_elements": (1, 1023, 1025), "many_elements": (2, 4096, 70_001, 300_003)}


@pytest.mark.parametrize("part", SIZES if DEVICE == "cuda" else ["few_elements"])
@every_reduction
@every_dtype
def test_results_are_those_of_the_cpu(part: str, reduction: str, dtype: torch.dtype) -> None:
    for size in SIZES[part]:
        for offset in (0, 1):
            x, t = (draw(size + offset, dtype)[offset:] for draw in (draw_logits, draw_targets))
            weight, pos_weight = (draw_weights(size, seed=seed) for seed in (3, 4))
            for weights in ((), (weight, None), (None, pos_weight), (weight[:1], pos_weight)):
                _assert_same_as_on_the_cpu(x, t, *weights, reduction=reduction)


@every_dtype
def test_every_kind_of_number(dtype: torch.dtype) -> None:
    """Every half, and of the wider dtypes both tails."""
    x = oracle.every_half(dtype) if dtype.itemsize == 2 else oracle.both_tails(10**5, dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-30, -1e30], dtype=dtype)
    x = torch.cat([x, special])
    for target in (0.0, 1.0, 0.3, -0.0, 1.5, -2.0, torch.inf, torch.nan):
        _assert_same_as_on_the_cpu(x, torch.full_like(x, target), reduction="none")


def test_float32_of_every_exponent() -> None:
    x = oracle.float32_patterns(0, 2**32, 1021)
    for target in (0.0, 1.0, 0.3):
        _assert_same_as_on_the_cpu(x, torch.full_like(x, target), reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_reduction
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout(dtype: torch.dtype, reduction: str, name: str) -> None:
    x, t = (LAYOUTS[name](draw((24, 20), dtype)) for draw in (draw_logits, draw_targets))
    weight = draw_weights(x.shape[-1:])
    for weights in ((), (weight, weight.flip(0))):
        _assert_same_as_on_the_cpu(x, t, *weights, reduction=reduction)


@every_reduction
@every_dtype
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_mixed_dtypes(dtype: torch.dtype, target_dtype: torch.dtype, reduction: str) -> None:
    x, t = draw_logits((12, 10), dtype), draw_targets((10, 12), target_dtype).t()
    _assert_same_as_on_the_cpu(x, t, reduction=reduction)
    _assert_same_as_on_the_cpu(x, t, draw_weights((), dtype), reduction=reduction)


@pytest.mark.parametrize("factor", [0.0, 0.37, 65536.0, torch.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_dtype
def test_an_incoming_gradient_multiplies(dtype: torch.dtype, reduction: str, factor: float) -> None:
    grad = torch.tensor(factor, dtype=dtype)
    for size in (5000, 300_003):  # by torch's product, and by a kernel
        x, t = draw_logits(size, dtype), draw_targets(size, dtype)
        _assert_same_as_on_the_cpu(x, t, reduction=reduction, grad=grad)


def test_the_tails_that_torch_loses() -> None:
    x = torch.tensor([-17.4, 17.4, -60.0, 60.0], device=DEVICE)
    t = torch.tensor([0.0, 1.0, 0.0, 1.0], device=DEVICE)
    loss, gradient, _ = run_step(x, t, reduction="none")
    expected = (-x.abs().double()).exp().float()
    torch.testing.assert_close(loss, expected, rtol=3e-7, atol=0)
    torch.testing.assert_close(gradient, expected * (1 - 2 * t), rtol=3e-7, atol=0)


def _step_of(x: Tensor, t: Tensor, scale: float = 1) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(binary_cross_entropy_with_logits(leaf, t) * scale, leaf)
    return gradient


@pytest.mark.gpu
@every_trained
def test_a_step_does_not_wait_for_the_device(dtype: torch.dtype) -> None:
    x, t = (draw(10_000, dtype).to(DEVICE) for draw in (draw_logits, draw_targets))
    _step_of(x, t, 2.0)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step_of(x, t, 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@every_trained
def test_a_captured_step(dtype: torch.dtype) -> None:
    x, t = (draw(10_000, dtype).to(DEVICE) for draw in (draw_logits, draw_targets))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _step_of(x, t, 2.0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step_of(x, t, 2.0)
    for _ in range(2):
        graph.replay()
        assert oracle.same_bits(captured, _step_of(x, t, 2.0))
        x.neg_()
        t.copy_(t.flip(0))


@pytest.mark.gpu
@every_trained
def test_peak_memory_of_a_step(dtype: torch.dtype) -> None:
    """Beside the operands only the gradient, and the sums of blocks."""
    x, t = (draw(1 << 22, dtype).to(DEVICE) for draw in (draw_logits, draw_targets))
    _step_of(x, t)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _step_of(x, t)
    assert torch.cuda.max_memory_allocated() - before <= x.nbytes + (1 << 17)


def test_a_sum_past_a_float32s_places() -> None:
    """Of 2^25 losses of log 2, which float32 could not count."""
    x = torch.zeros(1 << 25, device=DEVICE)
    total = binary_cross_entropy_with_logits(x, x, reduction="sum")
    expected = torch.tensor(2.0**25, dtype=torch.float64) * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(total.cpu().double(), expected.double(), rtol=2e-7, atol=0)


@pytest.mark.gpu
def test_tensors_of_over_2_to_the_31_elements() -> None:
    size = (1 << 31) + 4097
    if torch.cuda.mem_get_info()[0] < 4 * size * 2:
        pytest.skip("the device's memory is too small")
    x = torch.zeros(size, dtype=torch.bfloat16, device=DEVICE)
    x[-1], x[-4097] = 3, -3
    gradient = _step_of(x, torch.zeros_like(x), float(size))
    expected = torch.sigmoid(torch.tensor([3.0, -3.0])).bfloat16()
    torch.testing.assert_close(gradient[[-1, -4097]].cpu(), expected)
    assert (gradient[:-4097] == 0.5).all()
    assert (gradient[-4096:-1] == 0.5).all()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled(dtype: torch.dtype, mode: str) -> None:
    x, t = (draw(10_000, dtype).to(DEVICE) for draw in (draw_logits, draw_targets))
    t = t.round()  # no gradient is the difference of two terms
    step = torch.compile(
        lambda leaf: binary_cross_entropy_with_logits(leaf * 1, t), mode=mode, fullgraph=True
    )
    expected = run_step(x, t)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        leaf = x.clone().requires_grad_()
        loss = step(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(loss.detach(), expected[0])
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient, expected[1], rtol=8 * eps, atol=1e-12)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_model_trains_as_with_torchs_loss(dtype: torch.dtype | None) -> None:
    """Under autocast, with scaled losses, as a module and by override."""

    def trained(loss_of: nn.Module) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)).to(DEVICE)
        features = torch.randn(256, 32, device=DEVICE)
        labels = (features[:, :1] > 0).float()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = loss_of(model(features), labels)
            assert loss.dtype == torch.float32
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    expected = trained(nn.BCEWithLogitsLoss())
    tolerance = {"rtol": 1e-4 if dtype is None else 2e-2, "atol": 0}
    torch.testing.assert_close(trained(FusedBCEWithLogitsLoss()), expected, **tolerance)
    with override():
        torch.testing.assert_close(trained(nn.BCEWithLogitsLoss()), expected, **tolerance)


def test_second_derivatives() -> None:
    x, t = draw_logits(100, torch.float64), draw_targets(100, torch.float64)

    def second(x: Tensor, t: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        loss = binary_cross_entropy_with_logits(leaf, t)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaf)[0]

    torch.testing.assert_close(second(x.to(DEVICE), t.to(DEVICE)).cpu(), second(x, t))


@pytest.mark.gpu
def test_launches_follow_the_current_stream() -> None:
    x, t = (draw(1 << 20, torch.float32).to(DEVICE) for draw in (draw_logits, draw_targets))
    expected = _step_of(x, t)
    torch.cuda.synchronize()
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # whoever is not behind this reads what is not there yet
        late.copy_(x)
        found = _step_of(late, t)
    side.synchronize()
    assert oracle.same_bits(found, expected)
