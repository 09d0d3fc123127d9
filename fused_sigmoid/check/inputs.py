"""Which numbers are checked. They come as magnitudes in ascending order, infinity and NaN last, and
are taken with both signs. Depends on torch and NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

# On either side of a boundary.
NEIGHBOURS = 64
SEED = 0


@dataclass(frozen=True)
class Magnitudes:
    """``count`` numbers, of which ``part(start, stop)`` gives some."""

    count: int
    part: Callable[[int, int], Tensor]


def every_magnitude(dtype: torch.dtype) -> Magnitudes:
    """Each bit pattern of a type of 16 or 32 bits."""
    bits = BITS[dtype]

    def part(start: int, stop: int) -> Tensor:
        # Relative to the start: the last stop is one more than 32 bits hold.
        return torch.arange(stop - start, dtype=torch.int32).add_(start).to(bits).view(dtype)

    return Magnitudes(torch.iinfo(bits).max + 1, part)


def listed(magnitudes: Tensor) -> Magnitudes:
    return Magnitudes(len(magnitudes), lambda start, stop: magnitudes[start:stop])


def some_float32(step: int) -> Magnitudes:
    """Every ``step``-th bit pattern, and all near a boundary."""
    near = _float32_boundaries().view(np.int32).astype(np.int64)
    near = (near[:, None] + np.arange(-NEIGHBOURS, NEIGHBOURS + 1)).ravel()
    patterns = np.concatenate([np.arange(0, 2**31, step), near]).clip(0, 2**31 - 1)
    return listed(torch.from_numpy(np.unique(patterns).astype(np.int32)).view(torch.float32))


def some_float64(count: int) -> Magnitudes:
    """About ``count`` numbers: where σ bends, both tails, all magnitudes, results that are
    subnormal, neighbours of powers of two and of where the range reduction changes its multiple of
    ln(2)/8."""
    generator = np.random.default_rng(SEED)
    # There are but 270,000 neighbours of powers of two.
    few = min(count // 7, 70_000)
    many = (count - 2 * few) // 5
    halfway = (generator.integers(0, 8 * 1076, few) + 0.5) * (math.log(2) / 8)
    power = np.exp2(generator.integers(-1074, 1024, few).astype(np.float64))
    near = np.concatenate([halfway, power]).view(np.int64)
    near += generator.integers(-NEIGHBOURS, NEIGHBOURS + 1, len(near))
    numbers = np.concatenate(
        [
            generator.uniform(0, 40, many),
            generator.normal(0, 4, many),
            np.exp2(generator.uniform(-1074, 1024, many)),
            generator.uniform(0, 745.2, many),
            generator.uniform(708.39, 745.2, many),
            near.clip(0).view(np.float64),
            [0.0, 5e-324, math.inf, math.nan],
        ]
    )
    return listed(torch.from_numpy(np.unique(np.abs(numbers))))


def _float32_boundaries() -> NDArray[np.float32]:
    """Where something changes: at (k + 1/2) ln(2)/8 the range reduction its multiple of that; at
    k ln 2 results their exponent, and from 25, 126 and 150 ln 2 they are 1, subnormal and 0; from
    104 all results are the same, as they are at 110; powers of two; infinity, quiet NaN and the
    last NaN."""
    parts_of_ln2 = np.arange(16 * 161) * (math.log(2) / 16)
    powers = np.exp2(np.arange(-149, 128).astype(np.float64))
    others = [0.0, 104.0, 110.0, math.inf]
    numbers = np.concatenate([others, parts_of_ln2, powers]).astype(np.float32)
    nan = np.array([0x7FC0_0000, 0x7FFF_FFFF], np.int32).view(np.float32)
    return np.concatenate([numbers, nan])
