"""How exact the sigmoid's gradient is, with nn.Sigmoid and with FusedSigmoid, per dtype, and where
the gradients of nn.ReLU, nn.Tanh and nn.Sigmoid become 0 in float32.

    python -m examples.gradient_accuracy [--measure [--device cuda]]

The reference is the closed form in float64, computed by NumPy. Depends on torch and on the package
to measure, on matplotlib to draw.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from examples import record
from examples.record import COLOURS, FUSED, GREY, TORCH

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

    Float64Array = NDArray[numpy.float64]

NAME = "gradient_accuracy"
DTYPES = ("bfloat16", "float16", "float32")
LIMIT = 24.0
FLOAT32_POINTS = 2**20 + 1
# A curve shows the largest error in each of this many equal intervals of x: at LIMIT an interval
# still holds two neighbouring bfloat16 numbers, which are 0.125 apart there.
INTERVALS = 160
MODULES = ("nn.ReLU", "nn.Tanh", FUSED, TORCH)
DRAWN_INPUTS = numpy.linspace(-LIMIT, LIMIT, 385)  # of the derivatives


# --- Measuring ------------------------------------------------------------------------------------


def reference_derivative(x: Float64Array) -> Float64Array:
    """e / (1 + e)^2 with e = exp(-|x|): free of cancellation, so good to float64's last digits."""
    e = numpy.exp(-numpy.abs(x))
    derivative: Float64Array = e / (1 + e) ** 2
    return derivative


def inputs(dtype: torch.dtype, limit: float, float32_points: int) -> Tensor:
    """All values of a 16-bit dtype in [-limit, limit]; of float32 an even grid."""
    import torch

    if dtype == torch.float32:
        return torch.linspace(-limit, limit, float32_points)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return x[x.abs() <= limit].sort().values


def gradient(module: str, x: Tensor) -> Float64Array:
    import torch
    from torch import nn

    from fused_sigmoid import FusedSigmoid

    function = FusedSigmoid() if module == FUSED else getattr(nn, module.removeprefix("nn."))()
    x = x.clone().requires_grad_()
    output = function(x)
    (result,) = torch.autograd.grad(output, x, torch.ones_like(output))
    return result.double().cpu().numpy()


def measure_errors(dtype_name: str, device: str) -> dict[str, Any]:
    """Errors over every x where the true gradient does not round to 0 in the dtype.

    The curves hold the largest relative error in each of INTERVALS intervals of x, None where no
    number of the dtype has a gradient.
    """
    import torch

    dtype = getattr(torch, dtype_name)
    values = inputs(dtype, LIMIT, FLOAT32_POINTS).to(device)
    x = values.double().cpu().numpy()
    reference = reference_derivative(x)
    by_torch, by_fused = gradient(TORCH, values), gradient(FUSED, values)

    limits = torch.finfo(dtype)
    smallest_subnormal = limits.smallest_normal * limits.eps
    kept = reference > smallest_subnormal / 2
    x, reference, by_torch, by_fused = (a[kept] for a in (x, reference, by_torch, by_fused))
    exponent = numpy.floor(numpy.log2(reference))
    ulp = numpy.maximum(limits.eps * 2.0**exponent, smallest_subnormal)
    torch_error, fused_error = numpy.abs(by_torch - reference), numpy.abs(by_fused - reference)
    zeros = x[(by_torch == 0) & (x > 0)]
    subnormal = x[(reference < limits.smallest_normal) & (x < 0)]
    return {
        "dtype": dtype_name,
        "torch_curve": _largest_per_interval(x, torch_error / reference),
        "fused_curve": _largest_per_interval(x, fused_error / reference),
        "half_ulp_curve": _largest_per_interval(x, ulp / 2 / reference),
        "torch_zeros": int((by_torch == 0).sum()),  # gradients that are exactly 0
        "fused_zeros": int((by_fused == 0).sum()),
        "first_torch_zero": float(zeros.min()) if zeros.size else None,
        "last_torch_zero": float(zeros.max()) if zeros.size else None,
        "torch_worst_ulp": float((torch_error / ulp).max()),
        "fused_worst_ulp": float((fused_error / ulp).max()),
        "inputs": int(x.size),
        "first_subnormal": float(subnormal.max()) if subnormal.size else None,
    }


def _largest_per_interval(x: Float64Array, error: Float64Array) -> list[float | None]:
    edges = numpy.linspace(-LIMIT, LIMIT, INTERVALS + 1)
    largest = numpy.full(INTERVALS, numpy.nan)
    index = numpy.clip(numpy.searchsorted(edges, x, side="right") - 1, 0, INTERVALS - 1)
    numpy.fmax.at(largest, index, error)
    # Four digits are more than a curve shows, and keep the file small.
    return [None if numpy.isnan(value) else float(f"{value:.4g}") for value in largest]


def measure_derivative(module: str, device: str) -> dict[str, Any]:
    """A module's gradient in float32, and from where on to each side it is exactly 0."""
    import torch

    drawn = torch.tensor(DRAWN_INPUTS, dtype=torch.float32, device=device)
    values = inputs(torch.float32, LIMIT, FLOAT32_POINTS)
    alive = numpy.flatnonzero(gradient(module, values.to(device)))
    right, left = alive[-1] + 1, alive[0] - 1
    return {
        "module": module,
        "curve": [float(f"{value:.4g}") for value in gradient(module, drawn)],
        "zero_right": values[right].item() if right < len(values) else None,
        "zero_left": values[left].item() if left >= 0 else None,
    }


# --- What the record says -------------------------------------------------------------------------


