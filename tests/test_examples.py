"""The examples do what they say: equal trainings, a saturated unit that recovers, wrong labels that
do no harm before nn.BCELoss; records that are full, and pictures that show them.

Needs scikit-learn, matplotlib, pandas and tabulate, which the package does not.
"""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

for needed in ("sklearn", "matplotlib", "pandas", "tabulate"):
    pytest.importorskip(needed)

import matplotlib  # noqa: E402
from PIL import Image  # noqa: E402

from examples import (  # noqa: E402
    binary_classification,
    gradient_accuracy,
    loss_gradients,
    record,
    wrong_labels,
)

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# sigma'(x) by mpmath at 30 digits.
DERIVATIVE_AT_20 = 2.0611536139418493e-9
DERIVATIVE_AT_10 = 4.5395807735951671e-5


# binary_classification sets it too, and does not put it back.
pytestmark = pytest.mark.usefixtures("one_thread")

# binary_classification


def test_same_accuracy_from_the_same_weights() -> None:
    cases = binary_classification.load_cases(0, CPU)
    plain, fused = binary_classification.compare_trainings(cases, epochs=20, seed=0)
    assert fused.losses == pytest.approx(plain.losses, rel=1e-3)
    by_torch = binary_classification.accuracy(plain.model, cases)
    assert by_torch > 0.9
    assert binary_classification.accuracy(fused.model, cases) == pytest.approx(
        by_torch, abs=binary_classification.ACCURACY_MARGIN
    )


@pytest.mark.parametrize(
    ("dtype", "derivative", "tolerance"),
    [(torch.float32, DERIVATIVE_AT_20, 1e-6), (torch.bfloat16, DERIVATIVE_AT_10, 1e-2)],
)
def test_saturated_unit(dtype: torch.dtype, derivative: float, tolerance: float) -> None:
    plain, fused = binary_classification.saturated_unit(dtype, CPU, steps=400)
    assert plain.gradient == 0
    assert set(plain.losses) == {1.0}
    # The loss (sigma(x) - 0)^2 has the derivative 2 sigma(x) sigma'(x), and sigma(x) rounds to 1.
    assert fused.gradient == pytest.approx(2 * derivative, rel=tolerance, abs=0)
    assert fused.true_gradient == pytest.approx(2 * derivative, rel=1e-4, abs=0)
    assert fused.losses[-1] < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_network(dtype: torch.dtype) -> None:
    cases = binary_classification.load_cases(0, CPU)
    plain, fused = binary_classification.saturated_network(cases, 0, dtype, steps=250)
    benign = cases.test_labels.mean().item()
    assert plain.gradient == 0
    assert plain.accuracy == pytest.approx(benign)
    assert fused.recovered_at is not None
    assert fused.accuracy > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_labels(dtype: torch.dtype) -> None:
    cases = binary_classification.load_cases(0, CPU, standardised=False)
    given = binary_classification.with_wrong_labels(cases, 0)
    turned = (given.train_labels != cases.train_labels).sum().item()
    assert turned == binary_classification.WRONG_LABELS
    plain, fused, logits, fused_logits = binary_classification.train_with_wrong_labels(
        given, 30, 0, dtype
    )
    # Stuck where it calls every tumour benign.
    assert plain.accuracy == pytest.approx(cases.test_labels.mean().item())
    assert plain.losses[-1] > 10
    assert fused.gradient == pytest.approx(logits.gradient, rel=0.01)
    for run in (fused, fused_logits):
        assert run.losses == pytest.approx(logits.losses, rel=binary_classification.LOSS_MARGIN)
        assert run.accuracy > 0.85


