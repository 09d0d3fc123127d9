"""How good the gradient of a connection is (tests/company_connections.py): right, nowhere worse
than nn.Sigmoid's, or exact bit for bit. Depends on the table and, for what is compared with, on the
package; run by test_company.py and test_company_compiled.py."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fused_sigmoid
from tests import oracle
from tests.company_connections import (
    EXACT,
    RIGHT,
    TABLE,
    Activation,
    Connection,
    numbers,
)

# Subnormal numbers, and outputs that torch flushes to 0, times what BCELoss at most divides by.
LEAST = {torch.float64: 1e-290, torch.float32: 2e-26, torch.bfloat16: 2e-26, torch.float16: 2.4e-7}

# What BCELoss divides by at least, a rounding up.
FLOOR = 1.01e-12


def gradient(connection: Connection, sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    """Of the loss by the logits."""
    leaf = x.detach().clone().requires_grad_()
    connection.use(sigmoid, leaf, t).backward()
    assert leaf.grad is not None
    return leaf.grad


class ExactSigmoid(torch.autograd.Function):
    """What is promised to an ordinary consumer: it looks at nobody."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return fused_sigmoid.sigmoid(input.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return torch.ops.fused_sigmoid.sigmoid_backward(grad, input)


class KeptDerivative(torch.autograd.Function):
    """The same from a derivative that was kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        value, derivative = fused_sigmoid.sigmoid_with_derivative(input.detach())
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return torch.ops.fused_sigmoid.sigmoid_backward_from_derivative(grad, derivative)


def _as_auto_keeps(input: Tensor) -> Tensor:
    bytes_kept = input.numel() * input.element_size()
    kept = KeptDerivative if 16 << 10 <= bytes_kept <= 8 << 20 else ExactSigmoid
    return kept.apply(input)


EXPECTED: dict[str, Activation] = {
    "input": ExactSigmoid.apply,
    "derivative": KeptDerivative.apply,
    "auto": _as_auto_keeps,
}


class Product(torch.autograd.Function):
    """nn.Sigmoid's gradient from our own output, whose last bit may be another."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        value = fused_sigmoid.sigmoid(input.detach())
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(grad, value)


