"""Searches the table of powers of two, the polynomial for exp(r) and the ones of 1 / (1 + exp),
proves the polynomial's error, and writes every constant of the kernels, for C++ and for Triton.

Run ``python csrc/numerics/generate_coefficients.py`` after a change; ``--check`` only compares.
Needs mpmath and NumPy: the two files it writes are committed, so no build depends on it.
"""

from __future__ import annotations

import argparse
import struct
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
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

# exp(a) = 2^n 2^(j/8) exp(r), where 2^(j/8) comes from a table.
ENTRIES = 8
POWERS = [mpf(2) ** (mpf(j) / ENTRIES) for j in range(ENTRIES)]
SEED = 1  # of RandomState, whose stream is frozen, unlike that of NumPy's newer generators
WIDTH = mp.log(2) / (2 * ENTRIES)  # |r| is at most this, and a little that the rounding of a adds


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, the arithmetic its sigmoid is computed in, and the choices
    made for its constants."""

    name: str  # as the generated structures and constants spell it
    struct_code: str  # of the arithmetic, for the module struct
    precision: int  # bits of the significand of the arithmetic
    degree: int  # of the polynomial for exp(r); those of 2 and 3 are factored
    limit: int  # larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0
    scale: int  # numerator and denominator carry 2**-scale, so that 2**-scale exp(limit) is finite
    factor: float  # and about this factor: the sum is that of the factor and factor exp(|x|)
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
    # Where the search starts: last places of the table, exp, ln 2, the numerator and the summand.
    start: tuple[int, ...]


# exp(-104) < 2**-150, half the smallest subnormal of float32, exp(-746) < 2**-1075, half that of
# float64. Of the factors that were tried these gave the smallest errors.
FLOAT32 = Format("float32", "f", 24, 3, 104, 30, 0.811)
FLOAT64 = Format("float64", "d", 53, 7, 746, 60, 0.87)

# A half needs 11 or 8 bits: ln 2 in one piece is enough, and in bfloat16 a shorter polynomial. Hard
# are only the results so near the middle between two halves that the float32 result falls on the
# middle itself or beyond; there the last places of the constants decide. Each search starts beside
# numbers that are right, so that it is short.
HALVES = (
    # No smooth error can be right everywhere: below x = 0.011 the smaller result, t, must come out
    # too large, at 0.6914 the derivative too small. A larger table and a smaller summand do that.
    Half(
        Format("float16", "f", 24, 3, 40, 0, 0.811),
        precision=11,
        lowest_exponent=-14,
        start=(6,) * 8 + (0, 0, 0, 1, 0, -10),
    ),
    Half(
        Format("bfloat16", "f", 24, 2, 104, 30, 0.811),
        precision=8,
        lowest_exponent=-126,
        start=(0,) * 12 + (-48,),
    ),
    # The value alone, as 1 / (1 + exp(-x)): neither absolute value nor selection. Beyond 40 every
    # half is 1. Near 0 some results lie beside middles that are a little farther from 1/2, so that
    # the polynomial has to be a little less steep; at 0.2275 one must come out smaller.
    Half(
        Format("bfloat16_value", "f", 24, 2, 104, 30, 0.811, upper_limit=40),
        precision=8,
        lowest_exponent=-126,
        start=(0, 0, 0, 0, 0, 60, 0, 0, -2000, 0, 0, 0, 0),
    ),
)


def round_to(format: Format, value: mpf) -> mpf:
    """``value`` rounded once, to nearest and ties to even, to a normal number of the format."""
    significand, exponent = mp.frexp(value)
    integer = mp.nint(mp.ldexp(significand, format.precision))
    return mp.ldexp(integer, exponent - format.precision)


def evaluate(coefficients: list[mpf], r: mpf) -> mpf:
    return mp.polyval(coefficients[::-1], r)


def relative_error(coefficients: list[mpf], r: mpf) -> mpf:
    return evaluate(coefficients, r) * mp.exp(-r) - 1


def fit(degree: int) -> list[mpf]:
    """The polynomial closest to exp in relative error on |r| <= WIDTH, by Remez's exchange: where
    the error is largest, once in each stretch of one sign, it is made equal, again and again."""
    points = [WIDTH * mp.cos(mp.pi * i / (degree + 1)) for i in range(degree + 2)]
    grid = [WIDTH * mp.cos(mp.pi * i / 400) for i in range(401)]
    while True:
        rows = [
            [*(r**power * mp.exp(-r) for power in range(degree + 1)), (-1) ** i]
            for i, r in enumerate(points)
        ]
        *coefficients, _ = mp.lu_solve(mp.matrix(rows), mp.ones(degree + 2, 1))
        sizes = [abs(relative_error(coefficients, r)) for r in grid]
        neighbours = zip(grid, sizes, [mpf(0), *sizes], [*sizes[1:], mpf(0)], strict=False)
        largest = [r for r, size, *others in neighbours if size >= max(others)]
        if largest == points:
            return coefficients
        if len(largest) != len(points):
            raise SystemExit(f"degree {degree}: the exchange fails")
        points = largest


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
    table: list[mpf]  # in proportion to 2^(j/8)
    exp: list[mpf]  # of p(r), in proportion to exp(r)
    ln2_high: mpf
    ln2_low: mpf
    numerator: mpf  # table[0] times p(0) is about the same
    summand: mpf

    @property
    def half_width(self) -> mpf:
        """The largest |r|: rounding to the nearest multiple of ln(2)/8 with the rounded 1 / ln 2
        overshoots by at most limit * 2**-precision, and ln 2 itself may be off."""
        off = abs(self.ln2_high + self.ln2_low - mp.log(2)) / mp.log(2)
        return WIDTH + self.format.limit * (mpf(2) ** -self.format.precision + off)

    def coefficients(self) -> list[mpf]:
        """Those of p(r), which the factored forms (r + e0)^2 + e1 and r ((r + e0)^2 + e1) + e2
        hold, with 1 as the leading one."""
        if self.format.degree > 3:
            return self.exp
        return [*self.exp[2:], self.exp[0] ** 2 + self.exp[1], 2 * self.exp[0], mpf(1)]

    @property
    def unit(self) -> mpf:
        """table[j] is about this times 2^(j/8)."""
        quotients = [entry / power for entry, power in zip(self.table, POWERS, strict=True)]
        return (min(quotients) + max(quotients)) / 2

    def error_of_polynomial(self) -> mpf:
        scaled = [c * self.unit / self.numerator for c in self.coefficients()]
        return proven_error(scaled, self.half_width)

    def error_of_table(self) -> mpf:
        """The largest error of an entry, in its last places."""
        errors = []
        for entry, power in zip(self.table, POWERS, strict=True):
            place = mpf(2) ** (mp.floor(mp.log(entry, 2)) + 1 - self.format.precision)
            errors.append(abs(entry - self.unit * power) / place)
        return max(errors)

    def searched(self) -> list[mpf]:
        """In the order of a candidate, see below."""
        return [*self.table, *self.exp, self.ln2_high, self.numerator, self.summand]

    def scalars(self) -> dict[str, mpf]:
        upper_limit = self.format.upper_limit
        return {
            "limit": mpf(self.format.limit),
            **({} if upper_limit is None else {"upper_limit": mpf(upper_limit)}),
            "log2_e": round_to(self.format, 1 / mp.log(2)),
            "round_shift": 3 * mpf(2) ** (self.format.precision - 2) / ENTRIES,
            "ln2_high": self.ln2_high,
            "ln2_low": self.ln2_low,
            "numerator": self.numerator,
            "summand": self.summand,
        }

    def powers(self) -> list[int]:
        """The bits of the entries, less what j adds where the bits of n + j/8 are added to them."""
        code = self.format.struct_code
        integer = {"f": "I", "d": "Q"}[code]
        bits = [struct.unpack(integer, struct.pack(code, float(entry)))[0] for entry in self.table]
        step = 2 ** (self.format.precision - 1) // ENTRIES
        return [number - j * step for j, number in enumerate(bits)]


def factored(format: Format, coefficients: list[mpf]) -> list[mpf]:
    """The rounded numbers of the factored form, see Constants.coefficients."""
    *lower, constant, slope = [c / coefficients[-1] for c in coefficients[:-1]]
    first = round_to(format, slope / 2)
    second = round_to(format, constant - first**2)
    return [first, second, *(round_to(format, c) for c in lower)]


def constants_of(format: Format, unit: mpf, exp: list[mpf], one: mpf) -> Constants:
    """Every constant the nearest number of the format."""
    scale = mpf(2) ** -format.scale
    table = [round_to(format, unit * power) * scale for power in POWERS]
    one = round_to(format, one) * scale
    high = round_to(format, mp.log(2))
    low = round_to(format, mp.log(2) - high)
    return Constants(format, table, exp, high, low, one, one)


def units_with_exact_tables(format: Format, start: mpf, count: int) -> Iterator[mpf]:
    """Numbers u for which all of u 2^(j/8) are close to numbers of the format, the best ones first.

    u is close to one of the ``count`` numbers of the format from ``start`` on. For each of these
    the relative errors of the other entries are found, and u is where the largest two are equal.
    """
    scale = mpf(2) ** (format.precision - 1 - int(mp.floor(mp.log(start, 2))))
    first = int(start * scale)
    steps = np.arange(count)
    lowest, highest = np.zeros(count), np.zeros(count)
    for power in POWERS[1:]:
        # The entry in last places of u: what exceeds an even number is exact enough in float64.
        even = 2 * int(first * power / 2)
        rest = float(first * power - even) + steps * float(power)
        place = np.where(even + rest < 2**format.precision, 1, 2)
        error = (np.rint(rest / place) * place - rest) / (even + rest)
        lowest, highest = np.minimum(lowest, error), np.maximum(highest, error)
    middle = (lowest + highest) / 2
    for i in np.argsort(highest - lowest, kind="stable"):
        yield (first + int(i)) * (1 + mpf(middle[i])) / scale


def float64_constants() -> Constants:
    """The best table. All p(r) lie just below 2, where a last place is least beside a number."""
    fitted = fit(FLOAT64.degree)
    largest = mpf(1.9)
    unit = next(units_with_exact_tables(FLOAT64, FLOAT64.factor / largest, 1 << 22))
    # The one, too, is to be close to a number of the format.
    ones = {
        unit * size / fitted[0]: size for size in [largest + i * mpf(2) ** -52 for i in range(256)]
    }
    one = min(ones, key=lambda one: abs(round_to(FLOAT64, one) / one - 1))
    exp = [round_to(FLOAT64, c * ones[one] / fitted[0]) for c in fitted]
    return constants_of(FLOAT64, unit, exp, one)


# The searches in float32 arithmetic. A candidate is a row of numbers, those of Constants.searched.
# Arithmetic is that of the kernels, operation for operation, in arrays of candidates by inputs.


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float32, rounded once. The product is exact in float64. Where the float64 sum may
    be the middle between two float32, it is rounded to odd instead, so that rounding it again gives
    what one rounding would."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    doubtful = np.nonzero(total.view(np.int64) & (1 << 28) - 1 == 0)
    product, addend = (array[doubtful] for array in np.broadcast_arrays(product, addend))
    near = total[doubtful]
    rest = near - product
    error = (product - (near - rest)) + (addend - rest)
    towards = np.where((error > 0) == (near > 0), 1, -1)
    total.view(np.int64)[doubtful] += np.where(error == 0, 0, towards)
    return total.astype(np.float32)


@dataclass(frozen=True)
class Inputs:
    """Inputs, and what the kernels make of them before a searched constant comes in."""

    x: Array
    a: Array
    m: Array  # multiples of 1/8
    bits: Array  # of m plus the shift


def inputs_of(format: Format, x: Array) -> Inputs:
    # Of -x, for the value alone; the kernels have the signs in their constants.
    a = x if format.upper_limit is None else -np.minimum(x, np.float32(format.upper_limit))
    a = np.minimum(a, np.float32(format.limit))
    shift = np.float32(3 * 2.0 ** (format.precision - 2) / ENTRIES)
    shifted = fma(a, np.float32(1 / np.log(2)), shift)
    return Inputs(x, a, shifted - shift, shifted.view(np.uint32))


def smaller(inputs: Inputs, candidates: Array, ln2_low: float) -> Array:
    """t = 1 / (1 + exp(a)), a row for each candidate."""
    powers = candidates[:, :ENTRIES].copy().view(np.uint32)
    powers -= np.arange(ENTRIES, dtype=np.uint32) << 20
    *exp, ln2_high, numerator, summand = candidates.T[ENTRIES:, :, np.newaxis]
    if (ln2_high == ln2_high[0]).all():
        ln2_high = ln2_high[:1]  # then r is the same for all
    r = fma(inputs.m, -ln2_high, inputs.a)
    if ln2_low:
        r = fma(inputs.m, np.float32(-ln2_low), r)
    w = r + exp[0]
    p = fma(w, w, exp[1])
    if len(exp) == 3:
        p = fma(r, p, exp[2])
    power = (powers[:, inputs.bits % ENTRIES] + (inputs.bits << 20)).view(np.float32)
    return numerator / fma(power, p, summand)


def rows(items: list[Constants]) -> Array:
    return np.array([[float(number) for number in item.searched()] for item in items], np.float32)


# The largest errors that are promised of float32, in ulp: of t (1 - t has half of them, and a
# rounding) and of the derivative.
PROMISED = (2.2, 2.9)


def beside_promise(inputs: Inputs, candidates: Array, ln2_low: float) -> Array:
    """Of each candidate, the largest error beside what is promised."""
    t = smaller(inputs, candidates, ln2_low)
    e = np.exp(-inputs.x.astype(np.float64))
    worst = np.zeros(len(candidates))
    exacts = (e / (1 + e), e / (1 + e) ** 2)
    for result, exact, promised in zip((t, fma(-t, t, t)), exacts, PROMISED, strict=True):
        ulp = np.exp2(np.frexp(exact)[1] - FLOAT32.precision)
        worst = np.maximum(worst, (np.abs(result - exact) / ulp).max(1) / promised)
    return worst


def where_errors_count_most(x: Array) -> Array:
    """The inputs where t or the derivative lies just below a power of two, so that a relative error
    is most ulps, or the denominator near one, above which it rounds most."""
    e = np.exp(-x.astype(np.float64))
    of_t, of_derivative, of_denominator = (
        2 * np.frexp(number)[0]
        for number in (e / (1 + e), e / (1 + e) ** 2, FLOAT32.factor * (1 + 1 / e))
    )
    return x[
        (of_t > 1.93) | (of_derivative > 1.93) | (of_denominator < 1.06) | (of_denominator > 1.97)
    ]


def float32_candidates() -> Iterator[Constants]:
    """For the best tables, polynomials near the fitted one with which the one is close to a number
    of the format."""
    fitted = fit(FLOAT32.degree)
    size = round_to(FLOAT32, fitted[0] / fitted[3])  # p(0), beside a leading coefficient of 1
    sizes = float(size) + np.arange(-(1 << 12), 1 << 12) * 2.0**-21
    for unit in islice(units_with_exact_tables(FLOAT32, FLOAT32.factor / size, 1 << 17), 24):
        ones = sizes * float(unit / fitted[0]) * 2.0**FLOAT32.precision
        for i in np.argsort(np.abs(np.rint(ones) - ones), kind="stable")[:128]:
            leading = fitted[0] / mpf(sizes[i])
            # The linear term makes up for what the cubic one lacks, by Chebyshev's polynomial.
            linear = fitted[1] + (fitted[3] - leading) * WIDTH**2 * 3 / 4
            exp = factored(FLOAT32, [fitted[0], linear, fitted[2], leading])
            yield constants_of(FLOAT32, unit, exp, mpf(ones[i]) / 2**FLOAT32.precision)


def float32_constants() -> Constants:
    """The candidate with the smallest errors: each round tries those left on more inputs, the last
    one on all that count."""
    candidates = list(float32_candidates())
    # t is subnormal beyond 87.3, and near 0 less is lost.
    first, last = np.array([0.7, 87.3], np.float32).view(np.uint32)
    for stride in (911, 229, 57, 15, 1):  # odd, so that the inputs' last bits differ
        bits = np.array_split(np.arange(first, last, stride, dtype=np.uint32), 64)
        x = np.concatenate([where_errors_count_most(part.view(np.float32)) for part in bits])
        numbers, ln2_low = rows(candidates), float(candidates[0].ln2_low)
        worst = np.zeros(len(candidates))
        for piece in np.array_split(x, len(x) * len(candidates) // (1 << 17) + 1):
            found = beside_promise(inputs_of(FLOAT32, piece), numbers, ln2_low)
            worst = np.maximum(worst, found)
        best = np.argsort(worst, kind="stable")[: len(candidates) // 4]
        candidates = [candidates[i] for i in best]
    if worst.min() > 1:
        raise SystemExit(f"float32: {worst.min()} times the error that is promised")
    return candidates[0]


def roundings(half: Half, values: Array) -> list[Array]:
    """The half's 16 bits of float32, by every rounding that a kernel may use. The CPU kernels store
    bfloat16 rounded half up, which takes fewer operations than to even; all others round to even.
    """
    if half.precision == 11:
        return [values.astype(np.float16).view(np.uint16)]
    bits = values.view(np.uint32)
    up = (bits + np.uint32(0x8000)) >> 16
    even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return [even.astype(np.uint16), up.astype(np.uint16)]


def finite_inputs(half: Half) -> Array:
    """Every one of the half, as float32. The sign does nothing to exp(|x|)."""
    bits = np.arange(0x7C00 if half.precision == 11 else 0x7F80, dtype=np.uint16)
    if half.precision == 11:
        return bits.view(np.float16).astype(np.float32)
    inputs = (bits.astype(np.uint32) << 16).view(np.float32)
    return inputs if half.format.upper_limit is None else np.concatenate([-inputs, inputs])


def truth(half: Half, x: Array) -> Array:
    """The bits of sigmoid(-x), sigmoid(x) and the derivative, or of sigmoid(x) alone, correctly
    rounded to the half."""
    e = np.exp(-np.abs(x).astype(np.float64))
    t, complement, derivative = e / (1 + e), 1 / (1 + e), e / (1 + e) ** 2
    alone = half.format.upper_limit is not None
    results = np.array([np.where(x < 0, t, complement)] if alone else [t, complement, derivative])
    exponents = np.maximum(np.frexp(results)[1] - 1, half.lowest_exponent)
    places = np.exp2(exponents - half.precision + 1)
    quotients = results / places
    # The float64 are off by less than 2**-40 last places of a half: that has to be enough.
    assert np.abs(quotients - np.floor(quotients) - 0.5).min() > 2.0**-36
    return roundings(half, (np.rint(quotients) * places).astype(np.float32))[0]


def misrounded(half: Half, inputs: Inputs, bits: Array, candidates: Array) -> Array:
    """How many results of each candidate are not the correctly rounded ones."""
    t = smaller(inputs, candidates, ln2_low=0)
    complement = np.float32(1) - t
    results = (t, complement, t * complement) if half.format.upper_limit is None else (t,)
    count = np.zeros(len(candidates), np.int64)
    for result, expected in zip(results, bits, strict=True):
        for rounded in roundings(half, result):
            count += (rounded != expected).sum(1)
    return count


def moved(nearest: Constants, places: Array) -> Array:
    """Candidates: each number moved by the last places in its column. The polynomial's second
    number makes up for the first, so that they can be moved one by one."""
    numbers = (rows([nearest]).view(np.int32) + places).astype(np.int32).view(np.float32)
    first, second = nearest.exp[:2]
    made_up = float(first**2 + second) - numbers[:, ENTRIES].astype(np.float64) ** 2
    bits = made_up.astype(np.float32).view(np.int32) + places[:, ENTRIES + 1]
    numbers[:, ENTRIES + 1] = bits.astype(np.int32).view(np.float32)
    return numbers


def steps(random: np.random.RandomState, count: int, length: int) -> Array:
    """``count`` small changes to a candidate: one to three of its numbers moved, those of the table
    a little, those of the polynomial, which count less, more."""
    reach = np.array((4,) * ENTRIES + (1 << 10,) * (length - ENTRIES - 3) + (1, 16, 16))
    changes = np.zeros((count, length), np.int64)
    for _ in range(3):
        column = random.randint(length, size=count)
        furthest = np.minimum(reach[column], 1 << random.randint(11, size=count))
        changes[np.arange(count), column] += random.randint(-furthest, furthest + 1)
    return changes


def half_constants(half: Half) -> Constants:
    """The first candidate of a hill climb that rounds every result correctly."""
    fitted = fit(half.format.degree)
    one = mpf(half.format.factor)
    nearest = constants_of(half.format, one * fitted[-1], factored(half.format, fitted), one)
    x = finite_inputs(half)
    bits, inputs = truth(half, x), inputs_of(half.format, x)
    random = np.random.RandomState(SEED)
    places = np.array([half.start])
    wrong = np.inf
    for _ in range(100):
        count = misrounded(half, inputs, bits, moved(nearest, places))
        if count.min() <= wrong:
            best, wrong = places[[count.argmin()]], count.min()
        if wrong == 0:
            break
        places = best + steps(random, 32, len(half.start))

    numbers = [mpf(float(number)) for number in moved(nearest, best)[0]]
    *exp, ln2, numerator, summand = numbers[ENTRIES:]
    found = Constants(half.format, numbers[:ENTRIES], exp, ln2, mpf(0), numerator, summand)
    wrong = misrounded(half, inputs, bits, rows([found]))[0]
    if wrong:
        raise SystemExit(f"{half.format.name}: {wrong} results are not the nearest")
    return found


def literal(value: mpf, suffix: str = "") -> str:
    significand, exponent = float(value).hex().split("p")
    return f"{significand.rstrip('0').rstrip('.')}p{exponent}{suffix}"


WARNING = "Written by csrc/numerics/generate_coefficients.py; change that and run it again."
MEANING = {
    "limit": "Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.",
    "upper_limit": "Of 1 / (1 + exp(-x)), where `limit` is that of -x: sigmoid(x) rounds to 1.",
    "log2_e": "1 / ln 2.",
    "round_shift": "Adding it rounds to a multiple of 1/8, which the low bits then count.",
    "ln2_high": "ln 2.",
    "ln2_low": "What ln2_high lacks of ln 2.",
    "numerator": "What stands above in 1 / (1 + exp(|x|)), scaled.",
    "summand": "What stands below beside the exponential, scaled.",
}
FORMS = {
    2: "(r + exp[0])^2 + exp[1]",
    3: "r ((r + exp[0])^2 + exp[1]) + exp[2]",
    8: "exp[0] + r (exp[1] + r (exp[2] + ... + r exp[7]))",
}


def rounded_up(number: mpf, digits: int) -> str:
    return f"{float(mp.ceil(number * 10**digits) / 10**digits):.{digits}f}"


def error_lines(item: Constants) -> list[str]:
    exponent = rounded_up(mp.log(item.error_of_polynomial(), 2), 3)
    return [
        f"p(r) = {FORMS[len(item.exp)]} is in proportion to exp(r),",
        f"within a factor of 1 +- 2**{exponent} on |r| <= ln(2)/16, proven.",
    ]


HEADER_TEXT = """\
// {warning}
// Constants of 1 / (1 + exp(|x|)); no torch header, no dependency.
// clang-format off
#pragma once

