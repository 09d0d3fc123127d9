"""Calls a function of a test's module in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 300
FOLDER = Path(__file__).parent


def program(module: str, expression: str) -> str:
    """Such as "work(1)" of "test_processes", with the package of this checkout."""
    folders = [str(FOLDER.parent), str(FOLDER)]
    return f"import sys; sys.path[:0] = {folders!r}; import {module}; {module}.{expression}"


def call(module: str, expression: str) -> None:
    """The program in a process that did nothing before, which fails if it hangs. Autograd refuses
    to run in a fork where its threads are those of another, which any test may have started."""
    done = subprocess.run(
        [sys.executable, "-c", program(module, expression)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
