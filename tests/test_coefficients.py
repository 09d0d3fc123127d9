"""The constants of the C++ and of the Triton kernels are the ones that the generator computes."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from fused_sigmoid.triton import coefficients

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = Path("csrc/numerics/generate_coefficients.py")
HEADER = Path("csrc/numerics/coefficients.h")
MODULE = Path("fused_sigmoid/triton/coefficients.py")
HEXADECIMAL = r"-?0x[0-9a-f.]+p[+-]\d+"
POWER = r"0x[0-9a-f]{8,}\b(?!\.)"


def _move_last_power(text: str) -> str:
    """By one last place."""
    last = list(re.finditer(POWER, text))[-1]
    return f"{text[: last.start()]}{int(last[0], 16) ^ 1:#x}{text[last.end() :]}"


def _swap_last_powers(text: str) -> str:
    first, last = list(re.finditer(POWER, text))[-2:]
    between = text[first.end() : last.start()]
    return f"{text[: first.start()]}{last[0]}{between}{first[0]}{text[last.end() :]}"


def _change_first_coefficient(text: str) -> str:
    return re.sub(rf"(?<=\n      ){HEXADECIMAL}", "0x1p+0", text, count=1)


def test_generator_finds_its_files_up_to_date_and_notices_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mpmath")
    generator = runpy.run_path(str(ROOT / GENERATOR))
    main, texts = generator["main"], generator["texts"]()  # the search takes twenty seconds
    variables = main.__globals__
    monkeypatch.setattr(sys, "argv", ["generate_coefficients.py", "--check"])
    monkeypatch.setitem(variables, "texts", lambda: texts)
    capsys.readouterr()
    assert main() == 0, capsys.readouterr().out

    monkeypatch.setitem(variables, "ROOT", tmp_path)
    for file, change in (
        (HEADER, _move_last_power),
        (HEADER, _swap_last_powers),
        (HEADER, _change_first_coefficient),
        (MODULE, _move_last_power),
    ):
        text = texts[ROOT / file]
        copy = tmp_path / file.name
        copy.write_text(change(text))
        monkeypatch.setitem(variables, "texts", lambda copy=copy, text=text: {copy: text})
        assert main() == 1
        assert capsys.readouterr().out == f"differs: {file.name}\n"
        assert copy.read_text() != text


def test_header_and_module_hold_the_same_numbers() -> None:
    header = (ROOT / HEADER).read_text()
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        body = header.split(f"struct {dtype.capitalize()}Constants {{")[1].split("\n};")[0]
        scalars = re.findall(rf"constexpr (?:float|double) (\w+) = ({HEXADECIMAL})f?;", body)
        assert tuple(name for name, _ in scalars) == coefficients.SCALARS
        numbers = [number for _, number in scalars] + re.findall(rf"({HEXADECIMAL})f?,", body)
        assert coefficients.CONSTANTS[dtype] == tuple(map(float.fromhex, numbers))
        powers = re.findall(rf"({POWER}),", body)
        assert len(powers) == 8
        assert coefficients.POWERS[dtype] == tuple(int(power, 16) for power in powers)
