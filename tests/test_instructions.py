"""No kernel grows unnoticed: the instructions per element that it executes are those recorded in
bench/results/instructions.json, within a margin. Exact on any machine, where a time would not be.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from tools import instructions

# Two operations more in the value and in the products of the gradients.
LONGER = {
    "functions/functions.h": (
        "out[0] = in[0] * in[1];",
        "out[0] = in[0] * in[1] * in[0] * in[0];",
    ),
    "numerics/exponential.h": ("min(V(C::limit), abs(x));", "min(V(C::limit), abs(x)) * x * x;"),
}


def _counts(csrc: Path) -> dict[str, float]:
    record = instructions.recorded()
    try:
        compiler = instructions.compiler()
        if compiler != record["compiler"]:
            pytest.skip(f"recorded with {record['compiler']}; here is {compiler}")
        counts = instructions.count(csrc)
    except instructions.CannotCountError as reason:
        pytest.skip(str(reason))
    if not any(name.startswith("avx2 ") for name in counts):
        pytest.skip("without AVX2 the C library's fma is computed in software")
    return counts


def test_kernels_execute_the_recorded_instructions() -> None:
    counts = _counts(instructions.CSRC)
    moved = instructions.changes(instructions.recorded()["instructions_per_element"], counts)
    assert not moved, "\n".join([*moved, "if meant: python -m tools.instructions --write"])


@pytest.mark.slow
def test_two_operations_more_are_noticed_in_every_kernel_that_has_it(tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(instructions.CSRC, csrc)
    for name, (written, more) in LONGER.items():
        text = (csrc / name).read_text(encoding="utf-8")
        assert text.count(written) == 1
        (csrc / name).write_text(text.replace(written, more), encoding="utf-8")
    counts = _counts(csrc)
    before = instructions.recorded()["instructions_per_element"]
    moved = {line.split(":")[0] for line in instructions.changes(before, counts)}
    # The backward from the output and those before the loss have neither operation. The halves are
    # left out: on AVX2 the compiler then keeps other values in registers, and may save as many
    # instructions as were added.
    without = (" backward_from_output ", " backward_before_")
    with_it = {name for name in counts if not any(work in name for work in without)}
    assert moved <= with_it
    assert {name for name in with_it if " float32 " in name or " float64 " in name} <= moved


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        *((1.0, now, "") for now in (1.0, 1.002, 0.998)),
        (1.0, 1.004, "value: 1.000 to 1.004 instructions per element"),
        (1.0, 0.996, "value: 1.000 to 0.996 instructions per element"),
        (None, 1.0, "value: not recorded"),
    ],
)
def test_the_margin(before: float | None, now: float, said: str) -> None:
    recorded = {} if before is None else {"value": before}
    assert "".join(instructions.changes(recorded, {"value": now})) == said
