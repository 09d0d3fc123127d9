"""Binary classifiers trained with a few wrong labels, by nn.Sigmoid and by FusedSigmoid with
nn.BCELoss, and by nn.BCEWithLogitsLoss, from the same weights on the same batches.

    python -m bench.wrong_labels [--measure] [--output PICTURE.png]

The record is docs/figures/wrong_labels.json, from which docs/company.md is filled by bench.figures.
Depends on torch and on the package when it measures, on matplotlib for the picture, on tabulate for
the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from bench import record, report

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RECORD = Path(__file__).resolve().parent.parent / "docs/figures/wrong_labels.json"

SEEDS = 5
FEATURES, TRAINING_CASES, TEST_CASES, BATCH = 20, 512, 1024, 64
WRONG = 0.02  # the share of the training labels
EPOCHS = 40
# Half the distance of the two classes, in standard deviations: 0.13 % of the cases lie on the wrong
# side of the best plane.
HALF_DISTANCE = 3.0
# Features as measured lie this many of their standard deviations from 0, in units that differ by up
# to this factor, as lengths beside areas do.
OFFSET, UNITS = 4.0, 30.0
HIDDEN = 32

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "autocast": "autocast to bfloat16, loss in float32",
}
TORCH, FUSED, LOGITS = "nn.Sigmoid", "FusedSigmoid", "BCEWithLogitsLoss"
HEADS = (TORCH, FUSED, LOGITS)
COLOURS = {TORCH: "#c0392b", FUSED: "#1f6fb4", LOGITS: "#777777"}
MARKERS = {TORCH: "x", FUSED: "o", LOGITS: "+"}

# Of the largest gradient norm, relative, and of the accuracy of the worst seed: six test cases. Two
# trainings that differ in last bits part by so much in hundreds of steps.
NORM_MARGIN, ACCURACY_MARGIN = 0.05, 6.5 / TEST_CASES


@dataclass(frozen=True)
class Problem:
    """Rates are those at which BCEWithLogitsLoss trains well; SGD has a momentum of 0.9."""

    name: str
    network: bool
    standardised: bool
    rates: Mapping[str, float]


PROBLEMS = (
    Problem("linear, as measured", False, False, {"SGD": 5e-4, "Adam": 1e-2, "AdamW": 1e-2}),
    Problem("network, as measured", True, False, {"SGD": 1e-3, "Adam": 1e-2, "AdamW": 1e-2}),
    Problem("network, standardised", True, True, {"SGD": 1e-1, "Adam": 1e-2, "AdamW": 1e-2}),
)


@dataclass
class Row:
    """What became of one way to train; a figure for each seed."""

    problem: str
    precision: str
    optimizer: str
    head: str
    largest_gradient_norm: list[float]
    largest_wrong_logit: list[float]  # how far a case of a batch was on the wrong side of its label
    final_loss: list[float]  # of the training labels, wrong ones included, in float64 from logits
    accuracy: list[float]  # on test cases, which have right labels


# --- Measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cases:
    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor


def cases(problem: Problem, seed: int) -> Cases:
    """Two round clouds; of the training labels a few are turned."""
    import torch

    random = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(FEATURES, generator=random), dim=0)
    units, offset = torch.ones(FEATURES), 0.0
    if not problem.standardised:
        units, offset = UNITS ** torch.rand(FEATURES, generator=random), OFFSET

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = (torch.arange(count) % 2).float().unsqueeze(1)
        middles = (2 * labels - 1) * HALF_DISTANCE * direction
        features = torch.randn(count, FEATURES, generator=random) + middles
        return (features + offset) * units, labels

    features, labels = draw(TRAINING_CASES)
    test_features, test_labels = draw(TEST_CASES)
    wrong = torch.randperm(TRAINING_CASES, generator=random)[: round(WRONG * TRAINING_CASES)]
    labels[wrong] = 1 - labels[wrong]
    return Cases(features, labels, test_features, test_labels)


def model(problem: Problem, seed: int) -> nn.Module:
    """As torch initialises it; its output is the logit."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    if not problem.network:
        return nn.Linear(FEATURES, 1)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


def head(name: str) -> tuple[nn.Module, nn.Module]:
    """What follows the logit, and the loss."""
    from torch import nn

    from fused_sigmoid import FusedSigmoid

    if name == LOGITS:
        return nn.Identity(), nn.BCEWithLogitsLoss()
    return nn.Sigmoid() if name == TORCH else FusedSigmoid(), nn.BCELoss()


