"""Runs the suite with other releases of Python and torch, each in an environment of its own under
.matrix/, from a clone of the last commit; writes what came of it. Called by `make test-matrix`.

    python tests/matrix.py 3.11:2.11.0 3.13:2.13.0 --output docs/figures/compatibility.json

Downloads gigabytes: every torch but the pinned one comes with its CUDA libraries.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".matrix"
NEEDED = ("setuptools>=77", "wheel", "ninja", "numpy")


def run(*command: str | Path, cwd: Path, log: Path) -> int:
    with log.open("a", encoding="utf-8") as output:
        return subprocess.run(
            command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def interpreter(release: str) -> str:
    """The interpreter of "3.12", also where several lie side by side as pyenv has them."""
    found = shutil.which(f"python{release}")
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{release}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else found or f"python{release}"


def try_one(python: str, torch: str) -> dict[str, Any]:
    """Installs, builds, tests. ``failed_at`` names the step that did not succeed."""
    folder = FOLDER / f"python{python}-torch{torch}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment, source, log = folder / "environment", folder / "source", folder / "log.txt"
    own = environment / "bin/python"
    install = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    # Named again, since the extras must not bring another release.
    extras = ("--no-build-isolation", "-e", ".[check,test,bench,examples]", f"torch=={torch}")
    report = folder / "report.xml"
    steps = {
        "environment": ((interpreter(python), "-m", "venv", environment), folder),
        "torch": ((*install, f"torch=={torch}", *NEEDED), folder),
        "source": (("git", "clone", "--quiet", ROOT, source), folder),
        "build": ((*install, *extras), source),
        "tests": ((own, "-m", "pytest", "-q", f"--junit-xml={report}"), source),
    }
    outcome: dict[str, Any] = {"python": python, "torch": torch}
    for name, (command, cwd) in steps.items():
        print(f"python {python}, torch {torch}: {name}", flush=True)
        try:
            status = run(*command, cwd=cwd, log=log)
        except FileNotFoundError:
            status = 1
        if status:
            outcome["failed_at"] = name
            break
    if report.exists():
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        outcome |= {
            key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
        }
        outcome["seconds"] = round(float(suite.get("time", 0)))
    if own.exists():
        facts = "import json, sys, torch, importlib.util as u; t = u.find_spec('triton'); " + (
            "print(json.dumps([sys.version.split()[0], torch.__version__,"
            " __import__('triton').__version__ if t else None]))"
        )
        found = subprocess.run([own, "-c", facts], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            names = ("python_version", "torch_version", "triton_version")
            outcome |= dict(zip(names, json.loads(found.stdout), strict=True))
    shutil.rmtree(environment, ignore_errors=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the suite in other environments.")
    add = parser.add_argument
    add("pairs", nargs="+", metavar="PYTHON:TORCH", help="such as 3.12:2.13.0")
    add("--output", type=Path, required=True, metavar="FILE.json")
    chosen = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    date = datetime.now(timezone.utc).date().isoformat()
    outcomes: list[dict[str, Any]] = []
    for pair in chosen.pairs:
        outcomes.append(try_one(*pair.split(":")))
        # After each, so that an interruption leaves those that ended.
        document = {"commit": commit, "date": date, "outcomes": outcomes}
        chosen.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(outcomes, indent=1))
    return any("failed_at" in outcome for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
