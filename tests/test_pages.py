"""README, docs and the machines' pages show the committed results, and nothing else.

Expected tables are literal, of rows made by hand.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

for needed in ("matplotlib", "pandas", "tabulate"):
    pytest.importorskip(needed)

import matplotlib  # noqa: E402
import torch  # noqa: E402

from bench import pages, results  # noqa: E402
from bench.results import Cell, Result, Row, Spread  # noqa: E402

CELL = Cell("cpu", "float32", "forward", 65536, 1, "wall", "warm")


def row(ratio: float, peer: str = "torch", quarter: float = 0.1, **cell: object) -> Row:
    spread = Spread(ratio - quarter, ratio, ratio + quarter)
    ours = Spread(1e-6, 1e-6, 1e-6)
    return Row(
        cell=replace(CELL, **cell),
        peer=peer,
        ours=ours,
        theirs=replace(ours, median=ratio * 1e-6),
        ratio=spread,
        rounds=7,
        timer="wall",
        process="shared",
        input_sets=1,
        bytes_moved=524288,
        copy_seconds=None,
        copy_fraction=None,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of one machine, "cpu-new"."""
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    monkeypatch.setattr(pages, "MACHINES", {"cpu-new": "New"})

    def write(name: str, kind: str, rows: list[Row]) -> None:
        machine = {"name": "Some CPU", "versions": {"torch": "2.13.0"}}
        origin = {"commit": "0123456789abcdef", "dirty": False}
        result = Result(machine, origin, "2026-11-27T00:00:00", "python -m bench", kind, rows=rows)
        results.write(result, tmp_path / "cpu-new" / name)

    write(
        "grid.json",
        "grid",
        [
            row(2.5),
            row(9.0, peer="scipy"),
            row(1.5, dtype="bfloat16"),
            row(0.9, work="training", size=1),
            row(7.0, threads=2),
            row(3.0, layout="slice"),
        ],
    )
    slower = row(0.8, work="training", size=256, saved="input", layout="slice")
    sweep = [row(1.2), slower, row(0.95, work="training", size=2)]
    write("sweep.json.gz", "sweep", sweep)
    write("goals.json", "goals", [row(2.1), row(3.8, dtype="bfloat16")])
    return tmp_path


MADE = "\n\nNew, torch 2.13.0; commit 0123456789ab, 2026-11-27."


def test_speed_is_torch_s_on_one_thread_and_contiguous(folder: Path) -> None:
    assert pages.speed("cpu-new", "float32", "bfloat16") == (
        "| times faster than torch   | dtype    |    1 |   64 Ki |\n"
        "|:--------------------------|:---------|-----:|--------:|\n"
        "| σ, out= given             | float32  |      |    2.50 |\n"
        "| σ, out= given             | bfloat16 |      |    1.50 |\n"
        "| σ forward and backward    | float32  | 0.90 |         |" + MADE
    )


def test_the_summary_takes_the_grid_before_the_goals(folder: Path) -> None:
    lines = pages.speed_summary("cpu-new").splitlines()
    assert lines[0].split("|")[2:4] == ["   New, float32 ", "   New, bfloat16 "]
    assert [line.split("|")[1:4] for line in lines[2:4]] == [
        [" σ, out= given, 64 Ki      ", "           2.50 ", "            1.50 "],
        [" σ forward and backward, 1 ", "           0.90 ", "                 "],
    ]


def test_goals_are_counted_and_the_worst_is_named(folder: Path) -> None:
    lines = pages.goals_summary("cpu-new").splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("σ, out= given", "torch", "2", "1"),
        *("2.10 of 2.20", "float32, 64 Ki, 1 thread"),
    ]
    assert lines[4] == "1 of 2 goals are met."


def test_a_sweep_calls_slower_what_three_quarters_of_the_rounds_say(folder: Path) -> None:
    lines = pages.sweep("cpu-new").splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]] == [
        ["σ, out= given", "1", "0", "1.20 [1.10, 1.30]", "float32, 64 Ki, 1 thread"],
        [
            *("σ forward and backward", "2", "1", "0.80 [0.70, 0.90]"),
            "float32, 256, 1 thread, slice, saved=input",
        ],
    ]


