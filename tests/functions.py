"""The functions that the tests of every function are about, a row each: what each is by an
independent source, and how far off results may be."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests import oracle
from tests.oracle import LongDouble


@dataclass(frozen=True)
class Row:
    """A function of the package, its derivatives in long double, and torch's own function."""

    name: str
    torch: Callable[[Tensor], Tensor]
    value: Callable[[LongDouble], LongDouble]
    derivative: Callable[[LongDouble], LongDouble]
    second_derivative: Callable[[LongDouble], LongDouble]
    # Where the derivative vanishes, or nearly so: at what inputs of each dtype tests end.
    reach: dict[torch.dtype, float]
    # Units in the last place by which value and derivative may be off. Halves are the nearest.
    ulps: dict[torch.dtype, tuple[float, float]]
    # What value and derivative are exactly, for some inputs.
    exact: dict[float, tuple[float, float]]

    @property
    def module(self) -> Any:
        return importlib.import_module(f"fused_sigmoid.functions.{self.name}")

    def __getitem__(self, suffix: str) -> Any:
        """The public function with this behind its name, such as "_with_derivative"."""
        return getattr(self.module, self.name + suffix)

    def operator(self, suffix: str = "") -> Any:
        return getattr(torch.ops.fused_sigmoid, self.name + suffix)

    def points(self, dtype: torch.dtype, count: int = 4099) -> Tensor:
        """Numbers where the function bends, out to both tails, and around 0."""
        generator = torch.Generator().manual_seed(count)
        place = torch.linspace(-1, 1, count, dtype=torch.float64) * self.reach[dtype]
        near = torch.randn(count, generator=generator, dtype=torch.float64)
        tiny = near * torch.finfo(dtype).smallest_normal
        kind = torch.arange(count) % 4
        return torch.where(kind < 1, place, torch.where(kind < 3, 3 * near, tiny)).to(dtype)


NEAREST = (0.5, 0.5)

FUNCTIONS = (
    Row(
        "sigmoid",
        torch.sigmoid,
        oracle.value,
        oracle.derivative,
        oracle.second_derivative,
        {torch.float64: 750, torch.float32: 106, torch.bfloat16: 94, torch.float16: 18},
        {
            torch.float64: (2.5, 3.5),
            torch.float32: (2.2, 2.9),
            torch.float16: NEAREST,
            torch.bfloat16: NEAREST,
        },
        {0.0: (0.5, 0.25), float("inf"): (1, 0), -float("inf"): (0, 0)},
    ),
)