def summary(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each dtype, of |x| up to LIMIT, in words under its headings."""
    return [
        {
            "dtype": errors["dtype"],
            "inputs": f"{errors['inputs']:,}",
            f"gradients exactly 0: {TORCH}": f"{errors['torch_zeros']:,}",
            f"gradients exactly 0: {FUSED}": f"{errors['fused_zeros']:,}",
            f"{TORCH}: 0 from x =": _number(errors["first_torch_zero"]),
            # Of a gradient that is 0 nothing is left: in ulp that would be the format's width.
            f"largest error: {TORCH}": "100 %"
            if errors["torch_zeros"]
            else f"{errors['torch_worst_ulp']:,.2f} ulp",
            f"largest error: {FUSED}": f"{errors['fused_worst_ulp']:.2f} ulp",
        }
        for errors in document["errors"]
    ]


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.4g}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.6), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 1.15), wspace=0.04)
    functions, derivatives = left.subgridspec(2, 1, height_ratios=(2, 3)).subplots()
    _draw_functions(functions)
    _draw_derivatives(derivatives, {each["module"]: each for each in document["derivatives"]})
    panels = right.subgridspec(len(document["errors"]), 1).subplots(sharex=True)
    for axes, errors in zip(panels, document["errors"], strict=True):
        _draw_errors(axes, errors)
    panels[0].legend(loc="upper left", fontsize=10, frameon=False)
    panels[-1].set_xlabel("x")
    figure.align_ylabels(panels)
    record.save(figure, path)


def _draw_functions(axes: Axes) -> None:
    x = numpy.linspace(-8, 8, 801)
    axes.plot(x, 1 / (1 + numpy.exp(-x)), color="#333333", linewidth=2)
    axes.plot(x, reference_derivative(x), color=COLOURS[FUSED], linewidth=2)
    axes.text(2.1, 0.74, r"$\sigma(x)=\frac{1}{1+e^{-x}}$", color="#333333", fontsize=13)
    derivative = "$\\sigma'(x)=\\frac{e}{(1+e)^2}$\n$e=\\exp(-|x|)$"
    axes.text(2.1, 0.22, derivative, color=COLOURS[FUSED], fontsize=13)
    record.finish(axes, "One pass of a kernel gives both σ and σ′")


def _draw_derivatives(axes: Axes, by_module: Mapping[str, Mapping[str, Any]]) -> None:
    """On a log scale, where 0 has no place: a curve leaves the panel where it becomes 0."""
    floor, true_tanh = 1e-11, 4 * reference_derivative(2 * DRAWN_INPUTS)
    axes.plot(DRAWN_INPUTS, true_tanh, color=COLOURS["nn.Tanh"], linewidth=1, linestyle=":")
    axes.text(-12.4, 4e-10, "tanh′", color=COLOURS["nn.Tanh"], ha="right")
    places = ((22, 2), (8.2, 4e-11), (23.5, 4e-5), (16, 4e-11))
    for module, place in zip(MODULES, places, strict=True):
        # Wide below the other sigmoid, with which it agrees but for the tail.
        style = {"linewidth": 5, "alpha": 0.45} if module == FUSED else {"linewidth": 2}
        curve = numpy.maximum(by_module[module]["curve"], floor / 100)
        axes.plot(DRAWN_INPUTS, curve, color=COLOURS[module], **style)
        turned = 90 if place[1] < 1e-9 else 0
        axes.text(*place, module, color=COLOURS[module], rotation=turned, ha="right")
    axes.set_yscale("log")
    axes.set_ylim(floor, 20)
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_xlabel("x")
    axes.set_ylabel("gradient, float32")
    tanh, sigmoid = (_number(by_module[name]["zero_right"]) for name in ("nn.Tanh", TORCH))
    title = "Gradients become 0: nn.ReLU's below 0,\nnn.Tanh's at |x| = {}, {}'s at x = {}"
    record.finish(axes, title.format(tanh, TORCH, sigmoid))


def _draw_errors(axes: Axes, errors: Mapping[str, Any]) -> None:
    edges = numpy.linspace(-LIMIT, LIMIT, INTERVALS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    for label, curve, style in (
        (TORCH, "torch_curve", {"color": COLOURS[TORCH], "linewidth": 1.8}),
        (FUSED, "fused_curve", {"color": COLOURS[FUSED], "linewidth": 1.8}),
        ("half an ulp", "half_ulp_curve", {"color": GREY, "linewidth": 1, "ls": ":"}),
    ):
        axes.semilogy(middles, numpy.array(errors[curve], dtype=float), label=label, **style)
    lost = "nowhere"
    if errors["first_torch_zero"] is not None:
        lost = f"from x = {_number(errors['first_torch_zero'])}"
        record.shade(axes, errors["first_torch_zero"], errors["last_torch_zero"])
    if errors["first_subnormal"] is not None:
        # Without a word, the rise that every float16 result shares would look like our error.
        height = 1.5 * min(value for value in errors["half_ulp_curve"] if value is not None)
        place = errors["first_subnormal"] - 3, height
        axes.text(*place, "subnormals:\nfewer bits", ha="right", color=GREY)
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_ylabel("relative error")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    record.finish(axes, f"{errors['dtype']}: {TORCH}'s gradient is 100 % off {lost}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = record.parser(NAME, __doc__)
    parser.add_argument("--device", default="cpu", help="to measure on: cpu or cuda")
    options = parser.parse_args(arguments)
    if options.measure:
        record.write(
            *(options.record, NAME),
            device=options.device,
            errors=[measure_errors(dtype, options.device) for dtype in DTYPES],
            derivatives=[measure_derivative(module, options.device) for module in MODULES],
        )
    else:
        draw(record.read(options.record), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
