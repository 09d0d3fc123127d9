"""Calls a function of a test's module in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def call(module: str, expression: str) -> None:
    """Such as "work(1)" of "test_processes", in a process that did nothing before. Autograd refuses
    to run in a fork where its threads are those of another, which any test may have started."""
    program = f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; {module}.{expression}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
