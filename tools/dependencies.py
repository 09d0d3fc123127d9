"""Writes the development lock: every distribution in this environment, its exact version and its
licence. Called by `make audit`.

    python -m tools.dependencies requirements-lock.txt

Depends on the standard library alone.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

HEADER = """\
# The development environment to the last version, with licences, written by `make audit` under
# Python {}.{}: pip install -r requirements-lock.txt
"""
# The package itself, and what makes the environment.
LEFT_OUT = {"fused-sigmoid", "pip"}
UNKNOWN = "not stated"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(found: metadata.PackageMetadata) -> str:
    """The SPDX expression, or else what the classifiers or a short licence field say."""
    kinds = [
        entry.rpartition(" :: ")[2]
        for entry in found.get_all("Classifier", [])
        if entry.startswith("License :: ") and not entry.endswith("OSI Approved")
    ]
    field = "".join(found.get_all("License", [])).strip().partition("\n")[0][:60]
    expression = "".join(found.get_all("License-Expression", []))
    return expression or ", ".join(kinds) or field or UNKNOWN


def lock() -> str:
    lines = {}
    for distribution in metadata.distributions():
        name = canonical(distribution.metadata["Name"])
        # A local version, such as torch's +cpu, is of one index alone.
        version = distribution.version.partition("+")[0]
        lines[name] = f"{name}=={version}  # {licence(distribution.metadata)}\n"
    kept = sorted(lines.keys() - LEFT_OUT)
    return HEADER.format(*sys.version_info) + "".join(lines[name] for name in kept)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(lock(), encoding="utf-8")
