"""Searches the constants of log(1 + exp(-a)) and 1 / (1 + exp(a)) for a = |x|, of which the binary
cross entropy with logits and its gradient are made, and proves the errors of their polynomials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from exponential_coefficients import (
    BFLOAT16,
    ENTRIES,
    FLOAT16,
    MEANING_OF_REDUCTION,
    POWERS,
    SEED,
    WIDTH,
    Array,
    Format,
    Member,
    Reduction,
    Stored,
    block,
    climb,
    correctly_rounded,
    evaluate,
    finite_inputs,
    fma,
    from_middle,
    misroundings,
    pieces_of_ln2,
    powers_member,
    proven_error,
    proven_factor,
    round_to,
    structure,
    table,
    units_with_exact_tables,
)
from mpmath import mp, mpf

# a = r - m ln 2, and E = 2^scale exp(-a) is T + T p(r), where T comes from the table and 1 + p(r)
# is in proportion to exp(-r). Since p(r) is small, E has hardly more than one rounding error; it is
# never subnormal. With e = exp(-a), log(1 + exp(-a)) is e + e^2 q(e), and 1 / (1 + exp(a)) is
# E / (E + 2^scale). These two give the other two: a + log(1 + exp(-a)) is log(1 + exp(a)), and
# 1 - 1 / (1 + exp(a)) is 1 / (1 + exp(-a)).


@dataclass(frozen=True)
class LossFormat(Format):
    """exp(-a) carries 2**scale: it is normal up to the limit, where exp(-a) itself rounds to 0."""

    log1p_terms: int  # of the polynomial q


FLOAT32 = LossFormat("float32_loss", "f", 24, 4, 104, 30, log1p_terms=9)
FLOAT64 = LossFormat("float64_loss", "d", 53, 7, 746, 60, log1p_terms=20)
HALF = LossFormat("half_loss", "f", 24, 4, 104, 30, log1p_terms=9)

# The search for the halves starts beside numbers that are right, so that it is short: with a lower
# summand. How far a step may move the numbers: the table's a little, what counts less, more.
START = (0,) * (ENTRIES + HALF.degree + 1 + HALF.log1p_terms) + (-3,)
REACH = (1,) * ENTRIES + (1024, 4, 8, 32, 256) + (8,) * HALF.log1p_terms + (0,)


@dataclass(frozen=True)
class LossConstants(Reduction):
    format: LossFormat
    table: list[mpf]  # in proportion to 2^(j/8)
    exp_minus_one: list[mpf]  # of p(r), where 1 + p(r) is in proportion to exp(r)
    log1p: list[mpf]  # of q(e), where log(1 + e) is about e + e^2 q(e)
    ln2_high: mpf
    ln2_low: mpf
    summand: mpf

    @cached_property
    def error_of_exp(self) -> mpf:
        first, *others = self.exp_minus_one
        unit = mp.ldexp(self.unit, -self.format.scale)
        # The proof is for exp(r), which is as far off at -r.
        of_r = [(-1) ** i * c * unit for i, c in enumerate((1 + first, *others))]
        return proven_error(of_r, self.half_width)

    @cached_property
    def error_of_log1p(self) -> mpf:
        return proven_error_of_log1p(self.log1p)

    def searched(self) -> list[mpf]:
        """In the order of a candidate."""
        return [*self.table, *self.exp_minus_one, *self.log1p, self.summand]

    def scalars(self) -> dict[str, mpf]:
        return {
            "limit": mpf(self.format.limit),
            **self.reduction(),
            "inverse_scale": mpf(2) ** -self.format.scale,
            "summand": self.summand,
        }


def chebyshev_points(lowest: mpf, highest: mpf, count: int) -> list[mpf]:
    cosines = [mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    return [(lowest + highest + (highest - lowest) * cosine) / 2 for cosine in cosines]


def rounded_fit(
    format: Format,
    terms: int,
    points: list[mpf],
    function: Callable[[mpf], mpf],
    weight: Callable[[mpf], mpf],
) -> list[mpf]:
    """A polynomial's rounded coefficients, by least squares in Chebyshev's points, which is close
    to the smallest largest error. Each is rounded before the next ones are fitted, so that these
    make up for its rounding."""
    squares = [weight(x) ** 2 for x in points]
    targets = [square * function(x) for square, x in zip(squares, points, strict=True)]

    def moment(values: list[mpf], power: int) -> mpf:
        return mp.fsum(value * x**power for value, x in zip(values, points, strict=True))

    moments = [moment(squares, power) for power in range(2 * terms - 1)]
    rest = [moment(targets, power) for power in range(terms)]
    coefficients: list[mpf] = []
    for first in range(terms):
        left = range(first, terms)
        normal = mp.matrix([[moments[i + j] for j in left] for i in left])
        coefficients.append(round_to(format, mp.lu_solve(normal, mp.matrix(rest[first:]))[0]))
        rest = [r - coefficients[-1] * moments[i + first] for i, r in enumerate(rest)]
    return coefficients


def proven_error_of_log1p(coefficients: list[mpf]) -> mpf:
    """A bound on |(e + e^2 q(e)) / log(1 + e) - 1| for all 0 < e <= 1, not only at sampled points.

    That is |g(e)| e / log(1 + e) with g(e) = 1 + e q(e) - log(1 + e) / e. On each piece g and g'
    are computed at the middle, and a bound on g'' does the rest. With the polynomial
    d(e) = 1 + (1 + e) (2 q(e) + e q'(e)) and k(e) = d(e) / (1 + e), (e g)' is e k. Therefore g / e
    is the integral of t k(t e) over 0 <= t <= 1, its derivative at most a third of the largest
    |k'|, and g' = k - g / e, so that |g''| is at most 4/3 of the largest |k'|, itself at most
    |d'| + |d|. A polynomial of degree n is nowhere more than 1 / cos(pi/8) times what it is in 4 n
    points of Chebyshev's (Ehlich and Zeller), and its derivative 2 n^2 times that (Markov).
    """
    degree = len(coefficients)
    doubled = [(i + 2) * c for i, c in enumerate(coefficients)]

    def d(e: mpf) -> mpf:
        return 1 + (1 + e) * evaluate(doubled, e)

    largest_d = max(abs(d(e)) for e in chebyshev_points(mpf(0), mpf(1), 4 * degree))
    curvature = mpf(4) / 3 * (2 * degree**2 + 1) * largest_d / mp.cos(mp.pi / 8)
    pieces = 4096
    half_piece = mpf(1) / (2 * pieces)
    largest = mpf(0)
    for piece in range(pieces):
        middle = (2 * piece + 1) * half_piece
        g = 1 + middle * evaluate(coefficients, middle) - mp.log1p(middle) / middle
        steepest = abs(d(middle) / (1 + middle) - g / middle) + curvature * half_piece
        end = middle + half_piece
        largest = max(largest, (abs(g) + steepest * half_piece) * end / mp.log1p(end))
    return largest


def nearest_constants(format: LossFormat) -> LossConstants:
    """The best table of those beside 1, so that p(r) is small, and the fitted polynomials."""
    count = 1 << (19 if format.precision == 24 else 21)
    start = 1 - count * mpf(2) ** -format.precision
    unit = next(units_with_exact_tables(format, start, count))
    table = [mp.ldexp(round_to(format, unit * power), format.scale) for power in POWERS]
    exp_minus_one = rounded_fit(
        format,
        format.degree + 1,
        chebyshev_points(-WIDTH, WIDTH, 100),
        lambda r: mp.exp(-r) / unit - 1,
        mp.exp,
    )
    log1p = rounded_fit(
        format,
        format.log1p_terms,
        chebyshev_points(mpf(0), mpf(1), 100),
        lambda e: (mp.log1p(e) - e) / e**2,
        lambda e: e**2 / mp.log1p(e),
    )
    return LossConstants(
        format, table, exp_minus_one, log1p, *pieces_of_ln2(format), mpf(2) ** format.scale
    )


# The kernels' arithmetic, operation for operation, in arrays of candidates by inputs.


def fma_in_float64(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float64, from the product and the sum with their rounding errors (Dekker, Knuth).
    A result beside the middle between two float64 may be rounded to the wrong one."""

    def halves(number: Array) -> tuple[Array, Array]:
        multiple = number * (2.0**27 + 1)
        high = multiple - (multiple - number)
        return high, number - high

    product = a * b
    (a, a_low), (b, b_low) = halves(a), halves(b)
    product_error = a_low * b_low - (((product - a * b) - a_low * b) - a * b_low)
    total = product + c
    rest = total - product
    total_error = (product - (total - rest)) + (c - rest)
    return total + (total_error + product_error)


@dataclass(frozen=True)
class Inputs:
    """Inputs, and what the kernels make of them before a searched constant comes in."""

    a: Array  # not clamped
    r: Array
    bits: Array  # of m plus the shift


class Kernel:
    """The kernels' arithmetic in one format."""

    def __init__(self, constants: LossConstants):
        double = constants.format.struct_code == "d"
        self.type, self.integer = (np.float64, np.uint64) if double else (np.float32, np.uint32)
        self.fma = fma_in_float64 if double else fma
        self.format = constants.format
        self.scalars = {k: self.type(float(v)) for k, v in constants.scalars().items()}

    def row(self, constants: LossConstants) -> Array:
        return np.array([[float(number) for number in constants.searched()]], self.type)

    def inputs(self, x: Array) -> Inputs:
        scalars, fma = self.scalars, self.fma
        a = np.minimum(scalars["limit"], x)
        shifted = fma(a, -scalars["log2_e"], scalars["round_shift"])
        m = shifted - scalars["round_shift"]
        r = fma(m, scalars["ln2_low"], fma(m, scalars["ln2_high"], a))
        return Inputs(x, r, shifted.view(self.integer))

    def horner(self, coefficients: Array, x: Array) -> Array:
        *others, value = coefficients
        for coefficient in others[::-1]:
            value = self.fma(value, x, coefficient)
        return value

    def power(self, table: Array, bits: Array) -> Array:
        shift = self.integer(self.format.precision - 4)
        powers = table.view(self.integer) - (np.arange(ENTRIES, dtype=self.integer) << shift)
        return (powers[:, bits % ENTRIES] + (bits << shift)).view(self.type)

    def results(self, inputs: Inputs, candidates: Array) -> tuple[Array, Array, Array, Array]:
        """Those of ``exact``, a row for each candidate."""
        numbers = candidates.T[ENTRIES:, :, np.newaxis]
        exp_minus_one, log1p = np.split(numbers[:-1], [self.format.degree + 1])
        inverse_scale = self.scalars["inverse_scale"]
        power = self.power(candidates[:, :ENTRIES].copy(), inputs.bits)
        scaled = self.fma(power, self.horner(exp_minus_one, inputs.r), power)
        e = scaled * inverse_scale
        smaller = scaled / (scaled + numbers[-1])
        loss = self.fma(e * self.horner(log1p, e), e, e)
        return loss, smaller, inputs.a + loss, 1 - smaller


# The largest errors that are promised of the results in float32 and float64, in ulp.
PROMISED = (1.7, 2.5, 2.1, 1.3)


def exact(a: Any, log1p: Any, exp: Any) -> tuple[Any, Any, Any, Any]:
    """log(1 + exp(-a)), 1 / (1 + exp(a)), log(1 + exp(a)) and 1 / (1 + exp(-a))."""
    e = exp(-a)
    loss = log1p(e)
    return loss, e / (1 + e), a + loss, 1 / (1 + e)


def check_samples(constants: LossConstants) -> None:
    """Refuses a larger error than is promised, and 1 / (1 + exp(0)) but one half."""
    kernel, precision = Kernel(constants), constants.format.precision
    normal = constants.format.limit * 0.8  # up to there all results are normal
    random = np.random.RandomState(SEED)
    spread, small = random.uniform(0, normal, 1000), np.exp(random.uniform(-25, 3, 2000))
    x = np.concatenate([[0], spread, small]).astype(kernel.type)
    results = kernel.results(kernel.inputs(x), kernel.row(constants))
    if results[1][0, 0] != 0.5:
        raise SystemExit(f"{constants.format.name}: the smaller probability of 0 is not one half")
    for i, number in enumerate(x):
        exacts = exact(mpf(float(number)), mp.log1p, mp.exp)
        for result, value, promised in zip(results, exacts, PROMISED, strict=True):
            ulp = mp.ldexp(1, mp.frexp(value)[1] - precision)
            if abs(mpf(float(result[0, i])) - value) > promised * ulp:
                raise SystemExit(f"{constants.format.name}: too large an error at {number}")


@dataclass(frozen=True)
class Case:
    """Inputs of a half, and the bits of their correctly rounded results."""

    stored: Stored
    inputs: Inputs
    bits: Array


def cases(kernel: Kernel, nearest_middle: float) -> list[Case]:
    """Those of both halves that have a result so near the middle of two halves."""
    found = []
    for stored in (FLOAT16, BFLOAT16):
        x = finite_inputs(stored)
        values = np.array(exact(x.astype(np.float64), np.log1p, np.exp))
        chosen = (from_middle(stored, values) <= nearest_middle).any(0)
        bits = correctly_rounded(stored, values)[:, chosen]
        found.append(Case(stored, kernel.inputs(x[chosen]), bits))
    return found


def half_constants() -> LossConstants:
    """The first candidate of a hill climb with which every result of either half is the nearest:
    computed in float32, then rounded once more."""
    nearest = nearest_constants(HALF)
    kernel = Kernel(nearest)
    row = kernel.row(nearest).view(np.int32)

    def moved(places: Array) -> Array:
        return (row + places).astype(np.int32).view(np.float32)

    def misrounded(cases: list[Case], candidates: Array) -> Array:
        counts = [
            misroundings(case.stored, kernel.results(case.inputs, candidates), case.bits)
            for case in cases
        ]
        return np.sum(counts, axis=0)

    hard = cases(kernel, 2.0**-9)  # only there an error of some last places decides
    best = moved(
        climb(np.array(START), np.array(REACH), lambda places: misrounded(hard, moved(places)))
    )
    wrong = misrounded(cases(kernel, 0.5), best)[0]
    if wrong:
        raise SystemExit(f"{HALF.name}: {wrong} results are not the nearest")
    numbers = [mpf(float(number)) for number in best[0]]
    terms = HALF.degree + 1
    table, others = numbers[:ENTRIES], numbers[ENTRIES:]
    ln2 = (nearest.ln2_high, nearest.ln2_low)
    return LossConstants(HALF, table, others[:terms], others[terms:-1], *ln2, others[-1])


def constants() -> list[LossConstants]:
    floats = [nearest_constants(FLOAT32), nearest_constants(FLOAT64)]
    for item in floats:
        check_samples(item)
    return [*floats, half_constants()]


MEANING = {
    **MEANING_OF_REDUCTION,
    "limit": "Larger |x| are clamped to it: exp(-limit) rounds to 0.",
    "inverse_scale": "The exponential E is scaled up, so that it stays normal; this takes it back.",
    "summand": "What stands below beside E in E / (E + 2^scale).",
}


def polynomial(name: str, variable: str, terms: int) -> str:
    return f"{name}[0] + {variable} ({name}[1] + ... + {variable} {name}[{terms - 1}])"


def exp_lines(item: LossConstants) -> list[str]:
    return [
        f"p(r) = {polynomial('exp_minus_one', 'r', len(item.exp_minus_one))}:",
        f"1 + p(r) is in proportion to exp(-r), {proven_factor(item.error_of_exp)}",
        "on |r| <= ln(2)/16, proven.",
    ]


def log1p_lines(item: LossConstants) -> list[str]:
    return [
        f"q(e) = {polynomial('log1p', 'e', len(item.log1p))}:",
        f"e + e^2 q(e) is log(1 + e), {proven_factor(item.error_of_log1p)}",
        "on 0 <= e <= 1, proven.",
    ]


def error_lines(item: LossConstants) -> list[str]:
    return exp_lines(item) + log1p_lines(item)


def structure_of(item: LossConstants) -> str:
    members = [
        Member("exp_minus_one", exp_lines(item), item.exp_minus_one),
        powers_member(item, "That for j = 0 times 1 + p(0) is about the scale."),
        Member("log1p", log1p_lines(item), item.log1p),
    ]
    return structure(item.format, item.format is HALF, item.scalars(), MEANING, members)


def tables(items: list[LossConstants]) -> list[str]:
    """Those of the Python module, by dtype."""
    keyed = [(item.format.name.removesuffix("_loss"), item) for item in items]
    scalars = [block(key, item.scalars().values()) for key, item in keyed]
    exp = [block(key, item.exp_minus_one, exp_lines(item)) for key, item in keyed]
    log1p = [block(key, item.log1p, log1p_lines(item)) for key, item in keyed]
    powers = [block(key, item.powers()) for key, item in keyed]
    return [
        table("LOSS_CONSTANTS", "_numbers", scalars),
        table("LOSS_EXP", "_numbers", exp),
        table("LOSS_LOG1P", "_numbers", log1p),
        table("LOSS_POWERS", "_bits", powers),
    ]
