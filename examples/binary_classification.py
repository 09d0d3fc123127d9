"""Sigmoid networks on scikit-learn's breast-cancer data, with nn.Sigmoid and with FusedSigmoid.

First the ordinary training, where the two agree; then a saturated unit, which nn.Sigmoid can
never move again because its gradient is exactly 0; then features as they were measured and a few
wrong labels, where nn.BCELoss after nn.Sigmoid gets stuck for the same reason, and after
FusedSigmoid learns as nn.BCEWithLogitsLoss and FusedBCEWithLogitsLoss do. Needs scikit-learn,
matplotlib and tabulate.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate
from torch import Tensor, nn

from fused_sigmoid import FusedBCEWithLogitsLoss, FusedSigmoid, replace_sigmoid

TORCH, FUSED = "nn.Sigmoid", "FusedSigmoid"
LOGITS_LOSS, FUSED_LOSS = "BCEWithLogitsLoss", "FusedBCEWithLogitsLoss"
# Colours of Okabe and Ito's palette, which the colour-blind can tell apart; wide below, then dashed
# and dotted, where curves lie on each other.
STYLES: dict[str, dict[str, Any]] = {
    TORCH: {"color": "#D55E00", "linewidth": 2},
    FUSED: {"color": "#0072B2", "linewidth": 6, "alpha": 0.45},
    LOGITS_LOSS: {"color": "#000000", "linewidth": 2.5, "linestyle": "--"},
    FUSED_LOSS: {"color": "#E69F00", "linewidth": 2.5, "linestyle": ":"},
}

BATCH_SIZE = 64
LEARNING_RATE = 0.01
SATURATED_LEARNING_RATE = 0.02
# Two of the 114 test cases. In 20 seeds the two modules never differed by one.
ACCURACY_MARGIN = 2.5 / 114

# Where a saturated unit starts. nn.Sigmoid's gradient is exactly 0 from 6.25 upwards in bfloat16
# and from about 17 in float32; the true one is 4.5e-5 and 2.1e-9 here, well within either format.
SATURATED_INPUT = {torch.float32: 20.0, torch.bfloat16: 10.0}
# Twice as many as any of 20 seeds needed.
SATURATED_STEPS = 600
RECOVERED_LOSS = 0.05

# 2 % of the 455 training cases.
WRONG_LABELS = 9
# Between the final losses of what is fused and of BCEWithLogitsLoss. Their gradients differ in last
# bits, which hundreds of steps over features of very different sizes magnify, most in bfloat16.
LOSS_MARGIN = 0.25


@dataclass(frozen=True)
class Cases:
    """Features (cases, 30) and labels (cases, 1): 1 benign, 0 malignant."""

    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor


@dataclass
class Training:
    """An ordinary training, as far as it has come."""

    module: str
    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What became of a model that started saturated, or was given wrong labels."""

    problem: str
    dtype: torch.dtype
    way: str  # the module, and the loss after it where there are several
    losses: list[float]  # after each step, or after each epoch
    gradient: float  # the first of the output's bias, or the largest norm of a step's
    accuracy: float | None
    true_gradient: float | None = None

    @property
    def module(self) -> str:
        return self.way.partition(" ")[0]

    @property
    def where(self) -> str:
        return f"{self.problem}, {_name(self.dtype)}"

    @property
    def recovered_at(self) -> int | None:
        return next((i for i, loss in enumerate(self.losses) if loss < RECOVERED_LOSS), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- The data and the network ---------------------------------------------------------------------


def load_cases(seed: int, device: torch.device, standardised: bool = True) -> Cases:
    features, labels = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        features, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    scaler = StandardScaler(with_mean=standardised, with_std=standardised).fit(train_x)

    def tensor(array: object) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=device)

    return Cases(
        train_features=tensor(scaler.transform(train_x)),
        train_labels=tensor(train_y).unsqueeze(1),
        test_features=tensor(scaler.transform(test_x)),
        test_labels=tensor(test_y).unsqueeze(1),
    )


