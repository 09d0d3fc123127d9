"""What the constants of every function with an exponential have in common: the table of powers of
two, the proof of the polynomial's error, the kernels' arithmetic in which constants are searched,
and how they are written. Needs mpmath and NumPy."""

from __future__ import annotations

import struct
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

mp.dps = 60

Array = NDArray[Any]

# exp(a) = 2^n 2^(j/8) exp(r), where 2^(j/8) comes from a table.
ENTRIES = 8
POWERS = [mpf(2) ** (mpf(j) / ENTRIES) for j in range(ENTRIES)]
SEED = 1  # of RandomState, whose stream is frozen, unlike that of NumPy's newer generators
WIDTH = mp.log(2) / (2 * ENTRIES)  # |r| is at most this, and a little that the rounding of a adds


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, the arithmetic a function is computed in, and the choices
    made for its constants."""

    name: str  # as the generated structures and constants spell it
    struct_code: str  # of the arithmetic, for the module struct
    precision: int  # bits of the significand of the arithmetic
    degree: int  # of the polynomial for exp(r)
    limit: int  # larger arguments are clamped to it
    scale: int  # what the exponential is scaled by, as a power of two, so that it fits

    @property
    def structure(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_")) + "Constants"


def round_to(format: Format, value: mpf) -> mpf:
    """``value`` rounded once, to nearest and ties to even, to a normal number of the format."""
    significand, exponent = mp.frexp(value)
    integer = mp.nint(mp.ldexp(significand, format.precision))
    return mp.ldexp(integer, exponent - format.precision)


def evaluate(coefficients: list[mpf], r: mpf) -> mpf:
    return mp.polyval(coefficients[::-1], r)


def relative_error(coefficients: list[mpf], r: mpf) -> mpf:
    return evaluate(coefficients, r) * mp.exp(-r) - 1


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


class Reduction:
    """Of the constants of one format, those of a = m ln 2 + r and of the table."""

    format: Format
    table: list[mpf]
    ln2_high: mpf
    ln2_low: mpf

    @property
    def half_width(self) -> mpf:
        """The largest |r|: rounding to the nearest multiple of ln(2)/8 with the rounded 1 / ln 2
        overshoots by at most limit * 2**-precision, and ln 2 itself may be off."""
        off = abs(self.ln2_high + self.ln2_low - mp.log(2)) / mp.log(2)
        return WIDTH + self.format.limit * (mpf(2) ** -self.format.precision + off)

    @property
    def unit(self) -> mpf:
        """table[j] is about this times 2^(j/8)."""
        quotients = [entry / power for entry, power in zip(self.table, POWERS, strict=True)]
        return (min(quotients) + max(quotients)) / 2

    def error_of_table(self) -> mpf:
        """The largest error of an entry, in its last places."""
        errors = []
        for entry, power in zip(self.table, POWERS, strict=True):
            place = mpf(2) ** (mp.floor(mp.log(entry, 2)) + 1 - self.format.precision)
            errors.append(abs(entry - self.unit * power) / place)
        return max(errors)

    def reduction(self) -> dict[str, mpf]:
        return {
            "log2_e": round_to(self.format, 1 / mp.log(2)),
            "round_shift": 3 * mpf(2) ** (self.format.precision - 2) / ENTRIES,
            "ln2_high": self.ln2_high,
            "ln2_low": self.ln2_low,
        }

    def powers(self) -> list[int]:
        """The bits of the entries, less what j adds where the bits of n + j/8 are added to them."""
        code = self.format.struct_code
        integer = {"f": "I", "d": "Q"}[code]
        bits = [struct.unpack(integer, struct.pack(code, float(entry)))[0] for entry in self.table]
        step = 2 ** (self.format.precision - 1) // ENTRIES
        return [number - j * step for j, number in enumerate(bits)]


def pieces_of_ln2(format: Format) -> tuple[mpf, mpf]:
    high = round_to(format, mp.log(2))
    return high, round_to(format, mp.log(2) - high)


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


# The searches in float32 arithmetic. A candidate is a row of numbers, those that are searched.
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
class Stored:
    """A half as it lies in memory."""

    precision: int  # bits of the significand
    lowest_exponent: int  # of a normal number, 2**lowest_exponent


FLOAT16 = Stored(11, -14)
BFLOAT16 = Stored(8, -126)


def roundings(stored: Stored, values: Array) -> list[Array]:
    """The half's 16 bits of float32, by every rounding that a kernel may use. The CPU kernels store
    bfloat16 rounded half up, which takes fewer operations than to even; all others round to even.
    """
    if stored is FLOAT16:
        return [values.astype(np.float16).view(np.uint16)]
    bits = values.view(np.uint32)
    up = (bits + np.uint32(0x8000)) >> 16
    even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return [even.astype(np.uint16), up.astype(np.uint16)]


def finite_inputs(stored: Stored) -> Array:
    """Every one of the half that is not negative, as float32."""
    bits = np.arange(0x7C00 if stored is FLOAT16 else 0x7F80, dtype=np.uint16)
    if stored is FLOAT16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def last_places(stored: Stored, values: Array) -> Array:
    exponents = np.maximum(np.frexp(values)[1] - 1, stored.lowest_exponent)
    return np.exp2(exponents - stored.precision + 1)


def from_middle(stored: Stored, values: Array) -> Array:
    """How many last places of the half lie between the values and the middle of two halves."""
    quotients = values / last_places(stored, values)
    return np.abs(quotients - np.floor(quotients) - 0.5)


def correctly_rounded(stored: Stored, values: Array) -> Array:
    """The half's bits of values in float64."""
    # The float64 are off by less than 2**-40 last places of a half: that has to be enough.
    assert from_middle(stored, values).min() > 2.0**-36
    places = last_places(stored, values)
    return roundings(stored, (np.rint(values / places) * places).astype(np.float32))[0]


