"""Whatever tensor hypothesis thinks of, a call is torch.sigmoid's in all but the last bits of the
numbers, and those lie within the bounds of docs/numerics.md.

The suite runs a fixed seed and few examples (conftest.py); `make fuzz` runs many, at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_sigmoid import (
    FusedSigmoid,
    binary_cross_entropy_with_logits,
    sigmoid,
    sigmoid_,
    sigmoid_with_derivative,
)
from fused_sigmoid._extension import extension

# In ulp; what rounds once more has half an ulp at most, and oracle's own error.
NEAREST = 0.5 + 1e-6
VALUE = {torch.float64: 2.5, torch.float32: 2.2, torch.float16: NEAREST, torch.bfloat16: NEAREST}
DERIVATIVE = VALUE | {torch.float64: 3.5, torch.float32: 2.9}
SAVED = ("auto", "derivative", "input", "output")

dtypes = st.sampled_from(oracle.DTYPES)
seeds = st.integers(0, 2**31)


def _numbers(seed: int, count: int, dtype: torch.dtype) -> Tensor:
    """Any bits, NaN and infinities among them, or numbers where the sigmoid bends."""
    generator = torch.Generator().manual_seed(seed)
    if seed % 3 == 0:
        info = torch.iinfo(oracle.BITS[dtype])
        some = torch.randint(info.min, info.max, (count,), generator=generator)
        return some.to(oracle.BITS[dtype]).view(dtype)
    reach = 16 if seed % 3 == 1 else 200
    return ((torch.rand(count, generator=generator, dtype=torch.float64) - 0.5) * reach).to(dtype)


@st.composite
def views(draw: st.DrawFn, dtype: torch.dtype, expands: bool = True) -> Tensor:
    """A tensor of up to four dimensions, of any strides that views of torch can give it."""
    shape = draw(st.lists(st.integers(0, 5) | st.integers(1, 40), max_size=4))
    while torch.Size(shape).numel() > 4000:
        shape.pop()
    tensor = _memory(draw, shape, dtype)
    for _ in range(draw(st.integers(0, 3))):
        kinds = ["permute", "slice", "unsqueeze", "narrow"] + ["expand"] * expands
        tensor = _view(draw, tensor, draw(st.sampled_from(kinds)))
    return tensor


def _memory(draw: st.DrawFn, shape: list[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    numbers = _numbers(draw(seeds), count, dtype)
    offset = draw(st.sampled_from([0, 0, 1, 3]))
    if offset == 0 or count == 0:
        return numbers.reshape(shape)
    # Elements that are not aligned, as in a file's header and data in one buffer.
    buffer = bytearray(offset) + bytearray(numbers.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(buffer, dtype=dtype, offset=offset, count=count).reshape(shape)


def _view(draw: st.DrawFn, tensor: Tensor, kind: str) -> Tensor:
    if kind == "unsqueeze":
        return tensor.unsqueeze(draw(st.integers(0, tensor.dim())))
    if tensor.dim() == 0:
        return tensor
    if kind == "permute":
        return tensor.permute(draw(st.permutations(range(tensor.dim()))))
    axis = draw(st.integers(0, tensor.dim() - 1))
    size = tensor.shape[axis]
    if kind == "slice":
        start, step = draw(st.integers(0, size)), draw(st.integers(1, 4))
        return tensor[(slice(None),) * axis + (slice(start, None, step),)]
    if kind == "narrow":
        start = draw(st.integers(0, size))
        return tensor.narrow(axis, start, draw(st.integers(0, size - start)))
    if tensor.numel() > 1000 or size != 1:
        return tensor
    sizes = list(tensor.shape)
    sizes[axis] = draw(st.integers(0, 4))
    return tensor.expand(sizes)


any_view = dtypes.flatmap(views)


def _check(result: Tensor, like: Tensor, exact: Any, bound: float) -> None:
    assert oracle.description(result) == oracle.description(like)
    error = oracle.error_in_ulp(result, exact)
    assert np.all(error <= bound), float(np.nanmax(error, initial=0))


@given(any_view, st.sampled_from(SAVED), st.booleans(), st.sampled_from(["function", "module"]))
def test_value(input: Tensor, saved: str, requires_grad: bool, face: str) -> None:
    input.requires_grad_(requires_grad)
    before = input.detach().clone()
    call = FusedSigmoid(saved) if face == "module" else lambda x: sigmoid(x, saved=saved)
    result = call(input)
    _check(result, torch.sigmoid(input), oracle.value(oracle.exact(input)), VALUE[input.dtype])
    assert oracle.same_bits(input, before)


@given(any_view, st.booleans())
def test_pair(input: Tensor, requires_grad: bool) -> None:
    input.requires_grad_(requires_grad)
    x, like = oracle.exact(input), torch.sigmoid(input)
    value, derivative = sigmoid_with_derivative(input)
    _check(value, like, oracle.value(x), VALUE[input.dtype])
    _check(derivative, like, oracle.derivative(x), DERIVATIVE[input.dtype])


@given(dtypes.flatmap(lambda dtype: views(dtype, expands=False)))
def test_in_place(input: Tensor) -> None:
    expected = oracle.value(oracle.exact(input))
    torchs = input.clone()
    layout = input.stride(), input.storage_offset(), input.data_ptr()
    version = input._version
    result = sigmoid_(input)
    assert result is input
    assert (input.stride(), input.storage_offset(), input.data_ptr()) == layout
    assert input._version == version + 1
    assert input.dtype == torch.sigmoid_(torchs).dtype
    assert np.all(oracle.error_in_ulp(input, expected) <= VALUE[input.dtype])


@st.composite
def inputs_and_outs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """An ``out`` that fits, has another layout or dtype, has to grow, or is the input."""
    input = draw(any_view)
    kind = draw(st.sampled_from(["same", "layout", "dtype", "empty", "input", "gaps"]))
    shape = input.shape
    if kind == "input":
        dense = input.clone()
        return dense, dense
    if kind == "empty":
        return input, torch.empty(0, dtype=input.dtype)
    if kind == "layout":
        backwards = tuple(range(input.dim()))[::-1]
        return input, torch.zeros(shape[::-1], dtype=input.dtype).permute(backwards)
    if kind == "gaps":
        return input, torch.zeros((*shape, 2), dtype=input.dtype)[..., 1]
    return input, torch.zeros(shape, dtype=draw(dtypes) if kind == "dtype" else input.dtype)


@given(inputs_and_outs())
def test_out(pair: tuple[Tensor, Tensor]) -> None:
    input, out = pair
    expected = oracle.value(oracle.exact(input))
    torchs = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype)
    torch.sigmoid(torchs.copy_(input) if out is input else input, out=torchs)
    converted = sigmoid(input).to(out.dtype)
    # A conversion rounds once more.
    bound = VALUE[input.dtype] if out.dtype == input.dtype else None
    assert sigmoid(input, out=out) is out
    assert (out.shape, out.stride()) == (torchs.shape, torchs.stride())
    if bound is None:
        assert oracle.same_bits(out, converted)
    else:
        assert np.all(oracle.error_in_ulp(out, expected) <= bound)


@st.composite
def inputs_and_gradients(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A gradient of the input's shape, with strides of its own."""
    input = draw(any_view)
    order = draw(st.permutations(range(input.dim())))
    back = [order.index(axis) for axis in range(input.dim())]
    shape = [input.shape[axis] for axis in order]
    generator = torch.Generator().manual_seed(draw(seeds))
    # Moderate, so that no product overflows: what happens then is the kernels' own sweep's part.
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(input.dtype)
    kind = draw(st.sampled_from(["dense", "gaps", "expanded"]))
    if kind == "gaps":
        grad = torch.stack([grad, grad.new_full((), 3).expand(shape)], -1)[..., 0]
    if kind == "expanded":
        grad = grad.new_tensor(draw(st.sampled_from([1.0, -2.5]))).expand(shape)
    return input, grad.permute(back)


