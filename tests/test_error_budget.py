"""The error budget is that of the kernels, its bounds hold, and docs/numerics.md shows what the
committed files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

for needed in ("matplotlib", "mpmath", "tabulate"):
    pytest.importorskip(needed)

import fused_sigmoid  # noqa: E402
from bench import error_budget, figures, numerics  # noqa: E402
from bench.error_budget import OF_T, TERMS, TOTAL  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/numerics.md"
BUDGET = ROOT / "docs/figures/error_budget.json"
CHECKS = sorted(map(str, ROOT.glob("bench/results/*/check.json")))
COLUMNS = ("t", "complement", "derivative")


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, dict[str, float | None]]]:
    terms = json.loads(BUDGET.read_text(encoding="utf-8"))["terms"]
    return {term["name"]: {"seen": term["seen"], **term["bounds"]} for term in terms}


@pytest.mark.usefixtures("instruction_set")
def test_all_roundings_together_are_the_kernels() -> None:
    x = error_budget.points()
    smaller, larger, _ = error_budget.results(x, frozenset(TERMS))
    positive = torch.from_numpy(x)
    for input, expected in ((-positive, smaller), (positive, larger)):
        value, derivative = fused_sigmoid.sigmoid_with_derivative(input)
        # A float64 fma rounded again to float32 differs from one rounding once in millions.
        assert (value.double() != torch.from_numpy(expected)).sum() <= 2
        t = torch.from_numpy(smaller)
        assert (derivative.double() != (t - t * t).float().double()).sum() <= 2


def test_committed_budget_is_what_is_measured(committed) -> None:
    for term in error_budget.measure():
        stored = committed[term.name]
        for column in COLUMNS:
            seen = getattr(term.seen, column)
            assert stored["seen"][column] == pytest.approx(seen, rel=0.01, abs=1e-6)
            for dtype, bounds in term.bounds.items():
                bound = getattr(bounds, column)
                expected = None if bound is None else pytest.approx(bound, rel=1e-12)
                assert stored[dtype][column] == expected


def test_no_error_exceeds_its_bound(committed) -> None:
    assert list(committed) == [*TERMS, TOTAL]
    for name, term in committed.items():
        for column in COLUMNS:
            if term["float32"][column] is not None:
                assert 0 < term["seen"][column] <= term["float32"][column], (name, column)
    for column in COLUMNS:
        alone = [committed[name]["seen"][column] for name in OF_T]
        assert max(alone) < committed[TOTAL]["seen"][column] < sum(alone) + 0.6


def test_document_shows_the_committed_files() -> None:
    assert CHECKS
    arguments = [*CHECKS, "--budget", str(BUDGET), "--write", str(DOCUMENT), "--check"]
    assert numerics.main(arguments) == 0


def test_stale_table_is_noticed_and_mended(tmp_path: Path) -> None:
    copy = tmp_path / "numerics.md"
    text = DOCUMENT.read_text(encoding="utf-8")
    copy.write_text(text.replace("| float16", "| float17"), encoding="utf-8")
    arguments = [*CHECKS, "--budget", str(BUDGET), "--write", str(copy)]
    assert copy.read_text(encoding="utf-8") != text
    assert numerics.main([*arguments, "--check"]) == 1
    assert numerics.main(arguments) == 0
    assert copy.read_text(encoding="utf-8") == text


def test_unknown_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures:begin checks -->\n<!-- figures:end -->\n", encoding="utf-8")
    with pytest.raises(figures.BadBlockError, match="accepted are checked machines, checked err"):
        numerics.main([*CHECKS, "--budget", str(BUDGET), "--write", str(page)])
