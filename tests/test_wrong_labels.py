"""FusedSigmoid before nn.BCELoss is nn.BCEWithLogitsLoss: what README.md and docs/company.md show
of gradients and of trainings with wrong labels, as recorded and measured anew.

Needs pandas, which the package does not.
"""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pandas")

from examples import loss_gradients, record, wrong_labels  # noqa: E402
from examples.record import FUSED, HEADS, LOGITS, TORCH  # noqa: E402

TRAININGS = record.read(record.path_of("wrong_labels"))
GRADIENTS = record.read(record.path_of("loss_gradients"))


pytestmark = pytest.mark.usefixtures("one_thread")

# Trainings


def test_the_recorded_trainings_are_full_and_hold_what_the_page_says() -> None:
    ways = len(wrong_labels.PRECISIONS) * sum(len(p.rates) for p in wrong_labels.PROBLEMS)
    trainings = wrong_labels.trainings(TRAININGS)
    assert len(trainings) == ways * len(HEADS) * wrong_labels.SEEDS
    assert wrong_labels.failures(TRAININGS) == []
    # Logits came far enough to the wrong side that y rounds to the wrong label.
    limits = {"float32": 16.64, "bfloat16": 6.25, "autocast": 6.25}
    by_logits = trainings[trainings["head"] == LOGITS].groupby("precision")
    farthest = by_logits["largest_wrong_logit"].max()
    assert all(farthest[precision] > limit for precision, limit in limits.items())


@pytest.mark.parametrize("head", [FUSED, LOGITS])
@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("largest_gradient_norm", 1e9),
        ("accuracy", 0.5),
        ("largest_gradient_norm", math.nan),
        ("accuracy", math.nan),
    ],
)
def test_failures_are_seen(head: str, figure: str, value: float) -> None:
    planted = copy.deepcopy(TRAININGS)
    row = next(row for row in planted["rows"] if row["head"] == head)
    row[figure][2] = value
    # That BCEWithLogitsLoss does worse is no failure of ours; that it gives no number is.
    expected = 1 if head == FUSED or math.isnan(value) else 0
    assert len(wrong_labels.failures(planted)) == expected


def test_summaries_of_trainings() -> None:
    def row(head: str, norm: float, losses: list[float], right: list[float]) -> dict[str, object]:
        where = {"problem": "linear", "precision": "float32", "optimizer": "SGD", "head": head}
        figures = {"largest_gradient_norm": [norm, 1.0], "largest_wrong_logit": [3.0, 20.04]}
        return {**where, **figures, "final_loss": losses, "accuracy": right}

    document = {
        "rows": [
            row(TORCH, 1234.4, [0.5, 74.62], [0.5, 0.75]),
            row(FUSED, 12.345, [0.25, 0.375], [0.875, 1.0]),
            row(LOGITS, 12.345, [0.125, 0.125], [1.0, 1.0]),
        ]
    }
    assert [list(line.values()) for line in wrong_labels.summary(document)] == [
        ["linear", "float32", "1 of 2", "0 of 2", "0 of 2", "74.6", "0.375", "0.125"]
    ]


@pytest.mark.parametrize("precision", wrong_labels.PRECISIONS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_a_short_training(precision: str, optimizer: str) -> None:
    for problem in wrong_labels.PROBLEMS:
        fused, logits = (
            wrong_labels.train(problem, precision, optimizer, head, seed=0, epochs=2)
            for head in (FUSED, LOGITS)
        )
        assert fused.largest_gradient_norm == pytest.approx(
            logits.largest_gradient_norm, rel=wrong_labels.NORM_MARGIN
        )
        assert fused.final_loss == pytest.approx(logits.final_loss, rel=0.1)


def test_rows_as_measured_are_rows_as_recorded() -> None:
    rows = wrong_labels.measure(wrong_labels.PROBLEMS[-1:], seeds=2, epochs=1)
    kept = [row for row in TRAININGS["rows"] if row["problem"] == wrong_labels.PROBLEMS[-1].name]
    names = (*wrong_labels.SETTING, "head")
    assert [[row[n] for n in names] for row in rows] == [[row[n] for n in names] for row in kept]
    for row in rows:
        assert row.keys() == kept[0].keys()
        # A trained classifier is right about most cases; a seed is not another.
        assert all(0.5 < value <= 1 for value in row["accuracy"])
        assert len(set(row["final_loss"])) == 2


# Gradients


def test_the_recorded_gradients_are_those_of_bce_with_logits() -> None:
    by_label = loss_gradients.by_label(GRADIENTS)
    assert len(by_label) == len(loss_gradients.NUMBERS) * len(loss_gradients.LABELS)
    for (numbers, _), rows in by_label.items():
        assert tuple(rows) == HEADS
        # y, the quotient and the product are rounded, each by half an eps of 1 at most.
        eps = torch.finfo(getattr(torch, loss_gradients.NUMBERS[numbers][0])).eps
        assert rows[FUSED]["largest_error"] <= 1.5 * eps
        assert rows[FUSED]["largest"] <= 1 + 1.5 * eps
        assert loss_gradients.lost(rows[FUSED]) == ""
        assert loss_gradients.lost(rows[TORCH]) != ""


@pytest.mark.parametrize("numbers", loss_gradients.NUMBERS)
@pytest.mark.parametrize("label", loss_gradients.LABELS)
def test_gradients_measured_anew_are_the_recorded(numbers: str, label: float) -> None:
    dtype, loss_dtype = (getattr(torch, name) for name in loss_gradients.NUMBERS[numbers])
    x = torch.tensor(loss_gradients.DRAWN_INPUTS, dtype=dtype)
    for head, row in loss_gradients.by_label(GRADIENTS)[numbers, label].items():
        found = loss_gradients.gradient(head, x, label, loss_dtype).tolist()
        tolerance = 4 * torch.finfo(dtype).eps
        assert found == pytest.approx(row["curve"], rel=1e-3, abs=tolerance)


def test_where_a_gradient_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_gradients, "FLOAT32_POINTS", 81)  # whole numbers
    rows = [loss_gradients.measure("float32", 0.0, head) for head in HEADS]
    # exp(-17) is the first below half an ulp of 1, 2^-24.
    assert [row["lost_right"] for row in rows] == [17, None, None]
    (line,) = loss_gradients.summary({"rows": rows})
    assert list(line.values())[:4] == ["float32", "0", "x = 17 up", "1"]
    both = {"lost_left": 28.3245849609375, "lost_right": 16.6357421875}
    assert loss_gradients.lost(both) == "x = -28.32 down, x = 16.64 up"
