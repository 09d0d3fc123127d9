"""Searches the table of powers of two, the polynomial for exp(r) and the ones of 1 / (1 + exp),
proves the polynomial's error, and writes every constant of the kernels, for C++ and for Triton.

Run ``python csrc/numerics/generate_coefficients.py`` after a change; ``--check`` only compares.
Needs mpmath and NumPy: the two files it writes are committed, so no build depends on it. What the
sigmoid shares with other functions is in exponential_coefficients.py; those of the loss come from
loss_coefficients.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from mpmath import mp, mpf

# A file that runpy runs does not find those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import loss_coefficients as loss
from exponential_coefficients import (
    BFLOAT16,
    ENTRIES,
    FLOAT16,
    MEANING_OF_REDUCTION,
    POWERS,
    WIDTH,
    Array,
    Format,
    Member,
    Reduction,
    Stored,
    block,
    climb,
    correctly_rounded,
    finite_inputs,
    fma,
    misroundings,
    pieces_of_ln2,
    powers_member,
    proven_error,
    proven_factor,
    relative_error,
    round_to,
    structure,
    table,
    units_with_exact_tables,
)

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "numerics" / "coefficients.h"
MODULE = ROOT / "fused_sigmoid" / "triton" / "coefficients.py"


@dataclass(frozen=True)
class SigmoidFormat(Format):
    """Numerator and denominator carry 2**-scale, so that 2**-scale exp(limit) is finite, and
    sigmoid(-limit), times any number, rounds to 0. The polynomials of degree 2 and 3 are factored.
    """

    factor: float  # of numerator and denominator, about: that of exp(|x|) is in the table
    upper_limit: int | None = None  # of 1 / (1 + exp(-x)), which needs one on either side


@dataclass(frozen=True)
class Half:
    """A format computed in float32 and rounded once more, whose constants are searched."""

    format: SigmoidFormat
    stored: Stored
    # Where the search starts: last places of the table, exp, ln 2, the numerator and the summand.
    start: tuple[int, ...]


# exp(-104) < 2**-150, half the smallest subnormal of float32, exp(-746) < 2**-1075, half that of
# float64. Of the factors that were tried these gave the smallest errors.
FLOAT32 = SigmoidFormat("float32", "f", 24, 3, 104, 30, 0.811)
FLOAT64 = SigmoidFormat("float64", "d", 53, 7, 746, 60, 0.87)

# A half needs 11 or 8 bits: ln 2 in one piece is enough, and in bfloat16 a shorter polynomial. Hard
# are only the results so near the middle between two halves that the float32 result falls on the
# middle itself or beyond; there the last places of the constants decide. Each search starts beside
# numbers that are right, so that it is short.
HALVES = (
    # No smooth error can be right everywhere: below x = 0.011 the smaller result, t, must come out
    # too large, at 0.6914 the derivative too small. A larger table and a smaller summand do that.
    Half(
        SigmoidFormat("float16", "f", 24, 3, 40, 0, 0.811),
        FLOAT16,
        start=(6,) * 8 + (0, 0, 0, 1, 0, -10),
    ),
    Half(
        SigmoidFormat("bfloat16", "f", 24, 2, 104, 30, 0.811),
        BFLOAT16,
        start=(0,) * 12 + (-48,),
    ),
    # The value alone, as 1 / (1 + exp(-x)): neither absolute value nor selection. Beyond 40 every
    # half is 1. Near 0 some results lie beside middles that are a little farther from 1/2, so that
    # the polynomial has to be a little less steep; at 0.2275 one must come out smaller.
    Half(
        SigmoidFormat("bfloat16_value", "f", 24, 2, 104, 30, 0.811, upper_limit=40),
        BFLOAT16,
        start=(0, 0, 0, 0, 0, 60, 0, 0, -2000, 0, 0, 0, 0),
    ),
)


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


@dataclass(frozen=True)
class Constants(Reduction):
    format: SigmoidFormat
    table: list[mpf]  # in proportion to 2^(j/8)
    exp: list[mpf]  # of p(r), in proportion to exp(r)
    ln2_high: mpf
    ln2_low: mpf
    numerator: mpf  # table[0] times p(0) is about the same
    summand: mpf

    def coefficients(self) -> list[mpf]:
        """Those of p(r), which the factored forms (r + e0)^2 + e1 and r ((r + e0)^2 + e1) + e2
        hold, with 1 as the leading one."""
        if self.format.degree > 3:
            return self.exp
        return [*self.exp[2:], self.exp[0] ** 2 + self.exp[1], 2 * self.exp[0], mpf(1)]

    def error_of_polynomial(self) -> mpf:
        scaled = [c * self.unit / self.numerator for c in self.coefficients()]
        return proven_error(scaled, self.half_width)

    def searched(self) -> list[mpf]:
        """In the order of a candidate, see below."""
        return [*self.table, *self.exp, self.ln2_high, self.numerator, self.summand]

    def scalars(self) -> dict[str, mpf]:
        upper_limit = self.format.upper_limit
        return {
            "limit": mpf(self.format.limit),
            **({} if upper_limit is None else {"upper_limit": mpf(upper_limit)}),
            **self.reduction(),
            "numerator": self.numerator,
            "summand": self.summand,
        }


def factored(format: Format, coefficients: list[mpf]) -> list[mpf]:
    """The rounded numbers of the factored form, see Constants.coefficients."""
    *lower, constant, slope = [c / coefficients[-1] for c in coefficients[:-1]]
    first = round_to(format, slope / 2)
    second = round_to(format, constant - first**2)
    return [first, second, *(round_to(format, c) for c in lower)]


def constants_of(format: SigmoidFormat, unit: mpf, exp: list[mpf], one: mpf) -> Constants:
    """Every constant the nearest number of the format."""
    scale = mpf(2) ** -format.scale
    table = [round_to(format, unit * power) * scale for power in POWERS]
    one = round_to(format, one) * scale
    return Constants(format, table, exp, *pieces_of_ln2(format), one, one)


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


@dataclass(frozen=True)
class Inputs:
    """Inputs, and what the kernels make of them before a searched constant comes in."""

    x: Array
    a: Array
    m: Array  # multiples of 1/8
    bits: Array  # of m plus the shift


def inputs_of(format: SigmoidFormat, x: Array) -> Inputs:
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


def inputs_of_half(half: Half) -> Array:
    """Every finite one; the sign does nothing to exp(|x|)."""
    inputs = finite_inputs(half.stored)
    return inputs if half.format.upper_limit is None else np.concatenate([-inputs, inputs])


def truth(half: Half, x: Array) -> Array:
    """The bits of sigmoid(-x), sigmoid(x) and the derivative, or of sigmoid(x) alone, correctly
    rounded to the half."""
    e = np.exp(-np.abs(x).astype(np.float64))
    t, complement, derivative = e / (1 + e), 1 / (1 + e), e / (1 + e) ** 2
    alone = half.format.upper_limit is not None
    results = [np.where(x < 0, t, complement)] if alone else [t, complement, derivative]
    return correctly_rounded(half.stored, np.array(results))


def misrounded(half: Half, inputs: Inputs, bits: Array, candidates: Array) -> Array:
    """How many results of each candidate are not the correctly rounded ones."""
    t = smaller(inputs, candidates, ln2_low=0)
    complement = np.float32(1) - t
    results = (t, complement, t * complement) if half.format.upper_limit is None else (t,)
    return misroundings(half.stored, results, bits)


def moved(nearest: Constants, places: Array) -> Array:
    """Candidates: each number moved by the last places in its column. The polynomial's second
    number makes up for the first, so that they can be moved one by one."""
    numbers = (rows([nearest]).view(np.int32) + places).astype(np.int32).view(np.float32)
    first, second = nearest.exp[:2]
    made_up = float(first**2 + second) - numbers[:, ENTRIES].astype(np.float64) ** 2
    bits = made_up.astype(np.float32).view(np.int32) + places[:, ENTRIES + 1]
    numbers[:, ENTRIES + 1] = bits.astype(np.int32).view(np.float32)
    return numbers


def reach(half: Half) -> Array:
    """How far a step of the search may move the numbers: those of the table a little, those of the
    polynomial, which count less, more."""
    exp = len(half.start) - ENTRIES - 3
    return np.array((4,) * ENTRIES + (1 << 10,) * exp + (1, 16, 16))


def half_constants(half: Half) -> Constants:
    """The first candidate of a hill climb that rounds every result correctly."""
    fitted = fit(half.format.degree)
    one = mpf(half.format.factor)
    nearest = constants_of(half.format, one * fitted[-1], factored(half.format, fitted), one)
    x = inputs_of_half(half)
    bits, inputs = truth(half, x), inputs_of(half.format, x)
    best = climb(
        np.array(half.start),
        reach(half),
        lambda places: misrounded(half, inputs, bits, moved(nearest, places)),
    )
    numbers = [mpf(float(number)) for number in moved(nearest, best)[0]]
    *exp, ln2, numerator, summand = numbers[ENTRIES:]
    found = Constants(half.format, numbers[:ENTRIES], exp, ln2, mpf(0), numerator, summand)
    wrong = misrounded(half, inputs, bits, rows([found]))[0]
    if wrong:
        raise SystemExit(f"{half.format.name}: {wrong} results are not the nearest")
    return found


WARNING = "Written by csrc/numerics/generate_coefficients.py; change that and run it again."
MEANING = {
    **MEANING_OF_REDUCTION,
    "limit": "Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.",
    "upper_limit": "Of 1 / (1 + exp(-x)), where `limit` is that of -x: sigmoid(x) rounds to 1.",
    "numerator": "What stands above in 1 / (1 + exp(|x|)), scaled.",
    "summand": "What stands below beside the exponential, scaled.",
}
FORMS = {
    2: "(r + exp[0])^2 + exp[1]",
    3: "r ((r + exp[0])^2 + exp[1]) + exp[2]",
    8: "exp[0] + r (exp[1] + r (exp[2] + ... + r exp[7]))",
}


def error_lines(item: Constants) -> list[str]:
    return [
        f"p(r) = {FORMS[len(item.exp)]} is in proportion to exp(r),",
        f"{proven_factor(item.error_of_polynomial())} on |r| <= ln(2)/16, proven.",
    ]


HEADER_TEXT = """\
// {warning}
// Constants of 1 / (1 + exp(|x|)) and log(1 + exp(-|x|)); no torch header, no dependency.
// clang-format off
#pragma once