def classifier(features: int, seed: int) -> nn.Sequential:
    """The textbook network: sigmoid hidden layers, one output neuron that is a probability."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(features, 16), nn.Sigmoid()),
        *(nn.Linear(16, 8), nn.Sigmoid()),
        *(nn.Linear(8, 1), nn.Sigmoid()),
    )


def with_both(model: nn.Sequential) -> dict[str, nn.Sequential]:
    """Two copies with the same weights, in one of them every nn.Sigmoid replaced."""
    plain, fused = copy.deepcopy(model), copy.deepcopy(model)
    if replace_sigmoid(fused) == 0:
        raise RuntimeError("replace_sigmoid found no nn.Sigmoid in the model")
    return {TORCH: plain, FUSED: fused}


@torch.no_grad()
def accuracy(model: nn.Module, cases: Cases) -> float:
    correct: Tensor = (model(cases.test_features) > 0.5) == (cases.test_labels > 0.5)
    return correct.float().mean().item()


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """As in practice: layers run in bfloat16, while the parameters stay float32, since an update of
    0.01 to a bfloat16 weight of 10 would round away."""
    return torch.autocast(device.type, torch.bfloat16, dtype == torch.bfloat16)


# --- The ordinary training ------------------------------------------------------------------------


def compare_trainings(
    cases: Cases, epochs: int, seed: int, progress: bool = False
) -> list[Training]:
    """Trains the same initial weights with nn.Sigmoid and with FusedSigmoid, on the same batches.

    The epochs alternate (A B, B A, ...), so that whatever else the machine does meets both alike,
    after one epoch each on models that are thrown away.
    """
    untrained = classifier(cases.train_features.shape[1], seed)
    batches = torch.Generator().manual_seed(seed)
    for warm_up in _start(untrained):
        _train_epoch(warm_up, cases, torch.randperm(len(cases.train_labels), generator=batches))

    pair = _start(untrained)
    for epoch in range(epochs):
        order = torch.randperm(len(cases.train_labels), generator=batches)
        for training in pair if epoch % 2 == 0 else pair[::-1]:
            _train_epoch(training, cases, order)
        if progress and (epoch + 1) % max(1, epochs // 4) == 0:
            losses = ", ".join(f"{t.module} {t.losses[-1]:.4f}" for t in pair)
            print(f"  epoch {epoch + 1:3d} of {epochs}: loss {losses}")
    return pair


def _start(untrained: nn.Sequential) -> list[Training]:
    return [
        Training(module, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))
        for module, model in with_both(untrained).items()
    ]


def _train_epoch(training: Training, cases: Cases, order: Tensor) -> None:
    criterion = nn.BCELoss()
    order = order.to(cases.train_features.device)
    total = torch.zeros((), device=order.device)
    _synchronize(order.device)
    start = time.perf_counter()
    for batch in order.split(BATCH_SIZE):
        training.optimizer.zero_grad()
        loss = criterion(training.model(cases.train_features[batch]), cases.train_labels[batch])
        loss.backward()
        training.optimizer.step()
        total += loss.detach() * len(batch)
    _synchronize(order.device)
    training.seconds.append(time.perf_counter() - start)
    training.losses.append(total.item() / len(order))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- The case that shows why: saturated on the wrong side -----------------------------------------


def saturated_unit(dtype: torch.dtype, device: torch.device, steps: int) -> list[Run]:
    """One unit sigma(w x + b), far up its flat side, whose one case x = 1 is labelled 0."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()).to(device)
    for parameter in model.parameters():
        nn.init.constant_(parameter, SATURATED_INPUT[dtype] / 2)
    x, label = torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device)
    runs = _recover("one unit", model, Cases(x, label, x, label), dtype, steps)
    return [dataclasses.replace(run, accuracy=None) for run in runs]


