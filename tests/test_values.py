"""The value and the derivative are right: every dtype, layout, size and CPU instruction set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import oracle
import pytest
import torch
from torch import Tensor

import fused_sigmoid
from fused_sigmoid import sigmoid, sigmoid_, sigmoid_with_derivative

pytestmark = pytest.mark.usefixtures("instruction_set")

every_dtype = pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
every_half = pytest.mark.parametrize("dtype", oracle.HALVES, ids=str)


class Bound(NamedTuple):
    """In ulp."""

    value: float
    derivative: float


# The promised ones. Halves are correctly rounded.
BOUNDS = {
    torch.float64: Bound(2.5, 3.5),
    torch.float32: Bound(2.2, 2.9),
    torch.float16: Bound(0.5, 0.5),
    torch.bfloat16: Bound(0.5, 0.5),
}


# Layouts. Each makes about `count` elements from `make`, which gives a contiguous tensor of a
# shape.

Make = Callable[..., Tensor]


def _transposed(make: Make, count: int) -> Tensor:
    rows = math.isqrt(count)
    return make(rows, math.ceil(count / max(rows, 1))).t()


def _channels_last(make: Make, count: int) -> Tensor:
    image = make(2, math.ceil(count / 12), 2, 3)
    return image.permute(0, 3, 1, 2)


LAYOUTS: dict[str, Callable[[Make, int], Tensor]] = {
    "contiguous": lambda make, count: make(count),
    "transposed": _transposed,
    "channels_last": _channels_last,
    "every second": lambda make, count: make(2 * count)[::2],
    "every third from the second": lambda make, count: make(3 * count + 1)[1::3],
    "unaligned": lambda make, count: make(count + 3)[3:],
    "before the end": lambda make, count: make(count + 5)[:-5],
    "expanded rows": lambda make, count: make(count).expand(3, count),
    "expanded columns": lambda make, count: make(count, 1).expand(count, 3),
    "rows with gaps": lambda make, count: make(math.ceil(count / 5), 8)[:, 1:6],
    "columns with gaps": lambda make, count: make(8, math.ceil(count / 5)).t()[:, 1:6],
    "planes reversed": lambda make, count: make(math.ceil(count / 6), 3, 2).permute(2, 1, 0),
    "planes with gaps": lambda make, count: make(4, math.ceil(count / 4), 4)[::2, :, ::2],
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)

# None and few elements; up to and past the widths of one vector (2 to 16 elements) and four; a
# buffer of 512 strided elements and two; past the 32,768 that one thread takes.
SIZES = (0, 1, 2, *range(7, 10), *range(15, 18), *range(31, 34), *range(63, 66))
SIZES += (511, 513, 1000, 40_000, 100_003)


class Truth:
    """What a result has to be: within a bound of the reference, and from then on the same bits, by
    whichever instruction set and into whatever memory."""

    def __init__(self, reference: oracle.LongDouble, bound: float) -> None:
        self.reference, self.bound = reference, bound
        self.accepted: Tensor | None = None

    def judge(self, result: Tensor) -> None:
        if self.accepted is None:
            _assert_within(result, self.reference, self.bound)
            self.accepted = result.clone()
        else:
            assert oracle.same_bits(result, self.accepted)


class Case(NamedTuple):
    """An input and what is true of it; shared by the tests, who must not write to it."""

    input: Tensor
    value: Truth
    derivative: Truth


@functools.cache
def _case(layout: str, dtype: torch.dtype, count: int) -> Case:
    def make(*shape: int) -> Tensor:
        return oracle.both_tails(math.prod(shape), dtype).reshape(shape)

    input = LAYOUTS[layout](make, count)
    x, bound = oracle.exact(input), BOUNDS[dtype]
    return Case(
        input, Truth(oracle.value(x), bound.value), Truth(oracle.derivative(x), bound.derivative)
    )


def _cases(layout: str, dtype: torch.dtype) -> list[Case]:
    return [_case(layout, dtype, count) for count in SIZES]


def _assert_within(result: Tensor, reference: oracle.LongDouble, bound: float) -> None:
    assert oracle.largest_error_in_ulp(result, reference) <= bound


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides and gaps, so with memory of its own."""
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    storage = tensor.as_strided((length,), (1,), 0).clone()
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@every_dtype
@every_layout
def test_value(layout: str, dtype: torch.dtype) -> None:
    for case in _cases(layout, dtype):
        before = case.input.clone()
        result = sigmoid(case.input)
        case.value.judge(result)
        like = torch.sigmoid(case.input)
        assert (result.dtype, result.stride()) == (dtype, like.stride())
        assert torch.equal(case.input, before)


