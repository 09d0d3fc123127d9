"""A layout changes nothing: results keep torch's strides, and an element gets the same bits
wherever it stands, by whichever thread and instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from torch import Tensor

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative
from fused_sigmoid._extension import extension

SAVED = ("auto", "derivative", "input", "output")
every_dtype = pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
every_saved = pytest.mark.parametrize("saved", SAVED)

LAYOUTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "contiguous": lambda dtype: _data(dtype, 4, 6, 5),
    "transposed": lambda dtype: _data(dtype, 4, 6, 5).transpose(0, 2),
    "channels_last": lambda dtype: _data(dtype, 2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda dtype: _data(dtype, 2, 3, 2, 3, 2).to(
        memory_format=torch.channels_last_3d
    ),
    "one channel": lambda dtype: _data(dtype, 2, 1, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda dtype: _data(dtype, 2, 3, 4, 5).permute(2, 0, 3, 1),
    "slice": lambda dtype: _data(dtype, 6, 9, 5)[1::2, ::3],
    "slice of permuted": lambda dtype: _data(dtype, 6, 9, 5).permute(1, 2, 0)[::2, 1:],
    "expanded": lambda dtype: _data(dtype, 4, 1, 5).expand(4, 3, 5),
    "expanded transposed": lambda dtype: _data(dtype, 5, 4).t().unsqueeze(1).expand(4, 3, 5),
    "windows": lambda dtype: _data(dtype, 20).unfold(0, 5, 2),
    "column": lambda dtype: _data(dtype, 1, 9).t(),
    "size 1, any stride": lambda dtype: _data(dtype, 50).as_strided((4, 1, 3), (3, 17, 1)),
    "zero dimensions": lambda dtype: _data(dtype, 1)[0],
    "empty": lambda dtype: _data(dtype, 0).reshape(3, 0, 2).transpose(0, 2),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def _data(dtype: torch.dtype, *shape: int) -> Tensor:
    return oracle.both_tails(torch.Size(shape).numel(), dtype).reshape(shape)


def _gradient(function: Callable[[Tensor], Tensor], input: Tensor, grad: Tensor) -> Tensor:
    leaf = input.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, grad)[0]


@every_dtype
@every_layout
def test_strides_are_those_of_torch(layout: str, dtype: torch.dtype) -> None:
    input = LAYOUTS[layout](dtype)
    expected = torch.sigmoid(input)
    for result in (sigmoid(input), *sigmoid_with_derivative(input), FusedSigmoid()(input)):
        assert result.shape == expected.shape
        assert result.stride() == expected.stride()
        assert result.storage_offset() == 0


@every_saved
@every_layout
def test_strides_are_those_of_torch_with_gradient(layout: str, saved: str) -> None:
    input = LAYOUTS[layout](torch.float32).requires_grad_()
    result, expected = sigmoid(input, saved=saved), torch.sigmoid(input)
    assert result.stride() == expected.stride()
    (gradient,) = torch.autograd.grad(result.sum(), input)
    assert gradient.shape == input.shape
    ones = torch.ones_like(result)
    (from_dense,) = torch.autograd.grad(sigmoid(input, saved=saved), input, ones)
    (torch_gradient,) = torch.autograd.grad(expected, input, ones)
    assert from_dense.stride() == torch_gradient.stride()


def test_memory_format_is_kept_through_backward() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        input = _data(torch.float32, 2, 3, 4, 5).to(memory_format=memory_format)
        for saved in SAVED:
            leaf = input.clone().requires_grad_()
            result = sigmoid(leaf, saved=saved)
            assert result.is_contiguous(memory_format=memory_format)
            result.backward(torch.ones_like(result))
            assert leaf.grad is not None
            assert leaf.grad.is_contiguous(memory_format=memory_format)


@every_saved
@every_dtype
@every_layout
def test_gradient_does_not_depend_on_layout(layout: str, dtype: torch.dtype, saved: str) -> None:
    input = LAYOUTS[layout](dtype)

    def function(x: Tensor) -> Tensor:
        return sigmoid(x, saved=saved)

    grad = oracle.both_tails(input.numel(), dtype).reshape(input.shape)
    expected = _gradient(function, input.contiguous(), grad)
    every_other = torch.stack([grad, torch.zeros_like(grad)], -1)[..., 0]
    reversed_axes = tuple(range(input.dim()))[::-1]
    other_order = grad.permute(reversed_axes).contiguous().permute(reversed_axes)
    for strided in (grad, every_other, other_order):
        assert oracle.same_bits(_gradient(function, input, strided), expected)


@every_saved
@every_layout
def test_expanded_gradient(layout: str, saved: str) -> None:
    # sum().backward() hands on one number with strides 0.
    input = LAYOUTS[layout](torch.float64)
    leaf = input.detach().requires_grad_()
    sigmoid(leaf, saved=saved).sum().backward()
    assert leaf.grad is not None
    expected = _gradient(lambda x: sigmoid(x, saved=saved), input, torch.ones(input.shape).double())
    assert torch.equal(leaf.grad, expected)
    rows = torch.rand(input.shape[-1:], dtype=torch.float64).expand(input.shape)
    got = _gradient(lambda x: sigmoid(x, saved=saved), input, rows)
    expected = _gradient(lambda x: sigmoid(x, saved=saved), input.contiguous(), rows.contiguous())
    assert torch.equal(got, expected)


@pytest.mark.parametrize("count", [511, 512, 513, 1025, 70_001])
@pytest.mark.usefixtures("instruction_set")
@every_dtype
def test_expanded_operands_longer_than_a_buffer(dtype: torch.dtype, count: int) -> None:
    # The strided loop gathers 512 elements at a time, an expanded operand once for all of them.
    input = _data(dtype, 3, count)[:, ::2]
    backward = torch.ops.fused_sigmoid.sigmoid_backward
    expected = backward(torch.full(input.shape, 3.0, dtype=dtype), input.contiguous())
    one = torch.tensor(3.0, dtype=dtype).expand(input.shape)
    assert oracle.same_bits(backward(one, input), expected)
    grad = _data(dtype, 3, count)[:, ::2]
    one = torch.tensor(0.75, dtype=dtype).expand(input.shape)
    expected = backward(grad.contiguous(), one.contiguous())
    assert oracle.same_bits(backward(grad, one), expected)


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_in_place_on_a_slice_leaves_the_rest(dtype: torch.dtype) -> None:
    for index in (
        (slice(None), slice(2, 7)),
        (slice(1, None, 2), slice(None, None, 3)),
        (slice(None), 4),
        (3,),
        (slice(2, 2),),
    ):
        whole = _data(dtype, 6, 10)
        expected = whole.clone()
        expected[index] = sigmoid(whole[index])
        sigmoid_(whole[index])
        assert oracle.same_bits(whole, expected)
        whole = _data(dtype, 6, 10)
        sigmoid(whole[index].clone(), out=whole[index])
        assert oracle.same_bits(whole, expected)


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_neighbours_of_the_output_are_not_written(dtype: torch.dtype) -> None:
    # A vector is wider than the last elements.
    input = _data(dtype, 70)
    for count in range(71):
        whole = torch.full((100,), 7.0, dtype=dtype)
        sigmoid(input[:count], out=whole[15 : 15 + count])
        assert (whole[:15] == 7).all()
        assert (whole[15 + count :] == 7).all()


def test_in_place_on_a_slice_has_the_gradient_of_the_whole() -> None:
    input = _data(torch.float64, 4, 6).requires_grad_()
    whole = input * 1
    sigmoid_(whole[1:3, ::2])
    weights = torch.rand(4, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(whole, input, weights)
    expected = weights.clone()
    derivative = torch.from_numpy(oracle.derivative(oracle.exact(input)).astype("float64"))
    expected[1:3, ::2] *= derivative[1:3, ::2]
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


def test_overlapping_memory_is_refused() -> None:
    expanded = torch.zeros(1, 4).expand(3, 4)
    buffer = torch.zeros(10)
    with pytest.raises(RuntimeError, match="single memory location"):
        sigmoid_(expanded)
    with pytest.raises(RuntimeError, match="single memory location"):
        sigmoid(torch.zeros(3, 4), out=expanded)
    with pytest.raises(RuntimeError, match="single memory location"):
        sigmoid(buffer[:5], out=buffer[2:7])
    assert torch.equal(buffer, torch.zeros(10))


# The same bits everywhere.

Results = tuple[Tensor, ...]


def _everything(input: Tensor, grad: Tensor) -> Results:
    """Each kernel's result."""
    ops = torch.ops.fused_sigmoid
    return (
        ops.sigmoid(input),
        *ops.sigmoid_with_derivative(input),
        ops.sigmoid_backward(grad, input),
        ops.sigmoid_backward_from_output(grad, input),
        ops.sigmoid_backward_from_derivative(grad, input),
        ops.sigmoid_backward_before_bce(grad, input, input.dtype),
        ops.sigmoid_backward_before_bce(grad, input, torch.float32),
    )


