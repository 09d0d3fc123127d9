"""Fits the polynomials for exp(r), searches the constants of the 16-bit formats, and writes every
constant of the kernels, for C++ and for Triton.

Run ``python csrc/numerics/generate_coefficients.py`` after a change; ``--check`` only compares.
Needs mpmath and NumPy: the two files it writes are committed, so no build depends on it.
"""

from __future__ import annotations

import argparse
import struct
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

mp.dps = 60

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "numerics" / "coefficients.h"
MODULE = ROOT / "fused_sigmoid" / "triton" / "coefficients.py"

Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, the arithmetic its sigmoid is computed in, and the choices
    made for its constants."""

    name: str  # as the generated structures and constants spell it
    struct_code: str  # of the arithmetic, for the module struct
    precision: int  # bits of the significand of the arithmetic
    exponent_bias: int  # of the arithmetic
    degree: int  # of the polynomial for exp(r)
    limit: int  # larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0
    scale: int  # numerator and denominator carry 2**-scale, so that 2**-scale exp(limit) is finite
    factor: float = 1.0  # and this factor, which the polynomial's coefficients hold
    upper_limit: int | None = None  # of 1 / (1 + exp(-x)), which needs one on either side

    @property
    def structure(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_")) + "Constants"


@dataclass(frozen=True)
class Half:
    """A format computed in float32 and rounded once more, whose constants are searched."""

    format: Format
    precision: int  # bits of the significand in memory
    lowest_exponent: int  # of a normal number, 2**lowest_exponent
    start: tuple[int, ...]  # where the search starts, see Candidate
    free: tuple[int, ...]  # how far each of these may move
    seed: int


# Degree 6 leaves an approximation error 4 bits below the rounding errors of float32, degree 11
# 3 bits below those of float64.
# exp(-104) < 2**-150, half the smallest subnormal of float32, exp(-746) < 2**-1075, half that of
# float64.
# Without a factor, exp(|x|) just above a power of two (where a rounding error is largest beside it)
# meets 1 / exp(|x|) just below one (where it counts most), and the sum with 1 a tie. Over all
# float32 inputs the errors of value and derivative and the steps of the value that go down are, for
# a factor of 1: 2.48 ulp, 2.48 ulp, 0; for 0.75: 2.19, 2.41, 2,593; for this one: 2.17, 2.54, 0.
FACTOR = 0.8310546875
FLOATS = (
    Format("float32", "f", 24, 127, 6, 104, 30, FACTOR),
    Format("float64", "d", 53, 1023, 11, 746, 60, FACTOR),
)

# A half needs 11 or 8 bits, so a shorter polynomial, and ln 2 in one piece. What remains are the
# results so near the middle between two halves that the float32 result falls on the middle itself
# or beyond; there the constants decide. For float16 no smooth error can be right everywhere: below
# x = 0.011 the small one of the two, t, must come out too large, at 0.1128, 0.6914, 0.9307 and
# 1.6992 the derivative too small. So the two ones of 1 / (1 + exp(|x|)) and ln 2 move as well.
HALVES = (
    Half(
        Format("float16", "f", 24, 127, 5, 40, 0),
        precision=11,
        lowest_exponent=-14,
        start=(8, 0, 0, 0, 0, 0, 1, 5, -1),
        free=(4, 1 << 11, 1 << 11, 1 << 11, 1 << 11, 1 << 11, 1, 1, 1),
        seed=1,
    ),
    Half(
        Format("bfloat16", "f", 24, 127, 4, 104, 30),
        precision=8,
        lowest_exponent=-126,
        start=(0,) * 8,
        free=(1 << 8,) * 5 + (0, 0, 0),
        seed=1,
    ),
    # The value alone, as 1 / (1 + exp(-x)): neither absolute value nor selection. Beyond 40 every
    # half is 1.
    Half(
        Format("bfloat16_value", "f", 24, 127, 4, 104, 30, upper_limit=40),
        precision=8,
        lowest_exponent=-126,
        start=(8, -184, -109, 64, 261, 0, 0, 0),
        free=(*(1 << 8,) * 5, 0, 0, 0),
        seed=1,
    ),
)


def round_to(format: Format, value: mpf) -> mpf:
    """``value`` rounded once, to nearest and ties to even, to a normal number of the format."""
    value = mpf(value)
    if value == 0:
        return value
    scale = mpf(2) ** (format.precision - 1 - int(mp.floor(mp.log(abs(value), 2))))
    rounded = mpf(int(mp.nint(value * scale))) / scale
    assert (
        mpf(struct.unpack(format.struct_code, struct.pack(format.struct_code, float(rounded)))[0])
        == rounded
    )
    return rounded


def evaluate(coefficients: list[mpf], r: mpf) -> mpf:
    total = mpf(0)
    for coefficient in reversed(coefficients):
        total = total * r + coefficient
    return total


def relative_error(coefficients: list[mpf], r: mpf) -> mpf:
    return evaluate(coefficients, r) * mp.exp(-r) - 1


def fit(fixed: list[mpf], degree: int, half_width: mpf) -> list[mpf]:
    """The polynomial that starts with ``fixed`` and is closest to exp in relative error on
    [-half_width, half_width], by Remez's exchange."""
    free = range(len(fixed), degree + 1)
    # Not symmetric: at r = 0 the error is zero whatever the coefficients, and a point there
    # would make the levelled error zero.
    points = [
        half_width * mp.cos(mp.pi * (2 * i + mpf(1.2)) / (2 * len(free) + 2))
        for i in range(len(free) + 1)
    ]
    grid = [half_width * mp.cos(mp.pi * i / 400) for i in range(401)]
    coefficients: list[mpf] = []
    for _ in range(30):
        matrix = mp.matrix(len(points), len(points))
        right = mp.matrix(len(points), 1)
        for row, r in enumerate(points):
            for column, power in enumerate(free):
                matrix[row, column] = r**power * mp.exp(-r)
            matrix[row, len(free)] = (-1) ** row
            right[row] = 1 - evaluate(fixed, r) * mp.exp(-r)
        solution = mp.lu_solve(matrix, right)
        coefficients = fixed + [solution[i] for i in range(len(free))]
        errors = [relative_error(coefficients, r) for r in grid]
        extrema = [
            i
            for i in range(len(grid))
            if (i == 0 or abs(errors[i]) >= abs(errors[i - 1]))
            and (i == len(grid) - 1 or abs(errors[i]) >= abs(errors[i + 1]))
        ]
        exchanged = _alternating(extrema, errors, len(points))
        if exchanged is None or [grid[i] for i in exchanged] == points:
            break
        points = [grid[i] for i in exchanged]
    return coefficients


