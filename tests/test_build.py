"""Installing builds for the torch that is there, or stops at once and says what to do."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py calls ``setup`` with."""
    found: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **given: found.update(given))
    return found


def refusal() -> str:
    with pytest.raises(SystemExit) as caught:
        runpy.run_path("setup.py")
    return str(caught.value.code)


# As in an isolated environment.
HOOK = """
import sys
sys.modules["torch"] = None
from setuptools import build_meta
getattr(build_meta, sys.argv[1])()
"""


@pytest.mark.parametrize("kind", ["wheel", "editable", "sdist"])
def test_without_torch_the_first_hook_stops(kind: str) -> None:
    """pip, uv and build call it before they build or fetch what it asks for."""
    process = subprocess.run(
        [sys.executable, "-c", HOOK, f"get_requires_for_build_{kind}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "\n    pip install --no-build-isolation .\n" in process.stderr
    assert "install torch 2.11 or newer first" in process.stderr
    assert "Traceback" not in process.stderr


def test_an_isolated_environment_is_given_no_torch() -> None:
    """It would be gigabytes, and not the build that the user has."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^\[build-system\].*?^requires = (\[.*?\])$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert json.loads(found[1]) == ["setuptools>=77"]


def test_a_torch_that_does_not_import_is_not_taken_for_none(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    assert "torch.utils.cpp_extension" in refusal()
    assert arguments == {}


@pytest.mark.parametrize("version", ["2.10.1", "2.9.0+cpu", "1.13.1"])
def test_a_torch_that_is_too_old(
    version: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    expected = f"fused_sigmoid needs torch 2.11 or newer; {version} is installed here"
    assert refusal() == expected
    assert arguments == {}


def test_a_python_that_is_too_old(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert refusal().startswith("fused_sigmoid needs Python 3.10 or newer; this is ")
    assert arguments == {}


@pytest.mark.parametrize("version", ["65.5.0", "76.1"])
def test_setuptools_that_are_too_old(
    version: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setuptools, "__version__", version)
    assert f"setuptools 77 or newer; {version} is installed" in refusal()
    assert "pip install --upgrade setuptools" in refusal()
    assert arguments == {}


@pytest.mark.parametrize("version", ["2.11.0a0+nv26.1", "2.13.0+cpu", "2.14.0.dev20261101+cu130"])
def test_the_torch_that_is_there_stays(
    version: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requirement holds for it, previews included, so that pip exchanges nothing."""
    monkeypatch.setattr(torch, "__version__", version)
    runpy.run_path("setup.py")
    (requirement,) = arguments["install_requires"]
    wanted = SpecifierSet(requirement.removeprefix("torch"))
    assert wanted.contains(version, prereleases=True)
    major, minor = version.split(".")[:2]
    assert f"{major}.{int(minor) + 1}.0" not in wanted
    (extension,) = arguments["ext_modules"]
    assert extension.name == f"fused_sigmoid._C_torch_{major}_{minor}"
