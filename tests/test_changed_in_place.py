"""A program that changes the sigmoid's input, or its output, in place runs as with nn.Sigmoid, at
every size; and its gradient is right, compiled or not."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fused_sigmoid import FusedSigmoid, override, sigmoid, sigmoid_, sigmoid_with_derivative

pytestmark = pytest.mark.filterwarnings("ignore:fused_sigmoid. the input of a sigmoid was changed")

Activation = Callable[[Tensor], Tensor]


def _overridden(x: Tensor) -> Tensor:
    with override():
        return torch.sigmoid(x)


def _overridden_in_place(x: Tensor) -> Tensor:
    with override():
        return x.sigmoid_()


# "input" asked for by name may raise, which test_errors.py holds; nothing else may.
ACTIVATIONS: dict[str, Activation] = {
    "auto": sigmoid,
    "derivative": lambda x: sigmoid(x, saved="derivative"),
    "output": lambda x: sigmoid(x, saved="output"),
    "module": FusedSigmoid(),
    "pair": lambda x: sigmoid_with_derivative(x)[0],
    "derivative of the pair": lambda x: sigmoid_with_derivative(x)[1],
    "override": _overridden,
    "operator": torch.ops.fused_sigmoid.sigmoid,
}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)

# What torch is to compute in place of each.
THEIRS: dict[str, Activation] = dict.fromkeys(ACTIVATIONS, torch.sigmoid) | {
    "derivative of the pair": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x))
}


# Each takes h, which is nobody else's, and an activation.


def _multiplied(h: Tensor, act: Activation) -> Tensor:
    return h.mul_(act(h))


def _rectified(h: Tensor, act: Activation) -> Tensor:
    y = act(h)
    return torch.relu_(h) + y


def _clamped(h: Tensor, act: Activation) -> Tensor:
    return act(h) * h.clamp_(-1, 1)


def _copied_over(h: Tensor, act: Activation) -> Tensor:
    y = act(h)
    h.copy_(y.detach() * 3)
    return y * 2 + h


def _filled_under_a_mask(h: Tensor, act: Activation) -> Tensor:
    y = act(h)
    h.masked_fill_(h.detach() > 0, 0.5)
    return y + h


def _written_through_a_view(h: Tensor, act: Activation) -> Tensor:
    y = act(h)
    h[1:].mul_(2)
    h.view(-1)[0] = 3
    return y + h


def _view_whose_base_is_written(h: Tensor, act: Activation) -> Tensor:
    y = act(h[::2])
    h.add_(1)
    return torch.cat([y, h])


def _changed_without_gradient(h: Tensor, act: Activation) -> Tensor:
    y = act(h)
    with torch.no_grad():
        h.add_(1)
    return y


PROGRAMS = {
    program.__name__[1:]: program
    for program in (
        _multiplied,
        _rectified,
        _clamped,
        _copied_over,
        _filled_under_a_mask,
        _written_through_a_view,
        _view_whose_base_is_written,
        _changed_without_gradient,
    )
}
every_program = pytest.mark.parametrize("program", PROGRAMS)


def _gradient(
    program: str, act: Activation, points: Tensor, wrap: Callable = lambda f: f
) -> Tensor:
    leaf = points.clone().requires_grad_()
    function = wrap(lambda x: PROGRAMS[program](x * 1, act))
    function(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def _assert_like_torch(
    program: str, name: str, points: Tensor, wrap: Callable = lambda f: f
) -> None:
    expected = _gradient(program, THEIRS[name], points.double())
    found = _gradient(program, ACTIVATIONS[name], points, wrap)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.03}[points.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


# Where torch's gradient has not lost its bits. 8,192 elements of float32 are kept otherwise than
# 3 and 2^21 + 1 are, by "auto".
SIZES = (3, 8192, 2**21 + 1)


@every_program
@every_activation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES[:2])
def test_eager(size: int, dtype: torch.dtype, name: str, program: str) -> None:
    _assert_like_torch(program, name, torch.linspace(-3, 3, size).to(dtype))


def test_large() -> None:
    for name in ("auto", "pair"):
        _assert_like_torch("multiplied", name, torch.linspace(-3, 3, SIZES[2]))


@every_program
@pytest.mark.parametrize("name", ["auto", "derivative", "pair", "override"])
@pytest.mark.parametrize(
    "hooks",
    [
        lambda: saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        lambda: saved_tensors_hooks(Tensor.clone, lambda tensor: tensor),
        save_on_cpu,
    ],
    ids=["as they are", "copied", "on the CPU"],
)
def test_hooks_of_saved_tensors(hooks: Callable, name: str, program: str) -> None:
    """Autograd compares no versions of what hooks have packed."""

    def wrap(function: Activation) -> Activation:
        def inside(x: Tensor) -> Tensor:
            with hooks():
                return function(x)

        return inside

    # Hooks that keep the tensors as they are give torch's own products changed numbers as well:
    # a program that torch computes wrongly is none to compare with.
    points = torch.linspace(-3, 3, 7)
    expected = _gradient(program, THEIRS[name], points, wrap)
    if torch.allclose(expected, _gradient(program, THEIRS[name], points)):
        _assert_like_torch(program, name, points, wrap)


@every_program
@pytest.mark.parametrize("name", ["auto", "derivative", "input", "pair", "derivative of the pair"])
def test_compiled(name: str, program: str) -> None:
    """Nobody looks at versions there: what was changed would be silently wrong."""
    torch._dynamo.reset()
    activations = ACTIVATIONS | {"input": lambda x: sigmoid(x, saved="input")}
    theirs = THEIRS | {"input": torch.sigmoid}
    points = torch.linspace(-3, 3, 7)
    expected = _gradient(program, theirs[name], points.double())
    leaf = points.clone().requires_grad_()
    torch.compile(lambda x: PROGRAMS[program](x * 1, activations[name]), backend="aot_eager")(
        leaf
    ).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.float(), rtol=1e-6, atol=1e-6)


_WRONG = pytest.mark.xfail(
    strict=True,
    reason="Inductor computes sigmoid again from the given tensor, which was changed",
)


def _marks(program: str, name: str) -> list[pytest.MarkDecorator]:
    # From torch 2.15 on this library's operator is computed once, and torch's own still again.
    is_wrong = "without" in program and (name == "torch" or torch.__version__ < (2, 15))
    return [*([pytest.mark.slow] if name == "torch" else []), *([_WRONG] if is_wrong else [])]


@pytest.mark.parametrize(
    ("program", "name"),
    [
        pytest.param(program, name, marks=_marks(program, name))
        for program in PROGRAMS
        for name in ("auto", "torch")
    ],
)
def test_given_to_a_graph_and_changed_in_it(program: str, name: str) -> None:
    """What is wrong is an error of torch's: autograd sees that what it kept was changed."""
    torch._dynamo.reset()
    activation = {"auto": sigmoid, "torch": torch.sigmoid}[name]
    points = torch.linspace(-3, 3, 7)
    # Not the result of the graph, which would be kept as it is.
    expected = _gradient(program, lambda x: 4 * torch.sigmoid(x), points)
    compiled = torch.compile(lambda h: PROGRAMS[program](h, lambda x: 4 * activation(x)))
    leaf = points.clone().requires_grad_()
    loss = compiled(leaf * 1).sum()
    with contextlib.suppress(RuntimeError):  # "modified by an inplace operation"
        loss.backward()
    if leaf.grad is None:
        return
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["auto", "pair"])
def test_compiled_by_inductor(name: str) -> None:
    torch._dynamo.reset()

    def program(x: Tensor) -> Tensor:
        return torch.stack([run(x * 1, ACTIVATIONS[name]).sum() for run in PROGRAMS.values()]).sum()

    def theirs(x: Tensor) -> Tensor:
        return torch.stack([run(x * 1, torch.sigmoid).sum() for run in PROGRAMS.values()]).sum()

    x, y = (torch.linspace(-3, 3, 7).requires_grad_() for _ in range(2))
    torch.compile(program)(x).backward()
    theirs(y).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)


