"""How an input lies in memory: a row for each layout. Depends on torch's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """A view, of memory of ``span`` times as many elements as the view is to have."""

    name: str
    span: int
    view: Callable[[Any], Any]
    meaning: str


def _factors(size: int, most: int) -> tuple[int, int]:
    """Two factors of the size, the first at most ``most`` and as near to it as can be."""
    first = next(factor for factor in range(min(most, size), 0, -1) if size % factor == 0)
    return first, size // first


def _matrix(size: int) -> tuple[int, int]:
    return _factors(size, math.isqrt(size))


def _channels_last(memory: Any) -> Any:
    # 64 channels, as in the early layers of many a network for images.
    channels, pixels = _factors(memory.numel(), 64)
    return memory.view(1, *_matrix(pixels), channels).permute(0, 3, 1, 2)


def _chunk(memory: Any) -> Any:
    rows, columns = _matrix(memory.numel() // 2)
    return memory.view(rows, 2 * columns).chunk(2, dim=1)[1]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("contiguous", 1, lambda memory: memory, "one dimension"),
        Layout("channels_last", 1, _channels_last, "an image of 64 channels, channels last"),
        Layout("transposed", 1, lambda m: m.view(_matrix(m.numel())).t(), "a matrix, transposed"),
        Layout("chunk", 2, _chunk, "half of each row of a matrix, as a gate after Linear"),
        Layout("slice", 2, lambda memory: memory[::2], "every second element"),
    )
}


def is_distinct(layout: str, size: int) -> bool:
    """Whether the layout differs from contiguous at this size."""
    import torch

    memory = torch.empty(LAYOUTS[layout].span * size, device="meta")
    return layout == "contiguous" or not LAYOUTS[layout].view(memory).is_contiguous()
