"""``python -m fused_sigmoid info``: what is installed here, and which kernels run where."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys

import torch

from . import __version__
from ._extension import extension


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_route() -> str:
    if not torch.cuda.is_available():
        return "none: torch sees no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "formula in ATen operations; for the kernels: pip install triton"
    return f"Triton kernels on {torch.cuda.get_device_name()}"


def information() -> dict[str, str]:
    """What ``info`` prints, in order."""
    sets = ", ".join(extension.instruction_sets())
    return {
        "fused_sigmoid": __version__,
        "torch": torch.__version__,
        "triton": _version("triton") or "not installed",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "CPU instruction set": f"{extension.instruction_set()} (this CPU can run: {sets})",
        "CPU threads": str(torch.get_num_threads()),
        "CUDA devices": str(torch.cuda.device_count()),
        "route on CPU": f"C++ kernels ({extension.instruction_set()})",
        "route on GPU": _gpu_route(),
        "route under torch.compile, torch.export, torch.func": "formula in ATen operations",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_sigmoid", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, devices, instruction set and live routes")
    parser.parse_args(arguments)
    entries = information()
    width = max(map(len, entries)) + 2
    for name, entry in entries.items():
        print(f"{name:<{width}}{entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