@every_program
@pytest.mark.parametrize("name", ["auto", "pair"])
def test_torch_func(name: str, program: str) -> None:
    points = torch.linspace(-3, 3, 7)
    found = torch.func.grad(lambda x: PROGRAMS[program](x * 1, ACTIVATIONS[name]).sum())(points)
    torch.testing.assert_close(found, _gradient(program, torch.sigmoid, points))


@pytest.mark.parametrize("saved", ["auto", "derivative", "input"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_changed_between_two_backward_passes(dtype: torch.dtype, saved: str) -> None:
    points = torch.linspace(-3, 3, 7, dtype=dtype)
    leaf = points.clone().requires_grad_()
    h = leaf * 1
    y = sigmoid(h, saved=saved)
    (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    with torch.no_grad():
        h.zero_()
    (second,) = torch.autograd.grad(first.sum(), leaf)
    expected = oracle.rounded(oracle.second_derivative(oracle.exact(points)), dtype)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("saved", ["auto", "derivative"])
def test_changed_before_two_backward_passes(saved: str, size: int) -> None:
    points = torch.linspace(-3, 3, size, dtype=torch.float64)
    leaf = points.clone().requires_grad_()
    h = leaf * 1
    y = sigmoid(h, saved=saved)
    with torch.no_grad():
        h.zero_()
    (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    expected = oracle.rounded(oracle.second_derivative(oracle.exact(points)), torch.float64)
    torch.testing.assert_close(second, expected, rtol=1e-12, atol=1e-14)


def test_compiled_autograd() -> None:
    leaf = torch.linspace(-3, 3, 7).requires_grad_()
    h = leaf * 1
    y = sigmoid(h)
    with torch.no_grad():
        h.zero_()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        y.sum().backward()
    expected = _gradient("changed_without_gradient", torch.sigmoid, leaf.detach())
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("size", SIZES[:2])
def test_the_derivative_of_the_pair_may_change(size: int) -> None:
    points = torch.linspace(-20, 20, size)
    leaf = points.clone().requires_grad_()
    value, derivative = sigmoid_with_derivative(leaf * 1)
    derivative.mul_(2)
    (value.sum() + derivative.sum()).backward()
    x = oracle.exact(points)
    expected = oracle.derivative(x) + 2 * oracle.second_derivative(x)
    rounded = oracle.rounded(expected, torch.float32)
    torch.testing.assert_close(leaf.grad, rounded, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
def test_only_what_was_changed_costs_exactness(size: int) -> None:
    """The gradient of a change is nn.Sigmoid's at worst; without one it keeps its tails."""
    leaf = torch.full((size,), 20.0, requires_grad=True)
    sigmoid(leaf * 1).mul_(2).sum().backward()
    assert leaf.grad is not None
    expected = float(oracle.derivative(oracle.exact(torch.tensor(20.0))))
    torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 2 * expected), rtol=1e-6, atol=0)


def test_what_no_version_counts_is_read_as_it_is() -> None:
    """docs/compatibility.md names those that do not keep the input."""

    def gradient(saved: str, dtype: torch.dtype) -> float:
        leaf = torch.tensor([2.0], dtype=dtype, requires_grad=True)
        h = leaf * 1
        y = sigmoid(h, saved=saved)
        h.data.zero_()
        y.backward()
        assert leaf.grad is not None
        return float(leaf.grad)

    right = float(oracle.derivative(oracle.exact(torch.tensor(2.0))))
    for dtype in (torch.float32, torch.float64):
        for saved in ("derivative", "output"):
            assert gradient(saved, dtype) == pytest.approx(right, rel=1e-6)
        for saved in ("auto", "input"):
            assert gradient(saved, dtype) == 0.25


def test_the_warning_is_said_once_and_names_the_remedy() -> None:
    program = """
import torch, fused_sigmoid
for size in (3, 5):
    h = torch.ones(size, requires_grad=True) * 1
    h.mul_(fused_sigmoid.sigmoid(h)).sum().backward()
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stderr.count("UserWarning: fused_sigmoid: the input of a sigmoid was changed") == 1
    for remedy in ("x = x * x.sigmoid()", 'saved="derivative"'):
        assert remedy in found.stderr


def test_nothing_is_said_where_nothing_was_lost() -> None:
    program = """
import torch, fused_sigmoid
for saved in ("derivative", "output"):
    h = torch.ones(3, requires_grad=True) * 1
    h.mul_(fused_sigmoid.sigmoid(h, saved=saved)).sum().backward()
h = torch.ones(8192, requires_grad=True) * 1
h.mul_(fused_sigmoid.sigmoid(h)).sum().backward()
fused_sigmoid.sigmoid(h.detach().requires_grad_()).mul_(2).sum().backward()
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stderr == ""


@pytest.mark.parametrize("saved", ["auto", "derivative"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES[:2])
def test_detached_in_place(size: int, dtype: torch.dtype, saved: str) -> None:
    """It changes no version, but takes the history that a second derivative needs."""
    points = torch.linspace(-3, 3, size, dtype=dtype)
    leaf = points.clone().requires_grad_()
    h = leaf * 1
    y = sigmoid(h, saved=saved)
    h.detach_()
    (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    expected = oracle.rounded(oracle.second_derivative(oracle.exact(points)), dtype)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-7)


def _runs_backward(output: Tensor, saved: str) -> bool:
    """Of a sigmoid whose input was changed: asked for by name, the input is an error."""
    if saved == "input":
        with pytest.raises(RuntimeError, match="modified"):
            output.sum().backward()
        return False
    output.sum().backward()
    return True


def _assert_exact_gradient(leaf: Tensor) -> None:
    assert leaf.grad is not None
    expected = oracle.rounded(oracle.derivative(oracle.exact(leaf.detach())), torch.float32)
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("saved", ["auto", "derivative", "input", "output"])
def test_memory_that_was_freed(size: int, saved: str) -> None:
    """By resizing the storage, as those do who shard or offload tensors."""
    leaf = torch.full((size,), 2.0, requires_grad=True)
    h = leaf * 1
    y = sigmoid(h, saved=saved)
    h.untyped_storage().resize_(0)
    if not _runs_backward(y, saved):
        return
    _assert_exact_gradient(leaf)


@pytest.mark.parametrize("size", SIZES[:2])
def test_a_derivative_of_the_pair_that_was_freed(size: int) -> None:
    leaf = torch.full((size,), 2.0, requires_grad=True)
    value, derivative = sigmoid_with_derivative(leaf)
    derivative.untyped_storage().resize_(0)
    value.sum().backward()
    _assert_exact_gradient(leaf)


# By `x.data = y`, which no version counts: other numbers, another shape of the same or of other
# memory, another dtype.
GIVEN = {
    "numbers": lambda data: torch.full_like(data, 3.0),
    "transposed": lambda data: data.t(),
    "a part": lambda data: data[:1],
    "one column": lambda data: data.new_zeros(data.numel(), 1),
    "the part at an offset": lambda data: torch.cat([data, data + 1])[len(data) :],
    "dtype": lambda data: torch.zeros_like(data, dtype=torch.float64),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("columns", [3, 3000])
@pytest.mark.parametrize("saved", ["auto", "derivative", "output", "input"])
def test_given_other_memory(saved: str, columns: int, given: str) -> None:
    points = torch.linspace(-3, 3, 2 * columns).view(2, columns)
    leaf = points.clone().requires_grad_()
    h = leaf * 1
    y = sigmoid(h, saved=saved)
    h.data = GIVEN[given](h.data)
    if not _runs_backward(y, saved):
        return
    assert leaf.grad is not None
    expected = torch.sigmoid(points) * torch.sigmoid(-points)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-7)


def test_parameters_from_a_vector() -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
    expected = torch.sigmoid(parameter.detach()) * torch.sigmoid(-parameter.detach())
    y = sigmoid(parameter)
    for value in (3.0, 4.0):  # the second may get the memory that the first one left
        torch.nn.utils.vector_to_parameters(torch.full((3,), value), [parameter])
    y.sum().backward()
    torch.testing.assert_close(parameter.grad, expected)


def test_detached_in_place_when_the_input_was_asked_for() -> None:
    leaf = torch.ones(3, requires_grad=True)
    for create_graph in (False, True):
        h = leaf * 1
        y = sigmoid(h, saved="input")
        h.detach_()
        if create_graph:
            with pytest.raises(RuntimeError, match="detached in-place"):
                torch.autograd.grad(y.sum(), leaf, create_graph=True)
        else:
            torch.autograd.grad(y.sum(), leaf)


def test_a_derivative_that_changes_between_two_backward_passes() -> None:
    leaf = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    value, derivative = sigmoid_with_derivative(leaf * 1)
    (first,) = torch.autograd.grad((value * value).sum(), leaf, create_graph=True)
    with torch.no_grad():
        derivative.mul_(0.5)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    x = oracle.exact(leaf.detach())
    expected = 2 * (oracle.derivative(x) ** 2 + oracle.value(x) * oracle.second_derivative(x))
    torch.testing.assert_close(second, oracle.rounded(expected, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_two_backward_passes_through_a_view_in_place(dtype: torch.dtype) -> None:
    def second(act: Activation) -> Tensor:
        leaf = torch.tensor([1.0, -2.0], dtype=dtype, requires_grad=True)
        h = leaf * 1
        act(h[:])
        (first,) = torch.autograd.grad(h.sin().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.sum(), leaf)[0]

    torch.testing.assert_close(second(sigmoid_), second(torch.sigmoid_))


def test_an_explicit_input_that_changes_in_a_checkpoint() -> None:
    """Autograd compares no versions of what a checkpoint computes again."""

    def region(x: Tensor) -> Tensor:
        h = x * 1
        h.add_(sigmoid(h, saved="input"))
        return h.sin()

    output = checkpoint(region, torch.ones(3, requires_grad=True) * 1, use_reentrant=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("act", [sigmoid_, _overridden_in_place], ids=["sigmoid_", "override"])
def test_in_place_on_a_view(act: Activation) -> None:
    def gradient(act: Activation) -> Tensor:
        leaf = torch.linspace(-3, 3, 8).requires_grad_()
        h = leaf * 1
        act(h[::2])
        (h * h).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(act), gradient(torch.sigmoid_))
