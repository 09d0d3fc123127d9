"""Sigmoid networks on scikit-learn's breast-cancer data, with nn.Sigmoid and with FusedSigmoid.

First the ordinary training, where the two agree; then a saturated unit, which nn.Sigmoid can
never move again because its gradient is exactly 0; then features as they were measured and a few
wrong labels, where nn.BCELoss after nn.Sigmoid gets stuck for the same reason, and after
FusedSigmoid learns as nn.BCEWithLogitsLoss and FusedBCEWithLogitsLoss do. Needs scikit-learn and
matplotlib.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from fused_sigmoid import FusedBCEWithLogitsLoss, FusedSigmoid, replace_sigmoid

TORCH_MODULE = "nn.Sigmoid"
FUSED_MODULE = "FusedSigmoid"
LOGITS_LOSS = "BCEWithLogitsLoss"
FUSED_LOSS = "FusedBCEWithLogitsLoss"
COLOURS = {
    TORCH_MODULE: "#c0392b",
    FUSED_MODULE: "#1f6fb4",
    LOGITS_LOSS: "black",
    FUSED_LOSS: "#e8a317",
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
class SaturatedRun:
    """What became of a model that started saturated on the wrong side."""

    problem: str
    dtype: torch.dtype
    module: str
    first_gradient: float
    reference_gradient: float
    losses: list[float]
    accuracy: float | None

    @property
    def recovered_at(self) -> int | None:
        return next((i for i, loss in enumerate(self.losses) if loss < RECOVERED_LOSS), None)


@dataclass(frozen=True)
class WrongLabelsRun:
    """What became of a classifier that was given a few wrong labels."""

    dtype: torch.dtype
    module: str
    losses: list[float]  # after each epoch, of the labels as given
    largest_gradient: float  # the largest norm of a step's gradient
    accuracy: float


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
        nn.Linear(features, 16),
        nn.Sigmoid(),
        nn.Linear(16, 8),
        nn.Sigmoid(),
        nn.Linear(8, 1),
        nn.Sigmoid(),
    )


def with_fused_sigmoid(model: nn.Sequential) -> nn.Sequential:
    """A copy with the same weights and every nn.Sigmoid replaced."""
    fused = copy.deepcopy(model)
    if replace_sigmoid(fused) == 0:
        raise RuntimeError("replace_sigmoid found no nn.Sigmoid in the model")
    return fused


@torch.no_grad()
def accuracy(model: nn.Module, features: Tensor, labels: Tensor) -> float:
    correct: Tensor = (model(features) > 0.5) == (labels > 0.5)
    return correct.float().mean().item()


# --- The ordinary training ------------------------------------------------------------------------


def compare_trainings(
    cases: Cases, epochs: int, seed: int, progress: bool = False
) -> tuple[Training, Training]:
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


def _start(untrained: nn.Sequential) -> tuple[Training, Training]:
    def training(module: str, model: nn.Sequential) -> Training:
        return Training(module, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))

    return (
        training(TORCH_MODULE, copy.deepcopy(untrained)),
        training(FUSED_MODULE, with_fused_sigmoid(untrained)),
    )


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


def saturated_unit(dtype: torch.dtype, device: torch.device, steps: int) -> list[SaturatedRun]:
    """One unit sigma(w x + b), far up its flat side, whose one case x = 1 is labelled 0."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())
    for parameter in model.parameters():
        nn.init.constant_(parameter, SATURATED_INPUT[dtype] / 2)
    features, labels = torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device)
    return [
        _recover("one unit", variant, module, features, labels, dtype, steps)
        for module, variant in _both(model.to(device))
    ]


def saturated_network(
    cases: Cases, seed: int, dtype: torch.dtype, steps: int
) -> list[SaturatedRun]:
    """The breast-cancer network, its output bias so high that it calls every tumour benign."""
    model = classifier(cases.train_features.shape[1], seed)
    output_layer = model[-2]
    assert isinstance(output_layer, nn.Linear)
    nn.init.constant_(output_layer.bias, SATURATED_INPUT[dtype])
    return [
        _recover(
            "network",
            variant,
            module,
            cases.train_features,
            cases.train_labels,
            dtype,
            steps,
            test=(cases.test_features, cases.test_labels),
        )
        for module, variant in _both(model.to(cases.train_features.device))
    ]


def _both(model: nn.Sequential) -> list[tuple[str, nn.Sequential]]:
    return [(TORCH_MODULE, copy.deepcopy(model)), (FUSED_MODULE, with_fused_sigmoid(model))]


