"""Every file of the extension is compiled without contraction: the compiler fuses no product and
sum of its own accord, so that all instruction sets give the bits of one written sequence.

No bit shows it today: no product feeds a sum in the kernels but in an explicit fma.
"""

from __future__ import annotations

import platform
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
from torch.utils.cpp_extension import BuildExtension

ROOT = Path(__file__).resolve().parents[1]


def _compilations(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The flags of each source file, as the build would pass them to the compiler."""
    flags: dict[str, list[str]] = {}

    def compile(sources: list[str], extra_postargs: list[str], **_: Any) -> list[str]:
        flags.update(dict.fromkeys(sources, extra_postargs))
        return []

    def build_extension(_: Any, extension: setuptools.Extension) -> None:
        flags.update(dict.fromkeys(extension.sources, extension.extra_compile_args))

    def setup(ext_modules: list[setuptools.Extension], cmdclass: dict[str, type], **_: Any) -> None:
        command = cmdclass["build_ext"].__new__(cmdclass["build_ext"])
        command.compiler = SimpleNamespace(compile=compile)
        command.build_temp = "build"
        for extension in ext_modules:
            command.build_extension(extension)

    monkeypatch.setattr(setuptools, "setup", setup)
    monkeypatch.setattr(BuildExtension, "build_extension", build_extension)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py", run_name="__main__")
    return flags


MACHINES = {"x86_64": ["avx2", "avx512"], "aarch64": ["neon"], "riscv64": []}


def _kernels() -> set[str]:
    return {path.stem.removeprefix("kernels_") for path in (ROOT / "csrc/cpu").glob("kernels_*")}


def test_every_instruction_set_has_a_machine() -> None:
    assert _kernels() == {"default"}.union(*MACHINES.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_no_file_is_compiled_with_contraction(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    flags = _compilations(monkeypatch)
    compiled = {name for name in _kernels() if f"csrc/cpu/kernels_{name}.cpp" in flags}
    assert compiled == {"default", *MACHINES[machine]}
    for source, options in flags.items():
        contraction = [option for option in options if option.startswith("-ffp-contract")]
        assert contraction[-1:] == ["-ffp-contract=off"], source
        assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(options), source
