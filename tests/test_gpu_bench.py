"""The script for a visit to a machine with a GPU survives any of its parts. Nothing is timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "gpu_visit.sh"


def visit(stage: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), stage, "60"],
        env=os.environ | {"OUT": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def parts(folder: Path) -> dict[str, str]:
    """Each part's line of the summary."""
    lines = (folder / "summary.txt").read_text(encoding="utf-8").splitlines()
    return {line[:11].strip(): line[11:] for line in lines[1:]}


def logs(folder: Path) -> set[str]:
    with tarfile.open(folder / "report.tar.gz") as archive:
        return {Path(name).name for name in archive.getnames()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, which it would measure")
@pytest.mark.parametrize("stage", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_a_visit_without_a_gpu(stage: str, tmp_path: Path) -> None:
    done = visit(stage, tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    found = parts(tmp_path)
    assert all(" rc 0 " in found[name] for name in ("facts", "build", "info"))
    assert found["the rest"] == " skipped: torch sees no CUDA device"
    assert logs(tmp_path) >= {"facts.log", "build.log", "info.log"}
    # torch.__version__ may name a CUDA beside it.
    assert f" torch {version('torch')} " in done.stdout
    assert "route on GPU" in done.stdout


def test_a_visit_survives_parts_that_fail(tmp_path: Path) -> None:
    assert visit("first", tmp_path, PYTHON="false").returncode == 1
    assert all(" rc 1 " in parts(tmp_path)[name] for name in ("build", "info"))


def test_a_visit_that_is_killed_leaves_the_parts_that_ended(tmp_path: Path) -> None:
    # An interpreter that never ends the build.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *fused_sigmoid*) exec sleep 20;; esac\n'
        f'exec {sys.executable} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    out = tmp_path / "out"
    with subprocess.Popen(
        [str(SCRIPT), "second", "50"],
        env=os.environ | {"OUT": str(out), "PYTHON": str(python), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("facts"):
                break
        deadline = time.monotonic() + 20
        while not (out / "report.tar.gz").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGKILL)
    assert logs(out) == {"logs", "facts.log"}
    assert list(parts(out)) == ["facts"]


def test_a_visit_asks_which_stage(tmp_path: Path) -> None:
    done = visit("third", tmp_path)
    assert done.returncode == 2
    assert "first|second" in done.stdout
