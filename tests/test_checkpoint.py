"""What is computed again for a checkpoint takes the place of what was kept the first time, so what
is kept, in number, order and meaning, depends on the call alone: not on modes and hooks around
it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)
from torch.utils.flop_counter import FlopCounterMode

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative

Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "auto": FusedSigmoid(),
    "derivative": FusedSigmoid("derivative"),
    "input": FusedSigmoid("input"),
    "in place": lambda x: sigmoid_(x * 1),
    "pair": lambda x: sigmoid_with_derivative(x)[0],
    "operator": torch.ops.fused_sigmoid.sigmoid,
    "silu in place": lambda x: _silu_in_place(x * 1),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS)
# "auto" keeps the derivative of 8,192 elements of float32 and the input of 5.
every_size = pytest.mark.parametrize("size", [5, 8192])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def _silu_in_place(h: Tensor) -> Tensor:
    return h.mul_(sigmoid(h, saved="derivative"))


class Passing(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class PassingFunctions(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "none": contextlib.nullcontext,
    "flops": lambda: FlopCounterMode(display=False),
    "dispatch": Passing,
    "functions": PassingFunctions,
    "device": lambda: torch.device("cpu"),
    "on the CPU": save_on_cpu,
}


def _assert_exact(function: str, gradient: Tensor | None, points: Tensor) -> None:
    assert gradient is not None
    x = oracle.exact(points)
    first = oracle.derivative(x)
    expected = oracle.value(x) + x * first if function == "silu in place" else first
    rounded = oracle.rounded(expected, points.dtype)
    rtol, atol = (1e-6, 0) if function != "silu in place" else (1e-5, 1e-7)
    torch.testing.assert_close(gradient, rounded, rtol=rtol, atol=atol)


def _points(size: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-20, 20, size, dtype=dtype)


@every_function
@every_size
@every_dtype
@pytest.mark.parametrize("forward", MODES)
def test_modes_around_either_computation(
    forward: str, dtype: torch.dtype, size: int, function: str
) -> None:
    for backward in MODES:
        leaf = _points(size, dtype).requires_grad_()
        with MODES[forward]():
            y = checkpoint(FUNCTIONS[function], leaf, use_reentrant=False)
        with MODES[backward]():
            y.sum().backward()
        _assert_exact(function, leaf.grad, leaf.detach())


def _selective(*operators: Any) -> Callable[[], Any]:
    return functools.partial(create_selective_checkpoint_contexts, list(operators))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no check": {"determinism_check": "none"},
    "sigmoid is saved": {"context_fn": _selective(torch.ops.aten.sigmoid.default)},
    "products are saved": {"context_fn": _selective(torch.ops.aten.mul.Tensor)},
    "nothing is saved": {"context_fn": _selective()},
    "reentrant": {"use_reentrant": True},
}


@every_function
@every_size
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("mode", ["none", "flops"])
def test_options(mode: str, early_stop: bool, option: str, size: int, function: str) -> None:
    if "in place" in function and option in ("products are saved", "sigmoid is saved"):
        pytest.skip("torch refuses it: what the policy saved is changed in place")
    leaf = _points(size, torch.float32).requires_grad_()
    with set_checkpoint_early_stop(early_stop):
        with MODES[mode]():
            arguments = {"use_reentrant": False} | OPTIONS[option]
            y = checkpoint(lambda x: FUNCTIONS[function](x * 1) * 1, leaf, **arguments)
        y.sum().backward()
    _assert_exact(function, leaf.grad, leaf.detach())


@every_function
@every_size
def test_nested_and_twice(size: int, function: str) -> None:
    def inner(x: Tensor) -> Tensor:
        return checkpoint(lambda x: FUNCTIONS[function](x * 1), x, use_reentrant=False)

    leaf = _points(size, torch.float32).requires_grad_()
    with MODES["flops"]():
        y = checkpoint(lambda x: inner(x) + 0 * inner(x), leaf, use_reentrant=False)
    for _ in range(2):
        leaf.grad = None
        y.sum().backward(retain_graph=True)
        _assert_exact(function, leaf.grad, leaf.detach())


def test_a_sequence() -> None:
    leaf = _points(8192, torch.float32).requires_grad_()
    stages = [lambda x: x * 1, sigmoid, lambda x: x * 1]
    with MODES["flops"]():
        y = checkpoint_sequential(stages, 3, leaf, use_reentrant=False)
    y.sum().backward()
    _assert_exact("auto", leaf.grad, leaf.detach())


@every_function
@every_size
@every_dtype
@pytest.mark.parametrize("mode", ["flops", "dispatch", "functions", "device"])
def test_what_is_kept(mode: str, dtype: torch.dtype, size: int, function: str) -> None:
    """The same numbers in the same order, and of the same kinds."""

    def kept(mode: str) -> list[Tensor]:
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor.detach().clone())
            return tensor

        leaf = _points(size, dtype).requires_grad_()
        with saved_tensors_hooks(pack, lambda tensor: tensor), MODES[mode]():
            FUNCTIONS[function](leaf)
        return packed

    for found, expected in zip(kept(mode), kept("none"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
