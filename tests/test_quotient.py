"""The quotient of the GPU kernels by a reciprocal has the bits of the rounded division: in all
halves and a part of float32 here, in all of float32 by `make check-full`.

The arithmetic before it is csrc/numerics', whose bits are the kernels'. That the kernels divide so
is held in test_triton_interpreter.py.
"""

from __future__ import annotations

from tests.native.run import quotient, wrong_quotients


def test_a_corrected_quotient_is_the_rounded_one() -> None:
    found = quotient(step=1021)
    numbers = {
        "float32": 0x42D00000 // 1021 + 1,  # up to the limit, to which larger ones are clamped
        "float16": 0x7C00 + 1,
        "bfloat16": 0x7F80 + 1,
    }
    of_losses = {f"{dtype} loss": count for dtype, count in numbers.items()}
    assert {dtype: counts["numbers"] for dtype, counts in found.items()} == numbers | of_losses
    assert wrong_quotients(found) == 0
    # One without the correction is seen to be another.
    assert found["float32"]["uncorrected"] > 10_000
    assert found["float32 loss"]["uncorrected"] > 10_000
