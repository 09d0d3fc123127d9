"""Binary classifiers trained with a few wrong labels, by nn.Sigmoid and by FusedSigmoid with
nn.BCELoss, and by nn.BCEWithLogitsLoss, from the same weights on the same batches.

    python -m examples.wrong_labels [--measure]

Depends on pandas; on torch and on the package to measure, on matplotlib to draw.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from examples import record
from examples.record import COLOURS, FUSED, HEADS, LOGITS, TORCH, WAYS

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from torch import Tensor, nn

NAME = "wrong_labels"
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
PRECISIONS = ("float32", "bfloat16", "autocast")  # to bfloat16, with the loss in float32
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
SETTING = ["problem", "precision", "optimizer"]


class Outcome(NamedTuple):
    """Of one training; a row of the record holds a list of each, a number for each seed."""

    largest_gradient_norm: float
    largest_wrong_logit: float  # how far a case of a batch was on the wrong side of its label
    final_loss: float  # of the training labels, wrong ones included, in float64 from logits
    accuracy: float  # on test cases, which have right labels


# --- Measuring ------------------------------------------------------------------------------------


def cases(problem: Problem, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two round clouds: features and labels to train, a few of them turned, and to test."""
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
    return features, labels, test_features, test_labels


def model(problem: Problem, seed: int) -> nn.Module:
    """As torch initialises it; its output is the logit."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    if not problem.network:
        return nn.Linear(FEATURES, 1)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


def output_and_loss(head: str) -> tuple[nn.Module, nn.Module]:
    from torch import nn

    from fused_sigmoid import FusedSigmoid

    if head == LOGITS:
        return nn.Identity(), nn.BCEWithLogitsLoss()
    return nn.Sigmoid() if head == TORCH else FusedSigmoid(), nn.BCELoss()


def optimizer(name: str, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    from torch import optim

    momentum = {"momentum": 0.9} if name == "SGD" else {}
    found: torch.optim.Optimizer = getattr(optim, name)(parameters, rate, **momentum)
    return found


def train(
    problem: Problem, precision: str, optimizer_name: str, head: str, seed: int, epochs: int
) -> Outcome:
    import torch

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    given, labels, test, test_labels = cases(problem, seed)
    features, layers = given.to(dtype), model(problem, seed).to(dtype)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()

    output, criterion = output_and_loss(head)
    parameters = list(layers.parameters())
    chosen = optimizer(optimizer_name, parameters, problem.rates[optimizer_name])
    batches = torch.Generator().manual_seed(seed)
    largest_norm = largest_logit = torch.zeros((), dtype=torch.float64)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING_CASES, generator=batches).split(BATCH):
            with autocast():
                logits = layers(features[batch])
                outputs = output(logits)
            # Autocast leaves a loss to float32, as BCELoss would refuse to run inside it.
            loss = criterion(outputs.to(dtype), labels[batch].to(dtype))
            chosen.zero_grad()
            loss.backward()
            squares = [parameter.grad.double().square().sum() for parameter in parameters]
            largest_norm = torch.maximum(largest_norm, torch.stack(squares).sum().sqrt())
            wrong = (1 - 2 * labels[batch].double()) * logits.detach().double()
            largest_logit = torch.maximum(largest_logit, wrong.max())
            chosen.step()
    with torch.no_grad(), autocast():
        logits, test_logits = layers(features).double(), layers(test.to(dtype)).double()
    final = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
    right = (test_logits > 0) == (test_labels > 0.5)
    figures = largest_norm, largest_logit, final, right.double().mean()
    return Outcome(*(figure.item() for figure in figures))


def measure(
    problems: Sequence[Problem] = PROBLEMS, seeds: int = SEEDS, epochs: int = EPOCHS
) -> list[dict[str, Any]]:
    """Every way to train; on one thread, since layers this small gain nothing from a second."""
    import torch

    rows: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for problem in problems:
            for names in product(PRECISIONS, problem.rates, HEADS):
                found = [train(problem, *names, seed, epochs) for seed in range(seeds)]
                row = dict(zip((*SETTING, "head"), (problem.name, *names), strict=True))
                rows.append(row | dict(zip(Outcome._fields, zip(*found, strict=True), strict=True)))
    finally:
        torch.set_num_threads(threads)
    return rows


# --- What the record says -------------------------------------------------------------------------


def trainings(document: Mapping[str, Any]) -> pd.DataFrame:
    """A line for each setting, head and seed."""
    figures = list(Outcome._fields)
    return pd.DataFrame(document["rows"]).explode(figures).astype(dict.fromkeys(figures, float))


def failures(document: Mapping[str, Any]) -> list[str]:
    """Where FusedSigmoid did not come out as BCEWithLogitsLoss did, in words."""
    found = []
    every = trainings(document)
    for setting, mine in every[every["head"] != TORCH].groupby(SETTING, sort=False):
        where, heads = ", ".join(setting), mine.groupby("head")
        norm, accuracy = heads["largest_gradient_norm"].max(), heads["accuracy"].min()
        if mine.isna().any(axis=None):
            found.append(f"{where}: a figure is no number")
        elif norm[FUSED] > (1 + NORM_MARGIN) * norm[LOGITS]:
            found.append(f"{where}: gradient norm {norm[FUSED]:.3g}, {norm[LOGITS]:.3g}")
        elif accuracy[FUSED] < accuracy[LOGITS] - ACCURACY_MARGIN:
            found.append(f"{where}: accuracy {accuracy[FUSED]:.3f}, {accuracy[LOGITS]:.3f}")
    return found


def summary(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each problem and precision, over its optimizers and seeds."""
    by_head = trainings(document).groupby([*SETTING[:2], "head"], sort=False)
    cells = {
        "every case called the same": by_head["accuracy"].agg(stuck),
        "largest final loss": by_head["final_loss"].max().map(_short),
    }
    return _lines(
        pd.DataFrame(
            {
                f"{WAYS[head]}: {name}": column.xs(head, level="head")
                for name, column in cells.items()
                for head in HEADS
            }
        )
    )


