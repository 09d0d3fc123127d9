"""What the kernels are to reach on a CPU and on a GPU: a row for each goal; the cells to measure
for them, and which rows of a result reached theirs.

Depends on results, and on pandas where rows are judged; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING

from bench import results
from bench.results import COPY, Cell, Row, Task

if TYPE_CHECKING:
    import pandas as pd

HALVES = ("bfloat16", "float16")
COMMON = ("float32", "bfloat16")
LEARNING = ("float32", *HALVES)
EVERY = (*LEARNING, "float64")
KI, MI = 2**10, 2**20


@dataclass(frozen=True)
class Goal:
    """The peer's time is to be at least ``ratio`` of ours on one thread, and ``several`` of ours on
    several; None where there is no goal."""

    work: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    ratio: float | None
    several: float | None
    peer: str = "torch"
    layout: str = "contiguous"
    device: str = "cpu"
    clock: str = "wall"
    cache: str = "warm"

    def for_threads(self, threads: int) -> float | None:
        return self.ratio if threads == 1 else self.several


# One element may take 1.10 of nn.Sigmoid's time; everything else is to be faster by something.
LATENCY = 1 / 1.10
# In cache those of the table of eight are for AVX-512, and were set on a Zen 5: of a processor that
# divides more slowly beside its other operations less is to be had (docs/performance.md). Those of
# the loss were set on a Zen 5 with AVX-512, too.
IN_CACHE = (64 * KI, MI)
FROM_MEMORY = (16 * MI, 64 * MI)
# Layouts, with what a forward pass and a training step are to reach in them; a training step in a
# dense layout is to reach what it is to reach when contiguous. All dtypes at the size of a layer's
# activations; float32 also where threads matter.
IN_LAYOUTS = {"channels_last": (1.3, 1.2), "transposed": (1.0, 1.0)}
IN_LAYOUTS |= {"chunk": (1.0, 1.0), "slice": (1.0, 1.0)}
CPU_GOALS = (
    Goal("forward", ("float32",), IN_CACHE, 2.2, 1.7),
    Goal("forward", ("bfloat16",), IN_CACHE, 3.7, 2.6),
    Goal("forward", ("float16",), IN_CACHE, 2.4, 2.0),
    Goal("forward", ("float64",), IN_CACHE, 1.9, 1.7),
    Goal("forward", ("float32",), FROM_MEMORY, 1.1, 1.1),
    Goal("forward", ("float32",), FROM_MEMORY, 0.95, 0.95, COPY),
    Goal("forward-fresh", ("float32",), (16 * MI,), 4.0, 4.0),
    Goal("forward-fresh", ("float32",), (16 * MI,), 1.2, 1.2, "torch+thp"),
    Goal("pair", ("float32",), IN_CACHE, 3.3, 2.0),
    Goal("pair", ("bfloat16",), IN_CACHE, 4.6, 2.0),
    Goal("pair", ("float16",), IN_CACHE, 3.1, 2.0),
    Goal("pair", ("float64",), IN_CACHE, 2.6, 1.4),
    Goal("pair", ("float32",), (16 * MI,), 6.0, 6.0),
    Goal("training", ("float32",), (64 * KI,), 1.35, 1.2),
    Goal("training", HALVES, (64 * KI,), 1.5, 1.25),
    Goal("training", ("float64",), (64 * KI,), 1.3, 1.15),
    Goal("bce", EVERY, IN_CACHE, 0.98, 0.98),
    Goal("forward-fresh", ("float32",), (1,), LATENCY, LATENCY),
    Goal("training", ("float32",), (1,), LATENCY, LATENCY),
    Goal("bce", ("float32",), (1,), LATENCY, LATENCY),
    Goal("forward", ("float32",), IN_CACHE, 2.0, 1.2, "torch+avx2"),
    Goal("forward", ("bfloat16",), IN_CACHE, 3.5, 1.2, "torch+avx2"),
    Goal("forward", ("float16",), IN_CACHE, 1.2, 1.2, "torch+avx2"),
    Goal("pair", LEARNING, IN_CACHE, 1.2, 1.2, "torch+avx2"),
    Goal("loss", COMMON, (1,), 1.3, 1.3),
    Goal("loss", COMMON, (64 * KI,), 3.5, None),
    Goal("loss", COMMON, (MI,), 3.0, None),
    Goal("loss", ("float32",), (16 * MI,), 4.0, 4.0),
    Goal("loss", COMMON, IN_CACHE, 3.0, 3.0, "torch.compile"),
    Goal("loss-forward", COMMON, (64 * KI,), 4.5, 4.5),
    Goal("loss-forward", COMMON, (MI, 16 * MI), 10.0, 10.0),
    *(
        Goal(work, dtypes, (size,), ratio, ratio, layout=layout)
        for layout, (forward, training) in IN_LAYOUTS.items()
        for work, dtypes, size, ratio in (
            ("forward", EVERY, 64 * KI, forward),
            ("forward", ("float32",), MI, forward),
            ("training", LEARNING, 64 * KI, training),
            ("training", ("float64",), 64 * KI, 1.0),
            ("training", ("float32",), MI, training),
        )
    ),
)


def _from_python(work: str, dtypes: tuple[str, ...], ratio: float) -> Goal:
    """Wall time of a call that a GPU has done before the host has the next ready."""
    return Goal(work, dtypes, (KI,), ratio, ratio, device="cuda")


def _on_device(
    work: str, dtype: str, size: int, ratio: float, peer: str = "torch", layout: str = "contiguous"
) -> Goal:
    """Device time, with more input sets than the last cache holds."""
    return Goal(work, (dtype,), (size,), ratio, ratio, peer, layout, "cuda", "device", "rotating")


# On an H100. Of what moves 64 MiB and more in each tensor a copy is the limit; torch's own sigmoid
# is near it too, so that a training step can only be as fast, and what torch.compile makes moves
# the same bytes as ours.
LARGE = {"float32": 16 * MI, "bfloat16": 32 * MI, "float16": 32 * MI, "float64": 8 * MI}
# Latency first: what is cheap is not to fall to a time limit.
GPU_GOALS = (
    *(_from_python(work, COMMON, 1 / 1.15) for work in ("forward-fresh", "training", "bce")),
    _from_python("loss", COMMON, 1.0),
    *(
        _on_device(work, dtype, size, 0.95, COPY)
        for work, dtype in product(("forward", "pair", "backward"), LEARNING)
        for size in (LARGE[dtype], 256 * MI)
    ),
    *(_on_device("loss", d, size, 0.90, COPY) for d in COMMON for size in (LARGE[d], 256 * MI)),
    *(_on_device("pair", dtype, LARGE[dtype], 2.2) for dtype in LEARNING),
    *(
        _on_device(work, dtype, LARGE[dtype], 0.98, "torch.compile")
        for work, dtype in product(("pair", "training"), LEARNING)
    ),
    *(
        _on_device("training", dtype, size, 0.98)
        for size, dtype in product((KI, 64 * KI, MI, 4 * MI, 16 * MI, 256 * MI), EVERY)
    ),
    *(_on_device("bce", dtype, size, 0.98) for dtype, size in product(EVERY, (MI, 16 * MI))),
    _on_device("forward-fresh", "float64", LARGE["float64"], 0.98),
    *(
        _on_device(work, dtype, 16 * MI, 0.98, layout=layout)
        for work, layout in product(("forward", "training"), ("chunk", "slice", "transposed"))
        for dtype in COMMON
    ),
)


def plan(threads: Sequence[int], device: str = "cpu") -> list[Task]:
    """Every row that a goal is about, and the copy beside it; nothing else."""
    peers: dict[Cell, dict[str, None]] = {}
    for count, goal in product(threads, GPU_GOALS if device == "cuda" else CPU_GOALS):
        if goal.for_threads(count) is not None:
            for dtype, size in product(goal.dtypes, goal.sizes):
                place = (goal.clock, goal.cache, goal.layout)
                cell = Cell(device, dtype, goal.work, size, count, *place)
                peers.setdefault(cell, {COPY: None})[goal.peer] = None
    return [Task(cell, tuple(names)) for cell, names in peers.items()]


def judged(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows that a goal is about, as results.frame has them, in the order of the goals; with two
    columns more: the goal, and whether the median met it."""
    import pandas as pd

    goals = pd.DataFrame(map(asdict, (*CPU_GOALS, *GPU_GOALS))).drop(columns="cache")
    goals = goals.explode("dtypes").explode("sizes").astype({"sizes": int})
    goals = goals.rename(columns={"dtypes": "dtype", "sizes": "size"})
    keys = ["work", "layout", "dtype", "size", "device", "clock", "peer"]
    found = results.frame(rows) if rows else pd.DataFrame(columns=[*keys, "threads", "saved"])
    about = goals.merge(found[found["saved"] == "auto"], on=keys)
    goal = about["ratio"].where(about["threads"] == 1, about["several"])
    about = about.drop(columns=["ratio", "several"]).assign(goal=goal)[goal.notna()]
    met = about["ratio median"] >= about["goal"] if rows else []
    return about.assign(met=met)