def test_the_page_of_a_machine_has_every_kind(folder: Path) -> None:
    page = pages.machine_page("cpu-new")
    squeezed = re.sub(" +", " ", page)
    assert "## Goals: 1 of 2 met, the missed first" in page
    assert "| float32 | forward | 1 thread | 64 Ki | 1 µs | 524 | 2.50 | 9.00 |" in squeezed
    assert "| σ forward and backward | input | slice | 1 | 1 | 0.80 [0.70, 0.90] |" in squeezed


def test_a_picture_of_the_same_results_has_the_same_bytes(folder: Path) -> None:
    first, again = folder / "first.png", folder / "again.png"
    for path in (first, again):
        pages.draw_speed("cpu-new", path)
    assert first.read_bytes() == again.read_bytes()


def test_a_stale_page_is_named_and_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = folder / "page.md"
    page.write_text(
        "before\n<!-- figures:begin sweep cpu-new -->\nold\n<!-- figures:end -->\nafter"
    )
    monkeypatch.setattr(pages, "PAGES", (page,))
    monkeypatch.setattr(pages, "ROOT", folder)
    (folder / "docs/figures").mkdir(parents=True)
    assert pages.main(["--check"]) == 1
    assert "page.md is stale; run python -m bench.pages" in capsys.readouterr().err
    assert pages.main([]) == 0
    assert page.read_text().startswith("before\n<!-- figures:begin sweep cpu-new -->\n| work")
    assert page.read_text().endswith("\n<!-- figures:end -->\nafter")
    assert pages.main(["--check"]) == 0
    assert (folder / "docs/figures/speed-cpu-new.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- figures:begin sped cpu-new -->\n<!-- figures:end -->", "sped: accepted are speed-"),
        ("<!-- figures:begin speed cpu-old -->\n<!-- figures:end -->", "speed cpu-old: "),
        ("<!-- figures:begin tested-releases 1 -->\n<!-- figures:end -->", "tested-releases 1: "),
        ("<!-- figures:begin defects -->\n", "no figures:end after it"),
    ],
)
def test_a_marker_that_asks_for_what_is_not_there(folder: Path, text: str, message: str) -> None:
    with pytest.raises(pages.BadBlockError, match=message):
        pages.fill(text)


def test_the_committed_pages_are_what_the_committed_results_give() -> None:
    for path, text in pages.written().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run make figures"


def test_the_committed_pictures_are_what_the_committed_results_give(tmp_path: Path) -> None:
    pinned = (pages.ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    if f"matplotlib=={matplotlib.__version__} " not in pinned:
        pytest.skip("another matplotlib may set its letters otherwise")
    for committed in (pages.ROOT / "docs/figures").glob("speed-*.png"):
        new = tmp_path / committed.name
        pages.draw_speed(committed.stem.removeprefix("speed-"), new)
        assert new.read_bytes() == committed.read_bytes(), "run make figures"


def test_what_the_readme_shows_runs_in_its_order() -> None:
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    # What a reader has of a model and of data.
    names: dict[str, object] = {"logits": torch.zeros(3), "labels": torch.ones(3)}
    for program in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(program, names)
    assert names["probability"].tolist() == [0.5] * 3  # type: ignore[attr-defined]


def test_a_reader_finds_pages_short_and_results_small() -> None:
    for name, most in (("README.md", 150), ("docs/performance.md", 300)):
        assert len((pages.ROOT / name).read_text(encoding="utf-8").splitlines()) <= most, name
    stored = [*pages.FOLDER.rglob("*"), *(pages.ROOT / "docs/figures").rglob("*")]
    kept = (path for path in stored if path.is_file() and "quick" not in path.parts)
    assert sum(path.stat().st_size for path in kept) <= 2_500_000
