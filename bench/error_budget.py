"""Where the last bits are lost: the error that each rounding of the float32 kernels adds alone, and
all of them together, beside what can be proven of it.

    python -m bench.error_budget --output docs/figures/error_budget.json

Follows the kernels' operations (csrc/functions/sigmoid.h) in float64, rounding to float32 only what
is asked for. Depends on NumPy, mpmath and the package's constants.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

from fused_sigmoid.triton import coefficients

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
GENERATOR = Path(__file__).resolve().parents[1] / "csrc/numerics/generate_coefficients.py"

# In the order of the kernel: two errors of the method, then what each rounding yields.
APPROXIMATION = "the polynomial instead of exp(r)"
LN2_PIECES = "ln 2 in two pieces"
REDUCTION = "r, by the second fma"
INNER_STEPS = "inner steps of the polynomial"
LAST_STEP = "last step of the polynomial"
DENOMINATOR = "denominator"
QUOTIENT = "quotient t"
COMPLEMENT = "1 - t"
DERIVATIVE = "t - t²"
OF_T = (APPROXIMATION, LN2_PIECES, REDUCTION, INNER_STEPS, LAST_STEP, DENOMINATOR, QUOTIENT)
TERMS = (*OF_T, COMPLEMENT, DERIVATIVE)
TOTAL = "all together"

PRECISION = {"float32": 24, "float64": 53}
POINTS = 1_000_000
SEED = 0
# Half of the points lie where σ bends, half reach to where the results turn subnormal.
BEND, NORMAL = 8.0, 87.3


@dataclass(frozen=True)
class Errors:
    """In ulp of t = σ(-|x|), of σ(|x|) = 1 - t, and of σ' = t - t²; None where it adds nothing."""

    t: float | None
    complement: float | None
    derivative: float | None


@dataclass(frozen=True)
class Term:
    """What is proven for each format, and the largest error seen in float32."""

    name: str
    bounds: dict[str, Errors]
    seen: Errors


def constant(dtype: str, name: str) -> Any:
    """A scalar by its name, or the polynomial's coefficients as "exp"."""
    numbers, names = coefficients.CONSTANTS[dtype], coefficients.SCALARS
    return numbers[len(names) :] if name == "exp" else numbers[names.index(name)]


def results(x: Float32, rounded: frozenset[str]) -> list[Float64]:
    """t, 1 - t and t - t² for x ≥ 0, with the named roundings and errors alone."""

    def keep(name: str, values: Float64) -> Float64:
        return values.astype(np.float32).astype(np.float64) if name in rounded else values

    a = x.astype(np.float64)
    exp = constant("float32", "exp")
    high, low = constant("float32", "ln2_high"), constant("float32", "ln2_low")
    shift, summand = constant("float32", "round_shift"), constant("float32", "summand")
    # As the kernel's sum with the shift rounds it. The fma with ln 2's first piece is exact: what
    # it gives is a multiple of the last place of that piece or of a, and fits.
    n = (a * constant("float32", "log2_e") + shift).astype(np.float32).astype(np.float64) - shift
    rest = low if LN2_PIECES in rounded else math.log(2) - high
    r = keep(REDUCTION, (a - n * high) - n * rest)
    # A rounding within the polynomial needs the polynomial.
    if rounded & {APPROXIMATION, INNER_STEPS, LAST_STEP}:
        p = np.full_like(r, exp[-1])
        for step in reversed(range(len(exp) - 1)):
            p = keep(INNER_STEPS if step else LAST_STEP, p * r + exp[step])
    else:
        p = exp[0] * np.exp(r)
    t = summand / keep(DENOMINATOR, p * np.exp2(n) * (summand / exp[0]) + summand)
    t = keep(QUOTIENT, t)
    return [t, keep(COMPLEMENT, 1 - t), keep(DERIVATIVE, t - t * t)]


def largest_errors(x: Float32, rounded: Sequence[str]) -> Errors:
    e = np.exp(-x.astype(np.float64))
    truths = [e / (1 + e), 1 / (1 + e), e / (1 + e) ** 2]
    errors = []
    for result, truth in zip(results(x, frozenset(rounded)), truths, strict=True):
        ulp = np.exp2(np.frexp(truth)[1] - PRECISION["float32"])
        errors.append(float((np.abs(result - truth) / ulp).max()))
    return Errors(*errors)


def bounds_of_t(dtype: str) -> dict[str, float]:
    """Bounds on the relative error of t, but for the quotient's, in units of 2^-p: at most so many
    ulp. The relative error of a sum of positive terms is at most that of the worse term."""
    unit = 2.0 ** -PRECISION[dtype]
    exp, high, low = (constant(dtype, name) for name in ("exp", "ln2_high", "ln2_low"))
    reach = math.log(2) / 2 * (1 + 1e-6)
    proven_error = runpy.run_path(str(GENERATOR))["proven_error"]
    approximation = proven_error([mpf(c) / exp[0] for c in exp], mpf(reach))
    most_multiples = constant(dtype, "limit") / math.log(2) + 1
    # The k-th inner step yields a number below `size`, rounded by half a last place of it, and is
    # multiplied by r^k; beside the smallest p.
    inner = 0.0
    for k in range(1, len(exp) - 1):
        size = sum(c * reach ** (i - k) for i, c in enumerate(exp) if i >= k)
        inner += 2.0 ** math.floor(math.log2(size)) * reach**k
    return {
        APPROXIMATION: float(approximation) / unit,
        LN2_PIECES: float(abs(mp.log(2) - high - low)) * most_multiples / unit,
        # |r| < 1/2: half a last place is a quarter of the unit.
        REDUCTION: 0.25,
        INNER_STEPS: inner / (exp[0] * math.exp(-reach)),
        LAST_STEP: 1.0,
        DENOMINATOR: 1.0,
    }


def bounds(dtype: str) -> dict[str, Errors]:
    """Of 1 - t, t's errors count half at most, t being below 1/2. Of σ' = t (1 - t) the relative
    error is at most t's."""
    found = {name: Errors(bound, bound / 2, bound) for name, bound in bounds_of_t(dtype).items()}
    # To nearest: half an ulp of t, but a relative error of up to one unit.
    found[QUOTIENT] = Errors(0.5, 0.25, 1.0)
    found[COMPLEMENT] = Errors(None, 0.5, None)
    found[DERIVATIVE] = Errors(None, None, 0.5)
    columns = zip(*(asdict(errors).values() for errors in found.values()), strict=True)
    found[TOTAL] = Errors(*(sum(filter(None, column)) for column in columns))
    return found


def points() -> Float32:
    generator = np.random.RandomState(SEED)
    halves = [generator.uniform(0, end, POINTS // 2) for end in (BEND, NORMAL)]
    return np.concatenate(halves).astype(np.float32)


def measure() -> list[Term]:
    """Each term alone, then all together."""
    x = points()
    proven = {dtype: bounds(dtype) for dtype in PRECISION}
    return [
        Term(
            name,
            {dtype: found[name] for dtype, found in proven.items()},
            largest_errors(x, TERMS if name == TOTAL else (name,)),
        )
        for name in (*TERMS, TOTAL)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.error_budget", description="The error that each rounding adds."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    output = parser.parse_args().output
    document = {"points": POINTS, "seed": SEED, "terms": [asdict(term) for term in measure()]}
    output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
