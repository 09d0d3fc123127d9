"""The figures of results: errors against a reference, and counts of results that break a rule.
Depends on torch and reference.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import reference
from .inputs import BITS
from .reference import Reference

RANGES = {
    "value": (0.0, 1.0),
    "derivative": (0.0, 0.25),
    "loss": (0.0, math.inf),
    "loss gradient": (0.0, 1.0),
}


@dataclass
class Tally:
    """The figures of one quantity over inputs of one sign: the largest error and its magnitude, the
    counts by name, the first and last result where results have an order, and (error, magnitude,
    result) of the inputs with the largest errors."""

    error: float = 0.0
    at: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    ends: tuple[float, float] | None = None
    worst: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, following: Tally, direction: int, keep: int) -> None:
        """Adds the figures of the inputs that come next."""
        if following.error > self.error:
            self.error, self.at = following.error, following.at
        self.counts.update(following.counts)
        if self.ends and following.ends:
            self.counts["decreasing"] += direction * (following.ends[0] - self.ends[1]) < 0
        self.ends = following.ends
        if keep:
            self.worst = sorted(self.worst + following.worst, reverse=True)[:keep]


class Total:
    """The figures of one row so far."""

    def __init__(self) -> None:
        self.sides = {1: Tally(), -1: Tally()}
        self.counts: Counter[str] = Counter()

    def count(self, name: str) -> int:
        return self.counts[name] + sum(side.counts[name] for side in self.sides.values())

    def error(self, sign_of_logits: int = 1) -> tuple[float, float | None]:
        """The largest error, and the logit with it."""
        sign = max(self.sides, key=lambda sign: self.sides[sign].error)
        side = self.sides[sign]
        return side.error, None if side.at is None else sign_of_logits * sign * side.at

    def refine(self, function: str) -> None:
        """Takes mpmath's errors of the worst inputs in place of long double's."""
        for sign, side in self.sides.items():
            side.error, side.at = 0.0, None
            for _, magnitude, result in side.worst:
                error = reference.exact_error(function, sign * magnitude, result)
                if error > side.error:
                    side.error, side.at = error, magnitude


@dataclass(frozen=True)
class Judge:
    """How to take the figures of one chunk. ``direction`` is the one in which results have to go, 0
    for none; the magnitude is looked up of errors above ``record`` alone, since that takes as long
    as five other figures; ``keep`` is for how many errors."""

    magnitude: Tensor
    exact: Reference
    direction: int
    record: float
    keep: int

    def __call__(self, result: Tensor) -> Tally:
        exact, counts = self.exact, Counter[str]()
        error = exact.error(result)
        largest = float(error.amax())
        if math.isnan(largest):
            counts["misplaced_nan"] = _count(result.isnan() ^ exact.rounded.isnan())
            error.nan_to_num_(nan=0.0, posinf=math.inf)
            largest = float(error.amax())
        found = Tally(largest, counts=counts)
        if largest > self.record:
            found.at = float(self.magnitude[error.argmax()])
        counts["misrounded"] = differing(result, exact.rounded)
        least, most = map(float, torch.aminmax(result))
        # NaN compares as false, and the elements have to be looked at.
        if not least > 0:
            counts["zeroed"] = _count((result == 0) & (exact.rounded.abs() > 0))
        if exact.name in RANGES:
            lowest, highest = RANGES[exact.name]
            if not (lowest <= least and most <= highest):
                counts["outside_range"] = _count((result < lowest) | (result > highest))
        if self.direction:
            before, after = (result[:-1], result[1:])[:: self.direction]
            counts["decreasing"] = _count(after < before)
            found.ends = float(result[0]), float(result[-1])
        if self.keep:
            found.worst = self._worst(error, result)
        return found

    def _worst(self, error: Tensor, result: Tensor) -> list[tuple[float, float, float]]:
        errors, places = error.topk(min(self.keep, len(error)))
        of = self.magnitude[places].tolist(), result[places].tolist()
        return list(zip(errors.tolist(), *of, strict=True))


class Distinct:
    """Results of one chunk that have one reference. Equal bits have equal figures, which are taken
    once: the same Tally then stands for all of them."""

    def __init__(self, judge: Callable[[Tensor], Tally]) -> None:
        self._judge = judge
        self._known: list[tuple[Tensor, Tally]] = []

    def tally(self, result: Tensor) -> Tally:
        bits = result.view(BITS[result.dtype])
        for known, tally in self._known:
            if torch.equal(known, bits):
                return tally
        self._known.append((bits, self._judge(result)))
        return self._known[-1][1]


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements differ in any bit; all NaN are the same."""
    bits = BITS[a.dtype]
    difference = a.view(bits) ^ b.view(bits)
    count = _count(difference)
    if count:
        count -= _count((difference != 0) & a.isnan() & b.isnan())
    return count


def _count(condition: Tensor) -> int:
    return int(condition.count_nonzero())
