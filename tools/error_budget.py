"""Where the last bits are lost: the error that each rounding of the float32 kernels adds alone, and
all of them together, beside what can be proven of it.

    python -m tools.error_budget [--write]

Follows the kernels' operations (csrc/functions/sigmoid.h) in float64, rounding to float32 only what
is asked for. Depends on NumPy, mpmath, pandas and the package's constants.
"""

from __future__ import annotations

import argparse
import math
import runpy
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mpmath import mp, mpf
from numpy.typing import NDArray

from bench import results as records
from fused_sigmoid.triton import coefficients

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# In ulp of t = σ(-|x|), of σ(|x|) = 1 - t, and of σ' = t - t²; None where a term adds nothing.
COLUMNS = ("t", "complement", "derivative")
Errors = dict[str, float | None]
RECORD = records.FOLDER / "error_budget.json"
GENERATOR = Path(__file__).resolve().parents[1] / "csrc/numerics/generate_coefficients.py"

# In the order of the kernel: three errors of the method, then what each rounding yields.
APPROXIMATION = "the polynomial instead of exp(r)"
LN2_PIECES = "ln 2 in two pieces"
TABLE = "the table's entries"
REDUCTION = "r, by the second fma"
INNER_STEPS = "inner steps of the polynomial"
LAST_STEP = "last step of the polynomial"
DENOMINATOR = "denominator"
QUOTIENT = "quotient t"
COMPLEMENT = "1 - t"
DERIVATIVE = "t - t²"
OF_T = (APPROXIMATION, LN2_PIECES, TABLE, REDUCTION, INNER_STEPS, LAST_STEP, DENOMINATOR, QUOTIENT)
TERMS = (*OF_T, COMPLEMENT, DERIVATIVE)
TOTAL = "all together"

PRECISION = {"float32": 24, "float64": 53}
POINTS = 1_000_000
SEED = 0
# Half of the points lie where σ bends, half reach to where the results turn subnormal.
BEND, NORMAL = 8.0, 87.3


@cache
def generated(dtype: str) -> Any:
    """The constants of the kernels, as the generator's class that knows their errors."""
    generator = runpy.run_path(str(GENERATOR))
    numbers = list(map(mpf, coefficients.CONSTANTS[dtype]))
    scalars = dict(zip(coefficients.SCALARS, numbers, strict=False))
    step = 2 ** (PRECISION[dtype] - 4)
    bits = [power + j * step for j, power in enumerate(coefficients.POWERS[dtype])]
    table = np.array(bits, np.uint32 if dtype == "float32" else np.uint64).view(dtype)
    return generator["Constants"](
        generator[dtype.upper()],
        list(map(mpf, table.tolist())),
        numbers[len(scalars) :],
        *(scalars[name] for name in ("ln2_high", "ln2_low", "numerator", "summand")),
    )


def results(x: Float32, rounded: Iterable[str]) -> list[Float64]:
    """t, 1 - t and t - t² for x ≥ 0, with the named roundings and errors alone."""

    def keep(name: str, values: Float64) -> Float64:
        return values.astype(np.float32).astype(np.float64) if name in rounded else values

    constants = generated("float32")
    a = x.astype(np.float64)
    high, low, summand = map(float, (constants.ln2_high, constants.ln2_low, constants.summand))
    log2_e, shift = (float(constants.scalars()[name]) for name in ("log2_e", "round_shift"))
    # As the kernel's sum with the shift rounds it. The fma with ln 2's first piece is exact: what
    # it gives is a multiple of the last place of m ln 2 or of a, and fits.
    m = (a * log2_e + shift).astype(np.float32).astype(np.float64) - shift
    rest = low if LN2_PIECES in rounded else math.log(2) - high
    r = keep(REDUCTION, (a - m * high) - m * rest)

    first, second, third = map(float, constants.exp)
    exact = ((r + first) ** 2 + second) * r + third
    w = keep(INNER_STEPS, r + first)
    p = keep(LAST_STEP, r * keep(INNER_STEPS, w * w + second) + third)
    if APPROXIMATION not in rounded:
        p = p / exact * (np.exp(r) * (summand / float(constants.unit)))
    table = np.array([float(entry) for entry in constants.table])
    if TABLE not in rounded:
        table = float(constants.unit) * np.exp2(np.arange(len(table)) / len(table))
    n = np.floor(m)
    power = table[((m - n) * len(table)).astype(np.int64)] * np.exp2(n)
    t = keep(QUOTIENT, summand / keep(DENOMINATOR, p * power + summand))
    return [t, keep(COMPLEMENT, 1 - t), keep(DERIVATIVE, t - t * t)]