def _recover(
    problem: str,
    model: nn.Sequential,
    module: str,
    features: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    steps: int,
    test: tuple[Tensor, Tensor] | None = None,
) -> SaturatedRun:
    """Full-batch training with a squared-error loss.

    Adam with its defaults divides the gradient by its own running size, so 1e-9 moves a weight
    where plain SGD would need 1e9 steps; no optimiser moves a weight whose gradient is 0.
    """
    reference_gradient = _output_bias_gradient_in_float64(model, features, labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=SATURATED_LEARNING_RATE)
    # As in practice: the layers run in bfloat16, while the parameters stay float32, since an
    # update of 0.01 to a bfloat16 weight of 10 would round away.
    autocast = torch.autocast(features.device.type, torch.bfloat16, dtype == torch.bfloat16)
    losses, first_gradient = [], 0.0
    for step in range(steps):
        with autocast:
            output = model(features)
        assert output.dtype == dtype
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(output.float(), labels)
        loss.backward()
        if step == 0:
            first_gradient = _output_bias_gradient(model)
        optimizer.step()
        losses.append(loss.item())
    return SaturatedRun(
        problem,
        dtype,
        module,
        first_gradient,
        reference_gradient,
        losses,
        None if test is None else accuracy(model, *test),
    )


def _output_bias_gradient(model: nn.Sequential) -> float:
    bias = model[-2].bias
    assert isinstance(bias, Tensor)
    assert bias.grad is not None
    return bias.grad.item()


def _output_bias_gradient_in_float64(
    model: nn.Sequential, features: Tensor, labels: Tensor
) -> float:
    """The true gradient to some eight digits: float64 saturates only from x = 37."""
    model = copy.deepcopy(model).double()
    nn.functional.mse_loss(model(features.double()), labels.double()).backward()
    return _output_bias_gradient(model)


# --- The case from practice: large logits and wrong labels ----------------------------------------


def with_wrong_labels(cases: Cases, seed: int) -> Cases:
    """The same cases, a few of the training labels turned."""
    labels = cases.train_labels.clone()
    random = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=random)[:WRONG_LABELS].to(labels.device)
    labels[wrong] = 1 - labels[wrong]
    return dataclasses.replace(cases, train_labels=labels)


def train_with_wrong_labels(
    cases: Cases, epochs: int, seed: int, dtype: torch.dtype
) -> list[WrongLabelsRun]:
    """Logistic regression from the same weights on the same batches, in four ways.

    Features as they were measured, up to some thousands, make the first logits large. A case that
    is on the wrong side then, or whose label is wrong, has an output that rounds to the other
    label, and there the gradient of BCELoss after nn.Sigmoid is 0: it divides by y (1 - y), which
    is 0, but not by less than 1e-12, and nn.Sigmoid multiplies by it. FusedSigmoid sees the BCELoss
    and multiplies by what it divided by.
    """
    torch.manual_seed(seed)
    untrained = nn.Linear(cases.train_features.shape[1], 1).to(cases.train_features.device)
    return [
        _train_with_wrong_labels(copy.deepcopy(untrained), cases, epochs, seed, dtype, *way)
        for way in (
            (TORCH_MODULE, nn.Sigmoid(), nn.BCELoss()),
            (FUSED_MODULE, FusedSigmoid(), nn.BCELoss()),
            (LOGITS_LOSS, nn.Identity(), nn.BCEWithLogitsLoss()),
            (FUSED_LOSS, nn.Identity(), FusedBCEWithLogitsLoss()),
        )
    ]


def _train_with_wrong_labels(
    layer: nn.Linear,
    cases: Cases,
    epochs: int,
    seed: int,
    dtype: torch.dtype,
    name: str,
    output: nn.Module,
    criterion: nn.Module,
) -> WrongLabelsRun:
    features, labels = cases.train_features, cases.train_labels
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    autocast = torch.autocast(features.device.type, torch.bfloat16, dtype == torch.bfloat16)
    batches = torch.Generator().manual_seed(seed)
    losses, gradients = [], []
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=batches).split(BATCH_SIZE):
            batch = batch.to(features.device)
            with autocast:
                outputs = output(layer(features[batch]))
            assert outputs.dtype == dtype
            optimizer.zero_grad()
            # As in practice: a loss is computed in float32, whatever the layers run in.
            criterion(outputs.float(), labels[batch]).backward()
            gradients.append(nn.utils.get_total_norm([p.grad for p in layer.parameters()]))
            optimizer.step()
        with torch.no_grad(), autocast:
            logits = layer(features).double()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
        losses.append(loss.item())
    # The layer gives logits, which are above 0 where the sigmoid is above 0.5.
    reached = accuracy(nn.Sequential(layer, nn.Sigmoid()), cases.test_features, cases.test_labels)
    return WrongLabelsRun(dtype, name, losses, torch.stack(gradients).max().item(), reached)


# --- What is printed, drawn and checked -----------------------------------------------------------