#include <cstdint>

namespace fused_sigmoid {{
{structures}
}}  // namespace fused_sigmoid
"""


def structure(item: Constants) -> str:
    single = item.format.struct_code == "f"
    scalar, integer, suffix = ("float", "uint32_t", "f") if single else ("double", "uint64_t", "")
    is_half = item.format in [half.format for half in HALVES]

    def array(kind: str, name: str, words: list[str]) -> list[str]:
        start = f"static constexpr {kind} {name}[{len(words)}] = {{"
        return [start, *(f"    {word}," for word in words), "};"]

    lines = ["// Whether results are rounded once more, to 16 bits."]
    lines += [f"static constexpr bool is_half = {str(is_half).lower()};"]
    for name, value in item.scalars().items():
        lines += [f"// {MEANING[name]}"]
        lines += [f"static constexpr {scalar} {name} = {literal(value, suffix)};"]
    lines += [f"// {line}" for line in error_lines(item)]
    lines += array(scalar, "exp", [literal(value, suffix) for value in item.exp])
    shift, off = item.format.precision - 4, rounded_up(item.error_of_table(), 2)
    lines += [f"// powers[j] + (j << {shift}) are the bits of a number in proportion to 2^(j/8),"]
    lines += [f"// off by at most {off} ulp. That for j = 0 times p(0) is about the numerator."]
    lines += array(integer, "powers", [f"{power:#x}" for power in item.powers()])
    body = textwrap.indent("\n".join(lines), "  ")
    return f"\nstruct {item.format.structure} {{\n{body}\n}};\n"


def header(items: list[Constants]) -> str:
    return HEADER_TEXT.format(warning=WARNING, structures="".join(map(structure, items)))


MODULE_TEXT = '''\
"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's; and the table of powers of two.

{warning}
"""

