"""``python -m fused_sigmoid check``: the numerics on this machine, measured against references that
are independent of the kernels. Needs the extra ``check``; nothing else of the package imports it.

``inputs`` chooses the numbers, ``functions`` calls what is checked, ``reference`` knows what is
true, ``figures`` counts and compares, ``sweep`` brings them together for one dtype on one device,
``report`` shows it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from .._extension import extension
from .._machine import cpu_model, versions
from . import inputs, reference
from .functions import FIRST, HALVES, LOSS, SECOND
from .report import Report
from .sweep import Sweep

# Beyond it σ'' comes near the smallest normal number.
SECOND_DERIVATIVE_REACH = 700.0
# Inputs of float64, where mpmath has to compute all of them.
MPMATH_INPUTS = 10_000


@dataclass(frozen=True)
class Extent:
    """How much is checked: every ``float32_step``-th bit pattern of float32, and about so many
    inputs of float64. The 16-bit types are always checked as a whole."""

    float32_step: int = 1021
    float64_inputs: int = 200_000


SHORT = Extent()
FULL = Extent(float32_step=1, float64_inputs=10_100_000)


def run(extent: Extent = SHORT, device: str | None = None) -> Report:
    """Measures every dtype on every device, or those of one type (``"cpu"``, ``"cuda"``), and on
    the CPU with every instruction set it has.

    For σ(x) = 1 / (1 + exp(-x)) and σ'(x) = σ(x) σ(-x), from each function that gives them, and for
    the binary cross entropy of logits and its gradient with targets of 0 and 1:

    - float16, bfloat16: all bit patterns; every result has to be the nearest number.
    - float32: bit patterns by ``extent``, and all within 64 of a boundary of the algorithm or the
      format; at most 2.2 ulp for σ, 2.9 ulp for σ', 2.5 ulp for the loss and its gradient.
    - float64: seeded random inputs and such near boundaries; at most 2.5, 3.5 and 3.5 ulp, and
      1e-12 of σ'' from a double backward pass, for 0 < abs(x) ≤ 700.

    An ulp is the distance of neighbouring numbers at the exact result, among subnormal numbers
    the smallest of them. The same is measured of torch's own functions.

    The instruction set in use before is in use again afterwards, in any case.

    >>> from fused_sigmoid import check
    >>> report = check.run(check.Extent(float32_step=50_000_017, float64_inputs=100))
    >>> sorted({row.dtype for row in report.rows})
    ['bfloat16', 'float16', 'float32', 'float64']
    """
    report = Report(
        full=extent.float32_step == 1,
        extent=asdict(extent) | {"seed": inputs.SEED},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"fused_sigmoid": __version__, "python": platform.python_version()}
        | versions(("torch", "triton", "numpy", "mpmath")),
        machine=_machine(),
    )
    sweeps = list(_sweeps(extent, device))
    total = sum(2 * sweep.magnitudes.count for sweep in sweeps)
    before = extension.instruction_set()
    try:
        with tqdm(total=total, unit=" inputs", unit_scale=True, disable=None, leave=False) as bar:
            for sweep in sweeps:
                bar.set_description(sweep.title)
                report.rows += sweep.run(bar.update)
                for part, seconds in sweep.seconds.items():
                    report.seconds[f"{sweep.title}: {part}"] = seconds
    finally:
        extension.select_instruction_set(before)
    return report


def _sweeps(extent: Extent, device_type: str | None) -> Iterator[Sweep]:
    count = extent.float64_inputs
    if reference.long_double_is_narrow():
        count = min(count, MPMATH_INPUTS)
    doubles = inputs.some_float64(count // 2)
    numbers = doubles.part(0, doubles.count)
    near = numbers[(numbers > 0) & (numbers <= SECOND_DERIVATIVE_REACH)]
    if extent.float32_step == 1:
        floats = inputs.every_magnitude(torch.float32)
    else:
        floats = inputs.some_float32(extent.float32_step)
    for device in _devices():
        if device_type not in (None, device.type):
            continue
        for dtype in HALVES:
            yield Sweep(device, dtype, inputs.every_magnitude(dtype), FIRST)
            yield Sweep(device, dtype, inputs.every_magnitude(dtype), LOSS)
        yield Sweep(device, torch.float32, floats, FIRST)
        yield Sweep(device, torch.float32, floats, LOSS)
        yield Sweep(device, torch.float64, doubles, FIRST)
        yield Sweep(device, torch.float64, doubles, LOSS)
        yield Sweep(device, torch.float64, inputs.listed(near), SECOND)


def _devices() -> list[torch.device]:
    cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in cuda)]


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "instruction_sets": list(extension.instruction_sets()),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(device) for device in _devices()[1:]],
        "system": f"{platform.system()} {platform.machine()}",
    }
