"""Large outputs that are written past the caches hold the same bits, and which ones are is what
docs/performance.md says."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from torch import Tensor

from fused_sigmoid import sigmoid, sigmoid_
from fused_sigmoid._extension import KERNEL_DTYPES, extension

NEVER = 2**63 - 1
# A block is 2 KiB of an output: 256 to 1,024 elements.
SIZES = (1, 15, 255, 256, 257, 1023, 1024, 1025, 5000)
every_dtype = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)

with_derivative_out = torch.ops.fused_sigmoid.sigmoid_with_derivative_out


@pytest.fixture
def runs() -> Iterator[Callable[[], int]]:
    """Every size is streamed; how often that happened since the last time it was asked."""
    before, last = extension.streamed_from(), extension.streamed_runs()

    def since() -> int:
        nonlocal last
        last, new = extension.streamed_runs(), extension.streamed_runs() - last
        return new

    extension.set_streamed_from(1)
    yield since
    extension.set_streamed_from(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _data(dtype: torch.dtype, size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64).mul_(8).to(dtype)


def _plain(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value, and value and derivative of the pair, as fresh outputs, which are not streamed."""
    value, derivative = torch.ops.fused_sigmoid.sigmoid_with_derivative(input)
    return sigmoid(input), value, derivative


def _at(dtype: torch.dtype, size: int, misalignment: int) -> tuple[Tensor, Tensor]:
    """NaNs that begin so many bytes past a multiple of 64, within bytes that are not theirs; and
    all of the bytes."""
    memory = torch.full((size * dtype.itemsize + 256,), 0xA5, dtype=torch.uint8)
    begin = -memory.data_ptr() % 64 + 64 + misalignment
    inside = memory[begin : begin + size * dtype.itemsize]
    tensor = torch.frombuffer(memory.numpy(), dtype=dtype, count=size, offset=begin)
    assert tensor.data_ptr() == inside.data_ptr()
    return tensor.fill_(math.nan), memory


def _check_at(tensor: Tensor, memory: Tensor, expected: Tensor) -> None:
    assert oracle.same_bits(tensor, expected)
    begin = tensor.data_ptr() - memory.data_ptr()
    assert (memory[:begin] == 0xA5).all()
    assert (memory[begin + tensor.nbytes :] == 0xA5).all()


def test_on_by_default_on_a_zen_5_alone() -> None:
    if platform.machine() != "x86_64":
        assert extension.streamed_from() == NEVER
        return
    with open("/proc/cpuinfo") as file:
        entries = dict(line.split(":", 1) for line in file if ":" in line)
    found = {key.strip(): value.strip() for key, value in entries.items()}
    zen5 = found["vendor_id"] == "AuthenticAMD" and found["cpu family"] == str(0x1A)
    zen5 = zen5 and int(found["model"]) >> 4 in (0, 1, 2, 4, 6, 7)
    assert extension.streamed_from() == (64 * 2**20 if zen5 else NEVER)


@every_dtype
@pytest.mark.usefixtures("instruction_set")
def test_same_bits_at_every_misalignment(dtype: torch.dtype, runs: Callable[[], int]) -> None:
    for size in SIZES:
        input = _data(dtype, size)
        expected = _plain(input)
        assert runs() == 0
        for misalignment in (0, 1, 2, 4, 8, 31, 32, 33, 63):
            value, memory = _at(dtype, size, misalignment)
            sigmoid(input, out=value)
            assert runs() == 1
            _check_at(value, memory, expected[0])
            first, memory = _at(dtype, size, misalignment)
            second, other = _at(dtype, size, (3 * misalignment + 7) % 64)
            with_derivative_out(input, first, second)
            assert runs() == 1
            _check_at(first, memory, expected[1])
            _check_at(second, other, expected[2])


@every_dtype
def test_same_bits_on_several_threads(
    dtype: torch.dtype, runs: Callable[[], int], threads: Callable[[int], None]
) -> None:
    input = _data(dtype, 150_001)
    expected = _plain(input)
    for count in (1, 2, 3):
        threads(count)
        value, memory = _at(dtype, input.numel(), 34)
        for _ in range(8):
            sigmoid(input, out=value.fill_(math.nan))
            assert runs() == count
            _check_at(value, memory, expected[0])
        pair = [torch.full_like(input, math.nan) for _ in range(2)]
        with_derivative_out(input, *pair)
        assert runs() == count
        assert oracle.same_bits(pair[0], expected[1])
        assert oracle.same_bits(pair[1], expected[2])


