"""Runs the suite with other releases of Python and torch, each in an environment of its own under
.matrix/, from a clone of the last commit; records what came of it in compatibility.json. Called by
`make test-matrix`.

    python -m tools.matrix 3.11:2.11.0 3.13:2.13.0

Downloads gigabytes: every torch but the pinned one comes with its CUDA libraries.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench import machine, results

FOLDER = machine.ROOT / ".matrix"
RECORD = results.FOLDER / "compatibility.json"
NEEDED = ("setuptools>=77", "wheel", "ninja", "numpy")
EXTRAS = ".[check,test,bench,examples]"
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
    """Installs, builds, tests. ``failed_at`` names the step that did not succeed."""
    folder = FOLDER / f"python{python}-torch{torch}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment, source, report = (folder / name for name in ("environment", "source", "report"))
    own = environment / "bin/python"
    install = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    steps = {
        "environment": (interpreter(python), "-m", "venv", environment),
        "torch": (*install, f"torch=={torch}", *NEEDED),
        "source": ("git", "clone", "--quiet", machine.ROOT, source),
        # torch is named again, since the extras must not bring another release.
        "build": (*install, "--no-build-isolation", "-e", EXTRAS, f"torch=={torch}"),
        "tests": (own, "-m", "pytest", "-q", f"--junit-xml={report}"),
    }
    outcome: dict[str, Any] = {"python": python, "torch": torch}
    for name, command in steps.items():
        print(f"python {python}, torch {torch}: {name}", flush=True)
        cwd = source if name in ("build", "tests") else folder
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            try:
                subprocess.run(command, cwd=cwd, stdout=log, stderr=log, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.matrix", description="Run the suite in other environments."
    )
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH", help="such as 3.12:2.13.0")
    pairs = [pair.split(":") for pair in parser.parse_args().pairs]
    origin = machine.origin()
    document = {"commit": origin["commit"][:12], "date": origin["date"], "outcomes": []}
    for python, torch in pairs:
        document["outcomes"].append(try_one(python, torch))
        # After each, so that an interruption leaves those that ended.
        results.replace_json(RECORD, document)
    print(json.dumps(document["outcomes"], indent=1))
    return any("failed_at" in outcome for outcome in document["outcomes"])


if __name__ == "__main__":
    sys.exit(main())
