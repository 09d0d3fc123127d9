"""The long checks do what they say: their verdicts can be bad, short runs of them pass, and
docs/reliability.md shows what the last full runs recorded."""

from __future__ import annotations

import copy
import json
import mmap
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests import defects, fuzz_programs, load
from tests.native import run

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")

from bench import reliability

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs/figures/reliability.json"
PAGE = ROOT / "docs/reliability.md"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text())
    return found


def test_page_holds_the_recorded_figures() -> None:
    assert reliability.main([str(FIGURES), "--write", str(PAGE), "--check"]) == 0


@pytest.mark.parametrize("defect", defects.DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_has_its_place(defect: defects.Defect) -> None:
    assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.old) == 1


def test_the_recorded_runs_are_full(figures: dict[str, Any]) -> None:
    assert figures["fuzz"]["figures"]["kernel_executions"] >= 10**7
    assert set(figures["sanitize"]["figures"]) == set(run.SANITIZE)
    for name, found in figures["programs"]["figures"].items():
        assert found["failures"] == 0
        assert name in fuzz_programs.COMPILED or found["programs"] >= 10**4
    long = figures["load"]["figures"]
    assert (long["threads"]["threads"], long["threads"]["wrong"]) == (16, 0)
    assert long["threads"]["seconds"] >= 600
    assert long["small_calls"]["calls"] >= 10**6
    assert long["large_steps"]["calls"] >= 10**3
    assert long["training"]["steps"] >= 10**4
    assert load.failures(long) == []
    assert len(figures["defects"]["figures"]["planted"]) >= 3


@pytest.mark.parametrize(
    ("section", "key", "bad"),
    [
        ("threads", "wrong", 1),
        ("threads", "calls", 0),
        ("small_calls", "resident_bytes_after", 10**10),
        ("large_steps", "resident_bytes_after", 10**10),
        ("training", "largest_relative_difference", 0.1),
        ("training", "largest_relative_difference", float("nan")),
        ("training", "last_loss", 10.0),
    ],
)
def test_load_has_bad_verdicts(figures: dict[str, Any], section: str, key: str, bad: float) -> None:
    found = copy.deepcopy(figures["load"]["figures"])
    found[section][key] = bad
    assert len(load.failures(found)) == 1


def test_short_loads() -> None:
    threads = load.threads(count=4, seconds=0.5)
    assert threads["calls"] > 0
    assert threads["wrong"] == 0
    assert load.training(steps=30)["largest_relative_difference"] < load.ALLOWED_DIFFERENCE
    small = load.memory(calls=60, elements=8, warm_up=12, step=load.SmallCalls())
    assert small["resident_bytes_before"] > 0


def test_threads_count_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "sigmoid_", lambda input: input.zero_())
    assert load.threads(count=2, seconds=0.3)["wrong"] > 0


def test_memory_sees_what_is_kept() -> None:
    kept = []

    def step(input: Tensor) -> None:
        # Mapped afresh: malloc may hand out pages that were freed before, and are resident already.
        kept.append(mmap.mmap(-1, 4 * load.ALLOWED_GROWTH))
        kept[-1].write(bytes([1]) * len(kept[-1]))

    found = load.memory(calls=2, elements=8, warm_up=1, step=step)
    grown = found["resident_bytes_after"] - found["resident_bytes_before"]
    assert grown > load.ALLOWED_GROWTH


def test_fuzz_without_clang_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FUZZ", run.FUZZ._replace(compiler="a-compiler-that-is-missing"))
    with pytest.raises(SystemExit, match=r"is missing: libFuzzer comes with clang \(apt-get"):
        run.fuzz(ROOT / "csrc", 1)


def test_the_kernels_are_tried_with_the_flags_they_are_shipped_with() -> None:
    flags, sets = run.shipped()
    assert "-ffp-contract=off" in flags
    assert all("-mfma" in own for own in sets.values())


def test_records_stand_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "figures.json"
    reliability.record(path, "b", {"count": 1})
    reliability.record(path, "a", {"count": 2})
    reliability.record(path, "b", {"count": 3})
    found = json.loads(path.read_text())
    assert [(name, section["figures"]["count"]) for name, section in found.items()] == [
        ("a", 2),
        ("b", 3),
    ]