def print_trainings(trainings: Sequence[Training], cases: Cases) -> None:
    print(f"\n  {'':14}{'final loss':>12}{'test accuracy':>16}{'ms per epoch':>15}")
    for training in trainings:
        test_accuracy = accuracy(training.model, cases.test_features, cases.test_labels)
        print(
            f"  {training.module:14}{training.losses[-1]:12.4f}{test_accuracy:15.1%} "
            f"{statistics.median(training.seconds) * 1e3:15.2f}"
        )


def print_saturated_runs(runs: Sequence[SaturatedRun]) -> None:
    print(
        f"\n  {'':10}{'dtype':10}{'module':14}{'first gradient':>15}{'(in float64)':>14}"
        f"{'recovered':>14}{'final loss':>12}{'test accuracy':>15}"
    )
    for run in runs:
        recovered = "never" if run.recovered_at is None else f"step {run.recovered_at}"
        test_accuracy = "" if run.accuracy is None else f"{run.accuracy:.1%}"
        print(
            f"  {run.problem:10}{_name(run.dtype):10}{run.module:14}{run.first_gradient:15.2e}"
            f"{run.reference_gradient:14.2e}{recovered:>14}{run.losses[-1]:12.4f}"
            f"{test_accuracy:>15}"
        )


def print_wrong_labels_runs(runs: Sequence[WrongLabelsRun]) -> None:
    print(
        f"\n  {'dtype':10}{'trained with':24}{'largest gradient':>17}{'final loss':>12}"
        f"{'test accuracy':>15}"
    )
    for run in runs:
        print(
            f"  {_name(run.dtype):10}{_way(run):24}{run.largest_gradient:17.4g}"
            f"{run.losses[-1]:12.4g}{run.accuracy:15.1%}"
        )


def _way(run: WrongLabelsRun) -> str:
    is_of_logits = run.module in (LOGITS_LOSS, FUSED_LOSS)
    return run.module if is_of_logits else f"{run.module} + BCELoss"


