"""The table of docs/compatibility.md from the outcomes of tests/matrix.py; runs nothing.

    python -m bench.compatibility OUTCOMES.json --write docs/compatibility.md [--check]

Depends on figures for the markers in a Markdown file, on tabulate for the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from bench.figures import fill_page


def table(document: dict[str, Any]) -> str:
    lines = []
    for outcome in document["outcomes"]:
        failed = outcome.get("failures", 0) + outcome.get("errors", 0)
        passed = outcome.get("tests", 0) - outcome.get("skipped", 0) - failed
        step = outcome.get("failed_at")
        lines.append(
            [
                outcome.get("python_version", outcome["python"]),
                outcome.get("torch_version", outcome["torch"]),
                outcome.get("triton_version") or "",
                f"{passed:,}" if "tests" in outcome else "",
                f"{outcome['skipped']:,}" if "tests" in outcome else "",
                f"{failed:,}" if "tests" in outcome else f"no {step}",
            ]
        )
    head = ["Python", "torch", "Triton", "passed", "skipped or known to fail", "failed"]
    made = f"Commit {document['commit']}, {document['date']}."
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True) + f"\n\n{made}"


def main(arguments: Sequence[str] | None = None) -> int:
    return fill_page(
        arguments,
        "bench.compatibility",
        "Fill the table of releases tested.",
        lambda document: {"tested releases": lambda: table(document)},
    )


if __name__ == "__main__":
    sys.exit(main())