def _alternating(extrema: list[int], errors: list[mpf], count: int) -> list[int] | None:
    """``count`` of the extrema whose errors alternate in sign, the largest of each run."""
    runs: list[int] = []
    for index in extrema:
        if runs and (errors[index] > 0) == (errors[runs[-1]] > 0):
            if abs(errors[index]) > abs(errors[runs[-1]]):
                runs[-1] = index
        else:
            runs.append(index)
    while len(runs) > count:
        runs.pop(0 if abs(errors[runs[0]]) < abs(errors[runs[-1]]) else -1)
    return runs if len(runs) == count else None


def fit_rounded(format: Format, half_width: mpf) -> list[mpf]:
    """The fitted coefficients, times the factor, rounded to the format. The first two of the fit
    are 1, which makes exp(0) exact and so the sigmoid of 0 exactly one half."""
    fitted = fit([mpf(1), mpf(1)], format.degree, half_width)
    return [round_to(format, format.factor * c) for c in fitted]


def proven_error(coefficients: list[mpf], half_width: mpf) -> mpf:
    """A bound on |p(r) exp(-r) - 1| over the whole interval, not only at sampled points.

    On each piece the error at the middle is computed and the rest bounded by the mean value
    theorem: the error's derivative is (p' - p) exp(-r), and p' - p changes over half a piece by
    at most that half times the sum of the absolute coefficients of its own derivative.
    """
    pieces = 4096
    half_piece = half_width / pieces
    slope = [(i + 1) * c for i, c in enumerate(coefficients[1:])]
    difference = [s - c for s, c in zip([*slope, mpf(0)], coefficients, strict=True)]
    curvature = sum(i * abs(c) * half_width ** (i - 1) for i, c in enumerate(difference) if i)
    largest = mpf(0)
    for piece in range(pieces):
        middle = -half_width + (2 * piece + 1) * half_piece
        steepest = (abs(evaluate(difference, middle)) + curvature * half_piece) * mp.exp(half_width)
        largest = max(largest, abs(relative_error(coefficients, middle)) + steepest * half_piece)
    return largest


