"""The gradient dL/dx of nn.BCELoss after nn.Sigmoid and after FusedSigmoid, and of
nn.BCEWithLogitsLoss, over x, for the labels 0, 0.1 and 1; the true one is σ(x) - label.

    python -m examples.loss_gradients [--measure]

Depends on torch and on the package to measure, on matplotlib to draw.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples import record
from examples.gradient_accuracy import inputs
from examples.record import COLOURS, FUSED, HEADS, LOGITS, TORCH, WAYS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "loss_gradients"
LIMIT = 40.0
LABELS = (0.0, 0.1, 1.0)
FLOAT32_POINTS = 2**17 + 1  # of the largest error; of bfloat16 it is every number
NUMBERS = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "bfloat16, loss in float32": ("bfloat16", "float32"),
}
DRAWN = ("float32", "bfloat16")
STEP = 0.5  # of the curves: numbers of either format up to LIMIT
DRAWN_INPUTS = [-LIMIT + STEP * at for at in range(round(2 * LIMIT / STEP) + 1)]


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


def measure(numbers: str, label: float, head: str) -> dict[str, Any]:
    """One module or loss, for one label, in one way to compute.

    The gradient is lost, to the right and to the left, where it is off by more than half of the
    true one's limit there, 1 - label and -label, from some x on.
    """
    import torch

    dtype, loss_dtype = (getattr(torch, name) for name in NUMBERS[numbers])
    x = inputs(dtype, LIMIT, FLOAT32_POINTS)
    # The label as the loss gets it: 0.1 is none of the formats' numbers.
    given = torch.tensor(label, dtype=dtype).double()
    found = gradient(head, x, label, loss_dtype)
    error = (found - (torch.sigmoid(x.double()) - given)).abs()
    curve = gradient(head, torch.tensor(DRAWN_INPUTS, dtype=dtype), label, loss_dtype)
    return {
        "numbers": numbers,
        "label": label,
        "head": head,
        "curve": [float(f"{value:.4g}") for value in curve],  # at DRAWN_INPUTS
        "largest": found.abs().max().item(),  # in size; the true one is at most 1
        "largest_error": error.max().item(),  # absolute
        "lost_right": _lost(x[x > 0], error[x > 0], 1 - label),
        "lost_left": _lost(-x[x < 0].flip(0), error[x < 0].flip(0), label),
    }


def _lost(x: Tensor, error: Tensor, limit: float) -> float | None:
    """The first of the rising ``x`` from which on the error stays above half of ``limit``."""
    if limit == 0:
        return None
    good = (error <= limit / 2).nonzero().flatten()
    first = int(good[-1]) + 1 if len(good) else 0
    return x[first].item() if first < len(x) else None


# --- What the record says -------------------------------------------------------------------------


def by_label(document: Mapping[str, Any]) -> dict[tuple[str, float], dict[str, Any]]:
    """The heads' rows for each kind of numbers and label."""
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for row in document["rows"]:
        found.setdefault((row["numbers"], row["label"]), {})[row["head"]] = row
    return found


def summary(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each kind of numbers and label, in words under its headings."""
    return [
        {
            "numbers": numbers,
            "label": f"{label:g}",
            f"{WAYS[TORCH]}: lost from": lost(rows[TORCH]),
            **{
                f"largest error: {WAYS[head]}": f"{rows[head]['largest_error']:.2g}"
                for head in HEADS
            },
        }
        for (numbers, label), rows in by_label(document).items()
    ]


def lost(row: Mapping[str, Any]) -> str:
    places = []
    if row["lost_left"] is not None:
        places.append(f"x = -{row['lost_left']:.4g} down")
    if row["lost_right"] is not None:
        places.append(f"x = {row['lost_right']:.4g} up")
    return ", ".join(places)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A line of panels for each format, a panel for each label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(len(DRAWN), len(LABELS), squeeze=False, sharex=True, sharey=True)
    styles: dict[str, dict[str, Any]] = {
        # The widest first: where all agree, the three are seen through one another.
        FUSED: {"linewidth": 5, "alpha": 0.45},
        TORCH: {"linewidth": 2},
        LOGITS: {"linewidth": 1.2, "linestyle": (0, (4, 3))},
    }
    rows_by_label = by_label(document)
    for numbers, line in zip(DRAWN, grid, strict=True):
        for label, axes in zip(LABELS, line, strict=True):
            rows = rows_by_label[numbers, label]
            for head, style in styles.items():
                curve = rows[head]["curve"]
                axes.plot(DRAWN_INPUTS, curve, color=COLOURS[head], label=WAYS[head], **style)
            for start, end in (("lost_right", LIMIT), ("lost_left", -LIMIT)):
                if rows[TORCH][start] is not None:
                    record.shade(axes, math.copysign(rows[TORCH][start], end), end)
            title = f"{numbers}, label {label:g}: {TORCH}'s is lost\nfrom {lost(rows[TORCH])}"
            record.finish(axes, title)
            axes.set_xticks(range(-30, 31, 15))
        line[0].set_ylabel("dL/dx")
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-1.15, 1.15))
    for axes in grid[-1]:
        axes.set_xlabel("x")
    record.finish_figure(figure, f"The gradient of {WAYS[FUSED]} is that of {LOGITS}, σ(x) - label")
    record.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    options = record.parser(NAME, __doc__).parse_args(arguments)
    if options.measure:
        cells = [
            (numbers, label, head) for numbers in NUMBERS for label in LABELS for head in HEADS
        ]
        record.write(options.record, NAME, rows=[measure(*cell) for cell in cells])
    else:
        draw(record.read(options.record), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
