"""A second copy of the Triton kernels in this process, read under other settings than the first: by
Triton's interpreter, or as a torch for AMD reads them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import fused_sigmoid


def load(name: str) -> ModuleType:
    """The kernels' module ``elementwise`` of a copy of the package that holds it."""
    folder = Path(fused_sigmoid.__file__).parent / "triton"
    spec = importlib.util.spec_from_file_location(
        f"fused_sigmoid.{name}", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return importlib.import_module(f"{spec.name}.elementwise")
