"""``make test-matrix`` adds to its record, and refuses what it cannot run before it installs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import matrix


def test_an_outcome_takes_the_place_of_its_own_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(python: str, torch: str, tests: int) -> dict[str, Any]:
        return {"python": python, "torch": torch, "tests": tests}

    record = tmp_path / "record.json"
    record.write_text(json.dumps({"outcomes": [outcome("3.11", "2.14.1", 1)]}), encoding="utf-8")
    monkeypatch.setattr(matrix, "RECORD", record)
    for found in (("3.11", "2.9.1", 2), ("3.9", "2.14.1", 3), ("3.11", "2.14.1", 4)):
        matrix.keep(outcome(*found))
    assert json.loads(record.read_text(encoding="utf-8"))["outcomes"] == [
        outcome("3.9", "2.14.1", 3),
        outcome("3.11", "2.9.1", 2),
        outcome("3.11", "2.14.1", 4),
    ]


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("3.12", "accepted is such as 3.12:2.13.0"),
        ("3.12:newest", "accepted is such as 3.12:2.13.0"),
        ("3.99:2.13.0", "no Python 3.99 is installed here"),
    ],
)
def test_a_pair_that_cannot_run(
    pair: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["matrix", pair])
    with pytest.raises(SystemExit):
        matrix.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"python -m tools.matrix: error: argument PYTHON:TORCH: {pair!r}; {said}"