#include <cstdint>

namespace fused_sigmoid {{
{structures}
}}  // namespace fused_sigmoid
"""


def structure_of(item: Constants) -> str:
    is_half = item.format in [half.format for half in HALVES]
    exp = Member("exp", error_lines(item), item.exp)
    powers = powers_member(item, "That for j = 0 times p(0) is about the numerator.")
    return structure(item.format, is_half, item.scalars(), MEANING, [exp, powers])


def header(items: list[Constants], of_loss: list[loss.LossConstants]) -> str:
    structures = [*map(structure_of, items), *map(loss.structure_of, of_loss)]
    return HEADER_TEXT.format(warning=WARNING, structures="".join(structures))


MODULE_TEXT = '''\
"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's; and the table of powers of two. Those
of the loss, log(1 + exp(-|x|)), are the same for both halves.

{warning}
"""

SCALARS = {names}
LOSS_SCALARS = {loss_names}


def _numbers(texts: dict[str, str]) -> dict[str, tuple[float, ...]]:
    return {{dtype: tuple(map(float.fromhex, text.split())) for dtype, text in texts.items()}}


def _bits(texts: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {{dtype: tuple(int(word, 16) for word in text.split()) for dtype, text in texts.items()}}


{tables}'''


def names(item: Constants | loss.LossConstants) -> str:
    return "({})".format(", ".join(f'"{name}"' for name in item.scalars()))


def numbers_block(item: Constants) -> list[str]:
    values = (*item.scalars().values(), *item.exp)
    return block(item.format.name, values, error_lines(item))


def module(items: list[Constants], of_loss: list[loss.LossConstants]) -> str:
    tables = [
        table("CONSTANTS", "_numbers", map(numbers_block, items)),
        table("POWERS", "_bits", (block(item.format.name, item.powers()) for item in items)),
        *loss.tables(of_loss),
    ]
    return MODULE_TEXT.format(
        warning=WARNING,
        names=names(items[0]),
        loss_names=names(of_loss[0]),
        tables="\n".join(tables),
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
    of_loss = loss.constants()
    for item_of_loss in of_loss:
        print(f"{item_of_loss.format.name}:", *loss.error_lines(item_of_loss))
    # The GPU kernels wait for memory, and have one form for all.
    of_module = [item for item in items if item.format.upper_limit is None]
    return {HEADER: header(items, of_loss), MODULE: module(of_module, of_loss)}


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