class RoundedProduct(Product):
    """The same from the output rounded once, which that of compilers mostly is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        value = torch.sigmoid(input.detach().double()).to(input.dtype)
        ctx.save_for_backward(value)
        return value


class Case(NamedTuple):
    """A connection in one dtype, and what its gradient is compared with, in float64."""

    x: Tensor
    t: Tensor
    truth: Tensor
    # Of each element: what its gradient is made of, where that may cancel.
    scale: Tensor
    # nn.Sigmoid's gradients, with its own outputs and with ours.
    torchs: tuple[Tensor, ...]
    # Whether the loss hands a finite number to the output.
    is_reached: Tensor


def _truth(connection: Connection, x: Tensor, t: Tensor) -> Tensor:
    leaf = x.detach().double().requires_grad_()
    return torch.autograd.grad(connection.truth(leaf, t.double()), leaf)[0]


def _scale(connection: Connection, x: Tensor, t: Tensor) -> Tensor:
    gradients = [_truth(connection, x, target) for target in (t, t * 0, t * 0 + 1)]
    own = torch.stack(gradients).abs().sum(0)
    if connection.promise != EXACT:
        return own
    # A layer adds up what it hands to its inputs, where all may cancel: the largest counts for all.
    derivative = exact_derivative(x)
    return own + derivative * (own / derivative)[x >= -1].max()


def exact_derivative(x: Tensor) -> Tensor:
    wide = x.detach().double()
    return torch.sigmoid(wide) * torch.sigmoid(-wide)


def _is_reached(connection: Connection, x: Tensor, t: Tensor) -> Tensor:
    outputs: list[Tensor] = []

    def sigmoid(input: Tensor) -> Tensor:
        outputs.append(torch.sigmoid(input))
        return outputs[-1]

    loss = connection.use(sigmoid, x.detach().clone().requires_grad_(), t)
    is_reached = torch.ones(x.shape, dtype=torch.bool)
    for grad in torch.autograd.grad(loss, outputs, allow_unused=True):
        if grad is None:
            continue
        finite = grad.isfinite()
        is_reached &= finite if finite.shape == x.shape else finite.all()
    return is_reached


@functools.cache
def case(name: str, dtype: torch.dtype, times: int = 1) -> Case | None:
    """None if torch refuses it in that dtype."""
    connection = TABLE[name]
    if dtype not in connection.dtypes:
        return None
    x, t = numbers(dtype, times)
    try:
        torchs = gradient(connection, torch.sigmoid, x, t)
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    truth = _truth(connection, x, t)
    return Case(
        *(x, t, truth, _scale(connection, x, t)),
        (torchs.double(), gradient(connection, Product.apply, x, t).double()),
        _is_reached(connection, x, t),
    )


class Worse(AssertionError):  # noqa: N818 - what it says of a gradient
    """The gradient is not what was promised."""


def _report(wrong: Tensor, found: Tensor, of: Case, because: str) -> None:
    if not wrong.any():
        return
    lines = [
        f"x = {of.x[at]:g}, target {of.t[at]:g}: {found[at]:g}, true is {of.truth[at]:g}, "
        f"nn.Sigmoid gives {of.torchs[0][at]:g}"
        for at in wrong.nonzero().flatten().tolist()
    ]
    more = f"\n... and {len(lines) - 6} more" if len(lines) > 6 else ""
    raise Worse("\n".join([f"{of.x.dtype}: {because}", *lines[:6]]) + more)


def _unit(connection: Connection, dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).eps, torch.finfo(connection.rounds_to).eps)


def _allowed(name: str, of: Case) -> Tensor:
    connection, dtype = TABLE[name], of.x.dtype
    # The truth itself is computed in float64.
    roundings = connection.roundings * (2 if dtype == torch.float64 else 1)
    least = max(LEAST[dtype], LEAST[connection.rounds_to])
    beside = FLOOR * connection.beside
    return roundings * _unit(connection, dtype) * of.scale + least + beside


def never_worse(name: str, found: Tensor, of: Case) -> None:
    """Than nn.Sigmoid, of any element. Where that gives no number, nothing is asked."""
    error = (found.double() - of.truth).abs()
    worse = torch.ones(of.x.shape, dtype=torch.bool)
    for torchs in of.torchs:
        torchs_error = (torchs - of.truth).abs()
        # A number that is too large is rounded as such.
        allowed = _allowed(name, of) + 4 * _unit(TABLE[name], of.x.dtype) * torchs.abs()
        worse &= torchs_error.isfinite() & ~(error <= torchs_error + allowed)
    _report(worse, found.double(), of, "worse than nn.Sigmoid")


def right(name: str, found: Tensor, of: Case) -> None:
    error = (found.double() - of.truth).abs()
    wrong = of.is_reached & ~(error <= _allowed(name, of))
    _report(wrong, found.double(), of, "not right")


def exact(found: Tensor, expected: Tensor, of: Case) -> None:
    if oracle.same_bits(found, expected):
        return
    wrong = oracle.bits(found) != oracle.bits(expected)
    _report(wrong, found.double(), of, "not what reaches the output times the derivative")


def expected(name: str, of: Case, kept: str, sigmoid: Activation) -> Tensor:
    """An exact connection's gradient by sigmoids that keep the input or the derivative; those of
    its sigmoids of which something else is promised are the one under test."""
    connection = TABLE[name]
    calls = 0

    def mixed(input: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        exacts = connection.exact_calls
        is_exact = exacts is None or calls - 1 in exacts
        return (EXPECTED[kept] if is_exact else sigmoid)(input)

    return gradient(connection, mixed, of.x, of.t)


def judge(name: str, found: Tensor, of: Case) -> None:
    """Of a gradient whose bits are not promised: right where that is, and nowhere worse than
    nn.Sigmoid's."""
    assert found.dtype == of.x.dtype
    assert found.shape == of.x.shape
    if TABLE[name].promise == RIGHT:
        right(name, found, of)
    never_worse(name, found, of)