def saturated_network(cases: Cases, seed: int, dtype: torch.dtype, steps: int) -> list[Run]:
    """The breast-cancer network, its output bias so high that it calls every tumour benign."""
    model = classifier(cases.train_features.shape[1], seed).to(cases.train_features.device)
    nn.init.constant_(model[-2].bias, SATURATED_INPUT[dtype])
    return _recover("network", model, cases, dtype, steps)


def _recover(
    problem: str, untrained: nn.Sequential, cases: Cases, dtype: torch.dtype, steps: int
) -> list[Run]:
    """Full-batch training with a squared-error loss, by each of the two modules.

    Adam with its defaults divides the gradient by its own running size, so 1e-9 moves a weight
    where plain SGD would need 1e9 steps; no optimiser moves a weight whose gradient is 0.
    """
    features, labels = cases.train_features, cases.train_labels
    # To some eight digits: float64 saturates only from x = 37.
    in_float64 = copy.deepcopy(untrained).double()
    nn.functional.mse_loss(in_float64(features.double()), labels.double()).backward()
    true_gradient = in_float64[-2].bias.grad.item()
    runs = []
    for module, model in with_both(untrained).items():
        optimizer = torch.optim.Adam(model.parameters(), lr=SATURATED_LEARNING_RATE)
        losses, gradients = [], []
        for _ in range(steps):
            with autocast(dtype, features.device):
                output = model(features)
            assert output.dtype == dtype
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(output.float(), labels)
            loss.backward()
            gradients.append(model[-2].bias.grad.item())
            optimizer.step()
            losses.append(loss.item())
        reached = accuracy(model, cases)
        runs.append(Run(problem, dtype, module, losses, gradients[0], reached, true_gradient))
    return runs


# --- The case from practice: large logits and wrong labels ----------------------------------------


def with_wrong_labels(cases: Cases, seed: int) -> Cases:
    """The same cases, a few of the training labels turned."""
    labels = cases.train_labels.clone()
    random = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=random)[:WRONG_LABELS].to(labels.device)
    labels[wrong] = 1 - labels[wrong]
    return dataclasses.replace(cases, train_labels=labels)


def train_with_wrong_labels(cases: Cases, epochs: int, seed: int, dtype: torch.dtype) -> list[Run]:
    """Logistic regression from the same weights on the same batches, in four ways.

    Features as they were measured, up to some thousands, make the first logits large. A case that
    is on the wrong side then, or whose label is wrong, has an output that rounds to the other
    label, and there the gradient of BCELoss after nn.Sigmoid is 0: it divides by y (1 - y), which
    is 0, but not by less than 1e-12, and nn.Sigmoid multiplies by it. FusedSigmoid sees the BCELoss
    and multiplies by what it divided by.
    """
    torch.manual_seed(seed)
    untrained = nn.Linear(cases.train_features.shape[1], 1).to(cases.train_features.device)
    ways = {
        f"{TORCH} + BCELoss": (nn.Sigmoid(), nn.BCELoss()),
        f"{FUSED} + BCELoss": (FusedSigmoid(), nn.BCELoss()),
        LOGITS_LOSS: (nn.Identity(), nn.BCEWithLogitsLoss()),
        FUSED_LOSS: (nn.Identity(), FusedBCEWithLogitsLoss()),
    }
    runs = []
    for way, (output, criterion) in ways.items():
        layer = copy.deepcopy(untrained)
        losses, largest = _train_layer(layer, output, criterion, cases, epochs, seed, dtype)
        # The layer gives logits, which are above 0 where the sigmoid is above 0.5.
        reached = accuracy(nn.Sequential(layer, nn.Sigmoid()), cases)
        runs.append(Run("wrong labels", dtype, way, losses, largest, reached))
    return runs


