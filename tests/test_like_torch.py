"""Every mechanism of autograd treats ours as it treats torch.sigmoid: views in place, `out`, hooks
and edges of the graph, errors. The gradient's tails are the only difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, get_gradient_edge
from torch.func import jvp, linearize, vmap
from torch.testing._internal.two_tensor import TwoTensor

import fused_sigmoid
from fused_sigmoid import sigmoid_, sigmoid_with_derivative

Function = Callable[[Tensor], Tensor]

SAVED = ("auto", "derivative", "input", "output")
EXACT: dict[str, Function] = {
    **{
        saved: partial(fused_sigmoid.sigmoid, saved=saved)
        for saved in ("auto", "derivative", "input")
    },
    "in place": lambda input: sigmoid_(input * 1),
    "pair": lambda input: sigmoid_with_derivative(input)[0],
}
FUNCTIONS: dict[str, Function] = EXACT | {"output": partial(fused_sigmoid.sigmoid, saved="output")}
every_exact = pytest.mark.parametrize("function", EXACT)
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def description(tensor: Tensor) -> dict[str, Any]:
    names = ("dtype", "shape", "requires_grad", "is_leaf", "output_nr", "retains_grad", "_version")
    calls = ("stride", "storage_offset", "is_conj", "is_neg", "is_inference", "_is_view")
    return {
        "type": type(tensor),
        "grad_fn": tensor.grad_fn is not None,
        "base": tensor._base is not None,
        **{name: getattr(tensor, name) for name in names},
        **{name: getattr(tensor, name)() for name in calls},
    }


# In place


class CustomView(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([torch.zeros_like(grad[:1]), grad])


def _view_without_grad(input: Tensor) -> Tensor:
    with torch.no_grad():
        return (input * 1)[1:]


def _retaining(input: Tensor) -> Tensor:
    result = input * 1
    result.retain_grad()
    return result


def _hooked(input: Tensor) -> Tensor:
    result = input * 1
    result.register_hook(lambda grad: 3 * grad)
    return result


# From a leaf of 4 by 6 to what is overwritten.
OVERWRITTEN: dict[str, Function] = {
    "result": lambda x: x * 1,
    "slice": lambda x: (x * 1)[1:3, ::2],
    "transposed": lambda x: (x * 1).t(),
    "view": lambda x: (x * 1).view(-1),
    "one number": lambda x: (x * 1)[0, 0],
    "diagonal": lambda x: (x * 1)[:, :4].diagonal(),
    "as_strided": lambda x: (x * 1).as_strided((2, 2), (1, 2)),
    "real part": lambda x: torch.complex(x, x).real,
    "imaginary part of a conjugate": lambda x: torch.complex(x, x).conj().imag,
    "detached": lambda x: (x * 1).detach(),
    "retaining": _retaining,
    "with a hook": _hooked,
    "output of ours": lambda x: fused_sigmoid.sigmoid(x, saved="input"),
    "leaf": lambda x: x,
    "view of a leaf": lambda x: x[1:],
    "expanded": lambda x: (x[:1] * 1).expand(4, 6),
    "overlapping": lambda x: (x * 1).as_strided((4, 4), (1, 1)),
    "one of several views": lambda x: (x * 1).unbind()[1],
    "one of several chunks": lambda x: (x * 1).split(2)[0],
    "view without grad": _view_without_grad,
    "custom view": lambda x: CustomView.apply(x * 1),
    "saved by others": lambda x: torch.sigmoid(x),
    "saved by ours": lambda x: fused_sigmoid.sigmoid(x, saved="output"),
}
GRAD_MODES = {
    "grad": torch.enable_grad,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("kind", OVERWRITTEN)
def test_in_place(kind: str, mode: str) -> None:
    def run(function: Function) -> list[Any]:
        leaf = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        tensor = OVERWRITTEN[kind](leaf)
        with GRAD_MODES[mode]():
            assert function(tensor) is tensor
        base = tensor._base if tensor._base is not None else tensor
        seen: list[Any] = [description(tensor), description(base), tensor.detach()]
        if tensor.requires_grad:
            (torch.view_as_real(base) if base.is_complex() else base).square().sum().backward()
            seen += [leaf.grad, tensor.grad if tensor.retains_grad else None]
        return seen

    def outcome(function: Function) -> list[Any]:
        try:
            return run(function)
        except RuntimeError as error:
            return [type(error), str(error)[:60]]

    for ours, torchs in zip(outcome(sigmoid_), outcome(torch.sigmoid_), strict=True):
        if isinstance(torchs, Tensor):
            torch.testing.assert_close(ours, torchs, check_stride=True)
        else:
            assert ours == torchs


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_in_place_on_a_nested_leaf() -> None:
    """The older nested tensors have no sigmoid, but torch looks at the leaf first."""
    for requires_grad in (False, True):
        parts = [torch.zeros(2, 3), torch.zeros(4, 3)]
        nested = torch.nested.nested_tensor(parts, requires_grad=requires_grad)
        expected = raised(lambda nested=nested: torch.sigmoid_(nested))
        assert type(raised(lambda nested=nested: sigmoid_(nested))) is type(expected)


# `out`

OUT: dict[str, Callable[[], Tensor]] = {
    "fitting": lambda: torch.zeros(3, 4),
    "transposed": lambda: torch.zeros(4, 3).t(),
    "of another shape": lambda: torch.zeros(2, 2),
    "of no elements": lambda: torch.zeros(0),
    "bigger": lambda: torch.zeros(5, 5),
    "narrower": lambda: torch.zeros(3, 4, dtype=torch.bfloat16),
    "wider": lambda: torch.zeros(7, dtype=torch.float64),
    "slice": lambda: torch.zeros(6, 8)[::2, ::2],
    "requiring grad": lambda: torch.zeros(3, 4, requires_grad=True),
    "requiring grad, of another shape": lambda: torch.zeros(2, requires_grad=True),
    "requiring grad, of another dtype": lambda: torch.zeros(3, 4).double().requires_grad_(),
}


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("kind", OUT)
def test_out(kind: str, mode: str) -> None:
    input = torch.linspace(-3, 3, 12).view(3, 4)
    seen = []
    for function in (torch.sigmoid, fused_sigmoid.sigmoid):
        out, error = OUT[kind](), ""
        with GRAD_MODES[mode](), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert function(input, out=out) is out
            except RuntimeError as caught:
                error = str(caught)
        seen.append((error, description(out), out.detach().tolist()))
    (torch_error, torchs, expected), (error, ours, result) = seen
    assert (error, ours) == (torch_error, torchs)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


# The graph

TAIL = torch.tensor([-80.0, -20, 0, 20, 80])
GRADIENT = oracle.derivative(oracle.exact(TAIL))


def _leaf() -> Tensor:
    return TAIL.clone().requires_grad_()


def check(gradient: Tensor | None, factor: float = 1) -> None:
    assert gradient is not None
    assert oracle.largest_error_in_ulp(gradient, factor * GRADIENT) < 5


@every_exact
def test_edges_and_node_hooks(function: str) -> None:
    x = _leaf()
    y = EXACT[function](x)
    (gradient,) = torch.autograd.grad(get_gradient_edge(y), x, torch.ones(5), retain_graph=True)
    check(gradient)
    node, seen = y.grad_fn, []
    assert node is not None
    assert "Sigmoid" in node.name()
    assert len(node.next_functions) == 1
    before = node.register_prehook(lambda grads: tuple(g if g is None else 2 * g for g in grads))
    after = node.register_hook(lambda inputs, outputs: seen.append(inputs[0]))
    y.sum().backward(retain_graph=True)
    check(x.grad, 2)
    check(seen[0], 2)
    before.remove()
    after.remove()
    x.grad = None
    y.sum().backward()
    check(x.grad)
    assert len(seen) == 1


@every_exact
def test_backward_into_chosen_inputs(function: str) -> None:
    x, other = _leaf(), _leaf()
    (EXACT[function](x) + other).sum().backward(inputs=[x])
    check(x.grad)
    assert other.grad is None


@every_exact
def test_undefined_gradients_stay_undefined(function: str) -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor) -> Tensor:
            ctx.set_materialize_grads(False)
            return input * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]
            return None

    x = _leaf()
    NoGradient.apply(EXACT[function](x)).sum().backward()
    assert x.grad is None


@every_exact
def test_first_gradient_is_a_constant_of_the_factor(function: str) -> None:
    """A second backward whose grad_output has no history, and one where only that has any."""
    x = _leaf().double().detach().requires_grad_()
    (gradient,) = torch.autograd.grad(EXACT[function](x), x, torch.ones_like(x), create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    expected = oracle.second_derivative(oracle.exact(x))
    assert oracle.largest_error_in_ulp(second, expected) < 12
    weight = torch.ones_like(x, requires_grad=True)
    y = EXACT[function](x)
    (gradient,) = torch.autograd.grad(y, x, weight, create_graph=True)
    (of_weight,) = torch.autograd.grad(gradient.sum(), weight)
    assert oracle.largest_error_in_ulp(of_weight, GRADIENT) < 5


@every_exact
def test_hooks_of_saved_tensors_may_be_forbidden(function: str) -> None:
    x = _leaf()
    with disable_saved_tensors_hooks("not here"):
        EXACT[function](x).sum().backward()
    check(x.grad)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
@every_function
def test_anomaly_mode_names_the_node(function: str) -> None:
    y = FUNCTIONS[function](_leaf())
    y.register_hook(lambda grad: grad * float("nan"))
    with torch.autograd.detect_anomaly():
        error = raised(y.sum().backward)
    assert type(error) is RuntimeError
    assert "Sigmoid" in str(error)
    assert "returned nan values in its 0th output" in str(error)


@every_function
def test_a_wrong_gradient_is_the_same_error(function: str) -> None:
    for wrong in (torch.ones(7), torch.ones(5, device="meta"), torch.ones(5, 1)):
        x = _leaf()
        expected = raised(lambda x=x, wrong=wrong: torch.sigmoid(x).backward(wrong))
        error = raised(lambda x=x, wrong=wrong: FUNCTIONS[function](x).backward(wrong))
        assert type(error) is type(expected)


@every_function
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x.as_subclass(type("Plain", (Tensor,), {})),
        lambda x: TwoTensor(x, x.clone()),
        torch.nn.Parameter,
        lambda x: x.to(torch.bfloat16),
    ],
    ids=["subclass", "wrapper", "Parameter", "bfloat16"],
)
def test_gradient_is_of_the_kind_torch_gives(wrap: Function, function: str) -> None:
    gradients = []
    for call in (torch.sigmoid, FUNCTIONS[function]):
        leaf = wrap(torch.randn(4, 3).t()).detach().requires_grad_()
        call(leaf).sum().backward()
        assert leaf.grad is not None
        gradients.append(description(leaf.grad) | {"_version": None})
    expected, ours = gradients
    assert ours == expected


# Transforms that other files leave out


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of copy_, in place
@every_function
def test_functionalize(function: str) -> None:
    """torch has no rule for autograd Functions there."""
    functionalize, grad = torch.func.functionalize, torch.func.grad
    call = FUNCTIONS[function]
    assert (
        oracle.largest_error_in_ulp(functionalize(call)(TAIL), oracle.value(oracle.exact(TAIL))) < 4
    )
    gradient = functionalize(grad(lambda x: call(x).sum()))(TAIL)
    batched = vmap(functionalize(grad(call)))(TAIL)
    if function == "output":
        assert gradient[-1] == 0
    else:
        check(gradient)
        check(batched)


@every_exact
def test_linearize_and_vmap_in_chunks(function: str) -> None:
    call = EXACT[function]
    value, tangent = linearize(call, TAIL)
    assert oracle.largest_error_in_ulp(value, oracle.value(oracle.exact(TAIL))) < 4
    check(tangent(torch.ones(5)))
    check(vmap(torch.func.grad(call), chunk_size=2)(TAIL))
    directions = torch.stack([torch.ones(5), 2 * torch.ones(5)], -1)
    tangents = vmap(lambda t: jvp(call, (TAIL,), (t,))[1], in_dims=-1, out_dims=-1)(directions)
    check(tangents[:, 0])
    check(tangents[:, 1], 2)


@every_function
def test_vmap_rejects_what_it_rejects_of_torch(function: str) -> None:
    for arguments in ({"in_dims": 1}, {"in_dims": -2}, {"out_dims": 2}):
        expected = raised(lambda a=arguments: vmap(torch.sigmoid, **a)(TAIL))
        assert type(raised(lambda a=arguments: vmap(FUNCTIONS[function], **a)(TAIL))) is type(
            expected
        )


@pytest.mark.parametrize("function", [*SAVED, "pair"])
def test_vmap_over_nothing(function: str) -> None:
    result = vmap(FUNCTIONS[function])(TAIL[:0])
    assert (result.shape, result.dtype) == ((0,), TAIL.dtype)