@pytest.mark.parametrize(
    ("steps", "status", "complaint"), [(300, 0, ""), (2, 1, "did not recover in 2 steps")]
)
def test_program_draws_the_learning_curves_and_fails_where_nothing_recovers(
    steps: int,
    status: int,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(binary_classification, "SATURATED_STEPS", steps)
    output = tmp_path / "new"
    arguments = ["--epochs", "2", "--device", "cpu", "--output", str(output)]
    assert binary_classification.main(arguments) == status
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert bool(printed.err) == bool(status)
    assert "FusedSigmoid + BCELoss" in printed.out
    for name in ("saturated_units.png", "wrong_labels.png"):
        assert (output / name).read_bytes().startswith(PNG_SIGNATURE)


# gradient_accuracy


@pytest.mark.parametrize(
    ("dtype", "first_zero", "bound_in_ulp"),
    [
        ("bfloat16", 6.25, 0.5001),
        ("float16", 8.3203125, 0.5001),
        ("float32", pytest.approx(17, abs=0.5), 2.9),
    ],
)
def test_gradient_errors(dtype: str, first_zero: object, bound_in_ulp: float) -> None:
    errors = gradient_accuracy.measure_errors(dtype, "cpu")
    assert errors["first_torch_zero"] == first_zero
    assert errors["torch_zeros"] > 0
    assert errors["fused_zeros"] == 0
    assert errors["fused_worst_ulp"] <= bound_in_ulp < errors["torch_worst_ulp"]


def test_reference_derivative() -> None:
    derivative = gradient_accuracy.reference_derivative(numpy.array([-20.0, 0.0, 10.0]))
    expected = [DERIVATIVE_AT_20, 0.25, DERIVATIVE_AT_10]
    assert derivative == pytest.approx(expected, rel=1e-15, abs=0)


# 1 + exp(-x) rounds to 1 from exp(-x) = 2^-24 on; tanh x to 1 from 1 - tanh x = 2^-25 on.
SIGMOID_ROUNDS_TO_1, TANH_ROUNDS_TO_1 = math.log(2**24), math.atanh(1 - 2**-25)


@pytest.mark.parametrize(
    ("module", "zero_left", "zero_right", "at_5"),
    [
        ("nn.ReLU", 0.0, None, 1.0),
        # sigma'(5) and tanh'(5) by mpmath.
        ("nn.Tanh", -TANH_ROUNDS_TO_1, TANH_ROUNDS_TO_1, 1.8158323e-4),
        ("nn.Sigmoid", None, SIGMOID_ROUNDS_TO_1, 6.6480567e-3),
        ("FusedSigmoid", None, None, 6.6480567e-3),
    ],
)
def test_where_derivatives_become_0(
    module: str, zero_left: float | None, zero_right: float | None, at_5: float
) -> None:
    recorded = {row["module"]: row for row in _read("gradient_accuracy")["derivatives"]}[module]
    for found in (recorded, gradient_accuracy.measure_derivative(module, "cpu")):
        # An ulp of tanh near 1 is 6e-8, a part in a thousand of what is left of it.
        for side, expected in (("zero_left", zero_left), ("zero_right", zero_right)):
            known = None if expected is None else pytest.approx(expected, abs=0.02)
            assert found[side] == known
        curve = dict(zip(gradient_accuracy.DRAWN_INPUTS, found["curve"], strict=True))
        assert curve[5.0] == pytest.approx(at_5, rel=1e-3)


def test_a_gradient_that_is_lost_is_100_percent_off() -> None:
    errors = {
        "dtype": "float32",
        "inputs": 1048577,
        "torch_zeros": 160880,
        "fused_zeros": 0,
        "first_torch_zero": 16.635543,
        "torch_worst_ulp": 16777214.97,
        "fused_worst_ulp": 2.4807,
    }
    better = {**errors, "torch_zeros": 0, "first_torch_zero": None, "torch_worst_ulp": 1234.5}
    lost, kept = (
        list(line.values()) for line in gradient_accuracy.summary({"errors": [errors, better]})
    )
    assert lost == ["float32", "1,048,577", "160,880", "0", "16.64", "100 %", "2.48 ulp"]
    assert kept == ["float32", "1,048,577", "0", "0", "never", "1,234.50 ulp", "2.48 ulp"]


# The scheme of gradient_accuracy, loss_gradients and wrong_labels

DEMONSTRATIONS = {
    "gradient_accuracy": gradient_accuracy,
    "loss_gradients": loss_gradients,
    "wrong_labels": wrong_labels,
}


def _read(name: str) -> dict[str, Any]:
    return record.read(record.path_of(name))


def test_the_record_of_gradient_accuracy_is_full() -> None:
    document = _read("gradient_accuracy")
    assert {"date", "commit", "cpu", "torch", "device", "command"} <= document.keys()
    assert [errors["dtype"] for errors in document["errors"]] == list(gradient_accuracy.DTYPES)
    for errors in document["errors"]:
        for curve in ("torch_curve", "fused_curve", "half_ulp_curve"):
            assert len(errors[curve]) == gradient_accuracy.INTERVALS


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_pictures_show_the_records_and_nothing_else(name: str, tmp_path: Path) -> None:
    drawn = []
    for place in (tmp_path / "new" / "1.png", tmp_path / "new" / "2.png"):
        assert DEMONSTRATIONS[name].main(["--picture", str(place)]) == 0
        drawn.append(place.read_bytes())
    assert drawn[0] == drawn[1]

    committed = (ROOT / f"docs/figures/{name}.png").read_bytes()
    assert len(committed) <= 120_000
    picture = Image.open(io.BytesIO(committed))
    assert picture.info.keys() <= {"transparency"}  # neither a version nor a time
    # Another matplotlib may set its letters otherwise.
    pinned = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    if f"matplotlib=={matplotlib.__version__} " in pinned:
        new = Image.open(io.BytesIO(drawn[0]))
        assert picture.convert("RGB").tobytes() == new.convert("RGB").tobytes(), "draw it anew"


def _made_small(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its measurement takes no time."""
    if name == "wrong_labels":
        monkeypatch.setattr(module, "measure", lambda: _read(name)["rows"][:3])
    else:
        monkeypatch.setattr(module, "FLOAT32_POINTS", 81)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_measure_writes_the_record_and_draws_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = DEMONSTRATIONS[name]
    _made_small(name, module, monkeypatch)
    path, picture = tmp_path / "new" / "record.json", tmp_path / "picture.png"
    assert module.main(["--measure", "--record", str(path), "--picture", str(picture)]) == 0
    assert not picture.exists()
    written = record.read(path)
    assert written["command"] == f"python -m examples.{name} --measure"
    assert written.keys() >= _read(name).keys()
    assert module.summary(written)
    assert module.main(["--record", str(path), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


def test_the_summaries_need_neither_torch_nor_matplotlib() -> None:
    """What fills the pages has only the records."""
    program = (
        "import sys; sys.modules.update(torch=None, matplotlib=None)\n"
        f"from examples import record, {', '.join(DEMONSTRATIONS)}\n"
        f"for each in ({', '.join(DEMONSTRATIONS)}):\n"
        "    print(len(each.summary(record.read(record.path_of(each.NAME)))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "9", "9"]