@dataclass(frozen=True)
class Constants:
    format: Format
    ln2_high: mpf
    ln2_low: mpf
    numerator: mpf
    summand: mpf
    exp: list[mpf]

    @property
    def half_width(self) -> mpf:
        """The largest |r|: rounding to the nearest multiple of ln 2 with the rounded 1 / ln 2
        overshoots half a multiple by at most limit * 2**-precision."""
        return mp.log(2) / 2 + mpf(self.format.limit) * mpf(2) ** -self.format.precision

    def searched(self) -> list[mpf]:
        """Those that the search for a half moves, in the order of a candidate."""
        return [*self.exp, self.ln2_high, self.numerator, self.summand]

    def scalars(self) -> dict[str, mpf]:
        precision, bias = self.format.precision, self.format.exponent_bias
        upper_limit = self.format.upper_limit
        return {
            "limit": mpf(self.format.limit),
            **({} if upper_limit is None else {"upper_limit": mpf(upper_limit)}),
            "log2_e": round_to(self.format, 1 / mp.log(2)),
            "round_shift": 3 * mpf(2) ** (precision - 2) + bias - self.format.scale,
            "ln2_high": self.ln2_high,
            "ln2_low": self.ln2_low,
            "numerator": self.numerator,
            "summand": self.summand,
        }


def float_constants(format: Format) -> Constants:
    """Every constant the nearest number of the format."""
    ln2 = mp.log(2)
    high = round_to(format, ln2)
    scale = format.factor * mpf(2) ** -format.scale
    constants = Constants(format, high, round_to(format, ln2 - high), scale, scale, [])
    return replace(constants, exp=fit_rounded(format, constants.half_width))


# The search. A candidate is a row of integers: by how many last places c0, c1, ..., ln 2, the
# numerator and the summand differ from the nearest numbers. Arithmetic is that of the kernels,
# operation for operation, in arrays of candidates by inputs.


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float32, rounded once. The product is exact in float64; the sum is rounded to odd
    there, so that rounding it again gives what one rounding would."""
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    bits = total.view(np.int64)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + towards, bits)
    return odd.view(np.float64).astype(np.float32)


def moved(values: list[mpf], places: Array) -> list[Array]:
    """Each value moved by the last places in its column, as a column of float32."""
    start = np.array([float(value) for value in values], np.float32).view(np.int32)
    numbers = (start + places).astype(np.int32).view(np.float32)
    return [numbers[:, i : i + 1] for i in range(len(values))]


def rounded_bits(half: Half, values: Array) -> Array:
    """float32 rounded to the half, to nearest and ties to even, as the half's 16 bits."""
    if half.precision == 11:
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def nonnegative_inputs(half: Half) -> Array:
    """Every finite one of the half, as float32."""
    infinity = 0x7C00 if half.precision == 11 else 0x7F80
    bits = np.arange(infinity, dtype=np.uint16)
    if half.precision == 11:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def inputs_of(half: Half) -> Array:
    """Those that the search has to get right: the sign does nothing to exp(|x|)."""
    inputs = nonnegative_inputs(half)
    return inputs if half.format.upper_limit is None else np.concatenate([-inputs, inputs])


@dataclass(frozen=True)
class Truth:
    """sigmoid(-x), sigmoid(x) and the derivative, or sigmoid(x) alone, correctly rounded to the
    half."""

    inputs: Array
    bits: Array  # a row for each
    margin: Array  # distance to the nearest middle between two halves, in last places


