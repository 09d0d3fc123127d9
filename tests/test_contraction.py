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


def test_no_file_is_compiled_with_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = _compilations(monkeypatch)
    kernels = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("kernels_*.cpp")}
    assert kernels
    if platform.machine().lower() in ("x86_64", "amd64"):
        assert kernels <= set(flags)
    for source, options in flags.items():
        contraction = [option for option in options if option.startswith("-ffp-contract")]
        assert contraction[-1:] == ["-ffp-contract=off"], source
        assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(options), source
