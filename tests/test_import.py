"""``import fused_sigmoid`` costs next to nothing beside ``import torch`` and says nothing; what it
brings is typed: a user's program passes the strictest checks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import fused_sigmoid

PACKAGE_PARENT = Path(fused_sigmoid.__file__).parent.parent
LIMIT_IN_SECONDS = 0.05
RUNS = 3

# Processor time, which other work on the machine lengthens less than time on the clock.
IMPORT = """
import sys, time, warnings
import torch
warnings.simplefilter("error")
# A first backward pass of torch 2.15 imports more of torch.
torch.nn.Sigmoid()(torch.ones(2, requires_grad=True)).sum().backward()
before = set(sys.modules)
start = time.process_time()
import fused_sigmoid
print(time.process_time() - start)
model = torch.nn.Sequential(torch.nn.Sigmoid())
fused_sigmoid.replace_sigmoid(model)
model(torch.ones(2, requires_grad=True)).sum().backward()
with fused_sigmoid.override():
    torch.sigmoid(torch.ones(2))
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_is_quick_and_silent_and_brings_nothing_else() -> None:
    times = []
    for _ in range(RUNS):
        process = subprocess.run(
            [sys.executable, "-c", IMPORT],
            capture_output=True,
            text=True,
            cwd=PACKAGE_PARENT,
            check=False,
        )
        assert (process.returncode, process.stderr) == (0, "")
        seconds, modules = process.stdout.splitlines()
        times.append(float(seconds))
        assert modules.split() == ["fused_sigmoid"]
    assert min(times) < LIMIT_IN_SECONDS


USER_PROGRAM = """
from typing import Any, Callable

import torch
from torch import Tensor, nn

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, override, replace_sigmoid, restore_sigmoid

class Gate(nn.Module):
    def __init__(self, activation: nn.Sigmoid) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x)
        return y * x

gate = Gate(FusedSigmoid(saved="output"))
mode: str = FusedSigmoid().saved
turned: int = replace_sigmoid(gate, saved="input", subclasses=True) + restore_sigmoid(gate)
x = torch.zeros(2)
y: Tensor = fused_sigmoid.sigmoid(x, out=torch.empty(2), saved="auto")
z: Tensor = fused_sigmoid.sigmoid_(x)
value, derivative = fused_sigmoid.sigmoid_with_derivative(x)
total: Tensor = value + derivative
version: str = fused_sigmoid.__version__
activation: Callable[[Tensor], Tensor] = fused_sigmoid.sigmoid

with override(saved="output"):
    gate(x)

@override()
def step(x: Tensor, scale: float) -> Tensor:
    return x.sigmoid() * scale

w: Tensor = step(x, 2.0)
"""

MISTAKES = {
    "fused_sigmoid.sigmoid('x')": "arg-type",
    "fused_sigmoid.sigmoid(x, saved=1)": "arg-type",
    "fused_sigmoid.sigmoid(x, inplace=True)": "call-arg",
    "FusedSigmoid(saved=None)": "arg-type",
    "replace_sigmoid(x)": "arg-type",
    "step(x)": "call-arg",
    "override(step)": "arg-type",
    "override(gate)": "arg-type",
    "override('output')": "arg-type",
    "override(saved=True)": "arg-type",
}


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_users_program_is_typed(tmp_path: Path) -> None:
    programs = {"right.py": USER_PROGRAM, "wrong.py": USER_PROGRAM + "\n".join(MISTAKES)}
    for name, program in programs.items():
        (tmp_path / name).write_text(program, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file="]
        + [str(tmp_path / name) for name in programs],
        capture_output=True,
        text=True,
        cwd=PACKAGE_PARENT,
        check=False,
    )
    errors = [line for line in process.stdout.splitlines() if ": error:" in line]
    assert all("wrong.py" in line for line in errors)
    assert [line.rpartition("[")[2].rstrip("]") for line in errors] == list(MISTAKES.values())