def misroundings(stored: Stored, results: tuple[Array, ...], bits: Array) -> Array:
    """How many results of each candidate, a row each, have other bits than the expected ones."""
    count = np.zeros(len(results[0]), np.int64)
    for result, expected in zip(results, bits, strict=True):
        for rounded in roundings(stored, result):
            count += (rounded != expected).sum(1)
    return count


def small_steps(random: np.random.RandomState, count: int, reach: Array) -> Array:
    """``count`` small changes to a candidate: one to three of its numbers moved, each by at most
    the last places in its column of ``reach``."""
    changes = np.zeros((count, len(reach)), np.int64)
    for _ in range(3):
        column = random.randint(len(reach), size=count)
        furthest = np.minimum(reach[column], 1 << random.randint(11, size=count))
        changes[np.arange(count), column] += random.randint(-furthest, furthest + 1)
    return changes


def climb(start: Array, reach: Array, misrounded: Callable[[Array], Array]) -> Array:
    """The last places by which a candidate's numbers are moved that misrounds nothing, or the best
    that a short hill climb finds."""
    random = np.random.RandomState(SEED)
    places = start[np.newaxis]
    wrong = np.inf
    for _ in range(100):
        count = misrounded(places)
        if count.min() <= wrong:
            best, wrong = places[[count.argmin()]], count.min()
        if wrong == 0:
            break
        places = best + small_steps(random, 32, reach)
    return best


# How constants are written.

MEANING_OF_REDUCTION = {
    "log2_e": "1 / ln 2.",
    "round_shift": "Adding it rounds to a multiple of 1/8, which the low bits then count.",
    "ln2_high": "ln 2.",
    "ln2_low": "What ln2_high lacks of ln 2.",
}


def literal(value: mpf, suffix: str = "") -> str:
    significand, exponent = float(value).hex().split("p")
    return f"{significand.rstrip('0').rstrip('.')}p{exponent}{suffix}"


def rounded_up(number: mpf, digits: int) -> str:
    return f"{float(mp.ceil(number * 10**digits) / 10**digits):.{digits}f}"


def proven_factor(error: mpf) -> str:
    return f"within a factor of 1 +- 2**{rounded_up(mp.log(error, 2), 3)}"


@dataclass(frozen=True)
class Member:
    """An array of a structure, of numbers or of bits."""

    name: str
    comment: list[str]
    values: list[mpf] | list[int]


def powers_member(item: Reduction, factor: str) -> Member:
    shift, off = item.format.precision - 4, rounded_up(item.error_of_table(), 2)
    comment = [
        f"powers[j] + (j << {shift}) are the bits of a number in proportion to 2^(j/8),",
        f"off by at most {off} ulp. {factor}",
    ]
    return Member("powers", comment, item.powers())


def structure(
    format: Format,
    is_half: bool,
    scalars: dict[str, mpf],
    meaning: dict[str, str],
    members: list[Member],
) -> str:
    single = format.struct_code == "f"
    scalar, integer, suffix = ("float", "uint32_t", "f") if single else ("double", "uint64_t", "")
    lines = ["// Whether results are rounded once more, to 16 bits."]
    lines += [f"static constexpr bool is_half = {str(is_half).lower()};"]
    for name, value in scalars.items():
        lines += [f"// {meaning[name]}"]
        lines += [f"static constexpr {scalar} {name} = {literal(value, suffix)};"]
    for member in members:
        bits = isinstance(member.values[0], int)
        words = [f"{v:#x}" if bits else literal(v, suffix) for v in member.values]
        kind = integer if bits else scalar
        lines += [f"// {line}" for line in member.comment]
        lines += [f"static constexpr {kind} {member.name}[{len(words)}] = {{"]
        lines += [*(f"    {word}," for word in words), "};"]
    body = textwrap.indent("\n".join(lines), "  ")
    return f"\nstruct {format.structure} {{\n{body}\n}};\n"


def block(key: str, values: Iterable[mpf | int], comment: Sequence[str] = ()) -> list[str]:
    """Numbers or bits as an item of a dictionary in Python, a string of several lines."""
    words = [f"{value:#x}" if isinstance(value, int) else literal(value) for value in values]
    wrapped = textwrap.wrap(" ".join(words), 92)
    lines = [*(f"# {line}" for line in comment), f'"{key}": """', *wrapped, '""",']
    return [" " * 8 + line for line in lines]


def table(name: str, parse: str, blocks: Iterable[list[str]]) -> str:
    """A dictionary in Python, each string of which a function of the module parses."""
    return "\n".join([f"{name} = {parse}(", "    {", *chain.from_iterable(blocks), "    }", ")\n"])