@every_dtype
@every_layout
def test_value_and_derivative(layout: str, dtype: torch.dtype) -> None:
    for case in _cases(layout, dtype):
        before = case.input.clone()
        value, derivative = sigmoid_with_derivative(case.input)
        case.value.judge(value)
        case.derivative.judge(derivative)
        strides = torch.sigmoid(case.input).stride()
        assert (value.dtype, value.stride()) == (dtype, strides)
        assert (derivative.dtype, derivative.stride()) == (dtype, strides)
        assert torch.equal(case.input, before)


@every_dtype
@every_layout
def test_gradient(layout: str, dtype: torch.dtype) -> None:
    for case in _cases(layout, dtype):
        ones = torch.ones_like(case.input)
        gradient = torch.ops.fused_sigmoid.sigmoid_backward(ones, case.input)
        case.derivative.judge(gradient)


@every_dtype
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "expanded" not in name])
def test_out(layout: str, dtype: torch.dtype) -> None:
    for case in _cases(layout, dtype):
        for out in (
            _copy(case.input).zero_(),  # of the same layout
            torch.zeros(case.input.shape, dtype=dtype),
            torch.zeros((*case.input.shape, 2), dtype=dtype)[..., 1],
        ):
            strides, address = out.stride(), out.data_ptr()
            assert sigmoid(case.input, out=out) is out
            assert (out.stride(), out.data_ptr()) == (strides, address)
            case.value.judge(out)


@every_dtype
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "expanded" not in name])
def test_in_place(layout: str, dtype: torch.dtype) -> None:
    for case in _cases(layout, dtype):
        written = _copy(case.input)
        address = written.data_ptr()
        assert sigmoid_(written) is written
        assert (written.stride(), written.data_ptr()) == (case.input.stride(), address)
        case.value.judge(written)
        # out= may be the input itself.
        written = _copy(case.input)
        sigmoid(written, out=written)
        case.value.judge(written)


@every_dtype
@every_layout
@pytest.mark.usefixtures("restored_threads")
def test_threads_share_a_tensor(layout: str, dtype: torch.dtype) -> None:
    """A worker of the suite may have one thread, which takes all of the tensors above."""
    torch.set_num_threads(3)
    case = _case(layout, dtype, SIZES[-1])
    case.value.judge(sigmoid(case.input))
    for truth, result in zip(
        (case.value, case.derivative), sigmoid_with_derivative(case.input), strict=True
    ):
        truth.judge(result)
    ones = torch.ones_like(case.input)
    case.derivative.judge(torch.ops.fused_sigmoid.sigmoid_backward(ones, case.input))
    if "expanded" not in layout:
        case.value.judge(sigmoid(case.input, out=_copy(case.input).zero_()))
        case.value.judge(sigmoid_(_copy(case.input)))


@every_dtype
def test_out_is_resized_and_converted_like_torch(dtype: torch.dtype) -> None:
    input = oracle.both_tails(12, dtype).reshape(3, 4).t()
    reference = oracle.value(oracle.exact(input))
    resized = torch.empty(0, dtype=dtype)
    sigmoid(input, out=resized)
    assert resized.stride() == torch.sigmoid(input, out=torch.empty(0, dtype=dtype)).stride()
    _assert_within(resized, reference, BOUNDS[dtype].value)
    wider = torch.empty(4, 3, dtype=torch.float64)
    sigmoid(input, out=wider)
    _assert_within(wider.to(dtype), reference, BOUNDS[dtype].value)