def _train_layer(
    layer: nn.Linear,
    output: nn.Module,
    criterion: nn.Module,
    cases: Cases,
    epochs: int,
    seed: int,
    dtype: torch.dtype,
) -> tuple[list[float], float]:
    """The losses, and the largest norm of a step's gradient."""
    features, labels = cases.train_features, cases.train_labels
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    batches = torch.Generator().manual_seed(seed)
    losses, norms = [], []
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=batches).split(BATCH_SIZE):
            batch = batch.to(features.device)
            with autocast(dtype, features.device):
                outputs = output(layer(features[batch]))
            assert outputs.dtype == dtype
            optimizer.zero_grad()
            # As in practice: a loss is computed in float32, whatever the layers run in.
            criterion(outputs.float(), labels[batch]).backward()
            norms.append(nn.utils.get_total_norm([p.grad for p in layer.parameters()]))
            optimizer.step()
        with torch.no_grad(), autocast(dtype, features.device):
            logits = layer(features).double()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
        losses.append(loss.item())
    return losses, torch.stack(norms).max().item()


# --- What is printed, drawn and checked -----------------------------------------------------------


def print_table(lines: Sequence[Mapping[str, str]]) -> None:
    words = "problem", "dtype", "module", "trained with"
    aligned = ["left" if name in words else "right" for name in lines[0]]
    options: dict[str, Any] = {"disable_numparse": True, "colalign": aligned}
    text = tabulate(lines, headers="keys", tablefmt="plain", **options)
    print("\n  " + text.replace("\n", "\n  "))


def training_line(training: Training, cases: Cases) -> dict[str, str]:
    return {
        "module": training.module,
        "final loss": f"{training.losses[-1]:.4f}",
        "test accuracy": f"{accuracy(training.model, cases):.1%}",
        "ms per epoch": f"{statistics.median(training.seconds) * 1e3:.2f}",
    }


def saturated_line(run: Run) -> dict[str, str]:
    return {
        "problem": run.problem,
        "dtype": _name(run.dtype),
        "module": run.way,
        "first gradient": f"{run.gradient:.2e}",
        "(in float64)": f"{run.true_gradient:.2e}",
        "recovered": "never" if run.recovered_at is None else f"step {run.recovered_at}",
        "final loss": f"{run.losses[-1]:.4f}",
        "test accuracy": "" if run.accuracy is None else f"{run.accuracy:.1%}",
    }


def wrong_labels_line(run: Run) -> dict[str, str]:
    return {
        "dtype": _name(run.dtype),
        "trained with": run.way,
        "largest gradient": f"{run.gradient:.4g}",
        "final loss": f"{run.losses[-1]:.4g}",
        "test accuracy": f"{run.accuracy:.1%}",
    }