def optimizer(name: str, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    from torch import optim

    if name == "SGD":
        return optim.SGD(parameters, rate, momentum=0.9)
    return (optim.Adam if name == "Adam" else optim.AdamW)(parameters, rate)


def train(
    problem: Problem, precision: str, optimizer_name: str, head_name: str, seed: int, epochs: int
) -> tuple[float, float, float, float]:
    """The four figures of a row, for one seed."""
    import torch

    given = cases(problem, seed)
    layers = model(problem, seed)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layers.to(dtype)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()

    output, criterion = head(head_name)
    parameters = list(layers.parameters())
    chosen = optimizer(optimizer_name, parameters, problem.rates[optimizer_name])
    batches = torch.Generator().manual_seed(seed)
    features, labels = given.features.to(dtype), given.labels.to(dtype)
    largest_norm = largest_logit = torch.zeros((), dtype=torch.float64)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING_CASES, generator=batches).split(BATCH):
            with autocast():
                logits = layers(features[batch])
                outputs = output(logits)
            # Autocast leaves a loss to float32, as BCELoss would refuse to run inside it.
            loss = criterion(outputs.to(dtype), labels[batch])
            chosen.zero_grad()
            loss.backward()
            squares = [parameter.grad.double().square().sum() for parameter in parameters]
            largest_norm = torch.maximum(largest_norm, torch.stack(squares).sum().sqrt())
            wrong = (1 - 2 * labels[batch].double()) * logits.detach().double()
            largest_logit = torch.maximum(largest_logit, wrong.max())
            chosen.step()
    with torch.no_grad(), autocast():
        logits = layers(features).double()
        test_logits = layers(given.test_features.to(dtype)).double()
    final = torch.nn.functional.binary_cross_entropy_with_logits(logits, given.labels.double())
    right = (test_logits > 0) == (given.test_labels > 0.5)
    return largest_norm.item(), largest_logit.item(), final.item(), right.double().mean().item()


def measure(
    problems: Sequence[Problem] = PROBLEMS, seeds: int = SEEDS, epochs: int = EPOCHS
) -> list[Row]:
    """Every way to train; on one thread, since layers this small gain nothing from a second."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            Row(problem.name, precision, name, head_name, *map(list, zip(*found, strict=True)))
            for problem in problems
            for precision in PRECISIONS
            for name in problem.rates
            for head_name in HEADS
            for found in [
                [train(problem, precision, name, head_name, k, epochs) for k in range(seeds)]
            ]
        ]
    finally:
        torch.set_num_threads(threads)


# --- The record -----------------------------------------------------------------------------------


def read() -> tuple[dict[str, Any], list[Row]]:
    """Where it was measured, and the rows."""
    return record.read(RECORD, Row)


def by_training(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """The heads of each problem, precision and optimizer."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.problem, row.precision, row.optimizer), {})[row.head] = row
    return found


def failures(rows: Sequence[Row]) -> list[str]:
    """Where FusedSigmoid did not come out as BCEWithLogitsLoss did, in words."""
    found = []
    for place, heads in by_training(rows).items():
        where = ", ".join(place)
        norms = {name: max(row.largest_gradient_norm) for name, row in heads.items()}
        if not norms[FUSED] <= (1 + NORM_MARGIN) * norms[LOGITS]:
            found.append(f"{where}: gradient norm {norms[FUSED]:.3g}, {norms[LOGITS]:.3g}")
        worst = {name: min(row.accuracy) for name, row in heads.items()}
        if not worst[FUSED] >= worst[LOGITS] - ACCURACY_MARGIN:
            found.append(f"{where}: accuracy {worst[FUSED]:.3f}, {worst[LOGITS]:.3f}")
    return found


def markdown() -> str:
    document, rows = read()
    made = report.origin_text(document, "python -m bench.wrong_labels --measure")
    return f"{table(rows)}\n\n{made}"