def truth(half: Half) -> Truth:
    inputs = inputs_of(half)
    value_alone = half.format.upper_limit is not None
    results = np.zeros((1 if value_alone else 3, len(inputs)), np.float64)
    margins = np.full(len(inputs), 0.5)
    with mp.workdps(40):
        for column, x in enumerate(inputs):
            # Beyond, no digit of any result changes.
            t = 1 / (1 + mp.exp(min(mpf(abs(float(x))), 120)))
            sigmoid = t if x < 0 else 1 - t
            for row, value in enumerate((sigmoid,) if value_alone else (t, 1 - t, t * (1 - t))):
                exponent = max(int(mp.floor(mp.log(value, 2))), half.lowest_exponent)
                place = mpf(2) ** (exponent - half.precision + 1)
                quotient = value / place
                results[row, column] = float(mp.nint(quotient) * place)
                distance = abs(quotient - mp.floor(quotient) - 0.5)
                margins[column] = min(margins[column], float(distance))
    return Truth(inputs, rounded_bits(half, results.astype(np.float32)), margins)


def misrounded(half: Half, nearest: Constants, places: Array, x: Array, bits: Array) -> Array:
    """How many results of each candidate are not the correctly rounded ones."""
    *terms, ln2, numerator, summand = moved(nearest.searched(), places)
    fixed = {name: np.float32(float(value)) for name, value in nearest.scalars().items()}
    shift = fixed["round_shift"]

    # Of -x, for the value alone; the kernels have the signs in their constants.
    a = x if half.format.upper_limit is None else -np.minimum(x, fixed["upper_limit"])
    a = np.minimum(a, fixed["limit"])
    shifted = fma(a, fixed["log2_e"], shift)
    r = fma(shifted - shift, -ln2, a)
    p = terms[-1]
    for term in terms[-2::-1]:
        p = fma(p, r, term)
    power = (shifted.view(np.uint32) << 23).view(np.float32)
    t = numerator / fma(p, power, summand)
    complement = np.float32(1) - t
    results = (t, complement, t * complement) if half.format.upper_limit is None else (t,)
    return sum((rounded_bits(half, v) != b).sum(1) for v, b in zip(results, bits, strict=True))


def steps(half: Half, count: int) -> Iterator[Array]:
    """``count`` small changes to a candidate, again and again: one to three of its numbers moved,
    on every scale up to what is free."""
    # RandomState's stream is frozen, unlike that of NumPy's newer generators.
    random = np.random.RandomState(half.seed)
    free = np.array(half.free)
    movable = np.flatnonzero(free)
    rows = np.arange(count)
    while True:
        changes = np.zeros((count, len(free)), np.int64)
        for _ in range(3):
            column = movable[random.randint(len(movable), size=count)]
            reach = np.minimum(free[column], 1 << random.randint(12, size=count))
            step = random.randint(-reach, reach + 1)
            changes[rows, column] += step
        yield changes


def half_constants(half: Half) -> Constants:
    """The first candidate of a hill climb that rounds every result correctly."""
    format = half.format
    scale = round_to(format, format.factor * mpf(2) ** -format.scale)
    nearest = Constants(format, round_to(format, mp.log(2)), mpf(0), scale, scale, [])
    smooth = fit([], format.degree, nearest.half_width)
    exp = [round_to(format, format.factor * c) for c in smooth]
    nearest = replace(nearest, exp=exp)

    known = truth(half)
    hardest = np.argsort(known.margin, kind="stable")[:256]
    best = np.array([half.start])
    wrong = misrounded(half, nearest, best, known.inputs, known.bits)[0]
    for changes in steps(half, 512):
        if wrong == 0:
            break
        candidates = best + changes
        count = misrounded(half, nearest, candidates, known.inputs[hardest], known.bits[:, hardest])
        promising = candidates[np.argsort(count, kind="stable")[:8]]
        count = misrounded(half, nearest, promising, known.inputs, known.bits)
        if count.min() <= wrong:
            best, wrong = promising[[count.argmin()]], count.min()

    columns = moved(nearest.searched(), best)
    *terms, ln2, numerator, summand = (mpf(float(column[0, 0])) for column in columns)
    return replace(nearest, ln2_high=ln2, numerator=numerator, summand=summand, exp=terms)


