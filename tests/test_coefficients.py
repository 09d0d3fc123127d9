"""The constants of the C++ and of the Triton kernels are the ones that the generator computes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fused_sigmoid.triton import coefficients

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = Path("csrc/numerics/generate_coefficients.py")
HEADER = Path("csrc/numerics/coefficients.h")
MODULE = Path("fused_sigmoid/triton/coefficients.py")
HEXADECIMAL = r"-?0x[0-9a-f.]+p[+-]\d+"


def _check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / GENERATOR, "--check"], capture_output=True, text=True, check=False
    )


def _change_last_coefficient(file: Path) -> None:
    text = file.read_text()
    last = list(re.finditer(HEXADECIMAL, text))[-1]
    other = last[0][:5] + ("1" if last[0][5] != "1" else "2") + last[0][6:]
    file.write_text(text[: last.start()] + other + text[last.end() :])


def test_generator_finds_its_files_up_to_date_and_notices_a_change(tmp_path: Path) -> None:
    pytest.importorskip("mpmath")
    for file in (GENERATOR, HEADER, MODULE):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for file in (HEADER, MODULE):
        _change_last_coefficient(tmp_path / file)
    with ThreadPoolExecutor() as pool:  # each takes ten seconds
        as_written, changed = pool.map(_check, (ROOT, tmp_path))
    assert as_written.returncode == 0, as_written.stdout + as_written.stderr
    assert changed.returncode == 1, changed.stdout + changed.stderr
    assert "differs" not in as_written.stdout
    for file in (HEADER, MODULE):
        assert f"differs: {file}" in changed.stdout


def test_header_and_module_hold_the_same_numbers() -> None:
    header = (ROOT / HEADER).read_text()
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        body = header.split(f"struct {dtype.capitalize()}Constants {{")[1].split("\n};")[0]
        scalars = re.findall(rf"constexpr (?:float|double) (\w+) = ({HEXADECIMAL})f?;", body)
        assert tuple(name for name, _ in scalars) == coefficients.SCALARS
        array = re.findall(rf"({HEXADECIMAL})f?,", body.split("exp[")[1])
        numbers = [number for _, number in scalars] + array
        assert coefficients.CONSTANTS[dtype] == tuple(map(float.fromhex, numbers))
