"""``python -m fused_sigmoid``: ``info`` reports what is live, errors are one line, and what is
printed suits who reads it. The examples of the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_sigmoid
from fused_sigmoid import __main__ as command_line
from fused_sigmoid import check
from fused_sigmoid._extension import extension

PACKAGE_PARENT = Path(fused_sigmoid.__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)}
PUBLIC_MODULES = (*(f"functions.{name}" for name in extension.functions()), "modules", "replace")
PUBLIC_MODULES += ("check",)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fused_sigmoid", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | variables,
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


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help(arguments: list[str]) -> None:
    process = command(*arguments)
    assert (process.returncode, process.stderr) == (0, "")
    assert re.search(r"^ +info .*\n +check ", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("chekc", r": error: argument command: invalid choice: 'chekc' .*info.*check"),
        ("--al1", r": error: argument --al1: not known; accepted: info, check"),
        ("info --all", r" info: error: argument --all: not known; accepted: no arguments"),
        ("check --ful1", r" check: error: .*--ful1: .*: --full, --all, --device, --json"),
        ("check --device gpu", r" check: error: argument --device: invalid choice: 'gpu' .*cuda"),
        ("check --device cuda", r" check: error: argument --device: torch sees no .*accepted: cpu"),
        ("check --json", r" check: error: argument --json: expected one argument"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check, "run", lambda *_: pytest.fail("has run"))
    with pytest.raises(SystemExit) as exit:
        command_line.main(arguments.split())
    captured = capsys.readouterr()
    assert (exit.value.code, captured.out) == (2, "")
    assert re.fullmatch(f"python -m fused_sigmoid{message}.*\n", captured.err)


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "information", interrupt)
    assert command_line.main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing is reported\n"


@pytest.mark.parametrize("arguments", ["info", "--help", "check --all"])
def test_a_closed_pipe_ends_quietly(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "fused_sigmoid", *arguments.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"sigma, sigma', x^2, +-inf, \\u4e16"),
        ({"LC_ALL": "C"}, b"sigma, sigma', x^2, +-inf, \\u4e16"),
        ({"PYTHONIOENCODING": "latin-1"}, b"sigma, sigma', x\xb2, \xb1inf, \\u4e16"),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, "σ, σ′, x², ±inf, 世".encode()),
    ],
)
def test_what_cannot_be_shown_is_spelled(variables: dict[str, str], shown: bytes) -> None:
    code = (
        "import sys; from fused_sigmoid import _terminal; _terminal.fall_back_to_ascii();"
        "_terminal.show(TEXT); print(TEXT, file=sys.stderr);"
        "_terminal.show(_terminal.paragraph('\u03c3 ' * 20, 40))"
    ).replace("TEXT", ascii("σ, σ′, x², ±inf, 世"))
    others = {name: text for name, text in ENVIRONMENT.items() if name != "PYTHONUTF8"}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=others | variables, check=False
    )
    first, *paragraph = process.stdout.splitlines()
    assert first == shown
    spelled = len(paragraph) > 1
    assert spelled == (b"sigma" in shown)
    assert not spelled or max(map(len, paragraph)) <= 40
    assert process.stderr.strip() == shown


def test_lines_are_as_long_as_the_terminal_is_wide() -> None:
    wide, narrow = (command("info", COLUMNS=columns).stdout for columns in ("", "60"))
    assert max(map(len, wide.splitlines())) > 100
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.split() == wide.split()


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
