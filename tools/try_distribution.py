"""Looks at what is in each wheel and source distribution, installs it into an empty environment and
tries it there, far from the checkout. Called by `make dist`.

    python -m tools.try_distribution dist/*.whl dist/*.tar.gz

Depends on the standard library alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the user has: torch, and for the source distribution what builds it.
PRESENT = [f"{name}=={version(name)}" for name in ("torch", "numpy", "setuptools", "ninja")]
EXTENSION = "fused_sigmoid/_C_torch_"

TRIAL = """
import importlib.metadata, pathlib, sys
import torch
import fused_sigmoid

requirements = importlib.metadata.requires("fused_sigmoid")
release = ".".join(torch.__version__.split(".")[:2])
assert any(f"=={release}.*" in one for one in requirements), requirements
assert pathlib.Path(fused_sigmoid.__file__).is_relative_to(sys.prefix), fused_sigmoid.__file__
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    x = torch.zeros(3, dtype=dtype, requires_grad=True)
    fused_sigmoid.FusedSigmoid()(x).sum().backward()
    assert x.grad.tolist() == [0.25] * 3
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sigmoid())
assert fused_sigmoid.replace_sigmoid(model) == 1
assert "triton" not in sys.modules
"""


def files(folder: str, *kinds: str) -> set[str]:
    found = (ROOT / folder).rglob("*")
    return {str(path.relative_to(ROOT)) for path in found if path.name.endswith(kinds)}


def check_contents(archive: Path) -> None:
    """The package and what packaging adds; in a source distribution the sources too."""
    wanted = files("fused_sigmoid", ".py", "py.typed")
    if archive.suffix == ".whl":
        found = set(zipfile.ZipFile(archive).namelist())
        made = [".dist-info/", EXTENSION]
        built = [name for name in found if name.startswith(EXTENSION)]
        assert len(built) == 1, f"{archive.name} holds extensions of other builds: {built}"
        assert any(name.endswith("LICENSE") for name in found)
    else:
        with tarfile.open(archive) as file:  # below one leading folder
            found = {each.name.partition("/")[2] for each in file if not each.isdir()}
        made = [".egg-info/", "PKG-INFO", "setup.cfg"]
        wanted |= files("csrc", ".h", ".cpp", ".py")
        wanted |= {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    others = {name for name in found - wanted if not any(part in name for part in made)}
    assert not others, f"{archive.name} holds more than the package: {sorted(others)}"
    assert wanted <= found, f"{archive.name} lacks {sorted(wanted - found)}"


def try_in_empty_environment(archive: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as elsewhere:

        def run(*arguments: str) -> None:
            command = [f"{elsewhere}/environment/bin/python", *arguments]
            subprocess.run(command, cwd=elsewhere, env=environment, check=True)

        venv.create(f"{elsewhere}/environment", with_pip=True)
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, *PRESENT)
        run(*install, "--no-build-isolation", f"fused_sigmoid[check] @ {archive.as_uri()}")
        run("-m", "pip", "check", "--disable-pip-version-check")
        run("-c", TRIAL)
        run("-m", "fused_sigmoid", "info")
        run("-m", "fused_sigmoid", "check")


def main() -> None:
    assert sys.argv[1:], "name at least one wheel or source distribution"
    for archive in (Path(name).resolve() for name in sys.argv[1:]):
        check_contents(archive)
        try_in_empty_environment(archive)
        print(f"{archive.name}: installs into an empty environment and works there", flush=True)


if __name__ == "__main__":
    main()