@every_dtype
def test_zero_dimensions(dtype: torch.dtype) -> None:
    for number in (-3.0, 0.0, 20.0):
        input = torch.tensor(number, dtype=dtype)
        x = oracle.exact(input)
        value, derivative = sigmoid_with_derivative(input)
        assert value.shape == derivative.shape == ()
        _assert_within(sigmoid(input), oracle.value(x), BOUNDS[dtype].value)
        _assert_within(value, oracle.value(x), BOUNDS[dtype].value)
        _assert_within(derivative, oracle.derivative(x), BOUNDS[dtype].derivative)
        _assert_within(sigmoid_(input), oracle.value(x), BOUNDS[dtype].value)


@every_dtype
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 2), (2, 0, 3)])
def test_no_elements(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    input = torch.empty(shape, dtype=dtype)
    value, derivative = sigmoid_with_derivative(input)
    for result in (sigmoid(input), value, derivative, sigmoid_(input)):
        assert (result.shape, result.dtype) == (shape, dtype)
        assert result.stride() == torch.sigmoid(input).stride()


# Numerics, over more inputs than the layouts have.


@every_half
def test_halves_are_correctly_rounded(dtype: torch.dtype) -> None:
    input = oracle.every_half(dtype)
    x = oracle.exact(input)
    value, derivative = sigmoid_with_derivative(input)
    gradient = torch.ops.fused_sigmoid.sigmoid_backward(torch.ones_like(input), input)
    expected = oracle.rounded(oracle.value(x), dtype)
    assert oracle.same_bits(value, expected)
    assert oracle.same_bits(sigmoid(input), expected)
    expected = oracle.rounded(oracle.derivative(x), dtype)
    assert oracle.same_bits(derivative, expected)
    assert oracle.same_bits(gradient, expected)


def _assert_numerics(input: Tensor) -> None:
    """The error bounds, σ within [0, 1], and σ' even to the last bit."""
    x = oracle.exact(input)
    bound = BOUNDS[input.dtype]
    value, derivative = sigmoid_with_derivative(input)
    _assert_within(value, oracle.value(x), bound.value)
    _assert_within(derivative, oracle.derivative(x), bound.derivative)
    number = ~input.isnan()
    assert ((value >= 0) & (value <= 1) | ~number).all()
    assert ((derivative >= 0) & (derivative <= 0.25) | ~number).all()
    assert oracle.same_bits(sigmoid(input), value)
    assert oracle.same_bits(sigmoid_with_derivative(-input)[1], derivative)
    gradient = torch.ops.fused_sigmoid.sigmoid_backward(torch.ones_like(input), input)
    assert oracle.same_bits(gradient, derivative)


@pytest.mark.parametrize("part", range(16))
def test_float32_numerics(part: int) -> None:
    # Every exponent and sign, infinities and NaN; a prime step, so that all low bits come up.
    start, stop, step = part << 28, (part + 1) << 28, 4093
    _assert_numerics(oracle.float32_patterns(start + -start % step, stop, step))


# Where float32 inputs go another way: 0, the smallest normal number, the magnitudes at which the
# range reduction takes the next multiple of ln(2)/8, σ(-x) turns subnormal and 0, 1 - σ(-x) turns
# 1, the clamp, and infinity, with NaN behind it.
FLOAT32_BOUNDARIES = (
    0.0,
    2.0**-126,
    *((k + 0.5) / 8 * math.log(2) for k in range(8 * 151)),
    126 * math.log(2),
    149 * math.log(2),
    150 * math.log(2),
    25 * math.log(2),
    104.0,
    math.inf,
)


def test_float32_numerics_at_boundaries() -> None:
    for boundary in FLOAT32_BOUNDARIES:
        pattern = int(torch.tensor(boundary).view(torch.int32))
        for sign in (0, 2**31):
            start, stop = sign + max(pattern - 64, 0), sign + pattern + 65
            _assert_numerics(oracle.float32_patterns(start, stop, 1))


@every_half
def test_half_values_are_monotone(dtype: torch.dtype) -> None:
    value = sigmoid(oracle.every_finite_half(dtype).sort().values).double()
    assert (value.diff() >= 0).all()


@pytest.mark.parametrize(
    ("start", "stop"),
    [(-2, 2), (-40, 40), (-745.2, -700), (-711, -706), (700, 746)],
)
def test_float64_numerics(start: float, stop: float) -> None:
    _assert_numerics(torch.linspace(start, stop, 300_001, dtype=torch.float64))


def test_float64_numerics_of_small_inputs() -> None:
    powers = torch.exp2(torch.linspace(-1074, 0, 20_001, dtype=torch.float64))
    _assert_numerics(torch.cat([powers, -powers]))


@every_half
def test_half_numerics(dtype: torch.dtype) -> None:
    _assert_numerics(oracle.every_half(dtype))


def test_subnormal_results_are_not_flushed() -> None:
    for dtype, start, stop in (
        (torch.float32, -103.97, -87.34),
        (torch.float64, -745.13, -708.4),
        (torch.bfloat16, -92.0, -88.0),
        (torch.float16, -17.0, -9.75),
    ):
        input = torch.linspace(start, stop, 50_001, dtype=torch.float64).to(dtype)
        for result in (sigmoid(input), *sigmoid_with_derivative(input)):
            assert ((result > 0) & (result < torch.finfo(dtype).smallest_normal)).all()
        _assert_numerics(input)


# There σ(x) and σ'(x) both round to the same small multiple of the smallest number.
@pytest.mark.parametrize(
    ("dtype", "x", "expected"),
    [
        (torch.float32, -103.97, 2.0**-149),
        (torch.float32, -102.5, 2.0**-148),
        (torch.float32, -104.0, 0.0),
        (torch.float64, -745.0, 2.0**-1074),
        (torch.float64, -744.0, 2.0**-1073),
        (torch.float64, -746.0, 0.0),
        (torch.bfloat16, -92.5, 2.0**-133),
        (torch.bfloat16, -93.0, 0.0),
        (torch.float16, -17.0, 2.0**-24),
        (torch.float16, -17.5, 0.0),
    ],
)
def test_smallest_results(dtype: torch.dtype, x: float, expected: float) -> None:
    input = torch.tensor([x], dtype=dtype)
    value, derivative = sigmoid_with_derivative(input)
    assert sigmoid(input).double().item() == expected
    assert value.double().item() == expected
    assert derivative.double().item() == expected


@every_dtype
def test_special_values(dtype: torch.dtype) -> None:
    nan, inf, largest = math.nan, math.inf, torch.finfo(dtype).max
    input = torch.tensor([nan, inf, -inf, largest, -largest, 0.0, -0.0], dtype=dtype)
    expected_value = torch.tensor([nan, 1, 0, 1, 0, 0.5, 0.5], dtype=dtype)
    expected_derivative = torch.tensor([nan, 0, 0, 0, 0, 0.25, 0.25], dtype=dtype)
    value, derivative = sigmoid_with_derivative(input)
    gradient = torch.ops.fused_sigmoid.sigmoid_backward(torch.ones_like(input), input)
    # To the bit: a result is never -0.
    for result in (sigmoid(input), value, sigmoid(input, out=torch.empty_like(input))):
        assert oracle.same_bits(result, expected_value)
    for result in (derivative, gradient):
        assert oracle.same_bits(result, expected_derivative)
    assert oracle.same_bits(sigmoid_(input), expected_value)


@every_dtype
def test_nan_stays_in_its_place(dtype: torch.dtype) -> None:
    for place in range(40):
        input = torch.full((40,), 2.0, dtype=dtype)
        input[place] = math.nan
        for result in (sigmoid(input), *sigmoid_with_derivative(input)):
            assert result.isnan().nonzero().tolist() == [[place]]


@every_dtype
def test_module_computes_the_same(dtype: torch.dtype) -> None:
    input = oracle.both_tails(1000, dtype)
    assert oracle.same_bits(fused_sigmoid.FusedSigmoid()(input), sigmoid(input))