def stuck(accuracies: pd.Series) -> str:
    """The trainings after which every test case is called the same: half are of each class."""
    return f"{(accuracies == 0.5).sum()} of {len(accuracies)}"


def _lines(table: pd.DataFrame) -> list[dict[str, str]]:
    named = {"problem": "classifier and features", "precision": "numbers"}
    return table.reset_index().rename(columns=named).to_dict("records")


def _short(value: float) -> str:
    """Three digits, without an exponent where that is no longer than six characters."""
    return f"{value:,.0f}" if 100 <= value < 1e5 else f"{value:.3g}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A line of panels for each problem: final loss and accuracy, a point for each seed."""
    from matplotlib.figure import Figure

    problems = trainings(document).groupby("problem", sort=False)
    figure = Figure(figsize=(10, 2.5 * len(problems) + 0.6), layout="constrained")
    grid = figure.subplots(len(problems), 2, squeeze=False, sharex=True)
    for (problem, mine), (losses, accuracies) in zip(problems, grid, strict=True):
        _draw_seeds(losses, mine, mine["final_loss"])
        losses.set_yscale("log")
        losses.set_ylabel("final loss")
        record.finish(losses, f"{problem.capitalize()}: {_loss_title(mine)}")
        _draw_seeds(accuracies, mine, 100 * mine["accuracy"])
        accuracies.set_ylabel("right test cases, %")
        record.finish(accuracies, f"{problem.capitalize()}: {_accuracy_title(mine)}")
        for axes in (losses, accuracies):
            axes.grid(visible=False, axis="x")
    title = f"Trained with {100 * WRONG:.0f} % wrong labels: {SEEDS} seeds side by side"
    record.finish_figure(figure, title)
    record.save(figure, path)


def _draw_seeds(axes: Axes, rows: pd.DataFrame, values: pd.Series) -> None:
    settings = list(dict.fromkeys(zip(rows["precision"], rows["optimizer"], strict=True)))
    for (*setting, head), mine in values.groupby(
        [rows["precision"], rows["optimizer"], rows["head"]], sort=False
    ):
        # Seeds side by side, heads in three columns: equal results would hide one another.
        left = settings.index(tuple(setting)) + 0.27 * HEADS.index(head) - 0.35
        places = [left + 0.16 * seed / max(1, len(mine) - 1) for seed in range(len(mine))]
        how: dict[str, Any] = {"color": COLOURS[head], "marker": MARKERS[head], "label": WAYS[head]}
        axes.plot(places, mine, linestyle="", markersize=4.5, **how)
    precisions = rows["precision"].nunique()
    per_precision = len(settings) // precisions
    for at in range(1, precisions):
        axes.axvline(at * per_precision - 0.5, color=record.GREY, linewidth=0.8)
    # A precision stands once, below the middle of its optimizers.
    middle = per_precision // 2
    names = [
        f"{name}\n{precision}" if at % per_precision == middle else name
        for at, (precision, name) in enumerate(settings)
    ]
    axes.set_xticks(range(len(settings)), names, fontsize=9)
    axes.set_xlim(-0.5, len(settings) - 0.5)


def _loss_title(rows: pd.DataFrame) -> str:
    """By how much a training ends above the same one by BCEWithLogitsLoss, at worst."""
    losses = {head: mine["final_loss"].to_numpy() for head, mine in rows.groupby("head")}
    by_torch, by_fused = ((losses[head] / losses[LOGITS]).max() for head in (TORCH, FUSED))
    ratios = f"{by_torch:.0f} times {LOGITS}'s, {FUSED}'s {by_fused:.1f}"
    return f"{TORCH}'s loss is up to\n{ratios}"


def _accuracy_title(rows: pd.DataFrame) -> str:
    by_torch = rows["accuracy"][rows["head"] == TORCH]
    if (by_torch == 0.5).any():
        return f"{TORCH} calls every\ncase the same in {stuck(by_torch)} trainings"
    least, most = 100 * rows["accuracy"].min(), 100 * rows["accuracy"].max()
    return f"all trainings\nare right in {least:.1f} to {most:.1f} % of the cases"


def main(arguments: Sequence[str] | None = None) -> int:
    options = record.parser(NAME, __doc__).parse_args(arguments)
    if not options.measure:
        draw(record.read(options.record), options.picture)
        return 0
    rows = measure()
    record.write(options.record, NAME, rows=rows)
    # The record is written whatever it holds; a test reads it for these.
    found = failures({"rows": rows})
    for failure in found:
        print(f"FAILED, FusedSigmoid beside BCEWithLogitsLoss: {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
