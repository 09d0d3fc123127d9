"""Runs the suite with other releases of Python and torch, each in an environment of its own under
.matrix/, from a clone of the last commit; records what came of each pair in compatibility.json, and
keeps what is there of other pairs. Called by `make test-matrix`.

    python -m tools.matrix 3.11:2.11.0 3.13:2.13.0

Downloads gigabytes: every torch but the pinned one comes with its CUDA libraries.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench import machine, results
from fused_sigmoid import _terminal

FOLDER = machine.ROOT / ".matrix"
RECORD = results.FOLDER / "compatibility.json"
NEEDED = ("setuptools>=77", "wheel", "ninja", "numpy")
EXTRAS = ".[check,test,bench,examples]"
# As `make test-all` runs it, but for tensors of more than 2³¹ elements.
SUITE = ("-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8", "--dist", "loadfile")
SUITE += ("--no-loadscope-reorder", "-m", "slow or not slow", "--ignore", "tests/test_large.py")
# Of a step; the suite takes minutes. A step that hangs must not hold up the other pairs.
SECONDS = 2 * 3600
# Where these fail, nothing was found out about this package.
PREPARATIONS = ("source", "environment", "torch")
FACTS = """
import importlib.util, json, platform, torch
of_triton = __import__("triton").__version__ if importlib.util.find_spec("triton") else None
names = ("python_version", "torch_version", "triton_version")
print(json.dumps(dict(zip(names, (platform.python_version(), torch.__version__, of_triton)))))
"""


def interpreter(release: str) -> str:
    """The interpreter of "3.12", also where several lie side by side as pyenv has them."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{release}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else f"python{release}"


def try_one(python: str, torch: str) -> dict[str, Any]:
    """Installs, builds, tests. ``failed_at`` names the step that did not succeed; what it printed
    is in log.txt beside the clone."""
    folder = FOLDER / f"python{python}-torch{torch}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment, source, report = (folder / name for name in ("environment", "source", "report"))
    own = environment / "bin/python"
    install = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    steps = {
        "source": ("git", "clone", "--quiet", machine.ROOT, source),
        "environment": (interpreter(python), "-m", "venv", environment),
        "torch": (*install, f"torch=={torch}", *NEEDED),
        # torch is named again, since the extras must not bring another release.
        "build": (*install, "--no-build-isolation", "-e", EXTRAS, f"torch=={torch}"),
        "tests": (own, *SUITE, f"--junit-xml={report}"),
    }
    origin = machine.origin()
    outcome = {"python": python, "torch": torch, "commit": origin["commit"][:12]}
    outcome["date"] = origin["date"]
    for name, command in steps.items():
        print(f"python {python}, torch {torch}: {name}", flush=True)
        cwd = source if name in ("build", "tests") else folder
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            try:
                subprocess.run(
                    command, cwd=cwd, stdout=log, stderr=log, check=True, timeout=SECONDS
                )
            except (OSError, subprocess.SubprocessError) as error:
                log.write(f"{error}\n")
                outcome["failed_at"] = name
                break
    if report.exists():
        suite = ElementTree.parse(report).getroot()[0]
        counts = ("tests", "failures", "errors", "skipped")
        outcome |= {name: int(suite.get(name, 0)) for name in counts}
        outcome["seconds"] = round(float(suite.get("time", 0)))
    if own.exists():
        found = subprocess.run([own, "-c", FACTS], capture_output=True, text=True, check=False)
        outcome |= json.loads(found.stdout or "{}")
    shutil.rmtree(environment, ignore_errors=True)
    return outcome


def keep(outcome: dict[str, Any]) -> None:
    """In the place of what was found before with the same Python and torch."""
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    kept = {(each["python"], each["torch"]): each for each in document["outcomes"]}
    kept[outcome["python"], outcome["torch"]] = outcome
    ordered = [kept[pair] for pair in sorted(kept, key=lambda pair: [*map(release, pair)])]
    results.replace_json(RECORD, {"outcomes": ordered})


def release(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def pair(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(3\.\d+):(\d+\.\d+\.\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted is such as 3.12:2.13.0")
    if shutil.which(interpreter(found[1])) is None:
        raise argparse.ArgumentTypeError(f"{text!r}; no Python {found[1]} is installed here")
    return found[1], found[2]


def main() -> int:
    parser = _terminal.Parser(
        prog="python -m tools.matrix", description="Run the suite in other environments."
    )
    add = parser.add_argument
    add("pairs", nargs="+", type=pair, metavar="PYTHON:TORCH", help="such as 3.12:2.13.0")
    failed = False
    for python, torch in parser.parse_args().pairs:
        outcome = try_one(python, torch)
        print(json.dumps(outcome, indent=1), flush=True)
        failed |= "failed_at" in outcome
        # After each, so that an interruption leaves those that ended.
        if outcome.get("failed_at") not in PREPARATIONS:
            keep(outcome)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
