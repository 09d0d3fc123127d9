"""Autograd: derivatives of every order and mode, what is kept for them, and when nothing is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import oracle
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative

# torch's own: forward AD compiles some of its formulas with it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

SAVED = ("auto", "derivative", "input", "output")
every_saved = pytest.mark.parametrize("saved", SAVED)

Function = Callable[[Tensor], Tensor]


def _in_place(input: Tensor) -> Tensor:
    return sigmoid_(input.clone())


FUNCTIONS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    **{saved: FusedSigmoid(saved) for saved in SAVED},
    "in place": _in_place,
    "pair": sigmoid_with_derivative,
    "operator": torch.ops.fused_sigmoid.sigmoid,
    "operator of the pair": torch.ops.fused_sigmoid.sigmoid_with_derivative,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def _leaf(*shape: int) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 2).requires_grad_()


def _float32_leaf(*shape: int) -> Tensor:
    return _leaf(*shape).detach().float().requires_grad_()


INPUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: _leaf(2, 3),
    "transposed": lambda: _leaf(2, 3).detach().t().requires_grad_(),
    "zero": lambda: torch.zeros(2, dtype=torch.float64, requires_grad=True),
    "no dimensions": lambda: _leaf(),
    "empty": lambda: _leaf(0, 2),
}
every_input = pytest.mark.parametrize("input", INPUTS)


def _forward_mode(function: str) -> bool:
    return "operator" not in function  # which has none, and says so


@every_input
@every_function
def test_gradcheck(function: str, input: str) -> None:
    assert gradcheck(
        FUNCTIONS[function],
        (INPUTS[input](),),
        check_forward_ad=_forward_mode(function),
        check_batched_grad=True,
        check_batched_forward_grad=_forward_mode(function),
        check_undefined_grad=True,
    )


@every_input
@every_function
def test_gradgradcheck(function: str, input: str) -> None:
    assert gradgradcheck(
        FUNCTIONS[function],
        (INPUTS[input](),),
        check_batched_grad=True,
        check_fwd_over_rev=_forward_mode(function),
        check_rev_over_rev=True,
    )


@pytest.mark.parametrize("name", ["", "_from_output", "_from_derivative"])
def test_gradcheck_of_the_backward_operators(name: str) -> None:
    operator = getattr(torch.ops.fused_sigmoid, f"sigmoid_backward{name}")
    operands = (_leaf(2, 3), _leaf(2, 3))
    assert gradcheck(operator, operands, check_batched_grad=True)
    assert gradgradcheck(operator, operands, check_batched_grad=True)


def test_reverse_over_forward_in_place() -> None:
    leaf = torch.linspace(-3, 3, 5, dtype=torch.float64, requires_grad=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(leaf, torch.full_like(leaf, 3)) * 1
        tangent = forward_ad.unpack_dual(sigmoid_(dual)).tangent
        assert tangent is not None
        (gradient,) = torch.autograd.grad(tangent.sum(), leaf)
    expected = oracle.rounded(3 * oracle.second_derivative(oracle.exact(leaf)), torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


def test_operators_have_a_forward_mode() -> None:
    points = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64)
    x = oracle.exact(points)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(points, torch.full_like(points, 3))
        value = torch.ops.fused_sigmoid.sigmoid(dual)
        pair = torch.ops.fused_sigmoid.sigmoid_with_derivative(dual)
        tangents = [forward_ad.unpack_dual(result).tangent for result in (value, *pair)]
    for tangent, derivative in zip(
        tangents,
        (oracle.derivative, oracle.derivative, oracle.second_derivative),
        strict=True,
    ):
        expected = oracle.rounded(3 * derivative(x), torch.float64)
        torch.testing.assert_close(tangent, expected, rtol=1e-15, atol=0)


# Higher orders against closed forms; they hold to rounding, but not where torch's formula is used.

POINTS = torch.tensor(
    [0.0, -0.0, 1e-3, -1e-3, 0.5, -0.5, 1.3, -1.3, 4.0, -4.0, 20.0, -20.0, 40.0, -40.0, 600, -600],
    dtype=torch.float64,
)


def _fourth_derivative(x: oracle.LongDouble) -> oracle.LongDouble:
    return oracle.second_derivative(x) * (1 - 12 * oracle.derivative(x))


DERIVATIVES = (
    oracle.derivative,
    oracle.second_derivative,
    oracle.third_derivative,
    _fourth_derivative,
)


def _assert_derivative(result: Tensor, order: int) -> None:
    x = oracle.exact(POINTS)
    error = np.abs(oracle.exact(result) - DERIVATIVES[order - 1](x))
    # Higher derivatives cross zero; σ' is their size on the tails.
    assert np.max(error / oracle.derivative(x)) <= 1e-14


@pytest.mark.parametrize("function", ["auto", "derivative", "input", "in place", "operator"])
def test_four_orders_of_reverse_mode(function: str) -> None:
    input = POINTS.clone().requires_grad_()
    result = FUNCTIONS[function](input)
    for order in (1, 2, 3, 4):
        (result,) = torch.autograd.grad(result.sum(), input, create_graph=True)
        _assert_derivative(result, order)


@pytest.mark.parametrize("output", [0, 1])
def test_four_orders_of_the_pair(output: int) -> None:
    input = POINTS.clone().requires_grad_()
    result = sigmoid_with_derivative(input)[output]
    for order in range(1 + output, 5):
        (result,) = torch.autograd.grad(result.sum(), input, create_graph=True)
        _assert_derivative(result, order)


def _reverse(function: Function) -> Function:
    return torch.func.grad(lambda x: function(x).sum())


def _forward(function: Function) -> Function:
    return lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_nested_transforms(order: int) -> None:
    for modes in itertools.product((_reverse, _forward), repeat=order):
        derivative: Function = sigmoid
        for mode in modes:
            derivative = mode(derivative)
        _assert_derivative(derivative(POINTS), order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_nested_transforms_of_the_pair(order: int) -> None:
    for modes in itertools.product((_reverse, _forward), repeat=order):

        def derivative(x: Tensor) -> Tensor:
            return sigmoid_with_derivative(x)[1]

        for mode in modes:
            derivative = mode(derivative)
        _assert_derivative(derivative(POINTS), order + 1)


def test_hessian_and_jacobians() -> None:
    def total(x: Tensor) -> Tensor:
        return sigmoid(x).sum()

    x = oracle.exact(POINTS)
    first = torch.from_numpy(np.diag(oracle.derivative(x).astype(np.float64)))
    second = torch.from_numpy(np.diag(oracle.second_derivative(x).astype(np.float64)))
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(sigmoid)(POINTS), first, rtol=1e-14, atol=0)
    hessians = (torch.func.hessian(total)(POINTS), torch.autograd.functional.hessian(total, POINTS))
    for hessian in hessians:
        torch.testing.assert_close(hessian, second, rtol=1e-13, atol=1e-17)


# The graph.


def _expected(input: Tensor) -> Tensor:
    return oracle.rounded(oracle.derivative(oracle.exact(input)), input.dtype)


def _assert_gradient(gradient: Tensor | None, input: Tensor) -> None:
    assert gradient is not None
    torch.testing.assert_close(gradient, _expected(input), rtol=1e-14, atol=0)


@every_saved
def test_gradients_accumulate_and_graphs_can_be_kept(saved: str) -> None:
    input = _leaf(4, 5)
    result = sigmoid(input, saved=saved).sum()
    result.backward(retain_graph=True)
    assert input.grad is not None
    once = input.grad.clone()
    _assert_gradient(once, input)
    result.backward()
    assert torch.equal(input.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


@every_saved
def test_hooks_see_the_gradients(saved: str) -> None:
    seen: list[Tensor] = []
    input, module = _leaf(4, 5), FusedSigmoid(saved)
    module.register_full_backward_hook(lambda _, grads, __: seen.append(grads[0]))
    output = module(input)
    output.register_hook(lambda grad: 3 * grad)
    input.register_hook(seen.append)
    input.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad))
    output.sum().backward()
    assert len(seen) == 3
    for grad in seen:
        torch.testing.assert_close(grad, 3 * _expected(input), rtol=1e-14, atol=0)


# With saved="derivative" the gradient takes the memory of the saved derivative when that is over.


DENSE = {
    "contiguous": lambda: torch.randn(1 << 10, 1 << 10),
    "transposed": lambda: torch.randn(1 << 11, 1 << 9).t(),
    "channels_last": lambda: torch.randn(4, 64, 64, 64).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_gradient_takes_the_memory_of_the_saved_derivative(dtype: torch.dtype, layout: str) -> None:
    input = DENSE[layout]().to(dtype).requires_grad_()
    grad = torch.randn_like(input)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        (gradient,) = torch.autograd.grad(sigmoid(input, saved="derivative"), input, grad)
    assert gradient.stride() == input.stride()
    finfo = torch.finfo(dtype)
    tolerance = {"rtol": 3 * finfo.eps, "atol": finfo.smallest_normal * finfo.eps}
    expected = (grad.double() * _expected(input.double())).to(dtype)
    torch.testing.assert_close(gradient, expected, **tolerance)
    nbytes = input.numel() * input.element_size()
    # Of the kernels alone: the profiler may count what was made just before it began.
    kernels = [event for event in profiler.events() if event.name.startswith("fused_sigmoid::")]
    allocated = sum(event.cpu_memory_usage for event in kernels)
    assert 1.9 * nbytes < allocated < 2.1 * nbytes


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_memory_that_others_hold_is_not_taken(dtype: torch.dtype) -> None:
    input = torch.randn(4, 5).to(dtype).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        kept.append(tensor)
        return len(kept) - 1

    with saved_tensors_hooks(pack, lambda index: kept[index]):
        output = sigmoid(input, saved="derivative")
    before = [tensor.detach().clone() for tensor in kept]
    assert len(before) == (3 if dtype == torch.float64 else 2)
    (gradient,) = torch.autograd.grad(output, input, torch.full_like(output, 3))
    assert (gradient != 0).all()
    for tensor, copy in zip(kept, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("hooked", ["own", "next"])
def test_a_hook_that_runs_the_node_leaves_it_usable(hooked: str) -> None:
    leaf = _float32_leaf(4)
    output = sigmoid(leaf, saved="derivative")
    following = output * 1
    found: list[Tensor] = []

    def hook(grad: Tensor) -> None:
        found.append(output.grad_fn(grad))  # type: ignore[misc]

    (output if hooked == "own" else following).register_hook(hook)
    following.sum().backward()
    assert leaf.grad is not None
    _assert_close_to_first(found[0], leaf)
    _assert_close_to_first(leaf.grad, leaf)


def _assert_close_to_first(gradient: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(gradient, _expected(leaf), rtol=4e-7, atol=0)


@every_saved
@pytest.mark.parametrize("below", [torch.inference_mode, torch._C._AutoDispatchBelowAutograd])
def test_nothing_is_recorded_where_torch_records_nothing(
    below: Callable[[], AbstractContextManager[object]], saved: str
) -> None:
    leaf = _float32_leaf(4)
    with below(), torch.enable_grad():
        expected = torch.sigmoid(leaf)
        results = [
            sigmoid(leaf, saved=saved),
            *sigmoid_with_derivative(leaf),
            torch.ops.fused_sigmoid.sigmoid(leaf),
        ]
    for result in results:
        assert result.requires_grad == expected.requires_grad
        assert result.is_inference() == expected.is_inference()


@every_saved
def test_every_backward_of_a_kept_graph_gives_the_same(saved: str) -> None:
    input = _float32_leaf(40, 5)
    output = sigmoid(input, saved=saved)
    grads = [torch.randn(40, 5) for _ in range(3)]
    found = [
        torch.autograd.grad(output, input, grad, retain_graph=keep)[0]
        for grad, keep in zip(grads, (True, True, False), strict=True)
    ]
    alone = [torch.autograd.grad(sigmoid(input, saved=saved), input, grad)[0] for grad in grads]
    assert all(map(torch.equal, found, alone))


@every_saved
@pytest.mark.parametrize(
    "grad",
    [torch.ones(()).expand(6, 4), torch.randn(4, 6).t(), torch.randn(6, 8)[:, ::2]],
    ids=["expanded", "transposed", "strided"],
)
def test_gradient_has_the_strides_of_torchs(grad: Tensor, saved: str) -> None:
    input = _float32_leaf(6, 4)
    (gradient,) = torch.autograd.grad(sigmoid(input, saved=saved), input, grad)
    (theirs,) = torch.autograd.grad(torch.sigmoid(input), input, grad)
    assert gradient.stride() == theirs.stride()
    torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=0)


def test_a_backward_that_was_broken_off_is_not_repeated_with_spent_memory() -> None:
    input = _float32_leaf(4)
    output = sigmoid(input, saved="derivative")

    def break_off(*_: object) -> None:
        raise ValueError("broken off")

    hook = input.register_hook(break_off)
    with pytest.raises(ValueError, match="broken off"):
        output.sum().backward()
    hook.remove()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    input = _leaf(3)
    value, derivative = sigmoid_with_derivative(input)
    assert value.requires_grad
    assert derivative.requires_grad
    (gradient,) = torch.autograd.grad(value.sum(), input, retain_graph=True)
    _assert_gradient(gradient, input)
    (gradient,) = torch.autograd.grad(derivative.sum(), input)
    second = oracle.rounded(oracle.second_derivative(oracle.exact(input)), input.dtype)
    torch.testing.assert_close(gradient, second, rtol=1e-14, atol=0)


@every_saved
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool, saved: str) -> None:
    input, module = _leaf(4, 5), FusedSigmoid(saved)
    output = checkpoint(lambda x: module(x * 2), input, use_reentrant=reentrant)
    output.sum().backward()
    assert input.grad is not None
    _assert_gradient(input.grad / 2, input.detach() * 2)


@pytest.mark.parametrize("function", ["pair", *SAVED, "in place"])
def test_compiled_autograd(function: str) -> None:
    def backward(loss: Tensor) -> None:
        loss.backward()

    input = _leaf(5)
    results = FUNCTIONS[function](input)
    result = results[0] if isinstance(results, tuple) else results
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(backward, backend="eager")(result.sum())
    _assert_gradient(input.grad, input)


# What is kept. Saved tensors are seen through the hooks of torch.autograd.graph.


def _packed(function: Callable[[], object]) -> list[Tensor]:
    """What the call keeps for a backward."""
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()
    del kept
    return packed


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def test_saved_input_keeps_the_input_alone() -> None:
    input = _leaf(4, 5)
    (kept,) = _packed(lambda: sigmoid(input, saved="input"))
    assert _same_memory(kept, input)


def test_saved_output_keeps_the_output_alone() -> None:
    input, outputs = _leaf(4, 5), []
    (kept,) = _packed(lambda: outputs.append(sigmoid(input, saved="output")))
    assert _same_memory(kept, outputs[0])


def _assert_derivative_and_output(kept: list[Tensor], input: Tensor, output: Tensor) -> None:
    # The output only for the second order: whoever called has it anyway.
    derivative, kept_output = kept
    assert _same_memory(kept_output, output)
    torch.testing.assert_close(derivative, _expected(input), rtol=4e-7, atol=0)


def test_saved_derivative_keeps_it_and_the_output() -> None:
    input, outputs = _float32_leaf(4, 5), []
    kept = _packed(lambda: outputs.append(sigmoid(input, saved="derivative")))
    _assert_derivative_and_output(kept, input, outputs[0])


def test_saved_derivative_keeps_it_and_the_input_in_float64() -> None:
    # From the rounded output the second derivative would lose its accuracy near 0.
    input, outputs = _leaf(4, 5), []
    kept = _packed(lambda: outputs.append(sigmoid(input, saved="derivative")))
    derivative, kept_input, kept_output = kept
    assert _same_memory(kept_input, input)
    assert _same_memory(kept_output, outputs[0])
    torch.testing.assert_close(derivative, _expected(input), rtol=1e-14, atol=0)


def test_auto_keeps_the_derivative_only_where_it_stays_in_the_cache() -> None:
    # Far from where the measurements put the limits, between them and beyond.
    for count, keeps_input in ((1, True), (2**18, False), (2**22, True)):
        input, outputs = torch.zeros(count, requires_grad=True), []
        kept = _packed(lambda input=input, outputs=outputs: outputs.append(sigmoid(input)))
        assert len(kept) == 2
        assert _same_memory(kept[0], input) == keeps_input
        assert _same_memory(kept[1], outputs[0])


def test_in_place_keeps_the_derivative_and_the_output() -> None:
    input = _float32_leaf(4, 5)
    overwritten = input * 1
    kept = _packed(lambda: sigmoid_(overwritten))
    _assert_derivative_and_output(kept, input, overwritten)


def test_in_place_keeps_a_copy_of_the_input_in_float64() -> None:
    input = _leaf(4, 5)
    overwritten = input * 1
    copy, output = _packed(lambda: sigmoid_(overwritten))
    assert torch.equal(copy, input)
    assert _same_memory(output, overwritten)


def test_pair_keeps_the_input_and_its_outputs() -> None:
    input, outputs = _leaf(4, 5), []
    kept = _packed(lambda: outputs.extend(sigmoid_with_derivative(input)))
    assert len(kept) == 3
    assert all(map(_same_memory, kept, (outputs[1], input, outputs[0])))


@every_function
def test_saved_tensors_can_be_kept_elsewhere(function: str) -> None:
    input = _leaf(4, 5)

    def gradient() -> Tensor:
        results = FUNCTIONS[function](input)
        result = results[0] if isinstance(results, tuple) else results
        return torch.autograd.grad(result.sum(), input)[0]

    # Packed as a copy, so that nothing is read but what was unpacked.
    with saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor.clone()):
        _assert_gradient(gradient(), input)
    with save_on_cpu():
        _assert_gradient(gradient(), input)


CALLS: dict[str, Callable[[Tensor], object]] = {
    **{saved: FusedSigmoid(saved) for saved in SAVED},
    "in place": sigmoid_,
    "pair": sigmoid_with_derivative,
    "out": lambda input: sigmoid(input, out=torch.empty_like(input)),
    "operator": torch.ops.fused_sigmoid.sigmoid,
}
every_call = pytest.mark.parametrize("call", CALLS)


def _results(call: str, input: Tensor) -> tuple[Tensor, ...]:
    results = CALLS[call](input)
    return results if isinstance(results, tuple) else (results,)  # type: ignore[return-value]


@every_call
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_without_grad_mode(mode: type, call: str) -> None:
    leaf = _leaf(4, 5)
    with mode():
        # In place would give back the leaf, which does need a gradient.
        input = leaf * 1 if call == "in place" else leaf
        packed = _packed(lambda: _results(call, input))
        results = _results(call, input)
    assert packed == []
    for result in results:
        assert result.grad_fn is None
        assert not result.requires_grad
        assert result.is_inference() == (mode is torch.inference_mode)


@every_call
def test_nothing_is_kept_for_an_input_without_gradient(call: str) -> None:
    input = _leaf(4, 5).detach()
    assert _packed(lambda: _results(call, input.clone())) == []
    for result in _results(call, input):
        assert result.grad_fn is None
        assert not result.requires_grad


def test_out_records_no_gradient() -> None:
    input = _leaf(3)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        sigmoid(input, out=torch.empty(3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        sigmoid(input.detach(), out=_leaf(3))
    with torch.no_grad():
        assert not sigmoid(input, out=torch.empty(3, dtype=torch.float64)).requires_grad


# Writing over what is kept.


@pytest.mark.parametrize("saved", ["input", "output"])
def test_a_changed_tensor_that_was_saved_raises(saved: str) -> None:
    input = _float32_leaf(4) * 1
    output = sigmoid(input, saved=saved)
    with torch.no_grad():
        (input if saved == "input" else output).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("saved", "make", "rtol"), [("derivative", _float32_leaf, 4e-7), ("output", _leaf, 1e-13)]
)
def test_the_input_may_change_unless_it_was_saved(
    saved: str, make: Callable[..., Tensor], rtol: float
) -> None:
    leaf = make(4)
    input = leaf * 1
    output = sigmoid(input, saved=saved)
    with torch.no_grad():
        input.zero_()
    output.sum().backward()
    torch.testing.assert_close(leaf.grad, _expected(leaf), rtol=rtol, atol=0)


@pytest.mark.parametrize("saved", ["auto", "derivative", "input"])
def test_the_output_may_change_if_something_exact_was_saved(saved: str) -> None:
    leaf = _leaf(4)
    output = sigmoid(leaf, saved=saved)
    output.mul_(2)
    output.sum().backward()
    _assert_gradient(leaf.grad / 2 if leaf.grad is not None else None, leaf)


@pytest.mark.parametrize("write", [sigmoid_, lambda tensor: sigmoid(tensor.detach(), out=tensor)])
def test_writing_counts_as_a_change(write: Callable[[Tensor], Tensor]) -> None:
    # Others must notice that what they saved is overwritten.
    leaf = _leaf(4)
    input = leaf * 1
    square = input * input
    before = input._version
    with torch.no_grad():
        write(input)
    assert input._version == before + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_in_place_with_gradient_counts_as_a_change() -> None:
    input = _leaf(4) * 1
    square = input * input
    sigmoid_(input)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_in_place_on_a_leaf_raises_and_leaves_it_alone() -> None:
    leaf = _leaf(4)
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        sigmoid_(leaf)
    with pytest.raises(RuntimeError, match="view of a leaf Variable"):
        sigmoid_(leaf[:2])
    assert torch.equal(leaf, before)


def test_in_place_on_an_inference_tensor_raises() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(3)
    with pytest.raises(RuntimeError, match="inference tensor"):
        sigmoid_(tensor)
    assert torch.equal(tensor, torch.zeros(3))


def test_training_step_agrees_with_nn_sigmoid() -> None:
    # Where nothing saturates both gradients are right.
    layers = nn.Linear(6, 3, dtype=torch.float64)
    input = torch.randn(8, 6, dtype=torch.float64)
    gradients = []
    for activation in (nn.Sigmoid(), *map(FusedSigmoid, SAVED)):
        layers.zero_grad()
        nn.Sequential(layers, activation)(input).pow(2).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layers.parameters()])
    for ours in gradients[1:]:
        torch.testing.assert_close(ours, gradients[0], rtol=1e-12, atol=1e-15)
