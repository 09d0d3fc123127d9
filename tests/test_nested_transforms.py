"""Transforms of torch.func, autograd and forward-mode AD within one another, to four levels: what
each level differentiates is what it is for torch's sigmoid."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional

import fused_sigmoid
from fused_sigmoid import FusedSigmoid

Function = Callable[[Tensor], Tensor]

SAVED = ("auto", "derivative", "input", "output")

SIGMOIDS: dict[str, Function] = {
    "auto": fused_sigmoid.sigmoid,
    "derivative": FusedSigmoid(saved="derivative"),
    "input": FusedSigmoid(saved="input"),
    "output": FusedSigmoid(saved="output"),
    "in place": lambda x: fused_sigmoid.sigmoid_(x * 1),
    "pair": lambda x: fused_sigmoid.sigmoid_with_derivative(x)[0],
    "pair's derivative": lambda x: fused_sigmoid.sigmoid_with_derivative(x)[1] / (1 - x.sigmoid()),
}

PEERS: dict[str, Function] = {"in place": lambda x: torch.sigmoid_(x * 1)}


def labels(y: Tensor) -> Tensor:
    return (torch.arange(y.shape[-1]) % 2).to(y.dtype).expand(y.shape)


# Elementwise, so that every transform below maps a function of a vector to another one.
PROGRAMS: dict[str, Callable[[Function], Function]] = {
    "alone": lambda sigmoid: sigmoid,
    "squared": lambda sigmoid: lambda x: sigmoid(x) ** 2,
    "twice": lambda sigmoid: lambda x: sigmoid(2 * sigmoid(x) - x),
    "gate": lambda sigmoid: lambda x: x * sigmoid(x),
    "entropy": lambda sigmoid: (
        lambda x: functional.binary_cross_entropy((y := sigmoid(x)), labels(y), reduction="none")
    ),
    "entropy of 1 - y": lambda sigmoid: (
        lambda x: functional.binary_cross_entropy(
            (y := 1 - sigmoid(x)), labels(y), reduction="none"
        )
    ),
    "by hand": lambda sigmoid: lambda x: -(1 - sigmoid(x)).log(),
}


def of_grad(f: Function) -> Function:
    return grad(lambda x: f(x).sum())


def of_vjp(f: Function) -> Function:
    def pulled_back(x: Tensor) -> Tensor:
        _, pull_back = vjp(f, x)
        return pull_back(torch.cos(x))[0]

    return pulled_back


def of_jvp(f: Function) -> Function:
    return lambda x: jvp(f, (x,), (torch.cos(x),))[1]


def of_rows(f: Function) -> Function:
    return lambda x: vmap(f)(x.unflatten(0, (2, -1))).flatten()


def of_elements(f: Function) -> Function:
    return vmap(grad(lambda x: f(x[None]).sum()))


def of_autograd(f: Function) -> Function:
    def differentiated(x: Tensor) -> Tensor:
        if not x.requires_grad:
            x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]

    return differentiated


def of_batched_gradients(f: Function) -> Function:
    def differentiated(x: Tensor) -> Tensor:
        if not x.requires_grad:
            x = x.clone().requires_grad_()
        directions = torch.eye(len(x), dtype=x.dtype)
        rows = torch.autograd.grad(f(x), x, directions, create_graph=True, is_grads_batched=True)
        return rows[0].sum(0)

    return differentiated


def of_forward_mode(f: Function) -> Function:
    def differentiated(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.cos(x))
            tangent = forward_ad.unpack_dual(f(dual)).tangent
        return torch.zeros_like(x) if tangent is None else tangent

    return differentiated


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "grad": of_grad,
    "vjp": of_vjp,
    "jvp": of_jvp,
    "jacrev": lambda f: lambda x: jacrev(f)(x).sum(0),
    "jacfwd": lambda f: lambda x: jacfwd(f)(x).sum(0),
    "rows": of_rows,
    "elements": of_elements,
    "autograd": of_autograd,
    "batched gradients": of_batched_gradients,
    "forward mode": of_forward_mode,
}

# 1 - y is not yet rounded to few digits there, and what docs/company.md lists is not seen.
POINTS = torch.tensor([-2.1, 0.4, 1.3, -0.7, 0.1, 2.6], dtype=torch.float64)


def check(transforms: list[str], program: str, sigmoid: str, dtype: torch.dtype) -> bool:
    """Whether torch's sigmoid can do that; if so ours must, with the same result."""

    def result_of(sigmoid: Function, dtype: torch.dtype) -> Tensor:
        f = PROGRAMS[program](sigmoid)
        for name in transforms:
            f = TRANSFORMS[name](f)
        return f(POINTS.to(dtype))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = result_of(PEERS.get(sigmoid, torch.sigmoid), torch.float64)
            largest = expected.abs().max().item()
        except (RuntimeError, AttributeError, TypeError):
            return False
        result = result_of(SIGMOIDS[sigmoid], dtype)
    assert result.requires_grad == expected.requires_grad
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance * (largest + 1))
    return True


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("program", ["squared", "entropy"])
def test_one_within_another(program: str, dtype: torch.dtype, sigmoid: str) -> None:
    possible = [
        check([inner, outer], program, sigmoid, dtype)
        for inner in TRANSFORMS
        for outer in TRANSFORMS
    ]
    assert sum(possible) > len(possible) // 2


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_third_derivative(sigmoid: str) -> None:
    for transform in ("grad", "autograd"):
        for program in PROGRAMS:
            for dtype in (torch.float64, torch.float32):
                assert check([transform] * 3, program, sigmoid, dtype)


