"""No kernel grows unnoticed: the instructions per element that it executes are those recorded in
bench/instructions.json, within a margin. Exact on any machine, where a time would not be.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("tabulate")

from bench import instructions


def _counts(sources: Path) -> dict[str, float]:
    record = instructions.recorded()
    try:
        compiler = instructions.compiler()
        if compiler != record["compiler"]:
            pytest.skip(f"recorded with {record['compiler']}; here is {compiler}")
        counts = instructions.count(sources)
        if not any(name.startswith("avx2 ") for name in counts):
            pytest.skip("without AVX2 the C library's fma is computed in software")
        return counts
    except instructions.CannotCountError as reason:
        pytest.skip(str(reason))


def test_kernels_execute_the_recorded_instructions() -> None:
    counts = _counts(instructions.ROOT / "csrc")
    assert counts
    moved = instructions.changes(instructions.recorded()["instructions_per_element"], counts)
    assert not moved, "\n".join([*moved, "if meant: python -m bench.instructions --write"])


def test_two_operations_more_are_noticed_in_every_kernel_that_has_it(tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(instructions.ROOT / "csrc", sources)
    for name, written, more in (
        (
            "functions/functions.h",
            "out[0] = in[0] * in[1];",
            "out[0] = in[0] * in[1] * in[0] * in[0];",
        ),
        (
            "numerics/exponential.h",
            "min(V(C::limit), abs(x));",
            "min(V(C::limit), abs(x)) * x * x;",
        ),
    ):
        header = sources / name
        text = header.read_text(encoding="utf-8")
        assert text.count(written) == 1
        header.write_text(text.replace(written, more), encoding="utf-8")
    record = instructions.recorded()["instructions_per_element"]
    counts = _counts(sources)
    moved = {line.split(":")[0] for line in instructions.changes(record, counts)}
    # The backward from the output and those before the loss have neither operation. The halves are
    # left out: on AVX2 the compiler then keeps other values in registers, and may save as many
    # instructions as were added.
    without = (" backward_from_output ", " backward_before_")
    with_it = {name for name in counts if not any(work in name for work in without)}
    assert moved <= with_it
    assert {name for name in with_it if " float32 " in name or " float64 " in name} <= moved


@pytest.mark.parametrize(
    ("now", "moved"), [(1.0, False), (1.002, False), (0.998, False), (1.004, True), (0.996, True)]
)
def test_the_margin(now: float, moved: bool) -> None:
    assert bool(instructions.changes({"avx2 value": 1.0}, {"avx2 value": now})) == moved


def test_a_kernel_without_a_record_is_named() -> None:
    assert instructions.changes({}, {"avx2 value": 1.0}) == ["avx2 value: not recorded"]
