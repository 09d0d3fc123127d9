"""The gradient dL/dx of nn.BCELoss after nn.Sigmoid and after FusedSigmoid, and of
nn.BCEWithLogitsLoss, over x, for the labels 0, 0.1 and 1; the true one is σ(x) - label.

    python -m bench.loss_gradients [--measure] [--output PICTURE.png]

The record is docs/figures/loss_gradients.json, from which README.md is filled by bench.figures.
Depends on torch and on the package when it measures, on matplotlib for the picture, on tabulate for
the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from bench import record, report
from bench.wrong_labels import COLOURS, FUSED, HEADS, LOGITS, TORCH

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RECORD = Path(__file__).resolve().parent.parent / "docs/figures/loss_gradients.json"

LIMIT = 40.0
LABELS = (0.0, 0.1, 1.0)
STEP = 0.5  # of the curves: a number of either format up to LIMIT
FLOAT32_POINTS = 2**17 + 1  # of the largest error; of bfloat16 it is every number
NUMBERS = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "bfloat16, loss in float32": ("bfloat16", "float32"),
}
DRAWN = ("float32", "bfloat16")


@dataclass
class Row:
    """One module or loss, for one label, in one way to compute."""

    numbers: str
    label: float
    head: str
    curve: list[float]  # at -LIMIT, -LIMIT + STEP, ...
    largest: float  # gradient, in size; the true one is at most 1
    largest_error: float  # absolute
    # From where on to the right, and to the left, the gradient is off by more than half of the true
    # one's limit there, 1 - label and -label.
    lost_right: float | None
    lost_left: float | None


def curve_inputs() -> list[float]:
    return [-LIMIT + STEP * at for at in range(round(2 * LIMIT / STEP) + 1)]


# --- Measuring ------------------------------------------------------------------------------------


def gradient(head: str, x: Tensor, label: float, loss_dtype: torch.dtype) -> Tensor:
    """Of the sum of the losses, so that every element's is its own loss's."""
    from torch import nn

    from fused_sigmoid import FusedSigmoid

    leaf = x.clone().requires_grad_()
    labels = x.new_full(x.shape, label).to(loss_dtype)
    if head == LOGITS:
        loss = nn.BCEWithLogitsLoss(reduction="sum")(leaf.to(loss_dtype), labels)
    else:
        sigmoid = nn.Sigmoid() if head == TORCH else FusedSigmoid()
        loss = nn.BCELoss(reduction="sum")(sigmoid(leaf).to(loss_dtype), labels)
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad.double()


def inputs(dtype: torch.dtype) -> Tensor:
    import torch

    if dtype == torch.float32:
        return torch.linspace(-LIMIT, LIMIT, FLOAT32_POINTS)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return x[x.abs() <= LIMIT].sort().values


def measure() -> list[Row]:
    import torch

    rows = []
    for numbers, (dtype_name, loss_dtype_name) in NUMBERS.items():
        dtype, loss_dtype = getattr(torch, dtype_name), getattr(torch, loss_dtype_name)
        x, drawn = inputs(dtype), torch.tensor(curve_inputs(), dtype=dtype)
        for label in LABELS:
            # The label as the loss gets it: 0.1 is none of the formats' numbers.
            given = torch.tensor(label, dtype=dtype).double()
            true = torch.sigmoid(x.double()) - given
            for head in HEADS:
                found = gradient(head, x, label, loss_dtype)
                error = (found - true).abs()
                curve = gradient(head, drawn, label, loss_dtype).tolist()
                rows.append(
                    Row(
                        numbers,
                        label,
                        head,
                        # Four digits are more than a curve shows.
                        [float(f"{value:.4g}") for value in curve],
                        found.abs().max().item(),
                        error.max().item(),
                        _lost(x[x > 0], error[x > 0], 1 - label),
                        _lost(-x[x < 0].flip(0), error[x < 0].flip(0), label),
                    )
                )
    return rows


def _lost(x: Tensor, error: Tensor, limit: float) -> float | None:
    """The first of the rising ``x`` from which on the error stays above half of ``limit``."""
    if limit == 0:
        return None
    good = (error <= limit / 2).nonzero().flatten()
    first = int(good[-1]) + 1 if len(good) else 0
    return x[first].item() if first < len(x) else None


# --- The record -----------------------------------------------------------------------------------


def read() -> tuple[dict[str, Any], list[Row]]:
    """Where it was measured, and the rows."""
    return record.read(RECORD, Row)


def markdown() -> str:
    document, rows = read()
    made = report.origin_text(document, "python -m bench.loss_gradients --measure")
    return f"{table(rows)}\n\n{made}"


def table(rows: Sequence[Row]) -> str:
    """For each kind of numbers and label: where nn.Sigmoid's gradient is lost, and the errors."""
    lines = []
    for numbers in dict.fromkeys(row.numbers for row in rows):
        for label in dict.fromkeys(row.label for row in rows):
            heads = {r.head: r for r in rows if (r.numbers, r.label) == (numbers, label)}
            lines.append(
                (
                    numbers,
                    f"{label:g}",
                    _where(heads[TORCH]),
                    *(_error(heads[head]) for head in HEADS),
                )
            )
    head = (
        *("numbers", "label", "nn.Sigmoid + BCELoss: lost from"),
        *("largest error: nn.Sigmoid + BCELoss", "FusedSigmoid + BCELoss", "BCEWithLogitsLoss"),
    )
    aligned = ("left", "right", "left", *("right",) * 3)
    return tabulate(lines, headers=head, tablefmt="pipe", colalign=aligned, disable_numparse=True)


