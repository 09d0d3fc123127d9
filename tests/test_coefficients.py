"""The constants of the C++ and of the Triton kernels are the ones that the generator computes."""

from __future__ import annotations

import math
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
LOSSES = {"float32": "Float32Loss", "float64": "Float64Loss", "half": "HalfLoss"}


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


def _move_last_coefficient(text: str) -> str:
    """By one last place of float64."""
    last = list(re.finditer(HEXADECIMAL, text))[-1]
    moved = math.nextafter(float.fromhex(last[0]), math.inf).hex()
    return f"{text[: last.start()]}{moved}{text[last.end() :]}"


def test_generator_finds_its_files_up_to_date_and_notices_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mpmath")
    generator = runpy.run_path(str(ROOT / GENERATOR))
    main, texts = generator["main"], generator["texts"]()  # the search takes half a minute
    variables = main.__globals__
    monkeypatch.setattr(sys, "argv", ["generate_coefficients.py", "--check"])
    monkeypatch.setitem(variables, "texts", lambda: texts)
    capsys.readouterr()
    assert main() == 0, capsys.readouterr().out

    monkeypatch.setitem(variables, "ROOT", tmp_path)
    for file, start, change in (
        (HEADER, "struct Bfloat16ValueConstants", _move_last_power),
        (HEADER, "struct Bfloat16ValueConstants", _swap_last_powers),
        (HEADER, "struct Float32Constants", _change_first_coefficient),
        (HEADER, "struct HalfLossConstants", _move_last_power),
        (HEADER, "struct Float64LossConstants", _move_last_coefficient),
        (MODULE, "\nPOWERS", _move_last_power),
        (MODULE, "\nLOSS_POWERS", _move_last_power),
        (MODULE, "\nLOSS_EXP", _move_last_coefficient),
        (MODULE, "\nLOSS_LOG1P", _move_last_coefficient),
    ):
        text, close = texts[ROOT / file], "\n}" if file == HEADER else "\n)"
        before, after = text.split(start)
        body, end = after.split(close, 1)
        changed = "".join((before, start, change(body), close, end))
        assert changed != text
        copy = tmp_path / file.name
        copy.write_text(changed)
        monkeypatch.setitem(variables, "texts", lambda copy=copy, text=text: {copy: text})
        assert main() == 1
        assert capsys.readouterr().out == f"differs: {file.name}\n"
        assert copy.read_text() == changed


def _structure(name: str) -> str:
    return (ROOT / HEADER).read_text().split(f"struct {name}Constants {{")[1].split("\n};")[0]


def _scalars(structure: str) -> dict[str, float]:
    found = re.findall(rf"constexpr (?:float|double) (\w+) = ({HEXADECIMAL})f?;", structure)
    return {name: float.fromhex(number) for name, number in found}


def _array(structure: str, name: str) -> str:
    array = re.search(rf" {name}\[\d+\] = {{(.*?)}};", structure, re.DOTALL)
    assert array is not None
    return array[1]


def _numbers(structure: str, name: str) -> tuple[float, ...]:
    words = re.findall(rf"({HEXADECIMAL})f?,", _array(structure, name))
    return tuple(map(float.fromhex, words))


def _powers(structure: str) -> tuple[int, ...]:
    powers = re.findall(rf"({POWER}),", _array(structure, "powers"))
    assert len(powers) == 8
    return tuple(int(power, 16) for power in powers)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_header_and_module_hold_the_same_numbers(dtype: str) -> None:
    structure = _structure(dtype.capitalize())
    scalars = _scalars(structure)
    assert tuple(scalars) == coefficients.SCALARS
    assert coefficients.CONSTANTS[dtype] == (*scalars.values(), *_numbers(structure, "exp"))
    assert coefficients.POWERS[dtype] == _powers(structure)


@pytest.mark.parametrize("dtype", LOSSES)
def test_header_and_module_hold_the_same_numbers_of_the_loss(dtype: str) -> None:
    structure = _structure(LOSSES[dtype])
    scalars = _scalars(structure)
    assert tuple(scalars) == coefficients.LOSS_SCALARS
    assert coefficients.LOSS_CONSTANTS[dtype] == tuple(scalars.values())
    assert coefficients.LOSS_EXP[dtype] == _numbers(structure, "exp_minus_one")
    assert coefficients.LOSS_LOG1P[dtype] == _numbers(structure, "log1p")
    assert coefficients.LOSS_POWERS[dtype] == _powers(structure)


@pytest.mark.parametrize("dtype", LOSSES)
def test_error_that_is_proven_of_log1p_is_hardly_larger_than_that_of_samples(dtype: str) -> None:
    mp = pytest.importorskip("mpmath").mp.clone()
    mp.prec = 120
    exponent = re.search(r"log\(1 \+ e\), within.* 2\*\*(-[\d.]+)", _structure(LOSSES[dtype]))
    assert exponent is not None
    polynomial = [mp.mpf(c) for c in reversed(coefficients.LOSS_LOG1P[dtype])]
    errors = []
    for i in range(1, 1001):
        e = mp.mpf(i) / 1000
        errors.append(abs((e + e * e * mp.polyval(polynomial, e)) / mp.log1p(e) - 1))
    assert 0.95 < max(errors) / mp.mpf(2) ** mp.mpf(exponent[1]) <= 1
