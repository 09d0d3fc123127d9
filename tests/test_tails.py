"""The promise of the package: no gradient is lost where the sigmoid saturates, on either tail, by
any route, to the second order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative

# torch's own: forward AD compiles some of its formulas with it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

EXACT = ("auto", "derivative", "input")
every_exact = pytest.mark.parametrize("saved", EXACT)
every_dtype = pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
every_half = pytest.mark.parametrize("dtype", oracle.HALVES, ids=str)

Function = Callable[[Tensor], Tensor]


def _gradient(function: Function, input: Tensor) -> Tensor:
    leaf = input.detach().requires_grad_()
    result = function(leaf)
    return torch.autograd.grad(result, leaf, torch.ones_like(result))[0]


def _in_place(input: Tensor) -> Tensor:
    return sigmoid_(input.clone())


def _batched_gradient(function: Function, input: Tensor) -> Tensor:
    leaf = input.detach().requires_grad_()
    grads = torch.ones(2, *input.shape, dtype=input.dtype)
    return torch.autograd.grad(function(leaf), leaf, grads, is_grads_batched=True)[0][1]


def _tangent(function: Function, input: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, torch.ones_like(input))
        return forward_ad.unpack_dual(function(dual)).tangent.clone()


def _batched_gradient(function: Function, input: Tensor) -> Tensor:
    leaf = input.detach().requires_grad_()
    result = function(leaf)
    ones = torch.ones_like(result).unsqueeze(0)
    return torch.autograd.grad(result, leaf, ones, is_grads_batched=True)[0][0]


# Every route to a first derivative that promises exact tails.
ROUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "module": lambda x: _gradient(FusedSigmoid(), x),
    "module, derivative saved": lambda x: _gradient(FusedSigmoid("derivative"), x),
    "module, input saved": lambda x: _gradient(FusedSigmoid("input"), x),
    "function": lambda x: _gradient(sigmoid, x),
    "in place": lambda x: _gradient(_in_place, x),
    "batched": lambda x: _batched_gradient(lambda x: sigmoid(x, saved="input"), x),
    "value of the pair": lambda x: _gradient(lambda t: sigmoid_with_derivative(t)[0], x),
    "derivative of the pair": lambda x: sigmoid_with_derivative(x)[1],
    "operator": lambda x: _gradient(torch.ops.fused_sigmoid.sigmoid, x),
    "batched gradients, derivative saved": lambda x: _batched_gradient(
        FusedSigmoid("derivative"), x
    ),
    "batched gradients, input saved": lambda x: _batched_gradient(FusedSigmoid("input"), x),
    "torch.func.grad": lambda x: torch.func.grad(lambda t: sigmoid(t).sum())(x),
    "torch.func.vjp": lambda x: torch.func.vjp(FusedSigmoid(), x)[1](torch.ones_like(x))[0],
    "torch.func.jvp": lambda x: torch.func.jvp(FusedSigmoid(), (x,), (torch.ones_like(x),))[1],
    "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(sigmoid))(x),
    "forward AD": lambda x: _tangent(FusedSigmoid(), x),
    "forward AD in place": lambda x: _tangent(_in_place, x),
    "forward AD of the pair": lambda x: _tangent(lambda t: sigmoid_with_derivative(t)[0], x),
}
every_route = pytest.mark.parametrize("route", ROUTES)
CPU_KERNELS = ("module", "module, derivative saved", "module, input saved")


def _lost(gradient: Tensor, expected: Tensor) -> Tensor:
    """Where the gradient is 0 though the true one rounds to something else."""
    return (gradient == 0) & (expected != 0)


@every_half
@every_route
def test_no_half_gradient_is_lost(route: str, dtype: torch.dtype) -> None:
    input = oracle.every_finite_half(dtype)
    reference = oracle.derivative(oracle.exact(input))
    gradient = ROUTES[route](input)
    assert gradient.dtype == dtype
    assert _lost(gradient, oracle.rounded(reference, dtype)).sum() == 0
    # Half an ulp is the rounding; the rest the error of the float32 it is computed in.
    assert oracle.largest_error_in_ulp(gradient, reference) <= 0.502


# What is wrong with the gradient that torch forms from the rounded output: counts over all finite
# inputs. If torch mends it, this test is where to learn of it.
@pytest.mark.parametrize(
    ("dtype", "lost", "first"), [(torch.bfloat16, 506, 6.25), (torch.float16, 1069, 8.3203125)]
)
def test_torch_loses_half_gradients(dtype: torch.dtype, lost: int, first: float) -> None:
    input = oracle.every_finite_half(dtype)
    expected = oracle.rounded(oracle.derivative(oracle.exact(input)), dtype)
    lost_here = _lost(_gradient(nn.Sigmoid(), input), expected)
    assert lost_here.sum() == lost
    # On the other side it loses the subnormal ones, which its forward flushes to 0.
    assert input[lost_here & (input > 0)].min() == first
    assert _lost(_gradient(FusedSigmoid(), input), expected).sum() == 0


# Every 509th bit pattern, a prime so that all low bits come up; NaN and infinity apart. What auto
# picks depends on the size and is one of the two.
@pytest.mark.parametrize("saved", ["derivative", "input"])
def test_no_float32_gradient_is_lost(saved: str) -> None:
    module, checked, torch_lost = FusedSigmoid(saved), 0, 0
    # Beyond, the true derivative is below half the smallest subnormal, 2**-150 = exp(-103.97...).
    end = 150 * math.log(2)
    for sign in (0, 2**31):
        for start in range(0, 0x7F800000, 2**26):
            first, stop = sign + start, sign + min(start + 2**26, 0x7F800000)
            input = oracle.float32_patterns(first + -first % 509, stop, 509)
            gradient = _gradient(module, input)
            visible = input.double().abs() < end
            assert ((gradient != 0) == visible).all()
            checked += len(input)
            if saved == "input":
                torch_lost += int(((_gradient(nn.Sigmoid(), input) == 0) & visible).sum())
    negative = range(2**31 + -(2**31) % 509, 2**31 + 0x7F800000, 509)
    assert checked == len(range(0, 0x7F800000, 509)) + len(negative)
    assert saved != "input" or torch_lost > 0.005 * checked


@every_dtype
@pytest.mark.parametrize("route", CPU_KERNELS)
@pytest.mark.usefixtures("instruction_set")
def test_tails_with_every_instruction_set(route: str, dtype: torch.dtype) -> None:
    end = {torch.float64: 745.0, torch.float32: 103.9, torch.bfloat16: 92.0, torch.float16: 17.0}
    input = torch.linspace(0.5, end[dtype], 20_001, dtype=torch.float64).to(dtype)
    right, left = ROUTES[route](input), ROUTES[route](-input)
    assert (right > 0).all()
    assert oracle.same_bits(right, left)
    reference = oracle.derivative(oracle.exact(input))
    assert oracle.largest_error_in_ulp(right, reference) <= 3.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_route
def test_tails_by_every_route(route: str, dtype: torch.dtype) -> None:
    end = {torch.float64: 700.0, torch.float32: 86.0}[dtype]
    positive = torch.linspace(0, end, 4001, dtype=torch.float64).to(dtype)
    input = torch.cat([-positive, positive])
    reference = oracle.derivative(oracle.exact(input))
    # The formula in ATen operations has an exp of its own: a little beyond the kernels' 2.9.
    assert oracle.largest_error_in_ulp(ROUTES[route](input), reference) <= 6


def test_compiled_gradient_keeps_its_tails() -> None:
    # Through AOTAutograd, on ATen operations: what Inductor gets, without a C++ compiler.
    compiled = torch.compile(FusedSigmoid(), backend="aot_eager", fullgraph=True)
    for dtype in (torch.float32, torch.bfloat16):
        input = torch.linspace(-80, 80, 1001).to(dtype)
        reference = oracle.derivative(oracle.exact(input))
        bound = 6 if dtype == torch.float32 else 0.502
        assert oracle.largest_error_in_ulp(_gradient(compiled, input), reference) <= bound


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@every_exact
def test_gradient_is_scaled_in_the_tail(saved: str, scale: float) -> None:
    # grad · σ' is what reaches the next layer; the product must be as good as σ'.
    input = torch.linspace(-60, 60, 2001)
    leaf = input.clone().requires_grad_()
    sigmoid(leaf, saved=saved).backward(torch.full_like(input, scale))
    assert leaf.grad is not None
    grad = oracle.exact(torch.tensor(scale))
    reference = grad * oracle.derivative(oracle.exact(input))
    assert oracle.largest_error_in_ulp(leaf.grad, reference) <= 4


# The second order. σ'' = -σ' tanh(x/2).


def _second(function: Function, input: Tensor) -> Tensor:
    leaf = input.detach().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.sum(), leaf)[0]


SECOND_ROUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "input saved": lambda x: _second(FusedSigmoid("input"), x),
    "derivative saved": lambda x: _second(FusedSigmoid("derivative"), x),
    "auto": lambda x: _second(FusedSigmoid(), x),
    "in place": lambda x: _second(_in_place, x),
    "value of the pair": lambda x: _second(lambda t: sigmoid_with_derivative(t)[0], x),
    "gradient of the derivative": lambda x: _gradient(lambda t: sigmoid_with_derivative(t)[1], x),
    "grad of grad": lambda x: torch.func.grad(
        lambda t: torch.func.grad(lambda u: sigmoid(u).sum())(t).sum()
    )(x),
    "forward over reverse": lambda x: torch.func.jvp(
        torch.func.grad(lambda t: sigmoid(t).sum()), (x,), (torch.ones_like(x),)
    )[1],
}


def _relative_error(result: Tensor, reference: oracle.LongDouble) -> float:
    return float(np.max(np.abs(oracle.exact(result) / reference - 1)))


def _between(start: float, end: float, dtype: torch.dtype) -> Tensor:
    """Numbers of both signs, evenly spread and, for the small ones, by their exponents."""
    even = torch.linspace(start, end, 4001, dtype=torch.float64)
    exponents = torch.linspace(math.log2(start), math.log2(end), 1001, dtype=torch.float64)
    positive = torch.cat([even, torch.exp2(exponents)])
    return torch.cat([positive, -positive]).to(dtype)


@pytest.mark.parametrize("route", SECOND_ROUTES)
def test_second_order_is_exact(route: str) -> None:
    input = _between(2.0**-30, 700, torch.float64)
    reference = oracle.second_derivative(oracle.exact(input))
    assert _relative_error(SECOND_ROUTES[route](input), reference) <= 2e-15
    zero = SECOND_ROUTES[route](torch.zeros(3, dtype=torch.float64))
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))


# Nested forward mode differentiates the formula term by term. On the tails nothing is lost; towards
# x = 0 the terms cancel, and the error relative to σ'' ≈ -x/8 grows to eps/|x|, while that relative
# to σ' stays at eps.
CANCELLING_ROUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "forward over forward": lambda x: torch.func.jvp(
        lambda t: torch.func.jvp(sigmoid, (t,), (torch.ones_like(t),))[1],
        (x,),
        (torch.ones_like(x),),
    )[1],
}


@pytest.mark.parametrize("route", CANCELLING_ROUTES)
def test_second_order_is_exact_on_the_tails(route: str) -> None:
    input = _between(2.0**-30, 700, torch.float64)
    result = CANCELLING_ROUTES[route](input)
    x = oracle.exact(input)
    error = np.abs(oracle.exact(result) - oracle.second_derivative(x))
    assert np.max(error / oracle.derivative(x)) <= 1e-15
    tail = input.abs() >= 1
    reference = oracle.second_derivative(oracle.exact(input[tail]))
    assert _relative_error(result[tail], reference) <= 2e-15
    zero = CANCELLING_ROUTES[route](torch.zeros(3, dtype=torch.float64))
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))


# The factor (1 - 2σ) of a saved derivative is formed in the half itself, so up to rounding errors
# of the σ it reads; it is 0.46 at x = 1. From the input all is computed in float32.
@every_half
@pytest.mark.parametrize(("saved", "roundings"), [("derivative", 6), ("input", 1)])
def test_second_order_in_halves(saved: str, roundings: int, dtype: torch.dtype) -> None:
    input = _between(1, 9, dtype)  # beyond, float16 has subnormal results
    reference = oracle.second_derivative(oracle.exact(input))
    error = _relative_error(_second(FusedSigmoid(saved), input), reference)
    assert error <= 1.01 * roundings * torch.finfo(dtype).eps / 2


def test_torch_loses_the_second_order() -> None:
    input = torch.linspace(40, 700, 100, dtype=torch.float64)
    assert (_second(nn.Sigmoid(), input) == 0).all()
    for saved in EXACT:
        assert (_second(FusedSigmoid(saved), input) < 0).all()


# saved="output" is for those who want torch's own numbers.


@pytest.mark.usefixtures("instruction_set")
@every_dtype
def test_saved_output_gives_the_gradient_of_torch(dtype: torch.dtype) -> None:
    if dtype in oracle.HALVES:
        input = oracle.every_half(dtype)
    else:
        input = torch.cat([oracle.both_tails(50_001, dtype), torch.tensor([math.nan, math.inf, 0])])
        input = input.to(dtype)
    leaf = input.requires_grad_()
    output = sigmoid(leaf, saved="output")
    # torch's CPU kernel rounds float16 after each of its three operations, its GPU kernel and ours
    # only at the end.
    wide = torch.float32 if dtype == torch.float16 else dtype
    # From the same output, since the values themselves differ in their last bits.
    y = output.detach().to(wide)
    for grad in (torch.ones_like(y), oracle.both_tails(len(input), dtype).to(wide)):
        expected = torch.ops.aten.sigmoid_backward(grad, y).to(dtype)
        (gradient,) = torch.autograd.grad(output, leaf, grad.to(dtype), retain_graph=True)
        assert oracle.same_bits(gradient, expected)
