"""The static figures of the GPU kernels are counted as they say, and the committed complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tools import static


def test_figures_of_one_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(static, "ARCHITECTURES", {90: static.ARCHITECTURES[90]})
    monkeypatch.setattr(static, "DTYPES", {"float32": "fp32"})
    monkeypatch.setattr(static, "IN_ROWS", static.IN_ROWS[:1])
    shown = static.run(tmp_path)
    stored = json.loads((tmp_path / "static.json").read_text(encoding="utf-8"))
    forward, *_, rows, by_elements = stored["kernels"]
    name = "sigmoid_value"
    assert forward["kernel"] == name
    assert [each["kernel"] for each in (rows, by_elements)] == [
        f"{name}, rows",
        f"{name}, rows by elements",
    ]
    # 8 elements a thread: two loads and stores of 16 bytes, a reciprocal an element, 8 bytes moved.
    for code, loads in ((forward, 2 / 8), (rows, 2 / 8), (by_elements, 1)):
        instructions = code["instructions"]
        assert (instructions["load"], instructions["store"]) == (loads, 2 / 8)
    instructions = forward["instructions"]
    assert instructions["special"] == 1
    assert instructions["float64"] == instructions["local"] == 0
    assert forward["bandwidth_seconds"] == pytest.approx(8 / 3.35e12)
    assert forward["total"] == sum(instructions.values())
    assert forward["bound"] == "bandwidth"
    assert forward["loads_in_flight"] == forward["warps"] * 32 * 32
    for code in stored["kernels"]:
        line = next(line for line in shown.splitlines() if f" {code['kernel']} " in f" {line}")
        assert f"{code['total']:.1f}" in line


def test_the_committed_figures_are_complete() -> None:
    stored = json.loads((static.FOLDER / "static.json").read_text(encoding="utf-8"))
    assert len(stored["kernels"]) == 8 * 4 * 3 + 3 * 2 * 4


@pytest.mark.parametrize(
    ("registers", "warps"), [(16, 64), (32, 64), (38, 48), (40, 48), (41, 40), (64, 32), (255, 8)]
)
def test_resident_warps(registers: int, warps: int) -> None:
    # As NVIDIA's occupancy calculator gives them for these architectures.
    assert static.resident_warps(registers) == warps


SASS = """
--:-:0:-:1\tLDG.E.128 R4, desc[UR4][R2.64];
--:-:-:-:1\t@!P0 BRA LBB0;
--:-:-:-:1\tFCHK P0, R2, R3;
--:-:-:-:6\t@!P0 BRA LBB1;
--:-:-:-:2\tMOV R0, R3;
--:-:-:-:5\tCALL.REL.NOINC 0x24d0;
LBB1:
--:-:-:-:5\tDADD R2, R2, R4;
--:-:-:-:5\tHFMA2.MMA R2, -RZ, RZ, 0.1, -2;
--:-:-:-:5\tHFMA2.BF16_V2 R8, R2, R3, R4;
--:-:-:-:4\tSTG.E.128 desc[UR6][R2.64], R12;
--:-:-:-:5\tEXIT;
LBB0:
--:-:0:-:1\tCALL.REL.NOINC 0x24d0;
--:-:-:-:5\tEXIT;
"""


def test_instructions_are_those_executed_and_told_apart() -> None:
    block = static.whole_block(SASS)
    counted = {name: number for name, number in static.count(block).items() if number}
    # The move and the call that the second jump passes are left out, as is what follows the exit.
    assert counted == {"load": 1, "control": 3, "float": 2, "float64": 1, "integer": 1, "store": 1}
    with pytest.raises(ValueError, match="no exit"):
        static.whole_block(SASS.replace("EXIT", "NOP"))
