"""How exact the sigmoid's gradient is, with nn.Sigmoid and with FusedSigmoid, per dtype.

Measures, keeps what it measured in a JSON file, and makes a picture and a Markdown table of that
file. The reference is the closed form in float64, computed by NumPy. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from fused_sigmoid import FusedSigmoid

Float64Array = NDArray[numpy.float64]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LIMIT = 24.0
FLOAT32_POINTS = 2**20 + 1
# A curve shows the largest error in each of this many equal intervals of x: at LIMIT an interval
# still holds two neighbouring bfloat16 numbers, which are 0.125 apart there.
INTERVALS = 160

TORCH_COLOUR, FUSED_COLOUR, GREY = "#c0392b", "#1f6fb4", "#666666"


@dataclass(frozen=True)
class GradientErrors:
    """Errors over every x where the true gradient does not round to 0 in the dtype.

    The curves hold the largest relative error in each of INTERVALS intervals of x, None where no
    number of the dtype has a gradient.
    """

    dtype: str
    torch_curve: list[float | None]
    fused_curve: list[float | None]
    half_ulp_curve: list[float | None]
    torch_zeros: int  # gradients that are exactly 0
    fused_zeros: int
    first_torch_zero: float | None  # the smallest x > 0 with one
    last_torch_zero: float | None
    torch_worst_ulp: float
    fused_worst_ulp: float
    inputs: int
    first_subnormal: float | None  # the largest x < 0 with a subnormal gradient


def reference_derivative(x: Float64Array) -> Float64Array:
    """e / (1 + e)^2 with e = exp(-|x|): free of cancellation, so good to float64's last digits."""
    e = numpy.exp(-numpy.abs(x))
    derivative: Float64Array = e / (1 + e) ** 2
    return derivative