def literal(value: mpf, suffix: str = "") -> str:
    significand, exponent = float(value).hex().split("p")
    return f"{significand.rstrip('0').rstrip('.')}p{exponent}{suffix}"


WARNING = "Written by csrc/numerics/generate_coefficients.py; change that and run it again."
MEANING = {
    "limit": "Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.",
    "upper_limit": "Of 1 / (1 + exp(-x)), where `limit` is that of -x: sigmoid(x) rounds to 1.",
    "log2_e": "1 / ln 2.",
    "round_shift": "Adding it rounds to an integer; the low bits are then an exponent field.",
    "ln2_high": "ln 2.",
    "ln2_low": "What ln2_high lacks of ln 2.",
    "numerator": "What stands above in 1 / (1 + exp(|x|)), scaled.",
    "summand": "What stands below beside the exponential, scaled.",
}


def error_line(item: Constants) -> str:
    exp = [c / item.format.factor for c in item.exp]
    exponent = mp.nstr(mp.log(proven_error(exp, item.half_width), 2), 5)
    product = "exp(r)" if item.format.factor == 1 else f"({item.format.factor} exp(r))"
    return f"|p(r) / {product} - 1| <= 2**{exponent} on |r| <= ln(2)/2, proven."


def header(items: list[Constants]) -> str:
    lines = [
        f"// {WARNING}",
        "// Constants of 1 / (1 + exp(|x|)); no torch header, no dependency.",
        "// clang-format off",
        "#pragma once",
        "",
        "namespace fused_sigmoid {",
    ]
    for item in items:
        scalar = "float" if item.format.struct_code == "f" else "double"
        suffix = "f" if scalar == "float" else ""
        lines += ["", f"struct {item.format.structure} {{"]
        is_half = str(item.format in [half.format for half in HALVES]).lower()
        lines += ["  // Whether results are rounded once more, to 16 bits."]
        lines += [f"  static constexpr bool is_half = {is_half};"]
        for name, value in item.scalars().items():
            lines += [f"  // {MEANING[name]}"]
            lines += [f"  static constexpr {scalar} {name} = {literal(value, suffix)};"]
        lines += [f"  // {error_line(item)}"]
        lines += [f"  static constexpr {scalar} exp[{len(item.exp)}] = {{"]
        lines += [f"      {literal(value, suffix)}," for value in item.exp]
        lines += ["  };", "};"]
    return "\n".join([*lines, "", "}  // namespace fused_sigmoid", ""])


MODULE_TEXT = '''\
"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's coefficients.

{warning}
"""

SCALARS = {names}

_NUMBERS = {{
{numbers}
}}
CONSTANTS = {{
    dtype: tuple(map(float.fromhex, numbers.split())) for dtype, numbers in _NUMBERS.items()
}}
'''


def module(items: list[Constants]) -> str:
    lines = []
    for item in items:
        numbers = " ".join(literal(value) for value in (*item.scalars().values(), *item.exp))
        indent = " " * 8
        wrapped = textwrap.fill(numbers, 100, initial_indent=indent, subsequent_indent=indent)
        lines += [
            f"    # {error_line(item)}",
            f'    "{item.format.name}": """',
            wrapped,
            '    """,',
        ]
    names = ", ".join(f'"{name}"' for name in items[0].scalars())
    return MODULE_TEXT.format(warning=WARNING, names=f"({names})", numbers="\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file differs"
    )
    check = parser.parse_args().check
    items = [float_constants(format) for format in FLOATS] + [half_constants(h) for h in HALVES]
    for item in items:
        print(f"{item.format.name}: degree {item.format.degree}, {error_line(item)}")
    stale = []
    # The GPU kernels wait for memory, and have one form for all.
    of_module = [item for item in items if item.format.upper_limit is None]
    for path, text in ((HEADER, header(items)), (MODULE, module(of_module))):
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.write_text(text)
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
