"""Loads the compiled extension. Its file name holds the torch release it was built for, so that
a build for another torch is told apart without loading it, which could crash."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

# The dtypes that the kernels have, as `has_kernel_dtype` in csrc/layout.cpp.
HALVES = (torch.float16, torch.bfloat16)
KERNEL_DTYPES = (torch.float64, torch.float32, *HALVES)


class Extension(Protocol):
    """The functions of csrc/python.cpp. Each ``name`` among ``functions()`` adds some:

    - ``name(input, saved)``, ``name_(input)``, ``name_out(input, out)`` and
      ``name_with_derivative(input)`` return None for a call that needs another route than the
      kernels;
    - ``followed_name(input, saved)``, ``followed_name_(input)`` and
      ``followed_name_with_derivative(input)`` return None for one that autograd does not follow.
    """

    def binary_cross_entropy_with_logits(
        self,
        input: Any,
        target: Any,
        weight: Any,
        pos_weight: Any,
        reduction: str,
        return_probability: bool,
        /,
    ) -> Any: ...
    def composed_loss(self, *operands_reduction_and_wanted: Any) -> list[Tensor]: ...
    def composed_loss_gradient(self, *grad_operands_and_reduction: Any) -> Tensor: ...
    def __getattr__(self, name: str) -> Callable[..., Any]: ...
    def check_settings(self) -> None: ...
    def functions(self) -> tuple[str, ...]: ...
    def works(self) -> tuple[tuple[str, int, int], ...]: ...
    def add_gpu_kernel(self, *key_and_launch: Any) -> str: ...
    def launch_gpu_kernel(self, kernel: int, tensors: Sequence[Tensor], /) -> bool: ...
    def empty_gpu_output(self, inputs: Sequence[Tensor], /) -> Tensor: ...
    def gpu_call(
        self, kernel: int, tensors: Sequence[Tensor], /
    ) -> tuple[int, int, tuple[int, ...]] | None: ...
    def forget_gpu_kernels(self) -> None: ...
    def gpu_launches(self) -> int: ...
    def can_read_backward_passes(self) -> bool: ...
    def set_reading_backward_passes(self, is_on: bool, /) -> None: ...
    def instruction_set(self) -> str: ...
    def instruction_sets(self) -> tuple[str, ...]: ...
    def select_instruction_set(self, name: str, /) -> None: ...
    def streamed_from(self) -> int: ...
    def set_streamed_from(self, size: int, /) -> None: ...
    def streamed_runs(self) -> int: ...
    def copy_streamed(self, to: Tensor, source: Tensor, /) -> None: ...


def release(version: str) -> str:
    """The part of a torch version that its C++ interface depends on: "2.13" of "2.13.0+cpu"."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _name(torch_version: str) -> str:
    return f"{__package__}._C_torch_{release(torch_version).replace('.', '_')}"


def explanation(folder: Path, torch_version: str) -> str:
    """Why the extension cannot be loaded from ``folder``, and what to do."""
    wanted = (
        f"torch {release(torch_version)} and Python {sys.version_info[0]}.{sys.version_info[1]}"
    )
    checkout = folder.parent
    source = str(checkout) if (checkout / "setup.py").exists() else "<folder of the source>"
    build = f"{sys.executable} -m pip install --no-build-isolation -e {source}"
    # A folder of sources that stands before site-packages on the path, as the current one does.
    packages = [str(Path(entry, str(__package__))) for entry in sys.path]
    name = _name(torch_version)
    installed = PathFinder.find_spec(name, packages)
    if installed and installed.origin and PathFinder.find_spec(name, [str(folder)]) is None:
        return (
            f"the C++ extension of fused_sigmoid is not in {folder}, the sources that hide the "
            f"installed package in {Path(installed.origin).parent}. Run Python in another folder "
            "(from Python 3.11 on, python -P leaves out the current one), or build it in place "
            f"with: {build}"
        )
    found = sorted(path.name for path in folder.glob("_C_torch_*.so"))
    reason = f"is not built for {wanted}; built: {', '.join(found)}" if found else "is not built"
    return f"the C++ extension of fused_sigmoid {reason}. Build it for {wanted} with: {build}"


def load(folder: Path, torch_version: str) -> Extension:
    """Imports the extension built for this torch; ImportError says how to build it."""
    name = _name(torch_version)
    # From this folder alone: an editable install's finder would offer another checkout's build.
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(explanation(folder, torch_version))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"{explanation(folder, torch_version)}\n({error})") from error
    sys.modules[name] = module
    extension = cast(Extension, module)
    # Environment variables with values that do not exist are ValueErrors.
    extension.check_settings()
    return extension


extension = load(Path(__file__).parent, torch.__version__)
