"""Runs every GPU kernel by every way of launching it, at sizes around a block's, on aligned and
unaligned memory without gaps and in rows, and compares the bits with the CPU's. What a memory
checker is run on, which is slow, so that a difference is printed when it is found.

    python -m bench.gpu_kernels [--dtypes float32 ...] [--sizes 1 1023 ...] [--columns 1 8 ...]
    python -m bench.gpu_kernels --past-the-end        an access that a memory checker has to see

Depends on the package, on Triton and on works for the dtypes.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch

from bench.works import DTYPES

UNARY = ("sigmoid", "sigmoid_with_derivative")
BINARY = ("sigmoid_backward", "sigmoid_backward_from_output", "sigmoid_backward_from_derivative")
BEFORE_LOSS = "sigmoid_backward_before_bce"
CALLS = (*UNARY, *BINARY, BEFORE_LOSS)
SIZES = (1, 2, 1023, 1024, 1025, 4096, 100_003)
# Of a row of twice as many, in so many rows.
COLUMNS = (1, 8, 33, 1000, 1024)
ROWS = 77
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """Laid out as it is, in an allocation as large as its memory."""
    memory = tensor if tensor._base is None else tensor._base
    return torch.as_strided(
        memory.to("cuda"), tensor.shape, tensor.stride(), tensor.storage_offset()
    )


Operands = tuple[torch.Tensor, torch.Tensor]


def operands(
    dtype: torch.dtype, sizes: Sequence[int], columns: Sequence[int]
) -> Iterator[tuple[str, Operands]]:
    """Gradients and inputs on the CPU, with what they are."""

    def memory(size: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(size, generator=generator, dtype=torch.float64).mul(8).to(dtype)

    for size, offset in product(sizes, (0, 1)):
        grad, input = (memory(size + offset, seed)[offset:] for seed in (0, 1))
        yield f"{size} elements from {offset}", (grad, input)
        yield f"{size} elements from {offset}, one gradient", (grad[:1].expand(size), input)
    for length, offset in product(columns, (0, 1)):
        size = ROWS * 2 * length
        grad, input = (
            memory(size + offset, seed)[offset:].view(ROWS, 2 * length) for seed in (0, 1)
        )
        what = f"{ROWS} rows of {length} from {offset}"
        halves = grad.chunk(2, 1)[1], input.chunk(2, 1)[0]
        yield f"{what}, halves", halves
        yield f"{what}, every second", (grad[:, ::2], input[:, 1::2])
        yield (
            f"{what}, gradient transposed",
            (
                grad.reshape(2 * length, ROWS).t()[:, :length],
                halves[1],
            ),
        )
        yield f"{what}, a gradient a row", (grad[:, :1].expand(ROWS, length), halves[1])


def calls(dtype: torch.dtype) -> Iterator[tuple[str, torch.dtype | None]]:
    """Those of a dtype; the second of each is the dtype of the loss."""
    for name in CALLS:
        if name == BEFORE_LOSS:
            yield from ((name, loss_dtype) for loss_dtype in dict.fromkeys((dtype, torch.float32)))
        else:
            yield name, None


def operator_of(name: str, loss_dtype: torch.dtype | None) -> Callable[..., object]:
    """A function of tensors alone."""
    operator: Callable[..., object] = getattr(torch.ops.fused_sigmoid, name)
    return functools.partial(operator, loss_dtype=loss_dtype) if loss_dtype else operator


def differences(
    dtype: torch.dtype, sizes: Sequence[int] = SIZES, columns: Sequence[int] = COLUMNS
) -> Iterator[str]:
    """Each result that differs from the CPU's: in its bits, or in float64 by over 8 of its eps."""
    for what, pair in operands(dtype, sizes, columns):
        moved_pair = tuple(map(on_gpu, pair))
        for name, loss_dtype in calls(dtype):
            operator = operator_of(name, loss_dtype)
            given, moved = (both[1:] if name in UNARY else both for both in (pair, moved_pair))
            expected = operator(*given)
            for launch in ("first", "later"):
                if not same(operator(*moved), expected):
                    of_loss = f", loss in {loss_dtype}" if loss_dtype else ""
                    yield f"{name}{of_loss}, {dtype}, {what}: {launch} launch"


def same(got: object, expected: object) -> bool:
    if isinstance(expected, tuple):
        assert isinstance(got, tuple)
        return all(map(same, got, expected))
    assert isinstance(got, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    back = got.cpu()
    if back.dtype == torch.float64:
        return torch.allclose(back, expected, rtol=8 * torch.finfo(back.dtype).eps, atol=0)
    bits = BITS[back.element_size()]
    return torch.equal(back.view(bits), expected.view(bits))


def access_past_the_end() -> None:
    """Has a kernel read and write 1024 elements more than there are."""
    from fused_sigmoid.triton.elementwise import KERNELS, LAUNCH_OPTIONS, Layout

    input, value = (torch.zeros(1000, device="cuda") for _ in range(2))
    function, constants = KERNELS["sigmoid", "value"].compiled_for(Layout.DENSE, 0b11)
    function[(2,)](*(input, value, None, 2024), **constants, block_size=1024, **LAUNCH_OPTIONS)
    torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_kernels")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--columns", nargs="+", type=int, default=COLUMNS)
    parser.add_argument("--past-the-end", action="store_true")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    if chosen.past_the_end:
        access_past_the_end()
        return 0
    import fused_sigmoid  # noqa: F401
    from fused_sigmoid._extension import extension

    found = 0
    for name in chosen.dtypes:
        for difference in differences(DTYPES[name], chosen.sizes, chosen.columns):
            found += 1
            print(f"differs from the CPU: {difference}", flush=True)
        launches = extension.gpu_launches()
        print(f"{name}: {launches} launches by the extension so far", flush=True)
    print(f"{found} differences")
    return 1 if found or not extension.gpu_launches() else 0


if __name__ == "__main__":
    sys.exit(main())
