"""FusedSigmoid before nn.BCELoss is nn.BCEWithLogitsLoss: what README.md and docs/company.md show
of gradients and of trainings with wrong labels, as recorded and measured anew.

Needs matplotlib and tabulate, which only bench uses.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for needed in ("matplotlib", "tabulate"):
    pytest.importorskip(needed)

from bench import loss_gradients, wrong_labels  # noqa: E402
from bench.wrong_labels import FUSED, HEADS, LOGITS, TORCH  # noqa: E402

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# Trainings


def test_the_recorded_trainings_are_full_and_hold_what_the_page_says() -> None:
    _, rows = wrong_labels.read()
    ways = len(wrong_labels.PRECISIONS) * sum(len(p.rates) for p in wrong_labels.PROBLEMS)
    assert len(rows) == ways * len(HEADS)
    assert {len(row.final_loss) for row in rows} == {wrong_labels.SEEDS}
    assert wrong_labels.failures(rows) == []
    # Logits came far enough to the wrong side that y rounds to the wrong label.
    limits = {"float32": 16.64, "bfloat16": 6.25, "autocast": 6.25}
    for precision, limit in limits.items():
        mine = [row for row in rows if (row.precision, row.head) == (precision, LOGITS)]
        assert max(max(row.largest_wrong_logit) for row in mine) > limit


def test_failures_are_seen() -> None:
    _, rows = wrong_labels.read()
    for figure, bad in (("largest_gradient_norm", 1e9), ("accuracy", 0.5)):
        for value in (bad, math.nan):
            planted = copy.deepcopy(rows)
            fused = next(row for row in planted if row.head == FUSED)
            setattr(fused, figure, [value] * wrong_labels.SEEDS)
            assert len(wrong_labels.failures(planted)) == len(wrong_labels.failures(rows)) + 1


@pytest.mark.parametrize("precision", wrong_labels.PRECISIONS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_a_short_training(precision: str, optimizer: str) -> None:
    for problem in wrong_labels.PROBLEMS:
        fused, logits = (
            wrong_labels.train(problem, precision, optimizer, head, seed=0, epochs=2)
            for head in (FUSED, LOGITS)
        )
        assert fused[0] == pytest.approx(logits[0], rel=wrong_labels.NORM_MARGIN)
        assert fused[2] == pytest.approx(logits[2], rel=0.1)


def test_trainings_are_measured_recorded_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = wrong_labels.PROBLEMS[-1]
    rows = wrong_labels.measure([problem], seeds=2, epochs=1)
    monkeypatch.setattr(wrong_labels, "RECORD", tmp_path / "new" / "record.json")
    monkeypatch.setattr(wrong_labels, "measure", lambda: rows)
    picture = tmp_path / "pictures" / "picture.png"
    assert wrong_labels.main(["--measure", "--output", str(picture)]) == 0
    assert wrong_labels.read()[1] == rows
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    lines = wrong_labels.markdown().splitlines()
    assert sum(line.startswith(f"| {problem.name}") for line in lines) == 9
    assert "bench.wrong_labels --measure" in lines[-1]


# Gradients


def test_the_recorded_gradients_are_those_of_bce_with_logits() -> None:
    _, rows = loss_gradients.read()
    by_place = {(row.numbers, row.label, row.head): row for row in rows}
    assert len(by_place) == len(loss_gradients.NUMBERS) * len(loss_gradients.LABELS) * len(HEADS)
    for numbers in loss_gradients.NUMBERS:
        for label in loss_gradients.LABELS:
            torch_row, fused, _ = (by_place[numbers, label, head] for head in HEADS)
            # y, the quotient and the product are rounded, each by half an eps of 1 at most.
            eps = torch.finfo(getattr(torch, loss_gradients.NUMBERS[numbers][0])).eps
            assert fused.largest_error <= 1.5 * eps
            assert fused.largest <= 1 + 1.5 * eps
            assert (fused.lost_left, fused.lost_right) == (None, None)
            assert torch_row.lost_left is not None or torch_row.lost_right is not None


@pytest.mark.parametrize("numbers", loss_gradients.NUMBERS)
@pytest.mark.parametrize("label", loss_gradients.LABELS)
def test_gradients_measured_anew_are_the_recorded(numbers: str, label: float) -> None:
    dtype, loss_dtype = (getattr(torch, name) for name in loss_gradients.NUMBERS[numbers])
    x = torch.tensor(loss_gradients.curve_inputs(), dtype=dtype)
    recorded = {
        row.head: row.curve
        for row in loss_gradients.read()[1]
        if (row.numbers, row.label) == (numbers, label)
    }
    for head in HEADS:
        found = loss_gradients.gradient(head, x, label, loss_dtype).tolist()
        tolerance = 4 * torch.finfo(dtype).eps
        assert found == pytest.approx(recorded[head], rel=1e-3, abs=tolerance)


def test_gradients_are_measured_recorded_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_gradients, "RECORD", tmp_path / "new" / "record.json")
    monkeypatch.setattr(loss_gradients, "FLOAT32_POINTS", 81)
    picture = tmp_path / "pictures" / "picture.png"
    assert loss_gradients.main(["--measure", "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    _, rows = loss_gradients.read()
    by_torch = next(
        row for row in rows if (row.numbers, row.label, row.head) == ("float32", 0, TORCH)
    )
    assert by_torch.lost_right == 17  # the grid of this test has whole numbers alone
    assert "x = 17 up" in loss_gradients.markdown()