SCALARS = {names}

_NUMBERS = {{
{numbers}
}}
CONSTANTS = {{
    dtype: tuple(map(float.fromhex, numbers.split())) for dtype, numbers in _NUMBERS.items()
}}

_BITS = {{
{bits}
}}
POWERS = {{dtype: tuple(int(word, 16) for word in bits.split()) for dtype, bits in _BITS.items()}}
'''


def module(items: list[Constants]) -> str:
    def block(item: Constants, words: list[str]) -> list[str]:
        wrapped = textwrap.wrap(" ".join(words), 92)
        return [f'    "{item.format.name}": """', *(" " * 8 + line for line in wrapped), '    """,']

    numbers: list[str] = []
    bits: list[str] = []
    for item in items:
        numbers += [f"    # {line}" for line in error_lines(item)]
        numbers += block(item, [literal(value) for value in (*item.scalars().values(), *item.exp)])
        bits += block(item, [f"{power:#x}" for power in item.powers()])
    names = ", ".join(f'"{name}"' for name in items[0].scalars())
    return MODULE_TEXT.format(
        warning=WARNING, names=f"({names})", numbers="\n".join(numbers), bits="\n".join(bits)
    )


def check_zero(item: Constants) -> None:
    """sigmoid(0) has to be exactly one half."""
    denominator = item.table[0] * item.coefficients()[0] + item.summand
    if round_to(item.format, denominator) != 2 * item.numerator:
        raise SystemExit(f"{item.format.name}: the sigmoid of 0 is not one half")


def texts() -> dict[Path, str]:
    """What the two files are to hold."""
    floats = [float32_constants(), float64_constants()]
    for item in floats:
        check_zero(item)
    items = floats + [half_constants(half) for half in HALVES]
    for item in items:
        print(f"{item.format.name}:", *error_lines(item))
    # The GPU kernels wait for memory, and have one form for all.
    of_module = [item for item in items if item.format.upper_limit is None]
    return {HEADER: header(items), MODULE: module(of_module)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file differs"
    )
    check = parser.parse_args().check
    stale = []
    for path, text in texts().items():
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.write_text(text)
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