@given(inputs_and_gradients(), st.sampled_from(SAVED), st.booleans())
def test_gradient(pair: tuple[Tensor, Tensor], saved: str, keep: bool) -> None:
    input, grad = pair
    leaf = input.detach().requires_grad_()
    value = sigmoid(leaf, saved=saved)
    (got,) = torch.autograd.grad(value, leaf, grad, retain_graph=keep)
    like = input.detach().requires_grad_()
    (torchs,) = torch.autograd.grad(torch.sigmoid(like), like, grad)
    assert (got.dtype, got.shape) == (torchs.dtype, torchs.shape)
    if saved == "output":
        _check_torchs_formula(got, grad, value.detach())
    else:
        _check_product(got, grad, input)
    if keep:
        again = torch.autograd.grad(value, leaf, grad)[0]
        assert oracle.same_bits(got, again)


def _check_product(got: Tensor, grad: Tensor, input: Tensor) -> None:
    """grad · σ', with the error of σ' in it and one rounding more."""
    dtype = got.dtype
    derivative = oracle.derivative(oracle.exact(input))
    factor = oracle.exact(grad)
    product = factor * derivative
    bound = np.abs(factor) * DERIVATIVE[dtype] * oracle.ulp(derivative, dtype)
    bound = bound + NEAREST * oracle.ulp(product, dtype)
    result = oracle.exact(got)
    same_nan = np.isnan(result) & np.isnan(product)
    assert np.all(same_nan | (np.abs(result - product) <= bound))


def _check_torchs_formula(got: Tensor, grad: Tensor, value: Tensor) -> None:
    expected = torch.ops.aten.sigmoid_backward(grad, value)
    if got.dtype == torch.float16:  # torch rounds three times there
        torch.testing.assert_close(got, expected, rtol=3e-3, atol=1e-6, equal_nan=True)
    else:
        assert oracle.same_bits(got, expected)