def _assert_same(results: Results, expected: Results) -> None:
    for result, reference in zip(results, expected, strict=True):
        assert oracle.same_bits(result, reference)


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_bits_do_not_depend_on_the_place(dtype: torch.dtype) -> None:
    input, grad = _data(dtype, 200), _data(dtype, 201)[1:]
    expected = _everything(input, grad)
    for offset in range(65):
        for stop in (200, 200 - offset // 2):
            results = _everything(input[offset:stop], grad[offset:stop])
            _assert_same(results, tuple(e[offset:stop] for e in expected))


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_bits_do_not_depend_on_the_neighbours(dtype: torch.dtype) -> None:
    input, grad = _data(dtype, 70), _data(dtype, 71)[1:]
    expected = _everything(input, grad)
    for i in range(70):
        _assert_same(_everything(input[i], grad[i]), tuple(e[i] for e in expected))


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_bits_do_not_depend_on_strides(dtype: torch.dtype) -> None:
    input, grad = _data(dtype, 5 * 1500), _data(dtype, 5 * 1501)[5:]
    for stride in range(2, 6):
        expected = _everything(input[::stride].contiguous(), grad[::stride].contiguous())
        _assert_same(_everything(input[::stride], grad[::stride]), expected)
        _assert_same(_everything(input[::stride], grad[::stride].contiguous()), expected)
        _assert_same(_everything(input[::stride].contiguous(), grad[::stride]), expected)


@every_dtype
@pytest.mark.usefixtures("instruction_set", "restored_threads")
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    input, grad = _data(dtype, 150_001), _data(dtype, 150_002)[1:]
    torch.set_num_threads(1)
    expected = _everything(input, grad)
    strided = _everything(input[::2], grad[::2])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        _assert_same(_everything(input, grad), expected)
        _assert_same(_everything(input[::2], grad[::2]), strided)


# About what a thread is given as its share (32 Ki elements) and takes of it at a time (4 Ki).
@pytest.mark.parametrize("size", [32_768, 32_769, 36_863, 65_536, 65_537, 98_305, 151_553])
@pytest.mark.usefixtures("restored_threads")
def test_every_element_is_computed_by_some_thread(size: int) -> None:
    input, grad = _data(torch.float32, size), _data(torch.float32, size + 1)[1:]
    matrix = _data(torch.float32, size, 3).t()
    torch.set_num_threads(1)
    expected, of_matrix = _everything(input, grad), _everything(matrix, matrix.clone())
    for threads in (2, 3, 5, 8):
        torch.set_num_threads(threads)
        for tensor, gradient, results in ((input, grad, expected), (matrix, matrix, of_matrix)):
            # What an allocator may give out again holds no right numbers.
            for _ in range(8):
                torch.full_like(tensor, math.nan)
            value = sigmoid(tensor, out=torch.full_like(tensor, math.nan))
            assert oracle.same_bits(value, results[0])
            pair = tuple(torch.full_like(tensor, math.nan) for _ in range(2))
            torch.ops.fused_sigmoid.sigmoid_with_derivative_out(tensor, *pair)
            assert oracle.same_bits(pair[0], results[1])
            assert oracle.same_bits(pair[1], results[2])
            _assert_same(_everything(tensor, gradient.clone()), results)


@pytest.fixture
def _restored_instruction_set() -> Iterator[None]:
    before = extension.instruction_set()
    yield
    extension.select_instruction_set(before)


def _by_instruction_set(input: Tensor, grad: Tensor) -> dict[str, Results]:
    results = {}
    for name in extension.instruction_sets():
        extension.select_instruction_set(name)
        results[name] = _everything(input, grad)
    return results


@every_dtype
@pytest.mark.usefixtures("_restored_instruction_set")
def test_bits_do_not_depend_on_the_instruction_set(dtype: torch.dtype) -> None:
    if dtype in oracle.HALVES:
        input = oracle.every_half(dtype)
    elif dtype == torch.float32:
        input = oracle.float32_patterns(0, 2**32, 3067)
    else:
        powers = torch.exp2(torch.linspace(-1074, 11, 200_001, dtype=torch.float64))
        input = torch.cat([_data(dtype, 1_000_000), powers, -powers])
    # Any order of the inputs will do, and the gradients reach from subnormal to overflow.
    grad = input.flip(0).contiguous()
    expected, *others = _by_instruction_set(input, grad).values()
    for results in others:
        _assert_same(results, expected)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("size", [64, 256])
def test_out_that_is_the_transposed_view_of_the_input(size: int) -> None:
    """torch goes through such memory row by row, and so do the kernels."""
    torch.set_num_threads(1)
    memory = torch.randn(size, size + 3)
    results = []
    for call in (sigmoid, torch.sigmoid):
        x = memory.clone()[:, :size]
        call(x, out=x.t())
        results.append(x)
    torch.testing.assert_close(*results)
