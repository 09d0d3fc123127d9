"""``python -m fused_sigmoid info``: what is installed here, and which kernels run where.
``python -m fused_sigmoid check``: whether their numerics hold on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import sys
from pathlib import Path

import torch

from . import __version__
from ._extension import extension
from ._machine import versions
from .functions.sigmoid import sigmoid

CHECK_DEPENDENCIES = ("mpmath", "numpy", "tabulate", "tqdm")
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
        return "as its consumers need it, which are read in the graph of the backward pass"
    return "nn.Sigmoid's, everywhere: the backward passes of this torch cannot be read"


def information() -> dict[str, str]:
    """What ``info`` prints, in order."""
    sets = ", ".join(extension.instruction_sets())
    return {
        "fused_sigmoid": __version__,
        "torch": torch.__version__,
        "triton": versions(["triton"]).get("triton", "not installed"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "CPU instruction set": f"{extension.instruction_set()} (this CPU can run: {sets})",
        "CPU threads": str(torch.get_num_threads()),
        "CUDA devices": str(torch.cuda.device_count()),
        "route on CPU": f"C++ kernels ({extension.instruction_set()})",
        "route on GPU": _gpu_route(),
        "route under torch.compile": "formula in ATen operations",
        "gradient before losses": _reading(),
        "route under torch.export, torch.jit.trace": "ATen's sigmoid, with torch's gradient",
    }


def _info() -> int:
    entries = information()
    width = max(map(len, entries)) + 2
    for name, entry in entries.items():
        print(f"{name:<{width}}{entry}")
    return 0


def _check(
    parser: argparse.ArgumentParser, full: bool, device: str | None, file: Path | None
) -> int:
    try:
        from . import check
        from .check import report as reporting
    except ModuleNotFoundError as error:
        if error.name not in CHECK_DEPENDENCIES:
            raise
        parser.error(f"{error.name} is not installed; pip install 'fused_sigmoid[check]'")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; accepted is: cpu")
    if file is not None:
        try:
            _check_writable(file)
        except OSError as error:
            parser.error(f"argument --json: {str(file)!r} cannot be written: {error.strerror}")
    report = check.run(check.FULL if full else check.SHORT, device)
    print(reporting.text(report))
    if file is not None:
        document = json.dumps(reporting.document(report), indent=1, allow_nan=False)
        file.write_text(document + "\n", encoding="utf-8")
    return 0 if report.passed else 1


def _check_writable(file: Path) -> None:
    """OSError unless it can be written; a file that exists stays as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    existed = file.exists()
    with file.open("a", encoding="utf-8"):
        pass
    if not existed:
        file.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_sigmoid", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, devices, instruction set and live routes")
    check = commands.add_parser(
        "check",
        help="measure the errors of every kernel here; exit status 1 if a bound is missed",
        description="Measures the numerics of every kernel on this machine: exit status 0 if all "
        "bounds hold, 1 if one is missed.",
    )
    check.add_argument(
        "--full",
        action="store_true",
        help="all 2^32 numbers of float32 and ten million of float64: minutes",
    )
    check.add_argument("--device", choices=("cpu", "cuda"), help="this one alone; default: all")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all figures to it as well")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        try:
            return _check(check, chosen.full, chosen.device, chosen.json)
        except KeyboardInterrupt:
            print("interrupted; nothing is reported", file=sys.stderr)
            return INTERRUPTED
    return _info()


if __name__ == "__main__":
    sys.exit(main())