@pytest.mark.parametrize("size", [5000, 150_001])
def test_in_place_and_over_the_input(
    size: int, runs: Callable[[], int], threads: Callable[[int], None]
) -> None:
    input = _data(torch.float32, size)
    expected = _plain(input)
    for count in (1, 2):
        threads(count)
        assert oracle.same_bits(sigmoid_(input.clone()), expected[0])
        over = input.clone()
        assert oracle.same_bits(sigmoid(over, out=over), expected[0])
        for place in range(2):
            pair = [torch.empty_like(input), torch.empty_like(input)]
            pair[place].copy_(input)
            with_derivative_out(pair[place], *pair)
            assert oracle.same_bits(pair[0], expected[1])
            assert oracle.same_bits(pair[1], expected[2])
    assert runs() == 0


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_fresh_and_strided_outputs_and_those_of_another_kind_are_not_streamed(
    runs: Callable[[], int], threads: Callable[[int], None]
) -> None:
    for size in (5000, 150_000):
        input = _data(torch.float32, size)
        expected, _, derivative = _plain(input)
        for count in (1, 2):
            threads(count)
            leaf = input.clone().requires_grad_()
            for saved in ("derivative", "input"):
                sigmoid(leaf, saved=saved).sum().backward()
            for other in (0, size // 2, 2 * size):
                assert oracle.same_bits(sigmoid(input, out=torch.empty(other)), expected)
            wider = sigmoid(input, out=torch.empty(size, dtype=torch.float64))
            assert oracle.same_bits(wider.float(), expected)
            every_second = torch.zeros(2 * size)
            sigmoid(input, out=every_second[::2])
            assert oracle.same_bits(every_second[::2], expected)
            assert not every_second[1::2].any()
            rows = torch.zeros(size // 100, 150)
            sigmoid(input.view(-1, 100), out=rows[:, :100])
            assert oracle.same_bits(rows[:, :100].flatten(), expected)
            assert not rows[:, 100:].any()
            assert runs() == 0
            assert oracle.same_bits(leaf.grad, 2 * derivative)


def test_dense_outputs_of_any_strides_and_other_dtypes(runs: Callable[[], int]) -> None:
    matrix = _data(torch.float32, 6000).view(60, 100)
    out = torch.full((100, 60), math.nan).t()
    assert oracle.same_bits(sigmoid(matrix.t().contiguous().t(), out=out), sigmoid(matrix))
    assert runs() == 1
    # Gathered, since the strides differ.
    assert oracle.same_bits(sigmoid(matrix, out=out.fill_(math.nan)), sigmoid(matrix))
    assert runs() == 0
    # Computed in float32, then converted.
    wide = torch.full((60, 100), math.nan, dtype=torch.float64)
    assert oracle.same_bits(sigmoid(matrix, out=wide), sigmoid(matrix).double())


def test_from_which_size_on(runs: Callable[[], int]) -> None:
    input, output = _data(torch.float32, 1024), torch.empty(1024)
    extension.set_streamed_from(4097)
    sigmoid(input, out=output)
    assert runs() == 0
    extension.set_streamed_from(4096)
    sigmoid(input, out=output)
    assert runs() == 1


@pytest.mark.parametrize("size", [0, 1, 63, 64, 1000, 10**6])
def test_copy(size: int) -> None:
    source = torch.randint(256, (size,), dtype=torch.uint8)
    for misalignment in (0, 1, 63):
        memory = torch.zeros(size + 128, dtype=torch.uint8)
        target = memory[misalignment : misalignment + size]
        extension.copy_streamed(target, source)
        assert torch.equal(target, source)
        assert not memory[:misalignment].any()
        assert not memory[misalignment + size :].any()


def test_copy_of_other_tensors_is_refused() -> None:
    for target in (torch.zeros(9), torch.zeros(20)[::2], torch.zeros(10, device="meta")):
        with pytest.raises(ValueError, match="contiguous tensors of a CPU"):
            extension.copy_streamed(target, torch.zeros(10))
