"""The error budget is that of the kernels, its bounds hold, and the committed one is measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

for needed in ("mpmath", "pandas"):
    pytest.importorskip(needed)

import fused_sigmoid  # noqa: E402
from tools import error_budget  # noqa: E402
from tools.error_budget import COLUMNS, OF_T, TERMS, TOTAL  # noqa: E402


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, Any]]:
    terms = json.loads(error_budget.RECORD.read_text(encoding="utf-8"))["terms"]
    return {term["name"]: {"seen": term["seen"], **term["bounds"]} for term in terms}


@pytest.mark.usefixtures("instruction_set")
def test_all_roundings_together_are_the_kernels() -> None:
    x = error_budget.points()
    smaller, larger, _ = error_budget.results(x, TERMS)
    positive = torch.from_numpy(x)
    for input, expected in ((-positive, smaller), (positive, larger)):
        value, derivative = fused_sigmoid.sigmoid_with_derivative(input)
        # A float64 fma rounded again to float32 differs from one rounding once in millions.
        assert (value.double() != torch.from_numpy(expected)).sum() <= 2
        t = torch.from_numpy(smaller)
        assert (derivative.double() != (t - t * t).float().double()).sum() <= 2


def test_committed_budget_is_what_is_measured(committed) -> None:
    for term in error_budget.measure():
        stored = committed[term["name"]]
        assert stored["seen"] == pytest.approx(term["seen"], rel=0.01, abs=1e-6)
        for dtype, bounds in term["bounds"].items():
            assert stored[dtype].keys() == bounds.keys()
            for column, bound in bounds.items():
                assert stored[dtype][column] == (bound and pytest.approx(bound, rel=1e-12))


def test_no_error_exceeds_its_bound(committed) -> None:
    assert list(committed) == [*TERMS, TOTAL]
    for name, term in committed.items():
        for column in COLUMNS:
            if term["float32"][column] is not None:
                assert 0 < term["seen"][column] <= term["float32"][column], (name, column)
    for column in COLUMNS:
        alone = [committed[name]["seen"][column] for name in OF_T]
        assert max(alone) < committed[TOTAL]["seen"][column] < sum(alone) + 0.6
