"""Every GPU kernel, by every way of launching it, gives the CPU's bits: at sizes around a block's,
on aligned and unaligned memory, without gaps and in rows.

A memory checker runs these tests too; that it sees an access at all shows

    python tests/test_gpu_kernels.py --past-the-end
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    # A memory checker's machine has built the checkout, and not installed it.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fused_sigmoid  # noqa: F401
from fused_sigmoid._extension import extension

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
UNARY = ("sigmoid", "sigmoid_with_derivative")
BINARY = ("sigmoid_backward", "sigmoid_backward_from_output", "sigmoid_backward_from_derivative")
BEFORE_LOSS = "sigmoid_backward_before_bce"
ROWS = 77
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
Operands = tuple[torch.Tensor, torch.Tensor]
Named = Iterator[tuple[str, Operands]]


def _memory(size: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).mul(8).to(dtype)


# Gradients and inputs on the CPU, with what they are.


def _without_gaps(dtype: torch.dtype, sizes: Sequence[int]) -> Named:
    for size, offset in product(sizes, (0, 1)):
        grad, input = (_memory(size + offset, seed, dtype)[offset:] for seed in (0, 1))
        yield f"{size} elements from {offset}", (grad, input)
        yield f"{size} elements from {offset}, one gradient", (grad[:1].expand(size), input)


def _in_rows(dtype: torch.dtype, length: int) -> Named:
    """So many columns of rows of twice as many."""
    for offset in (0, 1):
        size = ROWS * 2 * length
        grad, input = (
            _memory(size + offset, seed, dtype)[offset:].view(ROWS, 2 * length) for seed in (0, 1)
        )
        left, right = input.chunk(2, 1)[0], grad.chunk(2, 1)[1]
        transposed = grad.reshape(2 * length, ROWS).t()[:, :length]
        what = f"{ROWS} rows of {length} from {offset}"
        yield f"{what}, halves", (right, left)
        yield f"{what}, every second", (grad[:, ::2], input[:, 1::2])
        yield f"{what}, gradient transposed", (transposed, left)
        yield f"{what}, a gradient a row", (grad[:, :1].expand(ROWS, length), left)


# In parts, for workers of the test run: each compiles dozens of kernels.
OPERANDS: dict[str, Callable[[torch.dtype], Named]] = {
    "few_elements": functools.partial(_without_gaps, sizes=(1, 1023, 1025)),
    "many_elements": functools.partial(_without_gaps, sizes=(2, 1024, 4096, 100_003)),
} | {
    f"rows_of_{length}": functools.partial(_in_rows, length=length)
    for length in (1, 8, 33, 1000, 1024)
}


def on_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Laid out as it is, in an allocation as large as its memory."""
    memory = tensor if tensor._base is None else tensor._base
    return torch.as_strided(
        memory.to(device), tensor.shape, tensor.stride(), tensor.storage_offset()
    )


def _operators(dtype: torch.dtype) -> Iterator[tuple[str, Callable[..., object]]]:
    """Functions of tensors alone."""
    for name in (*UNARY, *BINARY):
        yield name, getattr(torch.ops.fused_sigmoid, name)
    for loss_dtype in dict.fromkeys((dtype, torch.float32)):
        operator = getattr(torch.ops.fused_sigmoid, BEFORE_LOSS)
        yield (
            f"{BEFORE_LOSS}, loss in {loss_dtype}",
            functools.partial(operator, loss_dtype=loss_dtype),
        )


def _differences(dtype: torch.dtype, operands: Named, device: str = "cuda") -> Iterator[str]:
    """Each result that differs from the CPU's: in its bits, or in float64 by over 8 of its eps."""
    for what, pair in operands:
        moved_pair = [on_device(tensor, device) for tensor in pair]
        for name, operator in _operators(dtype):
            given, moved = (both[1:] if name in UNARY else both for both in (pair, moved_pair))
            expected = operator(*given)
            for launch in ("first", "later"):
                if not _same(operator(*moved), expected):
                    yield f"{name}, {dtype}, {what}: {launch} launch"


def _same(found: object, expected: object) -> bool:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        return all(map(_same, found, expected))
    assert isinstance(found, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    back = found.cpu()
    if back.dtype == torch.float64:
        return torch.allclose(back, expected, rtol=8 * torch.finfo(back.dtype).eps, atol=0)
    bits = BITS[back.element_size()]
    return torch.equal(back.view(bits), expected.view(bits))


@pytest.mark.gpu
@pytest.mark.parametrize("part", OPERANDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_gives_the_bits_of_the_cpu(part: str, dtype: torch.dtype) -> None:
    before = extension.gpu_launches()
    # The first ends the test: under a memory checker the rest may take minutes.
    assert next(_differences(dtype, OPERANDS[part](dtype)), None) is None
    assert extension.gpu_launches() > before


# Without a GPU: what the test above does is what it says.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_compared_lies_as_it_says(dtype: torch.dtype) -> None:
    seen = {what: pair for part in OPERANDS.values() for what, pair in part(dtype)}
    assert len(seen) == 2 * (2 * 7 + 4 * 5)
    assert {pair[1].storage_offset() for pair in seen.values()} == {0, 1, 2}
    for pair in seen.values():
        assert pair[0].shape == pair[1].shape
        for tensor in pair:
            moved = on_device(tensor, "meta")
            assert moved.stride() == tensor.stride()
            assert moved.storage_offset() == tensor.storage_offset()
            assert moved.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    halves = [pair[1] for what, pair in seen.items() if "halves" in what and pair[1].shape[1] > 1]
    assert not any(input.is_contiguous() for input in halves)


def test_a_difference_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def operands() -> Named:
        return _without_gaps(torch.float32, sizes=(5,))

    assert list(_differences(torch.float32, operands(), "cpu")) == []
    monkeypatch.setitem(globals(), "on_device", lambda tensor, _: tensor.clone().mul_(2))
    found = list(_differences(torch.float32, operands(), "cpu"))
    assert len(found) == 6 * 2 * 4
    assert found[1] == "sigmoid, torch.float32, 5 elements from 0: later launch"


def test_comparing_bits() -> None:
    x = torch.randn(10)
    other = x.clone()
    assert _same((x, x), (x, other))
    other.view(torch.int32)[3] ^= 1
    assert not _same((x, x), (x, other))
    assert _same(x.double(), x.double() * (1 + 2**-52))
    assert not _same(x.double(), x.double() * (1 + 2**-45))


def access_past_the_end() -> None:
    """Has a kernel read and write 1024 elements more than there are."""
    from fused_sigmoid.triton.elementwise import KERNELS, LAUNCH_OPTIONS, Layout

    input, value = (torch.zeros(1000, device="cuda") for _ in range(2))
    function, constants = KERNELS["sigmoid", "value"].compiled_for(Layout.DENSE, 0b11)
    function[(2,)](*(input, value, None, 2024), **constants, block_size=1024, **LAUNCH_OPTIONS)
    torch.cuda.synchronize()


if __name__ == "__main__":
    if sys.argv[1:] != ["--past-the-end"] or not torch.cuda.is_available():
        sys.exit("needs the one option --past-the-end, and a CUDA device")
    access_past_the_end()