def table(rows: Sequence[Row]) -> str:
    """A line for each training, three numbers a cell: of the heads in the order of HEADS."""

    def cell(heads: Mapping[str, Row], figure: Callable[[Row], str]) -> str:
        return " / ".join(figure(heads[name]) for name in HEADS)

    lines = [
        (
            problem,
            precision,
            name,
            cell(heads, lambda row: _short(max(row.largest_wrong_logit))),
            cell(heads, lambda row: _short(max(row.largest_gradient_norm))),
            cell(heads, lambda row: _short(_mean(row.final_loss))),
            cell(heads, lambda row: _short(max(row.final_loss))),
            cell(heads, lambda row: f"{100 * _mean(row.accuracy):.1f}"),
            cell(heads, lambda row: f"{100 * min(row.accuracy):.1f}"),
        )
        for (problem, precision, name), heads in by_training(rows).items()
    ]
    head = (
        *("classifier and features", "numbers", "optimizer", "farthest wrong logit"),
        *("largest gradient norm", "final loss, mean", "worst seed"),
        *("accuracy (%), mean", "worst seed"),
    )
    aligned = ("left",) * 3 + ("right",) * 6
    return tabulate(lines, headers=head, tablefmt="pipe", colalign=aligned, disable_numparse=True)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _short(value: float) -> str:
    """Three digits, without an exponent where that is no longer than six characters."""
    return f"{value:,.0f}" if 100 <= value < 1e5 else f"{value:.3g}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A line of panels for each problem: final loss and accuracy, a point for each seed."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(row.problem for row in rows))
    groups = list(dict.fromkeys((row.precision, row.optimizer) for row in rows))
    figure = Figure(figsize=(12.5, 2.6 * len(problems) + 1), layout="constrained")
    grid = figure.subplots(len(problems), 2, squeeze=False, sharex=True)
    for problem, line in zip(problems, grid, strict=True):
        for row in (row for row in rows if row.problem == problem):
            middle = groups.index((row.precision, row.optimizer))
            # Seeds side by side, heads in three columns: equal results would hide one another.
            left = middle + 0.27 * (HEADS.index(row.head) - 1) - 0.08
            places = [left + 0.16 * seed / max(1, SEEDS - 1) for seed in range(len(row.accuracy))]
            how = {
                "color": COLOURS[row.head],
                "marker": MARKERS[row.head],
                "linestyle": "",
                "markersize": 4.5,
                "label": row.head if row.head == LOGITS else f"{row.head} + BCELoss",
            }
            line[0].plot(places, row.final_loss, **how)
            line[1].plot(places, [100 * value for value in row.accuracy], **how)
        line[0].set_yscale("log")
        line[0].set_title(f"{problem}: final loss", fontsize=10.5)
        line[1].set_title(f"{problem}: accuracy on right labels, %", fontsize=10.5)
        for axes in line:
            axes.grid(axis="y", alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            for at, (before, after) in enumerate(pairwise(groups)):
                if before[0] != after[0]:
                    axes.axvline(at + 0.5, color="#999999", linewidth=0.8)
    for axes in grid[-1]:
        axes.set_xlim(-0.5, len(groups) - 0.5)
        # A precision stands once, below the middle of its optimizers.
        names = []
        for at, (precision, name) in enumerate(groups):
            mine = [place for place, group in enumerate(groups) if group[0] == precision]
            names.append(f"{name}\n{precision}" if at == mine[len(mine) // 2] else name)
        axes.set_xticks(range(len(groups)), names, fontsize=9)
    labels: dict[str, Any] = {}
    for handle, label in zip(*grid[0][0].get_legend_handles_labels(), strict=True):
        labels.setdefault(label, handle)
    figure.suptitle(
        f"Trained with {100 * WRONG:.0f} % wrong labels: {SEEDS} seeds side by side", fontsize=12
    )
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=3, frameon=False
    )
    record.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = record.parse(
        *(
            arguments,
            "bench.wrong_labels",
            "Train classifiers with a few wrong labels by three sigmoids and losses.",
        ),
        *("train", RECORD),
    )
    if chosen.measure:
        record.write(RECORD, measure())
        print(f"wrote {RECORD}")
    _, rows = read()
    print(table(rows))
    if chosen.output:
        draw(rows, chosen.output)
        print(f"wrote {chosen.output}")
    # The record is drawn and tabled whatever it holds; a test reads it for these.
    found = failures(rows) if chosen.measure else []
    for failure in found:
        print(f"FAILED, FusedSigmoid beside BCEWithLogitsLoss: {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
