"""On what a result was measured: processor, accelerator, versions, commit, settings.

Depends on torch and on the package for what its own check reports too; nothing here names the host
or its user.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fused_sigmoid._machine import cpu_model, versions

ROOT = Path(__file__).resolve().parent.parent
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = Path("/proc/meminfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

PACKAGES = ("torch", "triton", "numpy", "scipy", "onnxruntime", "onnx")
PACKAGES += ("flag_gems", "numexpr", "jax")
# Settings that change what is measured: of ours, of OpenMP's threads, of the allocator.
SETTINGS = ("FUSED_SIGMOID_", "OMP_", "GOMP_", "KMP_", "MKL_NUM", "THP_", "MALLOC_", "LD_PRELOAD")


def describe(device: str) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a measurement, ready for JSON."""
    facts: dict[str, Any] = {
        "name": device_name(device),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_last_level_cache_bytes": last_level_cache("cpu"),
        "logical_cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "huge_pages": huge_pages(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "settings": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)
        },
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["cuda"] = {
            "runtime": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "last_level_cache_bytes": last_level_cache("cuda"),
            "memory_bytes": properties.total_memory,
        }
    return facts


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else cpu_model()


def folder_name(device: str) -> str:
    """For today's results on a device, within bench/results."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"{device}-{name}-{today()}"


def today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def last_level_cache(device: str) -> int:
    """Bytes of the cache nearest to memory, or 0 where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [0]
    for file in CACHES.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KM")) * {"K": 1024, "M": 1024**2}.get(text[-1], 1))
    return max(sizes)


def huge_pages() -> str | None:
    """The setting of transparent huge pages: always, madvise or never."""
    return _found(HUGE_PAGES, r"\[(\w+)\]")


def free_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not say."""
    kilobytes = _found(MEMORY, r"(?m)^MemAvailable:\s+(\d+) kB")
    return int(kilobytes) * 1024 if kilobytes else None


def _found(file: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, file.read_text(encoding="ascii"))
    except OSError:
        return None
    return found[1] if found else None


def commit() -> dict[str, Any]:
    """The commit checked out, and whether the tree differs from it; None outside a repository.
    SOURCE_COMMIT, where it is set, names the commit that the files are a copy of, and is believed.

    Results and pages are no part of what was measured: one that was just written is no change.
    """
    if "SOURCE_COMMIT" in os.environ:
        return {"commit": os.environ["SOURCE_COMMIT"], "dirty": None}
    unmeasured = (":!bench/results", ":!docs", ":!README.md")
    changes = _git("status", "--porcelain", "--", ".", *unmeasured)
    dirty = None if changes is None else bool(changes)
    return {"commit": _git("rev-parse", "HEAD") or None, "dirty": dirty}


def origin() -> dict[str, Any]:
    """Date, commit, processor and torch: what a record of figures says of where it comes from."""
    return {"date": today(), **commit(), "cpu": cpu_model(), "torch": torch.__version__}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
