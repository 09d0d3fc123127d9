"""What every function of the package promises, whichever it is: value and derivative within their
bounds on both tails, the same bits by every kernel, all orders of differentiation and every route
of torch. The rows of tests/functions.py say what is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fused_sigmoid._extension import extension
from tests import oracle
from tests.functions import FUNCTIONS, Row

every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda row: row.name)
every_dtype = pytest.mark.parametrize("dtype", oracle.DTYPES)
SAVED = ("auto", "derivative", "input")
DOUBLE = torch.float64


def _is_within(result: Tensor, reference: oracle.LongDouble, ulps: float) -> bool:
    return oracle.largest_error_in_ulp(result, reference) <= ulps


def test_there_is_a_row_for_every_function() -> None:
    assert tuple(row.name for row in FUNCTIONS) == extension.functions()


@every_function
@every_dtype
def test_value_and_derivative(function: Row, dtype: torch.dtype, instruction_set: str) -> None:
    x = oracle.every_finite_half(dtype) if dtype in oracle.HALVES else function.points(dtype)
    value, derivative = function["_with_derivative"](x)
    ulps = function.ulps[dtype]
    assert _is_within(value, function.value(oracle.exact(x)), ulps[0])
    assert _is_within(derivative, function.derivative(oracle.exact(x)), ulps[1])
    assert oracle.same_bits(function[""](x), value)


@every_function
@every_dtype
def test_exact_values(function: Row, dtype: torch.dtype, instruction_set: str) -> None:
    x = torch.tensor([*function.exact, math.nan], dtype=dtype)
    value, derivative = function["_with_derivative"](x)
    expected = torch.tensor([*function.exact.values(), (math.nan, math.nan)], dtype=dtype)
    for result, exact in ((value, expected[:, 0]), (derivative, expected[:, 1])):
        assert oracle.same_bits(result, exact)


@every_function
@every_dtype
def test_every_instruction_set_gives_the_same_bits(function: Row, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    # With gradients among the subnormal numbers some products lie in the middle between two others.
    patterns = torch.randint(-(2**63), 2**63 - 1, (2, 50_000), generator=generator)
    x, g = patterns.view(dtype)
    results = []
    before = extension.instruction_set()
    try:
        for name in extension.instruction_sets():
            extension.select_instruction_set(name)
            value, derivative = function["_with_derivative"](x)
            gradients = (function.operator("_backward" + of)(g, y) for of, y in _kept(x, value))
            results.append([value, derivative, *gradients])
    finally:
        extension.select_instruction_set(before)
    for result in results[1:]:
        assert all(map(oracle.same_bits, result, results[0]))


def _kept(x: Tensor, value: Tensor) -> tuple[tuple[str, Tensor], ...]:
    return (("", x), ("_from_output", value), ("_from_derivative", value))


@every_function
@every_dtype
@pytest.mark.parametrize("saved", SAVED)
def test_gradient(function: Row, dtype: torch.dtype, saved: str) -> None:
    x = function.points(dtype).requires_grad_()
    g = torch.randn(x.shape).to(dtype)
    (gradient,) = torch.autograd.grad(function[""](x, saved=saved), x, g)
    exact = function.derivative(oracle.exact(x)) * oracle.exact(g)
    # Of a stored derivative the rounding comes on top, g times as large.
    inherited = np.abs(oracle.exact(g)) * oracle.ulp(function.derivative(oracle.exact(x)), dtype)
    allowed = function.ulps[dtype][1] * inherited + oracle.ulp(exact, dtype)
    assert (np.abs(oracle.exact(gradient) - exact) <= allowed).all()


@every_function
def test_gradient_of_the_output_is_torchs(function: Row) -> None:
    gradients = []
    for call in (lambda x: function[""](x, saved="output"), function.torch):
        x = function.points(torch.float32).clamp(-2, 2).requires_grad_()
        gradients += torch.autograd.grad(call(x), x, torch.ones_like(x))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@every_function
@pytest.mark.parametrize("saved", SAVED)
def test_every_order(function: Row, saved: str) -> None:
    x = torch.linspace(-4, 4, 9, dtype=DOUBLE, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        value: Tensor = function[""](x, saved=saved)
        return value

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True)
    assert torch.autograd.gradgradcheck(
        lambda x: torch.autograd.grad(call(x), x, torch.ones_like(x), create_graph=True)[0], x
    )


@every_function
@pytest.mark.parametrize("saved", SAVED)
def test_second_derivative_on_both_tails(function: Row, saved: str) -> None:
    x = torch.linspace(-30, 30, 1201, dtype=DOUBLE, requires_grad=True)
    ones = torch.ones_like(x)
    (first,) = torch.autograd.grad(function[""](x, saved=saved), x, ones, create_graph=True)
    (second,) = torch.autograd.grad(first, x, ones)
    reference = function.second_derivative(oracle.exact(x))
    np.testing.assert_allclose(oracle.exact(second), reference, rtol=1e-12, atol=1e-300)


@every_function
def test_pair_is_differentiable(function: Row) -> None:
    x = torch.linspace(-4, 4, 9, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(function["_with_derivative"], x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function["_with_derivative"], x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t(),
    "slice": lambda x: x[:, ::2],
    "gate": lambda x: x.chunk(2, 1)[1],
    "expanded": lambda x: x[:, :1].expand(-1, 5),
    "channels_last": lambda x: x.view(2, 3, -1, 4).contiguous(memory_format=torch.channels_last),
}


@every_function
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [24, 4096 * 24])
def test_layouts(function: Row, dtype: torch.dtype, layout: str, size: int) -> None:
    x = LAYOUTS[layout](function.points(dtype, size).view(6, -1))
    expected = function["_with_derivative"](x.contiguous())
    assert oracle.description(function[""](x)) == oracle.description(function.torch(x))
    assert oracle.same_bits(function[""](x), expected[0])
    assert all(map(oracle.same_bits, function["_with_derivative"](x), expected))
    out = torch.empty(x.shape[::-1], dtype=dtype).permute(*reversed(range(x.dim())))
    assert oracle.same_bits(function[""](x, out=out), expected[0])
    assert oracle.same_bits(function["_"](x.clone()), expected[0])


@every_function
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.complex64])
def test_other_dtypes_are_torchs(function: Row, dtype: torch.dtype) -> None:
    x = torch.tensor([-2, 0, 1, 3]).to(dtype)
    result, expected = function[""](x), function.torch(x)
    assert oracle.description(result) == oracle.description(expected)
    torch.testing.assert_close(result, expected)


@every_function
def test_transforms(function: Row) -> None:
    x = torch.randn(3, 5, dtype=DOUBLE)
    sum_of = lambda x: function[""](x).sum()  # noqa: E731
    first = torch.from_numpy(function.derivative(oracle.exact(x)).astype(float))
    second = torch.from_numpy(function.second_derivative(oracle.exact(x)).astype(float))
    close = torch.testing.assert_close
    close(torch.func.vmap(function[""])(x), function[""](x))
    close(torch.func.grad(sum_of)(x), first)
    close(torch.func.vmap(torch.func.grad(sum_of))(x), first)
    close(torch.func.jvp(function[""], (x,), (torch.ones_like(x),))[1], first)
    close(torch.func.hessian(sum_of)(x[0]).diagonal(), second[0])
    close(torch.func.jacfwd(torch.func.grad(sum_of))(x[0]).diagonal(), second[0])


@every_function
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(function: Row, backend: str) -> None:
    torch._dynamo.reset()
    x = torch.linspace(-20, 20, 401, requires_grad=True)
    value = torch.compile(function[""], backend=backend, fullgraph=True)(x)
    (gradient,) = torch.autograd.grad(value, x, torch.ones_like(x))
    reference = oracle.exact(x)
    np.testing.assert_allclose(oracle.exact(value), function.value(reference), rtol=1e-6)
    np.testing.assert_allclose(oracle.exact(gradient), function.derivative(reference), rtol=2e-6)


@every_function
@pytest.mark.filterwarnings("ignore")
def test_exported_graph_holds_torchs_operation(function: Row) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value: Tensor = function[""](x)
            return value

    exported = torch.export.export(Model(), (torch.randn(3),))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [f"aten.{function.name}.default"]