def draw(
    runs: Sequence[Run], title: str, axis_labels: tuple[str, str], scale: str, path: Path
) -> None:
    """Loss against step or epoch: a panel for each problem and dtype, a curve for each way."""
    places = list(dict.fromkeys(run.where for run in runs))
    lines = len(places) // 2
    figure = Figure(figsize=(10, 3.1 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, 2, squeeze=False, sharey="row")
    for axes, where in zip(grid.flat, places, strict=True):
        for run in (run for run in runs if run.where == where):
            label = run.way
            if run.true_gradient is not None:
                label += f": first gradient {run.gradient:.1e}" if run.gradient else ": gradient 0"
            if run.accuracy is not None:
                label += f", test accuracy {run.accuracy:.0%}"
            steps = range(1, len(run.losses) + 1)
            axes.plot(steps, run.losses, label=label, **STYLES[run.module])
        axes.set(title=where, xlabel=axis_labels[0], yscale=scale)
        axes.legend(loc="upper right", fontsize=9, frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for line in grid:
        # Room above the curves for the legend, which would otherwise cover one of them.
        least, most = line[0].get_ylim()
        line[0].set_ylim(least, most * (20 if scale == "log" else 1.45))
        line[0].set_ylabel(axis_labels[1])
    figure.suptitle(title, fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def failures(
    trainings: Sequence[Training], runs: Sequence[Run], wrong: Sequence[Run], cases: Cases
) -> list[str]:
    """What this example claims and did not come out, in words."""
    found = []
    reached = {training.module: accuracy(training.model, cases) for training in trainings}
    if max(reached.values()) - min(reached.values()) > ACCURACY_MARGIN:
        each = ", ".join(f"{module} {value:.1%}" for module, value in reached.items())
        found.append(f"the trainings disagree in test accuracy: {each}")
    for run in runs:
        where = f"{run.where}, {run.way}"
        if run.module == FUSED and run.recovered_at is None:
            found.append(
                f"{where}: did not recover in {len(run.losses)} steps "
                f"(loss {run.losses[-1]:.4f}, first gradient {run.gradient:.2e})"
            )
        if run.module == TORCH and run.gradient != 0:
            found.append(
                f"{where}: the gradient is {run.gradient:.2e}, not 0 as in PyTorch 2.13; "
                "this comparison no longer shows a difference"
            )
    final = {(run.dtype, run.way): run.losses[-1] for run in wrong}
    for run in wrong:
        mine, of_logits = run.losses[-1], final[run.dtype, LOGITS_LOSS]
        if run.module != TORCH and not abs(mine - of_logits) <= LOSS_MARGIN * of_logits:
            found.append(
                f"{run.where}: {run.way} ends with the loss "
                f"{mine:.4g}, {LOGITS_LOSS} with {of_logits:.4g}"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=60, help="of the ordinary training")
    parser.add_argument("--seed", type=int, default=0, help="of the split, weights and batches")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"argument --epochs: got {options.epochs}, expected 1 or more")
    device, seed, epochs = torch.device(options.device), options.seed, options.epochs
    # Layers this small gain nothing from a second thread, and where other programs share the cores
    # they wait for it: 15 times as long on two busy cores.
    torch.set_num_threads(1)

    cases = load_cases(seed, device)
    print(
        f"Breast-cancer data: {len(cases.train_labels)} training and {len(cases.test_labels)} test "
        f"cases, {cases.train_features.shape[1]} features; seed {seed}, {device}"
    )
    print("\n1. The same network and weights, trained with binary cross-entropy")
    trainings = compare_trainings(cases, epochs, seed, progress=True)
    print_table([training_line(training, cases) for training in trainings])
    print("  (time: median over epochs that alternate between the two, after a warm-up epoch each)")

    print("\n2. Saturated on the wrong side, trained with squared error")
    units = [saturated_unit(dtype, device, SATURATED_STEPS) for dtype in SATURATED_INPUT]
    networks = [saturated_network(cases, seed, dtype, SATURATED_STEPS) for dtype in SATURATED_INPUT]
    runs = [run for pair in units + networks for run in pair]
    print_table([saturated_line(run) for run in runs])
    print(f"  (recovered: squared error below {RECOVERED_LOSS})")

    print(f"\n3. Features as measured, {WRONG_LABELS} wrong labels, logistic regression")
    given = with_wrong_labels(load_cases(seed, device, standardised=False), seed)
    ways = [train_with_wrong_labels(given, epochs, seed, dtype) for dtype in SATURATED_INPUT]
    wrong = [run for four in ways for run in four]
    print_table([wrong_labels_line(run) for run in wrong])
    print("  (loss: of the labels as given, in float64; the test labels are right)")

    pictures = options.output / "saturated_units.png", options.output / "wrong_labels.png"
    title = "Started saturated on the wrong side: nn.Sigmoid never learns, FusedSigmoid recovers"
    draw(runs, title, ("training step (Adam)", "squared error"), "linear", pictures[0])
    title = f"{WRONG_LABELS} wrong labels, features as measured: nn.Sigmoid + BCELoss gets stuck"
    draw(wrong, title, ("epoch (Adam)", "binary cross-entropy"), "log", pictures[1])
    print(f"\nLearning curves: {pictures[0]}, {pictures[1]}")

    found = failures(trainings, runs, wrong, cases)
    for failure in found:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
