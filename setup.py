"""Builds the C++ extension; everything else about the package stands in pyproject.toml.

Needs an installed torch, so build without isolation: pip install --no-build-isolation .
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import setuptools
from setuptools import setup
from setuptools.extension import Extension

# Each of these would otherwise show as an error far from its cause, or after much was fetched.
if sys.version_info < (3, 10):  # noqa: UP036 - pip runs this before it reads requires-python
    sys.exit(f"fused_sigmoid needs Python 3.10 or newer; this is {platform.python_version()}")
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"fused_sigmoid is built with setuptools 77 or newer; {setuptools.__version__} is installed"
        " here. Install a newer one first: pip install --upgrade setuptools"
    )
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        "fused_sigmoid is built for the torch that is installed, and this environment has none\n"
        f"({error}). pip and uv build in an environment of their own, without\n"
        "what is installed in yours, unless told not to:\n\n"
        "    pip install --no-build-isolation .\n\n"
        "If you told so, install torch 2.11 or newer first. Nothing was changed."
    )

# For each processor the instruction sets that have kernels of their own, with the flags for their
# one file. The AVX-512 intrinsics of g++ 12 give false warnings about uninitialised values (GCC bug
# 105593).
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "X86": {
        "avx2": AVX2,
        "avx512": [*AVX512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    },
    "ARM64": {"neon": []},
}
PROCESSORS = {"x86_64": "X86", "amd64": "X86", "aarch64": "ARM64", "arm64": "ARM64"}


def flags_for(machine: str) -> tuple[list[str], dict[str, list[str]]]:
    """The flags of every file on such a machine, and those to add for each instruction set."""
    # Contraction would give each compiler's choice of fused operations its own last bits; errno
    # would keep std::fma a call.
    flags = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-g0"]
    processor = PROCESSORS.get(machine.lower())
    if processor is None:
        return flags, {}
    return [*flags, f"-DFUSED_SIGMOID_{processor}"], INSTRUCTION_SETS[processor]


FLAGS, KERNEL_FLAGS = flags_for(platform.machine())

# torch's C++ interface changes between releases: the name tells which one this build is for.
MAJOR, MINOR = torch.__version__.split("+")[0].split(".")[:2]
if (int(MAJOR), int(MINOR)) < (2, 11):
    sys.exit(f"fused_sigmoid needs torch 2.11 or newer; {torch.__version__} is installed here")


class BuildKernels(BuildExtension):
    """Compiles the kernels of each instruction set with its own flags, then the extension."""

    def build_extension(self, extension: Extension) -> None:
        for name, flags in KERNEL_FLAGS.items():
            # A folder each: ninja keeps its state beside the objects.
            extension.extra_objects += self.compiler.compile(
                [f"csrc/cpu/kernels_{name}.cpp"],
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=["csrc"],
                extra_postargs=[*FLAGS, *flags],
            )
        super().build_extension(extension)


setup(
    # A wheel runs with the release it was built for, and no other. No lower bound beside it: 2.11
    # would exclude a preview of 2.11, and pip would exchange that for another torch.
    install_requires=[f"torch=={MAJOR}.{MINOR}.*"],
    ext_modules=[
        CppExtension(
            f"fused_sigmoid._C_torch_{MAJOR}_{MINOR}",
            sources=[
                *("csrc/autograd.cpp", "csrc/binary_cross_entropy.cpp"),
                *("csrc/binary_cross_entropy_autograd.cpp", "csrc/consumers.cpp"),
                "csrc/elementwise.cpp",
                *("csrc/gpu_launch.cpp", "csrc/layout.cpp", "csrc/operations.cpp"),
                *("csrc/operators.cpp", "csrc/python.cpp", "csrc/cpu/fresh_memory.cpp"),
                *("csrc/cpu/instruction_set.cpp", "csrc/cpu/kernels_default.cpp"),
                *("csrc/cpu/strided.cpp", "csrc/cpu/streaming.cpp"),
            ],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            extra_compile_args=FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
