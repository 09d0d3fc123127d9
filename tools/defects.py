"""Plants known defects in a throw-away copy, one after another, and sees which check catches each;
ends with an error if one goes unseen. Twenty minutes of two cores.

    python -m tools.defects [--only WORDS | --write]

The defects stand in defects.json: in ``file`` the text ``old``, which occurs once, becomes ``new``;
then ``python -m check`` has to fail and say what ``message`` matches. Depends on the checks, which
pass where no defect is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import results
from fused_sigmoid import _terminal

ROOT = Path(__file__).resolve().parents[1]
RECORD = results.FOLDER / "reliability.json"
BUILD = ("setup.py", "--quiet", "build_ext", "--inplace")
SECONDS = 1800


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    old: str
    new: str
    check: str
    message: str
    builds: bool = False  # whether the check needs the extension built anew


def planned() -> list[Defect]:
    """Texts of several lines are lists of them."""
    listed = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    for each in listed:
        each |= {key: "\n".join(text) for key, text in each.items() if isinstance(text, list)}
    return [Defect(**each) for each in listed]


def run(command: tuple[str, ...], checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        # What the check starts elsewhere must not import the code without the defect.
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def plant(defect: Defect, checkout: Path) -> None:
    file = checkout / defect.file
    text = file.read_text(encoding="utf-8")
    if text.count(defect.old) != 1:
        raise SystemExit(f"{defect.name}: {defect.file} no longer holds {defect.old!r} once")
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")


def said_of(defect: Defect, checkout: Path) -> str | None:
    """What the check says of the defect, or None if it passes or fails for another reason."""
    process = run(BUILD, checkout) if defect.builds else None
    if process is None or process.returncode == 0:
        process = run(("-m", *shlex.split(defect.check)), checkout)
    if process.returncode == 0:
        return None
    said = re.search(defect.message, process.stdout)
    if said is None:
        print(process.stdout[-3000:], f"{defect.name}: failed for another reason", sep="\n")
    return said and said[0]


def in_turn(defects: list[Defect]) -> dict[str, str | None]:
    """What the checks say, by the defects' names. Each defect has the checkout as it was, at the
    same place: a build there compiles anew what depends on the defect's file, and nothing else."""
    messages: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkout, untouched = Path(folder, "checkout"), Path(folder, "untouched")
        others = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
        shutil.copytree(ROOT, checkout, ignore=others)
        if any(defect.builds for defect in defects) and run(BUILD, checkout).returncode != 0:
            raise SystemExit("the extension does not build without a defect")
        checkout.rename(untouched)
        for defect in defects:
            shutil.copytree(untouched, checkout)
            plant(defect, checkout)
            messages[defect.name] = said_of(defect, checkout)
            print(f"{defect.name}: {messages[defect.name] or 'NOT SEEN'}", flush=True)
            shutil.rmtree(checkout)
    return messages


def write(messages: dict[str, str | None]) -> None:
    planted = [
        {
            "defect": each.name,
            "file": each.file,
            "check": each.check,
            "message": messages[each.name],
        }
        for each in planned()
    ]
    results.record_section(RECORD, "defects", {"planted": planted})


def main() -> None:
    parser = _terminal.Parser(
        prog="python -m tools.defects", description="Do the checks see what they are for?"
    )
    # A record has one commit: all of it is of that.
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--only", metavar="WORDS", default="", help="whose name holds these words")
    either.add_argument("--write", action="store_true", help=f"record all in {RECORD.name}")
    chosen = parser.parse_args()
    defects = [defect for defect in planned() if chosen.only in defect.name]
    if not defects:
        parser.error(f"argument --only: no defect's name holds {chosen.only!r}")
    lanes = [[each for each in defects if each.builds == builds] for builds in (True, False)]
    messages: dict[str, str | None] = {}
    with ThreadPoolExecutor(len(lanes)) as pool:
        for found in pool.map(in_turn, lanes):
            messages |= found
    if unseen := [name for name, message in messages.items() if message is None]:
        raise SystemExit(f"no check saw: {', '.join(unseen)}")
    if chosen.write:
        write(messages)


if __name__ == "__main__":
    main()
