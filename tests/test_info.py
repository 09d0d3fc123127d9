"""``python -m fused_sigmoid info`` reports what is live, and the examples of the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_sigmoid
from fused_sigmoid._extension import extension

PACKAGE_PARENT = Path(fused_sigmoid.__file__).parent.parent
PUBLIC_MODULES = (*(f"functions.{name}" for name in extension.functions()), "modules", "replace")


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)} | variables
    return subprocess.run(
        [sys.executable, "-m", "fused_sigmoid", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("instruction_set", ["", "default"])
def test_info(instruction_set: str) -> None:
    process = command("info", FUSED_SIGMOID_CPU=instruction_set)
    assert (process.returncode, process.stderr) == (0, "")
    lines = dict(line.split("  ", 1) for line in process.stdout.splitlines())
    entries = {name.strip(): entry.strip() for name, entry in lines.items()}
    used = instruction_set or extension.instruction_sets()[0]
    assert entries["fused_sigmoid"] == fused_sigmoid.__version__
    assert entries["torch"] == torch.__version__
    assert entries["python"] == platform.python_version()
    assert entries["CPU instruction set"].startswith(used)
    assert all(name in entries["CPU instruction set"] for name in extension.instruction_sets())
    assert entries["CPU threads"].isdigit()
    assert entries["CUDA devices"] == str(torch.cuda.device_count())
    assert used in entries["route on CPU"]
    assert entries["route on GPU"]
    if not torch.cuda.is_available():
        assert entries["route on GPU"].startswith("none")


def test_help() -> None:
    process = command("--help")
    assert process.returncode == 0
    assert "info" in process.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], []])
def test_unknown_command(arguments: list[str]) -> None:
    process = command(*arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert "usage: python -m fused_sigmoid" in process.stderr
    assert "command" in process.stderr
    if arguments:
        assert "nonsense" in process.stderr
        assert "info" in process.stderr


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_examples_of_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"fused_sigmoid.{name}")
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", fused_sigmoid.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    documented = getattr(fused_sigmoid, name)
    assert documented.__doc__
    # restore_sigmoid is the inverse of an example that stands beside it.
    assert ">>>" in documented.__doc__ or name == "restore_sigmoid"