@st.composite
def broadcastable(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of one dtype whose shapes broadcast together."""
    dtype = draw(dtypes)
    shape = draw(st.lists(st.integers(0, 7), max_size=4))

    def one() -> Tensor:
        own = [draw(st.sampled_from([size, size, 1])) for size in shape]
        own = own[draw(st.integers(0, len(own))) :]
        return _memory(draw, own, dtype)

    return one(), one()


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "sigmoid_backward": lambda grad, x: grad * oracle.derivative(x),
    "sigmoid_backward_from_derivative": lambda grad, derivative: grad * derivative,
}


@given(broadcastable(), st.sampled_from(sorted(OPERATORS)))
def test_operators_broadcast(pair: tuple[Tensor, Tensor], name: str) -> None:
    grad, other = pair
    got = getattr(torch.ops.fused_sigmoid, name)(grad, other)
    like = grad * other
    assert oracle.description(got) == oracle.description(like)
    # The same numbers as from operands that were brought to one shape before.
    wide = torch.broadcast_tensors(grad, other)
    dense = getattr(torch.ops.fused_sigmoid, name)(*(tensor.contiguous() for tensor in wide))
    assert oracle.same_bits(got, dense)
    with np.errstate(all="ignore"):
        exact = OPERATORS[name](*(oracle.exact(tensor) for tensor in wide))
    # Where nothing overflows and no product of a rounded derivative cancels that rounding.
    usual = np.isfinite(exact) & (np.abs(exact) > 1e-3) & (np.abs(exact) < 1e3)
    usual &= np.abs(oracle.exact(wide[0])) < 1e3
    relative = np.abs(oracle.exact(got) - exact)[usual] / np.abs(exact[usual])
    assert np.all(relative <= 4 * torch.finfo(got.dtype).eps)


LOSS = {torch.float64: 3.5, torch.float32: 2.5, torch.float16: NEAREST, torch.bfloat16: NEAREST}


@st.composite
def logits_and_targets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Targets of the logits' shape, in memory of their own, with strides of their own."""
    input = draw(any_view)
    order = draw(st.permutations(range(input.dim())))
    shape = [input.shape[axis] for axis in order]
    generator = torch.Generator().manual_seed(draw(seeds))
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    target = (target < draw(st.sampled_from([0.0, 0.5, 1.0]))).to(input.dtype)
    if draw(st.booleans()):
        target = torch.stack([target, torch.full_like(target, 3)], -1)[..., 0]
    return input, target.permute([order.index(axis) for axis in range(input.dim())])


@given(logits_and_targets(), st.sampled_from(extension.instruction_sets()))
def test_loss(pair: tuple[Tensor, Tensor], name: str) -> None:
    input, target = pair
    exact, derivative = oracle.cross_entropy(oracle.exact(input), oracle.exact(target))
    leaf = input.detach().requires_grad_()
    before = extension.instruction_set()
    extension.select_instruction_set(name)
    try:
        loss = binary_cross_entropy_with_logits(leaf, target, reduction="none")
        total = binary_cross_entropy_with_logits(input, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    finally:
        extension.select_instruction_set(before)
    like = torch.nn.functional.binary_cross_entropy_with_logits(input, target, reduction="none")
    # A float16 may overflow where its exact loss does.
    overflow = np.abs(exact) > torch.finfo(input.dtype).max
    error = oracle.error_in_ulp(loss.detach(), exact)
    assert np.all((error <= LOSS[input.dtype]) | overflow)
    assert oracle.description(loss.detach()) == oracle.description(like)
    assert np.all(oracle.error_in_ulp(gradient, derivative) <= LOSS[input.dtype])
    if exact.sum() < torch.finfo(input.dtype).max:
        # Up to the rounding of the sum, and the errors of the losses in it.
        truth = exact.sum()
        losses = LOSS[torch.float32] * (2.0**-23 * truth + oracle.ulp(exact, torch.float32).sum())
        assert abs(oracle.exact(total) - truth) <= losses + oracle.ulp(truth, input.dtype)


@given(any_view, st.sampled_from(extension.instruction_sets()))
def test_instruction_sets_agree(input: Tensor, name: str) -> None:
    expected = sigmoid_with_derivative(input)
    before = extension.instruction_set()
    extension.select_instruction_set(name)
    try:
        got = sigmoid_with_derivative(input)
    finally:
        extension.select_instruction_set(before)
    assert all(oracle.same_bits(a, b) for a, b in zip(got, expected, strict=True))


@given(
    st.sampled_from([torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]),
    st.lists(st.integers(0, 6), max_size=3),
    seeds,
)
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_integers(default: torch.dtype, dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 60
    input = (
        torch.randint(0, high, shape, generator=generator)
        .to(dtype)
        .permute(tuple(range(len(shape)))[::-1])
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        expected = oracle.value(np.asarray(input.double().numpy(), np.longdouble))
        _check(sigmoid(input), torch.sigmoid(input), expected, VALUE[default])
    finally:
        torch.set_default_dtype(before)
