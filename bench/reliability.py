"""The tables of docs/reliability.md, from the figures that the long checks recorded; runs nothing.

    python -m bench.reliability FIGURES.json --write docs/reliability.md [--check]

Depends on figures for the markers in a Markdown file, on machine for what a record says of its
origin, on tabulate for the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import machine
from bench.figures import fill_page


def record(path: Path, section: str, figures: dict[str, Any]) -> None:
    """Keeps the figures of one check in the file, beside those of the others."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document[section] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        **machine.commit(),
        "cpu": machine.device_name("cpu"),
        "logical_cpus": machine.describe("cpu")["logical_cpus"],
        "versions": machine.versions(("torch", "triton", "hypothesis")),
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: document[name] for name in sorted(document)}
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def _plain(lines: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def origins(document: dict[str, Any]) -> str:
    """When and where each check ran last."""
    lines = [
        (
            name,
            section["date"],
            f"{section['commit'][:12]}{' with changes' if section['dirty'] else ''}",
            f"{section['cpu']}, {section['logical_cpus']} logical CPUs",
            ", ".join(f"{key} {value}" for key, value in section["versions"].items()),
        )
        for name, section in document.items()
    ]
    return _plain(lines, ("check", "date", "commit", "machine", "versions"))


def sanitizers(document: dict[str, Any]) -> str:
    lines = [
        (
            name,
            found.get("instruction_sets", "avx512 avx2 default").replace(" ", ", "),
            f"{found['kernel_executions']:,}",
            f"{found['elements']:,}" if "elements" in found else "",
            _duration(found["build_seconds"]),
            _duration(found["seconds"]),
        )
        for name, found in document["sanitize"]["figures"].items()
    ]
    head = ("build", "instruction sets", "kernel executions", "elements", "to build", "to run")
    return _plain(lines, head)


def fuzzing(document: dict[str, Any]) -> str:
    lines = []
    if "fuzz" in document:
        found = document["fuzz"]["figures"]
        lines.append(
            (
                f"libFuzzer, {found['compiler'].removeprefix('Debian ')}",
                f"{found['kernel_executions']:,} kernel executions, {found['elements']:,} elements",
                f"{found['covered_edges']:,} edges, {found['corpus']:,} inputs in the corpus",
                _duration(found["seconds"]),
            )
        )
    if "properties" in document:
        found = document["properties"]["figures"]
        lines.append(
            (
                "hypothesis",
                f"{found['examples']:,} examples, {found['invalid']:,} more set aside",
                f"{found['tests']} properties",
                _duration(found["seconds"]),
            )
        )
    if "programs" in document:
        for name, found in document["programs"]["figures"].items():
            lines.append(
                (
                    f"programs, {name}",
                    f"{found['programs']:,} programs, {found['runs']:,} runs compared",
                    f"{found['compared']:,} values and gradients; torch refuses"
                    f" {found.get('refused by torch', 0):,} runs",
                    _duration(found["seconds"]),
                )
            )
    return _plain(lines, ("fuzzer", "ran", "reached", "took"))


def load(document: dict[str, Any]) -> str:
    found = document["load"]["figures"]
    threads, small, large = found["threads"], found["small_calls"], found["large_steps"]
    training = found["training"]
    lines = [
        (
            f"{threads['threads']} Python threads, {threads['sizes']} sizes, all dtypes",
            f"{threads['calls']:,} calls, {threads['elements']:,} elements, every result compared",
            f"{threads['wrong']} wrong results",
            _duration(threads["seconds"]),
        ),
        (
            f"{small['calls']:,} small calls, forward and backward",
            "resident memory after warm-up and at the end",
            _growth(small),
            _duration(small["seconds"]),
        ),
        (
            f"{large['calls']:,} training steps of {large['elements']:,} elements",
            "resident memory after warm-up and at the end",
            _growth(large),
            _duration(large["seconds"]),
        ),
        (
            f"{training['steps']:,} training steps with either module",
            "largest relative difference of the two loss curves",
            f"{training['largest_relative_difference']:.1e}; losses {training['first_loss']:.4f} to"
            f" {training['last_loss']:.4f} and {training['last_loss_of_torch']:.4f}",
            _duration(training["seconds"]),
        ),
    ]
    return _plain(lines, ("load", "what is looked at", "found", "took"))


def _growth(found: dict[str, Any]) -> str:
    before, after = found["resident_bytes_before"], found["resident_bytes_after"]
    grown = (after - before) / 1024
    return f"{before / 2**20:.1f} MiB, {after / 2**20:.1f} MiB: {grown:+,.0f} KiB"


def defects(document: dict[str, Any]) -> str:
    lines = [
        (found["defect"], f"`{found['file']}`", found["check"], found["message"])
        for found in document["defects"]["figures"]["planted"]
    ]
    return _plain(lines, ("defect", "in", "caught by", "which said"))


TABLES = {
    "origins": origins,
    "sanitizers": sanitizers,
    "fuzzing": fuzzing,
    "load": load,
    "defects": defects,
}


def main(arguments: Sequence[str] | None = None) -> int:
    return fill_page(
        arguments,
        "bench.reliability",
        "Fill the tables of the long checks.",
        lambda document: {name: partial(table, document) for name, table in TABLES.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