@pytest.mark.parametrize("seed", range(20))
def test_random_nests(seed: int) -> None:
    choose = random.Random(seed)
    possible = 0
    for _ in range(20):
        transforms = choose.choices(list(TRANSFORMS), k=choose.randint(1, 4))
        program, sigmoid = choose.choice(list(PROGRAMS)), choose.choice(list(SIGMOIDS))
        possible += check(
            transforms, program, sigmoid, choose.choice([torch.float64, torch.float32])
        )
    assert possible > 2


def test_gradient_through_an_inner_step_of_training() -> None:
    """As in meta-learning: the outer loss goes through torch.func.grad by ordinary autograd."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 3, dtype=torch.float64), torch.rand(8, 1, dtype=torch.float64)

    def gradients(sigmoid: torch.nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        layers = (torch.nn.Linear(3, 4), sigmoid, torch.nn.Linear(4, 1), sigmoid)
        model = torch.nn.Sequential(*layers).double()
        parameters = dict(model.named_parameters())

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return functional.binary_cross_entropy(functional_call(model, parameters, x), target)

        steps = grad(loss)(parameters)
        stepped = {name: value - 0.5 * steps[name] for name, value in parameters.items()}
        loss(stepped).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for ours, torchs in zip(gradients(FusedSigmoid()), gradients(torch.nn.Sigmoid()), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("saved", SAVED)
def test_batch_between_derivatives_of_a_saturated_loss(saved: str, dim: int) -> None:
    """What is differentiated again is the gradient that undoes the loss's division."""
    x = torch.tensor([[1.0, 17.0], [30.0, 40.0]], dtype=torch.float64)
    sigmoid = FusedSigmoid(saved=saved)

    def loss(x: Tensor) -> Tensor:
        y = sigmoid(x)
        return functional.binary_cross_entropy(y, torch.zeros_like(y), reduction="sum")

    second = grad(lambda x: vmap(grad(loss), dim)(x).sum())(x)
    exact = x.sigmoid() * (-x).sigmoid()
    torch.testing.assert_close(second, exact, rtol=0, atol=1e-14)
    leaf = x.clone().requires_grad_()
    (second,) = torch.autograd.grad(vmap(grad(loss), dim)(leaf).sum(), leaf)
    torch.testing.assert_close(second, exact, rtol=0, atol=1e-14)


def test_input_detached_before_the_backward_pass() -> None:
    def gradients(sigmoid: torch.nn.Module) -> tuple[Tensor, Tensor]:
        leaf = POINTS.clone().requires_grad_()
        x = leaf * 1.1
        y = sigmoid(x)
        x.detach_()
        loss = functional.binary_cross_entropy(y, torch.full_like(y, 0.3))
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return first, torch.autograd.grad(first.sum(), leaf)[0]

    for saved in SAVED:
        ours = gradients(FusedSigmoid(saved=saved))
        torch.testing.assert_close(ours, gradients(torch.nn.Sigmoid()), rtol=1e-9, atol=1e-12)


def test_tensor_of_a_transform_that_has_ended() -> None:
    x = POINTS.clone().requires_grad_()
    left: list[Tensor] = []

    def leave(x: Tensor) -> Tensor:
        left.append(x)
        return x.sum()

    vjp(leave, x)
    for sigmoid in SIGMOIDS.values():
        (ours,) = torch.autograd.grad(sigmoid(left[0]).sum(), x)
        (expected,) = torch.autograd.grad(left[0].sigmoid().sum(), x)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