def draw_wrong_labels(runs: Sequence[WrongLabelsRun], path: Path) -> None:
    """Loss against epoch: a panel per dtype, a curve for each way to train."""
    dtypes = list(dict.fromkeys(run.dtype for run in runs))
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    every_loss = [loss for run in runs for loss in run.losses]
    for dtype, axes in zip(dtypes, panels, strict=True):
        for run in (run for run in runs if run.dtype == dtype):
            # Wide below, then dashed and dotted, since three of the four lie on each other.
            style = {
                FUSED_MODULE: {"linewidth": 6, "alpha": 0.45},
                LOGITS_LOSS: {"ls": "--", "linewidth": 2.5},
                FUSED_LOSS: {"ls": ":", "linewidth": 2.5},
            }
            axes.semilogy(
                range(1, len(run.losses) + 1),
                run.losses,
                color=COLOURS[run.module],
                label=f"{_way(run)}: test accuracy {run.accuracy:.0%}",
                **style.get(run.module, {"linewidth": 2}),
            )
        # Room above the curves for the legend.
        axes.set_ylim(min(every_loss) / 2, max(every_loss) * 20)
        axes.set_title(_name(dtype), fontsize=11)
        axes.set_xlabel("epoch (Adam)")
        axes.legend(loc="upper right", fontsize=9, frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("binary cross-entropy")
    figure.suptitle(
        f"Logistic regression on features as measured, {WRONG_LABELS} wrong labels", fontsize=13
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw(runs: Sequence[SaturatedRun], path: Path) -> None:
    """Loss against step: a row per problem, a column per dtype, a curve per module."""
    problems = list(dict.fromkeys(run.problem for run in runs))
    dtypes = list(dict.fromkeys(run.dtype for run in runs))
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    grid = figure.subplots(len(problems), len(dtypes), squeeze=False)
    for problem, row in zip(problems, grid, strict=True):
        for dtype, axes in zip(dtypes, row, strict=True):
            _draw_panel(axes, [r for r in runs if (r.problem, r.dtype) == (problem, dtype)])
        row[0].set_ylabel("squared error")
    for axes in grid[-1]:
        axes.set_xlabel("training step (Adam)")
    figure.suptitle(
        "Started saturated on the wrong side: nn.Sigmoid never learns, FusedSigmoid recovers",
        fontsize=13,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_panel(axes: Axes, runs: Sequence[SaturatedRun]) -> None:
    for run in runs:
        label = f"{run.module}: first gradient {run.first_gradient:.1e}"
        if run.first_gradient == 0:
            label = f"{run.module}: gradient exactly 0"
        if run.accuracy is not None:
            label += f", test accuracy {run.accuracy:.0%}"
        axes.plot(run.losses, color=COLOURS[run.module], linewidth=2, label=label)
    run = runs[0]
    what = {
        "one unit": "one unit, input starts at",
        "network": "breast-cancer network, output bias starts at",
    }[run.problem]
    axes.set_title(f"{_name(run.dtype)}: {what} {SATURATED_INPUT[run.dtype]:g}", fontsize=11)
    top = max(max(run.losses) for run in runs)
    # Room above the curves for the legend, which would otherwise cover one of them.
    axes.set_ylim(-0.04 * top, 1.45 * top)
    axes.set_xlim(0, len(run.losses))
    axes.legend(loc="upper right", fontsize=9, frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def failures(
    trainings: Sequence[Training],
    runs: Sequence[SaturatedRun],
    wrong_labels_runs: Sequence[WrongLabelsRun],
    cases: Cases,
) -> list[str]:
    """What this example claims and did not come out, in words."""
    found = []
    reached = [accuracy(t.model, cases.test_features, cases.test_labels) for t in trainings]
    if max(reached) - min(reached) > ACCURACY_MARGIN:
        found.append(
            "the trainings disagree in test accuracy: "
            + ", ".join(f"{t.module} {a:.1%}" for t, a in zip(trainings, reached, strict=True))
        )
    for run in runs:
        where = f"{run.problem}, {_name(run.dtype)}, {run.module}"
        if run.module == FUSED_MODULE and run.recovered_at is None:
            found.append(
                f"{where}: did not recover in {len(run.losses)} steps "
                f"(loss {run.losses[-1]:.4f}, first gradient {run.first_gradient:.2e})"
            )
        if run.module == TORCH_MODULE and run.first_gradient != 0:
            found.append(
                f"{where}: the gradient is {run.first_gradient:.2e}, not 0 as in PyTorch 2.13; "
                "this comparison no longer shows a difference"
            )
    by_way = {(run.dtype, run.module): run for run in wrong_labels_runs}
    for dtype in dict.fromkeys(run.dtype for run in wrong_labels_runs):
        logits = by_way[dtype, LOGITS_LOSS]
        for fused in (by_way[dtype, FUSED_MODULE], by_way[dtype, FUSED_LOSS]):
            if not abs(fused.losses[-1] - logits.losses[-1]) <= LOSS_MARGIN * logits.losses[-1]:
                found.append(
                    f"wrong labels, {_name(dtype)}: {_way(fused)} ends with the loss "
                    f"{fused.losses[-1]:.4g}, {LOGITS_LOSS} with {logits.losses[-1]:.4g}"
                )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=60, help="of the ordinary training")
    parser.add_argument("--seed", type=int, default=0, help="of the split, weights and batches")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"argument --epochs: got {options.epochs}, expected 1 or more")
    device = torch.device(options.device)
    # Layers this small gain nothing from a second thread, and where other programs share the cores
    # they wait for it: 15 times as long on two busy cores.
    torch.set_num_threads(1)

    cases = load_cases(options.seed, device)
    print(
        f"Breast-cancer data: {len(cases.train_labels)} training and {len(cases.test_labels)} test "
        f"cases, {cases.train_features.shape[1]} features; seed {options.seed}, {device}"
    )
    print("\n1. The same network and weights, trained with binary cross-entropy")
    trainings = compare_trainings(cases, options.epochs, options.seed, progress=True)
    print_trainings(trainings, cases)
    print("  (time: median over epochs that alternate between the two, after a warm-up epoch each)")

    print("\n2. Saturated on the wrong side, trained with squared error")
    runs = []
    for dtype in SATURATED_INPUT:
        runs += saturated_unit(dtype, device, SATURATED_STEPS)
    for dtype in SATURATED_INPUT:
        runs += saturated_network(cases, options.seed, dtype, SATURATED_STEPS)
    print_saturated_runs(runs)
    print(f"  (recovered: squared error below {RECOVERED_LOSS})")

    print(f"\n3. Features as measured, {WRONG_LABELS} wrong labels, logistic regression")
    measured = load_cases(options.seed, device, standardised=False)
    given = with_wrong_labels(measured, options.seed)
    wrong_labels_runs = []
    for dtype in SATURATED_INPUT:
        wrong_labels_runs += train_with_wrong_labels(given, options.epochs, options.seed, dtype)
    print_wrong_labels_runs(wrong_labels_runs)
    print("  (loss: of the labels as given, in float64; the test labels are right)")

    pictures = options.output / "saturated_units.png", options.output / "wrong_labels.png"
    draw(runs, pictures[0])
    draw_wrong_labels(wrong_labels_runs, pictures[1])
    print(f"\nLearning curves: {pictures[0]}, {pictures[1]}")

    found = failures(trainings, runs, wrong_labels_runs, cases)
    for failure in found:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
