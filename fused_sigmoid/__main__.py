"""``python -m fused_sigmoid info``: what is installed here, and which kernels run where.
``python -m fused_sigmoid check``: whether their numerics hold on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import __version__
from ._extension import extension
from ._machine import cpu_model, versions
from ._terminal import Parser, fall_back_to_ascii, paragraph, show, width
from .functions.sigmoid import sigmoid

CHECK_DEPENDENCIES = ("mpmath", "numpy", "tabulate", "tqdm")
CHECK_OPTIONS: dict[str, dict[str, Any]] = {
    "--full": {
        "action": "store_true",
        "help": "all 2^32 numbers of float32 and ten million of float64: minutes",
    },
    "--all": {
        "action": "store_true",
        "help": "print every row, instead of those nearest to their bounds",
    },
    "--device": {"choices": ("cpu", "cuda"), "help": "this one alone; default: all"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write all figures to it as well"},
}
# What a shell takes for the end by Ctrl-C.
INTERRUPTED = 130


def _gpu_route() -> str:
    if not torch.cuda.is_available():
        return "none: torch sees no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "formula in ATen operations; for the kernels: pip install triton"
    # Which way kernels are launched is known after the first launch.
    try:
        sigmoid(torch.zeros(1, device="cuda"))
        launcher = importlib.import_module("fused_sigmoid.triton.elementwise").launcher()
    except Exception as error:  # whatever it is, this is where users look for it
        return f"Triton kernels, which fail: {type(error).__name__}: {error}"
    return f"Triton kernels on {torch.cuda.get_device_name()}, launched by {launcher}"


def _reading() -> str:
    """Of a pass that is run here: whether the node of the sigmoid finds out who got its output."""
    sigmoid(torch.ones(1, requires_grad=True)).sum().backward()
    if extension.can_read_backward_passes():
        return (
            "as its consumers need it: exact; before nn.BCELoss that of nn.BCEWithLogitsLoss; "
            "before losses it does not know nn.Sigmoid's"
        )
    return "nn.Sigmoid's, everywhere: the backward passes of this torch cannot be read"


def information() -> dict[str, str]:
    """What ``info`` prints, in order."""
    chosen, sets = extension.instruction_set(), extension.instruction_sets()
    return {
        "fused_sigmoid": __version__,
        "torch": torch.__version__,
        "triton": versions(["triton"]).get("triton", "not installed"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "CPU": cpu_model(),
        "CPU instruction set": f"{chosen} (FUSED_SIGMOID_CPU takes: {', '.join(sets)})",
        "CPU threads": str(torch.get_num_threads()),
        "CUDA devices": str(torch.cuda.device_count()),
        "route on CPU": f"C++ kernels ({chosen})",
        "route on GPU": _gpu_route(),
        "route under torch.compile": "formula in ATen operations, for the compiler to fuse",
        "route under torch.export": "ATen's sigmoid, with torch's gradient; torch.jit.trace too",
        "gradient before losses": _reading(),
    }


def _info() -> int:
    entries = information()
    longest = max(map(len, entries)) + 2
    lines = [paragraph(text, width(), f"{name:<{longest}}") for name, text in entries.items()]
    show("\n".join(lines))
    return 0


def _check(parser: Parser, chosen: argparse.Namespace) -> int:
    missing = [name for name in CHECK_DEPENDENCIES if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; pip install 'fused_sigmoid[check]'")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; accepted: cpu")
    with _file_errors(parser, chosen.json):
        _check_writable(chosen.json)
    from . import check
    from .check.report import document, text

    report = check.run(check.FULL if chosen.full else check.SHORT, chosen.device)
    show(text(report, chosen.all, width()))
    with _file_errors(parser, chosen.json):
        if chosen.json is not None:
            found = json.dumps(document(report), indent=1, allow_nan=False)
            chosen.json.write_text(found + "\n", encoding="utf-8")
    return 0 if report.passed else 1


@contextmanager
def _file_errors(parser: Parser, file: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        parser.error(f"argument --json: {str(file)!r} cannot be written: {error.strerror}")


def _check_writable(file: Path | None) -> None:
    """OSError unless it can be written; a file that exists stays as it is."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file = file.resolve()  # of a link that leads nowhere yet, the link stays
    existed = file.exists()
    with file.open("a", encoding="utf-8"):
        pass
    if not existed:
        file.unlink()


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="python -m fused_sigmoid",
        description="What of fused_sigmoid runs on this machine, and whether its numerics hold.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    info = commands.add_parser("info", help="versions, devices, instruction set and live routes")
    check = commands.add_parser(
        "check",
        help="measure the errors of every kernel here; exit status 1 if a bound is missed",
        description="Measures the numerics of every kernel on this machine: exit status 0 if all "
        "bounds hold, 1 if one is missed.",
    )
    for option, settings in CHECK_OPTIONS.items():
        check.add_argument(option, **settings)
    return parser, {"info": info, "check": check}


def _run(arguments: list[str] | None) -> int:
    parser, commands = _parsers()
    chosen, unknown = parser.parse_known_args(arguments)
    command = commands.get(chosen.command, parser)
    if unknown:
        accepted = {"check": CHECK_OPTIONS, "info": ["no arguments"], None: commands}[
            chosen.command
        ]
        command.error(f"argument {unknown[0]}: not known; accepted: {', '.join(accepted)}")
    if command is parser:
        parser.print_help()
        return 0
    return _check(command, chosen) if chosen.command == "check" else _info()


def main(arguments: list[str] | None = None) -> int:
    fall_back_to_ascii()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted; nothing is reported", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
