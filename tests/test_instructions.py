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
        return instructions.count(sources)
    except instructions.CannotCountError as reason:
        pytest.skip(str(reason))


def test_kernels_execute_the_recorded_instructions() -> None:
    counts = _counts(instructions.ROOT / "csrc")
    assert counts
    moved = instructions.changes(instructions.recorded()["instructions_per_element"], counts)
    assert not moved, "\n".join([*moved, "if meant: python -m bench.instructions --write"])


def test_one_operation_more_is_noticed(tmp_path: Path) -> None:
    """A multiplication by a number that the compiler cannot know, once a vector."""
    sources = tmp_path / "csrc"
    shutil.copytree(instructions.ROOT / "csrc", sources)
    header = sources / "numerics/sigmoid.h"
    text = header.read_text(encoding="utf-8")
    written = "out[0] = in[0] * in[1];"
    assert text.count(written) == 1
    text = text.replace(written, "out[0] = in[0] * in[1] * in[0];")
    header.write_text(text, encoding="utf-8")
    moved = instructions.changes(
        instructions.recorded()["instructions_per_element"], _counts(sources)
    )
    names = {line.split(":")[0] for line in moved}
    assert names
    assert {name.split()[1] for name in names} == {"backward_from_derivative"}
    assert {name.split()[2] for name in names} == set(instructions.DTYPES)


@pytest.mark.parametrize(
    ("now", "moved"), [(1.0, False), (1.019, False), (0.981, False), (1.021, True), (0.979, True)]
)
def test_the_margin(now: float, moved: bool) -> None:
    assert bool(instructions.changes({"avx2 value": 1.0}, {"avx2 value": now})) == moved


def test_a_kernel_without_a_record_is_named() -> None:
    assert instructions.changes({}, {"avx2 value": 1.0}) == ["avx2 value: not recorded"]
