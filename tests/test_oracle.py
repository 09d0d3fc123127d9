"""The reference that the other tests trust is right: against mpmath and literal tables."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

mpmath = pytest.importorskip("mpmath")

POINTS = [0.0, 2.0**-40, 0.5, 1.5, 6.25, 36.7, 103.9, 745.0]


@pytest.mark.parametrize("x", [sign * point for point in POINTS for sign in (1, -1)])
def test_reference_agrees_with_mpmath(x: float) -> None:
    functions = (
        oracle.value,
        oracle.derivative,
        oracle.second_derivative,
        oracle.third_derivative,
    )
    # 1 - σ(745) needs 324 digits, and mpmath differentiates by differences.
    with mpmath.workdps(400):
        terms = mpmath.taylor(lambda t: 1 / (1 + mpmath.exp(-t)), mpmath.mpf(x), 3)
        expected = [mpmath.factorial(n) * term for n, term in enumerate(terms)]
        for n, function in enumerate(functions):
            # Through a string: a float would cut it to 53 bits.
            got = mpmath.mpf(np.format_float_scientific(function(np.array(x, np.longdouble)), 30))
            # Higher derivatives cross zero: their allowance is of the size of the first.
            size = max(abs(expected[n]), abs(expected[1]))
            assert abs(got - expected[n]) <= 2.0**-60 * size


@pytest.mark.parametrize(
    ("dtype", "number", "ulp"),
    [
        (torch.float64, 1.0, 2.0**-52),
        (torch.float64, 0.75, 2.0**-53),
        (torch.float64, 1e-320, 2.0**-1074),
        (torch.float32, 1.0, 2.0**-23),
        (torch.float32, -0.5, 2.0**-24),
        (torch.float32, 1e-40, 2.0**-149),
        (torch.float32, 0.0, 2.0**-149),
        (torch.float16, 0.3, 2.0**-12),
        (torch.float16, 1e-6, 2.0**-24),
        (torch.bfloat16, 0.3, 2.0**-9),
        (torch.bfloat16, 1e-40, 2.0**-133),
    ],
)
def test_ulp(dtype: torch.dtype, number: float, ulp: float) -> None:
    assert oracle.ulp(np.array(number, np.longdouble), dtype) == ulp


@pytest.mark.parametrize(
    ("dtype", "number", "expected"),
    [
        (torch.float16, 1 + 2.0**-11, 1.0),  # tie, to even
        (torch.float16, 1 + 3 * 2.0**-11, 1 + 2.0**-9),  # tie, to even
        (torch.float16, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-10),  # twice rounded: 1
        (torch.float16, 2.0**-25, 0.0),
        (torch.float16, 1.5 * 2.0**-25, 2.0**-24),
        (torch.bfloat16, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7),  # twice rounded: 1
        (torch.bfloat16, 0.51 * 2.0**-133, 2.0**-133),
        (torch.float32, 0.51 * 2.0**-149, 2.0**-149),
        (torch.float64, 2.0**-1074, 2.0**-1074),
    ],
)
def test_rounding(dtype: torch.dtype, number: float, expected: float) -> None:
    assert oracle.rounded(np.array(number, np.longdouble), dtype).double().item() == expected


def test_half_patterns_are_all_there() -> None:
    for dtype, finite in ((torch.float16, 63_488), (torch.bfloat16, 65_280)):
        assert len(oracle.every_half(dtype)) == 65_536
        assert len(oracle.every_finite_half(dtype)) == finite
