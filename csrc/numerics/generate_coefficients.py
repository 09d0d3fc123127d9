"""Fits the polynomials for exp(r) and writes every constant of the kernels, for C++ and for Triton.

Run ``python csrc/numerics/generate_coefficients.py`` after a change; ``--check`` only compares.
Needs mpmath and nothing else: the two files it writes are committed, so no build depends on it.
"""

from __future__ import annotations

import argparse
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from mpmath import mp, mpf

mp.dps = 60

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "numerics" / "coefficients.h"
MODULE = ROOT / "fused_sigmoid" / "coefficients.py"


@dataclass(frozen=True)
class Format:
    """A binary floating-point format and the choices made for its exponential."""

    name: str  # as the generated namespace and constants spell it
    struct_code: str  # of the struct module, to round to the format
    precision: int  # bits of the significand
    degree: int  # of the polynomial for exp(r)
    limit: int  # exp(-limit) rounds to zero, so that larger arguments are clamped to it


# Degree 6 leaves an approximation error 4 bits below the rounding errors of float32, degree 11
# 3 bits below those of float64.
# exp(-110) < 2**-158 is below half the smallest float32 subnormal, 2**-149, and the exponent
# -159 splits into two halves that are both normal powers of two; likewise 750 and 2**-1074.
FORMATS = (
    Format("float32", "f", 24, 6, 110),
    Format("float64", "d", 53, 11, 750),
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
    """The fitted coefficients rounded to the format. The first two stay 1, which makes exp(0)
    exact and so the sigmoid of 0 exactly one half."""
    return [round_to(format, c) for c in fit([mpf(1), mpf(1)], format.degree, half_width)]


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
    scalars: dict[str, mpf]
    exp: list[mpf]
    error: mpf


def constants(format: Format) -> Constants:
    ln2 = mp.log(2)
    high = round_to(format, ln2)
    # Rounding to the nearest multiple of ln 2 with the rounded 1/ln 2 overshoots half a
    # multiple by at most limit * 2**-precision.
    half_width = ln2 / 2 + mpf(format.limit) * mpf(2) ** -format.precision
    exp = fit_rounded(format, half_width)
    scalars = {
        "limit": mpf(format.limit),
        "log2_e": round_to(format, 1 / ln2),
        "ln2_high": high,
        "ln2_low": round_to(format, ln2 - high),
        # Adding it rounds to an integer and leaves that integer in the low bits.
        "round_shift": mpf(3) * mpf(2) ** (format.precision - 2),
    }
    return Constants(format, scalars, exp, proven_error(exp, half_width))


def literal(value: mpf, suffix: str = "") -> str:
    significand, exponent = float(value).hex().split("p")
    return f"{significand.rstrip('0').rstrip('.')}p{exponent}{suffix}"


WARNING = "Written by csrc/numerics/generate_coefficients.py; change that and run it again."
MEANING = {
    "limit": "Arguments are clamped to it: its exponential rounds to zero.",
    "log2_e": "1 / ln 2.",
    "ln2_high": "ln 2 rounded.",
    "ln2_low": "ln 2 - ln2_high.",
    "round_shift": "Adding it rounds to an integer, kept in the low bits.",
}


def error_line(item: Constants) -> str:
    exponent = mp.nstr(mp.log(item.error, 2), 5)
    return f"|p(r) / exp(r) - 1| <= 2**{exponent} on |r| <= ln(2)/2, proven."


def header(items: list[Constants]) -> str:
    lines = [
        f"// {WARNING}",
        "// Constants of exp(-|x|); no torch header, no dependency.",
        "// clang-format off",
        "#pragma once",
        "",
        "namespace fused_sigmoid {",
    ]
    for item in items:
        scalar = "float" if item.format.name == "float32" else "double"
        suffix = "f" if scalar == "float" else ""
        lines += ["", f"struct {item.format.name.capitalize()}Constants {{"]
        for name, value in item.scalars.items():
            lines += [f"  // {MEANING[name]}"]
            lines += [f"  static constexpr {scalar} {name} = {literal(value, suffix)};"]
        lines += [f"  // {error_line(item)}"]
        lines += [f"  static constexpr {scalar} exp[{len(item.exp)}] = {{"]
        lines += [f"      {literal(value, suffix)}," for value in item.exp]
        lines += ["  };", "};"]
    return "\n".join([*lines, "", "}  // namespace fused_sigmoid", ""])


def module(items: list[Constants]) -> str:
    lines = ['"""Constants of exp(-|x|).', "", WARNING, '"""']
    for item in items:
        prefix = item.format.name.upper()
        lines += [""]
        for name, value in item.scalars.items():
            constant = f'float.fromhex("{literal(value)}")'
            lines += [f"# {MEANING[name]}", f"{prefix}_{name.upper()} = {constant}"]
        lines += [f"# {error_line(item)}", f"{prefix}_EXP = ("]
        lines += [f'    float.fromhex("{literal(value)}"),' for value in item.exp]
        lines += [")"]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file differs"
    )
    check = parser.parse_args().check
    items = [constants(format) for format in FORMATS]
    for item in items:
        print(f"{item.format.name}: degree {item.format.degree}, {error_line(item)}")
    stale = []
    for path, text in ((HEADER, header(items)), (MODULE, module(items))):
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.write_text(text)
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
