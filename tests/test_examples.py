"""The examples do what they say: equal trainings, a saturated unit that recovers, wrong labels that
do no harm before nn.BCELoss, the pictures.

Needs scikit-learn and matplotlib, which only the examples use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CPU = torch.device("cpu")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# sigma'(x) by mpmath at 30 digits.
DERIVATIVE_AT_20 = 2.0611536139418493e-9
DERIVATIVE_AT_10 = 4.5395807735951671e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are too small for more, and the program sets it too: put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def binary_classification(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("binary_classification")


@pytest.fixture
def gradient_accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("gradient_accuracy")


def test_same_accuracy_from_the_same_weights(binary_classification: ModuleType) -> None:
    cases = binary_classification.load_cases(0, CPU)
    plain, fused = binary_classification.compare_trainings(cases, epochs=20, seed=0)
    assert fused.losses == pytest.approx(plain.losses, rel=1e-3)
    test_set = cases.test_features, cases.test_labels
    assert binary_classification.accuracy(plain.model, *test_set) > 0.9
    assert binary_classification.accuracy(fused.model, *test_set) == pytest.approx(
        binary_classification.accuracy(plain.model, *test_set),
        abs=binary_classification.ACCURACY_MARGIN,
    )


@pytest.mark.parametrize(
    ("dtype", "derivative", "tolerance"),
    [(torch.float32, DERIVATIVE_AT_20, 1e-6), (torch.bfloat16, DERIVATIVE_AT_10, 1e-2)],
)
def test_saturated_unit(
    binary_classification: ModuleType, dtype: torch.dtype, derivative: float, tolerance: float
) -> None:
    plain, fused = binary_classification.saturated_unit(dtype, CPU, steps=400)
    assert plain.first_gradient == 0
    assert set(plain.losses) == {1.0}
    # The loss (sigma(x) - 0)^2 has the derivative 2 sigma(x) sigma'(x), and sigma(x) rounds to 1.
    assert fused.first_gradient == pytest.approx(2 * derivative, rel=tolerance, abs=0)
    assert fused.losses[-1] < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_network(binary_classification: ModuleType, dtype: torch.dtype) -> None:
    cases = binary_classification.load_cases(0, CPU)
    plain, fused = binary_classification.saturated_network(cases, 0, dtype, steps=250)
    benign = cases.test_labels.mean().item()
    assert plain.first_gradient == 0
    assert plain.accuracy == pytest.approx(benign)
    assert fused.recovered_at is not None
    assert fused.accuracy > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_labels(binary_classification: ModuleType, dtype: torch.dtype) -> None:
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
    assert fused.losses == pytest.approx(logits.losses, rel=binary_classification.LOSS_MARGIN)
    assert fused.largest_gradient == pytest.approx(logits.largest_gradient, rel=0.01)
    assert fused.accuracy > 0.85
    margin = binary_classification.LOSS_MARGIN
    assert fused_logits.losses == pytest.approx(logits.losses, rel=margin)
    assert fused_logits.accuracy > 0.85


def test_program_draws_the_learning_curves(
    binary_classification: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(binary_classification, "SATURATED_STEPS", 300)
    arguments = ["--epochs", "2", "--device", "cpu", "--output", str(tmp_path / "new")]
    assert binary_classification.main(arguments) == 0, capsys.readouterr().err
    assert _is_png(tmp_path / "new" / "saturated_units.png")
    assert _is_png(tmp_path / "new" / "wrong_labels.png")


def test_program_fails_where_nothing_recovers(
    binary_classification: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(binary_classification, "SATURATED_STEPS", 2)
    arguments = ["--epochs", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert binary_classification.main(arguments) == 1
    assert "did not recover in 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "first_zero", "bound_in_ulp"),
    [
        (torch.bfloat16, 6.25, 0.5001),
        (torch.float16, 8.3203125, 0.5001),
        (torch.float32, pytest.approx(17, abs=0.5), 2.9),
    ],
)
def test_gradient_errors(
    gradient_accuracy: ModuleType, dtype: torch.dtype, first_zero: object, bound_in_ulp: float
) -> None:
    errors = gradient_accuracy.measure(dtype, CPU)
    assert errors.first_torch_zero == first_zero
    assert errors.torch_zeros > 0
    assert errors.fused_zeros == 0
    assert errors.fused_worst_ulp <= bound_in_ulp < errors.torch_worst_ulp


def test_reference_derivative(gradient_accuracy: ModuleType) -> None:
    derivative = gradient_accuracy.reference_derivative(numpy.array([-20.0, 0.0, 10.0]))
    expected = [DERIVATIVE_AT_20, 0.25, DERIVATIVE_AT_10]
    assert derivative == pytest.approx(expected, rel=1e-15, abs=0)


def test_gradient_accuracy_measures_draws_and_writes(
    gradient_accuracy: ModuleType, tmp_path: Path
) -> None:
    result, picture, page = tmp_path / "new" / "r.json", tmp_path / "p.png", tmp_path / "page.md"
    page.write_text("<!-- gradient-accuracy:begin -->\nold\n<!-- gradient-accuracy:end -->\n")
    arguments = ["--result", str(result), "--write", str(page)]
    measured = ["--measure", "--device", "cpu", "--output", str(picture)]
    assert gradient_accuracy.main([*arguments, *measured]) == 0
    assert _is_png(picture)
    assert picture.stat().st_size < 200_000
    assert "| bfloat16 |" in page.read_text()
    assert gradient_accuracy.main([*arguments, "--check"]) == 0

    page.write_text(page.read_text().replace("| bfloat16 |", "| bfloat15 |"))
    assert gradient_accuracy.main([*arguments, "--check"]) == 1
    assert "| bfloat15 |" in page.read_text()


def test_readme_holds_the_committed_gradient_figures(gradient_accuracy: ModuleType) -> None:
    readme = EXAMPLES.parent / "README.md"
    assert gradient_accuracy.BLOCK.search(readme.read_text(encoding="utf-8"))
    assert gradient_accuracy.main(["--write", str(readme), "--check"]) == 0


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(PNG_SIGNATURE)
