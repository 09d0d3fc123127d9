"""The product in front of nn.BCELoss undoes the loss's division, to the last bit of its divisor, in
every dtype of the sigmoid and of the loss."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F

import fused_sigmoid
from fused_sigmoid.functions.sigmoid import backward_before_bce

OPERATOR = torch.ops.fused_sigmoid.sigmoid_backward_before_bce

every_dtype = pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
every_half = pytest.mark.parametrize("dtype", oracle.HALVES, ids=str)
every_loss = pytest.mark.parametrize("loss_dtype", oracle.DTYPES, ids=str)


def divisor(y: Tensor) -> Tensor:
    """What torch divides by, operation for operation: std::max takes NaN on, and -0 before 0."""
    product = (1 - y) * y
    floor = torch.tensor(1e-12, dtype=torch.float32).to(y.dtype)
    return torch.where(product < floor, floor, product)


def expected(grad: Tensor, y: Tensor, loss_dtype: torch.dtype) -> Tensor:
    return (grad.to(loss_dtype) * divisor(y.to(loss_dtype))).to(y.dtype)


def outputs(dtype: torch.dtype) -> Tensor:
    """Every bit pattern of a half; else where the product is smaller than the floor, where 1 - y
    is a few last places, subnormal numbers, and a million numbers between."""
    if dtype in oracle.HALVES:
        return oracle.every_half(dtype)
    special = [0.0, -0.0, 1.0, 1 - 2.0**-24, 0.5, math.nan, math.inf, -math.inf, -1.0, 2.0]
    info = torch.finfo(dtype)
    subnormal = torch.arange(1, 1001, dtype=dtype) * info.smallest_normal * info.eps
    around_floor = torch.logspace(-13, -11, 1000, dtype=torch.float64)
    around_floor = torch.cat([around_floor, 1 - around_floor]).to(dtype)
    last_places = 1 - torch.arange(1000, dtype=dtype) * info.eps / 2
    numbers = torch.rand(1_000_000, dtype=dtype)
    return torch.cat(
        [torch.tensor(special, dtype=dtype), subnormal, around_floor, last_places, numbers]
    )


def sigmoids(dtype: torch.dtype) -> Tensor:
    """Of them what a sigmoid may give."""
    y = outputs(dtype)
    return y[(y >= 0) & (y <= 1) & ~y.signbit()]


def gradients(y: Tensor) -> Tensor:
    return oracle.both_tails(y.numel(), y.dtype)


@every_loss
@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_bits_are_those_of_torch_s_operations(dtype: torch.dtype, loss_dtype: torch.dtype) -> None:
    y = outputs(dtype)
    for grad in (torch.ones_like(y), gradients(y)):
        assert oracle.same_bits(OPERATOR(grad, y, loss_dtype), expected(grad, y, loss_dtype))


@every_loss
@every_dtype
def test_formula_has_the_same_bits(dtype: torch.dtype, loss_dtype: torch.dtype) -> None:
    y = outputs(dtype)
    y = y[(y != 0) | ~y.signbit()]  # of two zeros ATen's larger is either
    grad = gradients(y)
    result = backward_before_bce(grad, y, loss_dtype)
    assert oracle.same_bits(result, expected(grad, y, loss_dtype))


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
@every_loss
@every_half
def test_gradient_through_the_loss_is_that_of_the_loss_with_logits(
    dtype: torch.dtype, loss_dtype: torch.dtype, target: float
) -> None:
    y = sigmoids(dtype).requires_grad_()
    targets = torch.full_like(y, target, dtype=loss_dtype)
    loss = F.binary_cross_entropy(y.to(loss_dtype), targets, reduction="none")
    (grad,) = torch.autograd.grad(loss, y, torch.ones_like(loss))
    # float16 holds no quotient by less than 1 / 65,504.
    finite = grad.isfinite()
    assert (finite | (y < 1.6e-5) | (y > 0.996)).all()
    assert finite.all() or torch.float16 in (dtype, loss_dtype)
    y = y.detach()
    # Of the difference between what the loss was given.
    difference = oracle.exact(y.to(loss_dtype)) - target
    place = np.maximum(oracle.ulp(difference, dtype), oracle.ulp(difference, loss_dtype))
    error = np.abs(oracle.exact(OPERATOR(grad, y, loss_dtype)) - difference) / place
    # From one half to the other, of another range, there is a rounding more.
    bound = 1.75 if dtype != loss_dtype and loss_dtype in oracle.HALVES else 1.5
    assert error[finite.numpy()].max() <= bound


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_division_is_undone_where_the_floor_was_the_divisor(
    dtype: torch.dtype, target: float
) -> None:
    # With a floor that differs from torch's in the last place of float32, float64 would be off by
    # millions of its own.
    y = sigmoids(dtype).requires_grad_()
    loss = F.binary_cross_entropy(y, torch.full_like(y, target), reduction="sum")
    (grad,) = torch.autograd.grad(loss, y)
    y = y.detach()
    difference = oracle.exact(y) - target
    # Two roundings of the difference and the quotient, each by up to a last place of the product,
    # and that of the product.
    assert oracle.largest_error_in_ulp(OPERATOR(grad, y, dtype), difference) <= 2.5


@every_loss
@every_dtype
def test_nan_stays_and_nothing_else_becomes_one(
    dtype: torch.dtype, loss_dtype: torch.dtype
) -> None:
    for place in range(40):
        y = torch.full((40,), 0.25, dtype=dtype)
        y[place] = math.nan
        for result in (
            OPERATOR(torch.ones_like(y), y, loss_dtype),
            OPERATOR(y, torch.ones_like(y), loss_dtype),
        ):
            assert result.isnan().nonzero().tolist() == [[place]]


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t(),
    "slice": lambda x: x[::2, 1::3],
    "of a wider tensor": lambda x: x[:, :5],
    "row, expanded": lambda x: x[:1].expand(7, -1),
    "number, expanded": lambda x: x[0, 0].expand(60, 90),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_is", ["alike", "one number", "contiguous"])
@every_loss
@every_dtype
def test_layouts(dtype: torch.dtype, loss_dtype: torch.dtype, grad_is: str, layout: str) -> None:
    whole = oracle.both_tails(60 * 90, dtype).reshape(60, 90)
    y = LAYOUTS[layout](torch.sigmoid(whole))
    grad = {
        "alike": LAYOUTS[layout](whole),
        "one number": whole[1, 1].expand(y.shape),
        "contiguous": whole.flatten()[: y.numel()].reshape(y.shape),
    }[grad_is]
    result = OPERATOR(grad, y, loss_dtype)
    assert oracle.same_bits(result, expected(grad, y, loss_dtype))
    assert (result.dtype, result.stride()) == (dtype, (grad * y).stride())


@every_loss
@every_dtype
def test_fake_kernel_gives_the_same_kind_of_tensor(
    dtype: torch.dtype, loss_dtype: torch.dtype
) -> None:
    operands = [torch.rand(4, 3).to(dtype).t() for _ in range(2)]
    real = OPERATOR(*operands, loss_dtype)
    with torch._C._AutoDispatchBelowAutograd():  # above it ATen operations stand in
        fake = OPERATOR(*(operand.to("meta") for operand in operands), loss_dtype)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_broadcasts_and_promotes() -> None:
    grad, y = torch.randn(3, 1), torch.rand(4, dtype=torch.float64)
    result = OPERATOR(grad, y, torch.float64)
    assert oracle.same_bits(result, expected(grad.double(), y, torch.float64))
    result = OPERATOR(grad.bfloat16(), y.half(), torch.float32)
    assert oracle.same_bits(
        result, expected(grad.bfloat16().float(), y.half().float(), torch.float32)
    )


@pytest.mark.parametrize("loss_dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_of_the_loss_are_refused(loss_dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match="has dtype"):
        OPERATOR(torch.ones(3), torch.rand(3), loss_dtype)


# As part of a graph.


@every_loss
@every_dtype
def test_value_is_the_same_where_it_is_recorded(
    dtype: torch.dtype, loss_dtype: torch.dtype
) -> None:
    y = sigmoids(dtype)
    grad = gradients(y)
    for recorded in (0, 1):
        operands = [grad.clone(), y.clone()]
        operands[recorded].requires_grad_()
        result = OPERATOR(*operands, loss_dtype)
        assert result.requires_grad
        assert oracle.same_bits(result, OPERATOR(grad, y, loss_dtype))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad, torch.ones_like(grad))
        primal, tangent = forward_ad.unpack_dual(OPERATOR(dual, y, loss_dtype))
        assert oracle.same_bits(primal, OPERATOR(grad, y, loss_dtype))
        assert tangent is not None
        assert oracle.same_bits(tangent, expected(torch.ones_like(y), y, loss_dtype))


@pytest.mark.parametrize("loss_dtype", [torch.float64, torch.float32], ids=str)
def test_derivatives_of_every_order(loss_dtype: torch.dtype) -> None:
    grad, y = (torch.rand(2, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    if loss_dtype == torch.float64:
        assert gradcheck(OPERATOR, (grad, y, loss_dtype), check_forward_ad=True)
        assert gradgradcheck(OPERATOR, (grad, y, loss_dtype))
    result = OPERATOR(grad, y, loss_dtype)
    of_grad, of_y = torch.autograd.grad(result.sum(), (grad, y), create_graph=True)
    (mixed,) = torch.autograd.grad(of_grad.sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(of_y.sum(), y)
    tolerance = 4 * torch.finfo(loss_dtype).eps
    for got, exact in (
        (of_y, grad * (1 - 2 * y)),
        (mixed, 1 - 2 * y),
        (second, -2 * grad),
    ):
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance)


@every_dtype
def test_derivative_is_the_sigmoid_s_where_the_floor_is_the_divisor(dtype: torch.dtype) -> None:
    y = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    result = OPERATOR(torch.full_like(y, 3), y, dtype)
    (of_y,) = torch.autograd.grad(result.sum(), y)
    assert of_y.tolist() == [3, -3]


@every_dtype
@pytest.mark.parametrize("held", ["tensor", "view"])
def test_a_gradient_that_something_else_holds_stays(held: str, dtype: torch.dtype) -> None:
    """Else the result would take its memory."""
    x = torch.randn(100, dtype=dtype, requires_grad=True)
    t = torch.rand(100).to(dtype)
    y, found = fused_sigmoid.sigmoid(x), []
    y.register_hook(lambda grad: found.append(grad if held == "tensor" else grad[:]))
    F.binary_cross_entropy(y, t).backward()
    leaf = y.detach().requires_grad_()
    (of_output,) = torch.autograd.grad(F.binary_cross_entropy(leaf, t), leaf)
    assert oracle.same_bits(found[0], of_output)


@pytest.mark.parametrize("requires_grad", [False, True])
@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, loss_dtype: torch.dtype, requires_grad: bool) -> None:
    operands = [torch.rand(4, 3).to(dtype).t().requires_grad_(requires_grad) for _ in range(2)]
    torch.library.opcheck(OPERATOR.default, (*operands, loss_dtype))