def largest_errors(x: Float32, rounded: Iterable[str]) -> Errors:
    e = np.exp(-x.astype(np.float64))
    truths = [e / (1 + e), 1 / (1 + e), e / (1 + e) ** 2]
    errors: Errors = {}
    for column, result, truth in zip(COLUMNS, results(x, rounded), truths, strict=True):
        ulp = np.exp2(np.frexp(truth)[1] - PRECISION["float32"])
        errors[column] = float((np.abs(result - truth) / ulp).max())
    return errors


def half_place(largest: float) -> float:
    """The largest rounding error of a number up to ``largest``, in units of 2^-p."""
    return 2.0 ** math.floor(math.log2(largest))


def bounds_of_t(dtype: str) -> dict[str, float]:
    """Bounds on the relative error of t, but for the quotient's, in units of 2^-p: at most so many
    ulp. The relative error of a sum of positive terms is at most that of the worse term."""
    unit = 2.0 ** -PRECISION[dtype]
    constants = generated(dtype)
    exp = [float(number) for number in constants.exp]
    reach = float(constants.half_width)
    most_multiples = constants.format.limit / math.log(2) + 1
    ln2_error = abs(mp.log(2) - constants.ln2_high - constants.ln2_low)
    if dtype == "float32":
        # Of the square's root, twice itself times its error; both are multiplied by r.
        w = exp[0] + reach
        inner = (half_place(w) * 2 * w + half_place(w * w + exp[1])) * reach
    else:
        # The k-th inner step yields a number below `size`, and is multiplied by r^k.
        inner = 0.0
        for k in range(1, len(exp) - 1):
            size = sum(c * reach ** (i - k) for i, c in enumerate(exp) if i >= k)
            inner += half_place(size) * reach**k
    center = float(constants.numerator / constants.unit)
    smallest, largest = center * math.exp(-reach), center * math.exp(reach)
    return {
        APPROXIMATION: float(constants.error_of_polynomial()) / unit,
        LN2_PIECES: float(ln2_error) * most_multiples / unit,
        # A last place is at most two units.
        TABLE: 2 * float(constants.error_of_table()),
        REDUCTION: half_place(reach),
        INNER_STEPS: inner / smallest,
        LAST_STEP: half_place(largest) / smallest,
        DENOMINATOR: 1.0,
    }


def bounds(dtype: str) -> dict[str, Errors]:
    """Of 1 - t, t's errors count half at most, t being below 1/2. Of σ' = t (1 - t) the relative
    error is at most t's."""
    found: dict[str, tuple[float | None, ...]]
    found = {name: (bound, bound / 2, bound) for name, bound in bounds_of_t(dtype).items()}
    # To nearest: half an ulp of t, but a relative error of up to one unit.
    found[QUOTIENT] = (0.5, 0.25, 1.0)
    found |= {COMPLEMENT: (None, 0.5, None), DERIVATIVE: (None, None, 0.5)}
    found[TOTAL] = tuple(sum(filter(None, column)) for column in zip(*found.values(), strict=True))
    return {name: dict(zip(COLUMNS, errors, strict=True)) for name, errors in found.items()}


def points() -> Float32:
    generator = np.random.RandomState(SEED)
    halves = [generator.uniform(0, end, POINTS // 2) for end in (BEND, NORMAL)]
    return np.concatenate(halves).astype(np.float32)


def measure() -> list[dict[str, Any]]:
    """Each term alone, then all together: what is proven for each format, and the largest error
    seen in float32."""
    x = points()
    proven = {dtype: bounds(dtype) for dtype in PRECISION}
    return [
        {
            "name": name,
            "bounds": {dtype: proven[dtype][name] for dtype in PRECISION},
            "seen": largest_errors(x, TERMS if name == TOTAL else (name,)),
        }
        for name in (*TERMS, TOTAL)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.error_budget", description="The error that each rounding adds."
    )
    parser.add_argument("--write", action="store_true", help=f"record it in {RECORD.name}")
    chosen = parser.parse_args()
    terms = measure()
    seen = {term["name"]: term["seen"] for term in terms}
    print("largest errors in float32, ulp", pd.DataFrame(seen).T.round(4), sep="\n")
    if chosen.write:
        command = "python -m tools.error_budget --write"
        records.write_record(RECORD, command, points=POINTS, seed=SEED, terms=terms)
        print(f"wrote {RECORD}")


if __name__ == "__main__":
    main()
