"""Runs every GPU kernel by every way of launching it, at sizes around a block's, on aligned and
unaligned memory, and compares the bits with the CPU's. What a memory checker is run on, which is
slow, so that a difference is printed when it is found.

    python -m bench.gpu_kernels [--dtypes float32 ...] [--sizes 1 1023 ...]
    python -m bench.gpu_kernels --past-the-end        an access that a memory checker has to see

Depends on the package, on Triton and on works for the dtypes.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.works import DTYPES

UNARY = ("sigmoid", "sigmoid_with_derivative")
BINARY = ("sigmoid_backward", "sigmoid_backward_from_output", "sigmoid_backward_from_derivative")
BEFORE_LOSS = "sigmoid_backward_before_bce"
# Each with whether one number is the whole gradient, which no loss sends.
CALLS = (
    *((name, False) for name in (*UNARY, *BINARY, BEFORE_LOSS)),
    *((name, True) for name in BINARY),
)
SIZES = (1, 2, 1023, 1024, 1025, 4096, 100_003)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def operands(dtype: torch.dtype, size: int, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """On the CPU, starting at an element of their memory."""
    generator = torch.Generator().manual_seed(size)
    both = torch.randn(2, size + offset, generator=generator, dtype=torch.float64) * 8
    grad, input = both.to(dtype)
    return grad[offset:], input[offset:]


def on_gpu(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """An allocation that ends with the tensor."""
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    memory[offset:] = tensor.to("cuda")
    return memory[offset:]


def calls(dtype: torch.dtype) -> Iterator[tuple[str, bool, torch.dtype | None]]:
    """Those of a dtype; the last of each is the dtype of the loss."""
    for name, one in CALLS:
        if name == BEFORE_LOSS:
            yield from (
                (name, one, loss_dtype) for loss_dtype in dict.fromkeys((dtype, torch.float32))
            )
        else:
            yield name, one, None


def operator_of(name: str, loss_dtype: torch.dtype | None) -> Callable[..., object]:
    """A function of tensors alone."""
    operator: Callable[..., object] = getattr(torch.ops.fused_sigmoid, name)
    return functools.partial(operator, loss_dtype=loss_dtype) if loss_dtype else operator


def differences(dtype: torch.dtype, sizes: Sequence[int] = SIZES) -> Iterator[str]:
    """Each result that differs from the CPU's: in its bits, or in float64 by over 8 of its eps."""
    for size in sizes:
        for offset in (0, 1):
            pair = operands(dtype, size, offset)
            for name, one, loss_dtype in calls(dtype):
                operator = operator_of(name, loss_dtype)
                given = pair[1:] if name in UNARY else pair
                moved = tuple(on_gpu(tensor, offset) for tensor in given)
                if one:
                    given, moved = (
                        (grad[:1].expand(size), input) for grad, input in (given, moved)
                    )
                expected = operator(*given)
                for launch in ("first", "later"):
                    got = operator(*moved)
                    if not same(got, expected):
                        what = f"{name}, one gradient" if one else name
                        what += f", loss in {loss_dtype}" if loss_dtype else ""
                        yield f"{what}, {dtype}, {size} elements from {offset}: {launch} launch"


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
    from fused_sigmoid import triton_kernels as kernels

    input, value = (torch.zeros(1000, device="cuda") for _ in range(2))
    launch = kernels.SIGMOID.function[(2,)]
    launch(input, value, 2024, block_size=1024, is_kept=False, **kernels.LAUNCH_OPTIONS)
    torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_kernels")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
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
        for difference in differences(DTYPES[name], chosen.sizes):
            found += 1
            print(f"differs from the CPU: {difference}", flush=True)
        launches = extension.gpu_launches()
        print(f"{name}: {launches} launches by the extension so far", flush=True)
    print(f"{found} differences")
    return 1 if found or not extension.gpu_launches() else 0


if __name__ == "__main__":
    sys.exit(main())