def _where(row: Row) -> str:
    places = []
    if row.lost_left is not None:
        places.append(f"x = -{row.lost_left:.4g} down")
    if row.lost_right is not None:
        places.append(f"x = {row.lost_right:.4g} up")
    return ", ".join(places)


def _error(row: Row) -> str:
    return f"{row.largest_error:.2g}" if math.isfinite(row.largest_error) else "not finite"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A line of panels for each format, a panel for each label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.subplots(len(DRAWN), len(LABELS), squeeze=False, sharex=True, sharey=True)
    styles: dict[str, dict[str, Any]] = {
        # The widest first: where all agree, the three are seen through one another.
        FUSED: {"linewidth": 5, "alpha": 0.45, "label": f"{FUSED} + BCELoss"},
        TORCH: {"linewidth": 2, "label": f"{TORCH} + BCELoss"},
        LOGITS: {"linewidth": 1.2, "linestyle": (0, (4, 3)), "color": "black", "label": LOGITS},
    }
    x = curve_inputs()
    for numbers, line in zip(DRAWN, grid, strict=True):
        for label, axes in zip(LABELS, line, strict=True):
            heads = {r.head: r for r in rows if (r.numbers, r.label) == (numbers, label)}
            for head, style in styles.items():
                axes.plot(x, heads[head].curve, **{"color": COLOURS[head], **style})
            axes.set_title(f"{numbers}, label {label:g}", fontsize=10.5)
            axes.set_ylim(-1.15, 1.15)
            axes.set_xlim(-LIMIT, LIMIT)
            axes.set_xticks(range(-30, 31, 15))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("dL/dx")
    for axes in grid[-1]:
        axes.set_xlabel("x")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Gradient of the binary cross-entropy", fontsize=12)
    record.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = record.parse(
        *(
            arguments,
            "bench.loss_gradients",
            "The gradient of binary cross-entropy by three sigmoids and losses.",
        ),
        *("measure", RECORD),
    )
    if chosen.measure:
        record.write(RECORD, measure())
        print(f"wrote {RECORD}")
    _, rows = read()
    print(table(rows))
    if chosen.output:
        draw(rows, chosen.output)
        print(f"wrote {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
