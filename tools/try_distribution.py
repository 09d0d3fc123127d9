"""Looks at what is in each wheel and source distribution, installs it into an empty environment and
tries it there, far from the checkout. Called by `make dist`.

    python tests/try_distribution.py dist/*.whl dist/*.tar.gz
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the user has: torch, and for the source distribution what builds it.
PRESENT = [f"{name}=={version(name)}" for name in ("torch", "numpy", "setuptools", "ninja")]

TRIAL = """
import importlib.metadata, math, pathlib, sys
import torch
import fused_sigmoid

requirements = importlib.metadata.requires("fused_sigmoid")
release = ".".join(torch.__version__.split(".")[:2])
assert any(f"=={release}.*" in one for one in requirements), requirements
assert pathlib.Path(fused_sigmoid.__file__).is_relative_to(sys.prefix), fused_sigmoid.__file__
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    x = torch.tensor([-9.0, 0.0, 9.0], dtype=dtype, requires_grad=True)
    y = fused_sigmoid.FusedSigmoid()(x)
    y.sum().backward()
    e = math.exp(-9)
    exact = torch.tensor([e / (1 + e) ** 2, 0.25, e / (1 + e) ** 2], dtype=torch.float64)
    torch.testing.assert_close(x.grad.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sigmoid())
assert fused_sigmoid.replace_sigmoid(model) == 1
assert "triton" not in sys.modules
"""


def contents(archive: Path) -> set[str]:
    """The files, without the source distribution's leading folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {
            name.partition("/")[2] for name in file.getnames() if not file.getmember(name).isdir()
        }


def check_contents(archive: Path) -> None:
    found = contents(archive)
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fused_sigmoid").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".py")
    }
    if archive.suffix == ".whl":
        wanted, made = package, (".dist-info/", "fused_sigmoid/_C_torch_")
        built = [name for name in found if name.startswith("fused_sigmoid/_C_torch_")]
        assert len(built) == 1, f"{archive.name} holds extensions of other builds: {built}"
        assert any(name.endswith("LICENSE") for name in found)
    else:
        given = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
        wanted, made = package | sources | given, (".egg-info/", "PKG-INFO", "setup.cfg")
    others = {name for name in found - wanted if not any(part in name for part in made)}
    assert not others, f"{archive.name} holds more than the package: {sorted(others)}"
    assert wanted <= found, f"{archive.name} lacks {sorted(wanted - found)}"


def try_in_empty_environment(archive: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str | Path) -> None:
        subprocess.run([python, *command], cwd=elsewhere, env=environment, check=True)

    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere) / "environment"
        venv.create(folder, with_pip=True)
        python = folder / "bin/python"
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, *PRESENT)
        run(*install, "--no-build-isolation", f"fused_sigmoid[check] @ {archive.as_uri()}")
        run("-m", "pip", "check", "--disable-pip-version-check")
        run("-c", TRIAL)
        run("-m", "fused_sigmoid", "info")
        run("-m", "fused_sigmoid", "check")


def main(archives: Sequence[str]) -> None:
    assert archives, "name at least one wheel or source distribution"
    for name in archives:
        archive = Path(name).resolve()
        check_contents(archive)
        try_in_empty_environment(archive)
        print(f"{archive.name}: installs into an empty environment and works there", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