def inputs(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype in [-LIMIT, LIMIT]; of float32 an even grid."""
    if dtype == torch.float32:
        return torch.linspace(-LIMIT, LIMIT, FLOAT32_POINTS)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return x[x.abs() <= LIMIT].sort().values


def gradient(module: nn.Module, x: Tensor) -> Float64Array:
    x = x.clone().requires_grad_()
    output = module(x)
    (result,) = torch.autograd.grad(output, x, torch.ones_like(output))
    return result.double().cpu().numpy()


def measure(dtype: torch.dtype, device: torch.device) -> GradientErrors:
    values = inputs(dtype).to(device)
    x = values.double().cpu().numpy()
    reference = reference_derivative(x)
    by_torch, by_fused = gradient(nn.Sigmoid(), values), gradient(FusedSigmoid(), values)

    limits = torch.finfo(dtype)
    smallest_subnormal = limits.smallest_normal * limits.eps
    kept = reference > smallest_subnormal / 2
    x, reference, by_torch, by_fused = (a[kept] for a in (x, reference, by_torch, by_fused))
    exponent = numpy.floor(numpy.log2(reference))
    ulp = numpy.maximum(limits.eps * 2.0**exponent, smallest_subnormal)
    torch_error, fused_error = numpy.abs(by_torch - reference), numpy.abs(by_fused - reference)
    zeros = x[(by_torch == 0) & (x > 0)]
    subnormal = x[(reference < limits.smallest_normal) & (x < 0)]
    return GradientErrors(
        dtype=str(dtype).removeprefix("torch."),
        torch_curve=_largest_per_interval(x, torch_error / reference),
        fused_curve=_largest_per_interval(x, fused_error / reference),
        half_ulp_curve=_largest_per_interval(x, ulp / 2 / reference),
        torch_zeros=int((by_torch == 0).sum()),
        fused_zeros=int((by_fused == 0).sum()),
        first_torch_zero=float(zeros.min()) if zeros.size else None,
        last_torch_zero=float(zeros.max()) if zeros.size else None,
        torch_worst_ulp=float((torch_error / ulp).max()),
        fused_worst_ulp=float((fused_error / ulp).max()),
        inputs=int(x.size),
        first_subnormal=float(subnormal.max()) if subnormal.size else None,
    )


@dataclass(frozen=True)
class Result:
    """What the JSON file holds."""

    torch_version: str
    device: str
    errors: list[GradientErrors]

    @staticmethod
    def read(path: Path) -> Result:
        found = json.loads(path.read_text(encoding="utf-8"))
        errors = [GradientErrors(**entry) for entry in found.pop("errors")]
        return Result(errors=errors, **found)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def draw(result: Result, path: Path) -> None:
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.add_gridspec(len(result.errors), 2, width_ratios=(2, 3))
    _draw_functions(figure.add_subplot(grid[:, 0]))
    for row, errors in enumerate(result.errors):
        axes = figure.add_subplot(grid[row, 1])
        _draw_errors(axes, errors)
        if row == 0:
            axes.set_title("Relative error of the gradient", fontsize=12)
        if row < len(result.errors) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.legend(loc="center left", fontsize=9.5, frameon=False)
            axes.set_xlabel(f"x        (torch {result.torch_version}, {result.device})")
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software version in the file: the same result gives the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_functions(axes: Axes) -> None:
    x = numpy.linspace(-8, 8, 801)
    axes.plot(x, 1 / (1 + numpy.exp(-x)), color="#333333", linewidth=2)
    axes.plot(x, reference_derivative(x), color=FUSED_COLOUR, linewidth=2)
    axes.text(2.3, 0.8, r"$\sigma(x)=\frac{1}{1+e^{-x}}$", color="#333333", fontsize=13)
    axes.text(
        2.0,
        0.16,
        "$\\sigma'(x)=\\frac{e}{(1+e)^2}$\n$e=\\exp(-|x|)$",
        color=FUSED_COLOUR,
        fontsize=13,
    )
    axes.set_title("One pass, both values", fontsize=12)
    axes.set_xlabel("x")
    _clean(axes)


def _draw_errors(axes: Axes, errors: GradientErrors) -> None:
    edges = numpy.linspace(-LIMIT, LIMIT, INTERVALS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    for label, curve, style in (
        ("nn.Sigmoid", errors.torch_curve, {"color": TORCH_COLOUR, "linewidth": 1.8}),
        ("FusedSigmoid", errors.fused_curve, {"color": FUSED_COLOUR, "linewidth": 1.8}),
        ("half an ulp", errors.half_ulp_curve, {"color": GREY, "linewidth": 1, "ls": ":"}),
    ):
        axes.semilogy(middles, numpy.array(curve, dtype=numpy.float64), label=label, **style)
    if errors.first_torch_zero is not None:
        axes.axvspan(
            errors.first_torch_zero,
            errors.last_torch_zero,
            color=TORCH_COLOUR,
            alpha=0.12,
            linewidth=0,
        )
        axes.annotate(
            f"exactly 0, first at x = {errors.first_torch_zero:.4g}",
            (errors.first_torch_zero, 1),
            xytext=(-50, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=TORCH_COLOUR,
            fontsize=10,
            arrowprops={"arrowstyle": "->", "color": TORCH_COLOUR},
        )
    if errors.first_subnormal is not None:
        # Without a word, the rise that every float16 result shares would look like our error.
        axes.text(
            errors.first_subnormal - 3,
            1.5 * min(value for value in errors.half_ulp_curve if value is not None),
            "subnormals:\nfewer bits",
            ha="right",
            color=GREY,
            fontsize=9.5,
        )
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_ylabel(errors.dtype)
    _clean(axes)


def _largest_per_interval(x: Float64Array, error: Float64Array) -> list[float | None]:
    edges = numpy.linspace(-LIMIT, LIMIT, INTERVALS + 1)
    largest = numpy.full(INTERVALS, numpy.nan)
    index = numpy.clip(numpy.searchsorted(edges, x, side="right") - 1, 0, INTERVALS - 1)
    numpy.fmax.at(largest, index, error)
    # Four digits are more than a curve shows, and keep the file small.
    return [None if numpy.isnan(value) else float(f"{value:.4g}") for value in largest]


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def table(result: Result) -> str:
    """The figures as Markdown, for |x| up to LIMIT."""
    lines = [
        "| dtype | inputs | gradients exactly 0: nn.Sigmoid | FusedSigmoid | first at x = "
        "| largest error: nn.Sigmoid | FusedSigmoid |",
        "|---|---|---|---|---|---|---|",
    ]
    for errors in result.errors:
        first = "never" if errors.first_torch_zero is None else f"{errors.first_torch_zero:.4g}"
        lines.append(
            f"| {errors.dtype} | {errors.inputs:,} | {errors.torch_zeros:,} "
            f"| {errors.fused_zeros:,} | {first} | {errors.torch_worst_ulp:,.0f} ulp "
            f"| {errors.fused_worst_ulp:.2f} ulp |"
        )
    return "\n".join(lines)


BLOCK = re.compile(
    r"(<!-- gradient-accuracy:begin -->\n).*?(<!-- gradient-accuracy:end -->)", re.DOTALL
)


def filled(text: str, result: Result) -> str:
    """The Markdown with the table between its markers."""
    return BLOCK.sub(lambda block: f"{block[1]}{table(result)}\n{block[2]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--result", type=Path, default=root / "docs" / "figures" / "gradient_accuracy.json")
    add("--measure", action="store_true", help="measure anew, into the result file")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output", type=Path, help="draw the picture into this file")
    add("--write", type=Path, help="fill the table of this Markdown file")
    add("--check", action="store_true", help="write nothing; exit 1 if --write would")
    options = parser.parse_args(arguments)

    if options.measure:
        device = torch.device(options.device)
        errors = [measure(dtype, device) for dtype in DTYPES]
        Result(torch.__version__, device.type, errors).write(options.result)
    result = Result.read(options.result)
    print(table(result))
    if options.output:
        draw(result, options.output)
        print(f"wrote {options.output}")
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        if filled(text, result) == text:
            return 0
        if options.check:
            print(f"{options.write} is stale; run again without --check", file=sys.stderr)
            return 1
        options.write.write_text(filled(text, result), encoding="utf-8")
        print(f"wrote {options.write}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
