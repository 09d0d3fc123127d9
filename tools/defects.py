"""Plants known defects, each in a throw-away copy, and sees which check catches it; ends with an
error if one goes unseen. Half an hour.

    python -m tools.defects [--only WORDS] [--write]

The defects stand in defects.json: in ``file`` the text ``old``, which occurs once, becomes ``new``;
then ``python -m check`` has to fail and say what ``message`` matches. Depends on the checks.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import results

ROOT = Path(__file__).resolve().parents[1]
RECORD = results.FOLDER / "reliability.json"
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


def plant(defect: Defect, folder: Path) -> None:
    """In a copy of the checkout and of its built extension."""
    others = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=others, dirs_exist_ok=True)
    file = folder / defect.file
    text = file.read_text(encoding="utf-8")
    if text.count(defect.old) != 1:
        raise SystemExit(f"{defect.name}: {defect.file} no longer holds {defect.old!r} once")
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    if defect.builds:
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)


def caught(defect: Defect) -> str | None:
    """What the check says of the defect, or None if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        plant(defect, Path(folder))
        process = subprocess.run(
            [sys.executable, "-m", *shlex.split(defect.check)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    if process.returncode == 0:
        return None
    said = re.search(defect.message, process.stdout)
    if said is None:
        print(process.stdout[-3000:])
        raise SystemExit(f"{defect.name}: the check failed for another reason")
    return said[0]


def write(messages: dict[str, str | None]) -> None:
    """Of defects that were not planted this time, what was found before is kept."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    found = {each["defect"]: each for each in record["defects"]["figures"]["planted"]}
    for each in planned():
        if each.name in messages:
            found[each.name] = {
                "defect": each.name,
                "file": each.file,
                "check": each.check,
                "message": messages[each.name],
            }
    ordered = [found[each.name] for each in planned() if each.name in found]
    results.record_section(RECORD, "defects", {"planted": ordered})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.defects", description="Do the checks see what they are for?"
    )
    parser.add_argument("--only", metavar="WORDS", default="", help="whose name holds these words")
    parser.add_argument("--write", action="store_true", help=f"record in {RECORD.name}")
    chosen = parser.parse_args()
    messages: dict[str, str | None] = {}
    for defect in planned():
        if chosen.only in defect.name:
            messages[defect.name] = caught(defect)
            print(f"{defect.name}: {messages[defect.name] or 'NOT SEEN'}", flush=True)
    if unseen := [name for name, message in messages.items() if message is None]:
        raise SystemExit(f"no check saw: {', '.join(unseen)}")
    if chosen.write:
        write(messages)


if __name__ == "__main__":
    main()
