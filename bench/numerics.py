"""The tables of docs/numerics.md from the files of the full check and of the error budget; measures
nothing and needs no torch.

    python -m bench.numerics CHECK.json [...] --budget FILE.json --write docs/numerics.md [--check]

Depends on figures for the markers in a Markdown file, on tabulate for tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.figures import fill_named, write_pages

Check = dict[str, Any]
COUNTS = ("misrounded", "zeroed", "decreasing")


def machines(checks: Sequence[Check]) -> str:
    """What was checked where."""
    lines = []
    for check in checks:
        machine, versions = check["machine"], check["versions"]
        lines.append(
            [
                ", ".join([machine["cpu"], *machine["cuda"]]),
                ", ".join(machine["instruction_sets"]),
                ", ".join(f"{name} {version}" for name, version in versions.items()),
                check["date"][:10],
                f"{sum(check['seconds'].values()) / 60:.1f} min",
            ]
        )
    head = ["device", "instruction sets", "versions", "date", "time"]
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True)


def errors(checks: Sequence[Check]) -> str:
    """The largest error in ulp with its bound and torch's, and the counts as ours / torch's."""
    lines = [
        [*line, *(_pair(figures, name) for name in COUNTS)]
        for line, figures in _lines(checks, "ulp")
    ]
    head = ["dtype", "quantity", "kernels", "inputs", "error", "bound", "at x", "torch's"]
    head += ["misrounded", "zeroed", "steps down"]
    return _table(head, lines)


def second_derivatives(checks: Sequence[Check]) -> str:
    """The same of σ'', relative."""
    head = ["dtype", "quantity", "kernels", "inputs", "error", "bound", "at x", "torch's"]
    return _table(head, [line for line, _ in _lines(checks, "relative")])


def _lines(checks: Sequence[Check], unit: str) -> list[tuple[list[str], dict[str, Any]]]:
    """A line for each dtype and quantity; kernels and quantities with the same figures share it."""
    shared: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {}
    for check in checks:
        for row in check["rows"]:
            if row["unit"] != unit:
                continue
            shown = {name: row["figures"].get(name) for name in ("error", *COUNTS)}
            # A line says of all its quantities that all its kernels were run; of the loss those
            # of another file may not have been.
            of_loss = row["quantity"].startswith("loss")
            key = json.dumps([row["dtype"], row["inputs"], of_loss, shown])
            kernels, quantities, _ = shared.setdefault(key, ([], [], row))
            for name, names in ((_kernels(row), kernels), (row["quantity"], quantities)):
                if name not in names:
                    names.append(name)
    lines = []
    for kernels, quantities, row in shared.values():
        error = row["figures"]["error"]
        exact = error["bound"] is None
        line = [row["dtype"], "; ".join(quantities), ", ".join(kernels), f"{row['inputs']:,}"]
        line += [_number(error["ours"]), "all nearest" if exact else f"{error['bound']:g}"]
        line += ["" if error["at"] is None else f"{error['at']:.6g}", _number(error["torch"])]
        lines.append((line, row["figures"]))
    return lines


def _kernels(row: dict[str, Any]) -> str:
    return row["kernels"] if row["device"] == "cpu" else f"{row['device']} {row['kernels']}"


def _pair(figures: dict[str, Any], name: str) -> str:
    if name not in figures:
        return ""
    return f"{figures[name]['ours']:,.0f} / {figures[name]['torch']:,.0f}"


def _number(number: float | str) -> str:
    # An infinite error is stored as a string.
    if isinstance(number, str):
        return number
    if 1000 <= number < 1e6:
        return f"{number:,.0f}"
    return f"{number:.4f}" if 0.001 <= number < 1000 else f"{number:.2g}"


def budget(terms: Sequence[dict[str, Any]]) -> str:
    """Each term's bound and the largest error seen, in ulp."""
    lines = []
    for term in terms:
        seen, proven = term["seen"], term["bounds"]
        line = [term["name"]]
        for column in ("t", "complement", "derivative"):
            bound = proven["float32"][column]
            line += ["", ""] if bound is None else [_ulp(bound), _ulp(seen[column])]
        double = proven["float64"]["t"]
        lines.append([*line, "" if double is None else _ulp(double)])
    head = ["term", "t ≤", "seen", "1 - t ≤", "seen", "t - t² ≤", "seen", "float64: t ≤"]
    return _table(head, lines, texts=1)


def _ulp(number: float) -> str:
    return f"{number:.3f}" if number >= 0.001 else f"{number:.0e}"


def _table(head: list[str], lines: list[list[str]], texts: int = 3) -> str:
    aligned = ["left"] * texts + ["right"] * (len(head) - texts)
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True, colalign=aligned)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.numerics", description="Fill the tables of docs/numerics.md."
    )
    add = parser.add_argument
    add("checks", nargs="+", type=Path, metavar="CHECK.json")
    add("--budget", type=Path, required=True, metavar="FILE.json")
    add("--write", type=Path, required=True, metavar="FILE.md", help="fill this file's blocks")
    add("--check", action="store_true", help="write nothing; exit 1 if --write would change it")
    chosen = parser.parse_args(arguments)
    checks = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.checks]
    terms = json.loads(chosen.budget.read_text(encoding="utf-8"))["terms"]
    tables: dict[str, Callable[[], str]] = {
        "checked machines": lambda: machines(checks),
        "checked errors": lambda: errors(checks),
        "checked second derivatives": lambda: second_derivatives(checks),
        "error budget": lambda: budget(terms),
    }
    filled = fill_named(chosen.write.read_text(encoding="utf-8"), tables)
    return write_pages({chosen.write: filled}, chosen.check, "bench.numerics")


if __name__ == "__main__":
    sys.exit(main())
