"""What the bench says of a GPU: goals met or missed, the static table, and a report script that
survives any of its parts. Times here are made up; nothing is measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as command_line
from bench import (
    goals,
    gpu_kernels,
    gpu_tables,
    machine,
    memory,
    peers,
    results,
    runs,
    works,
)
from bench.report import size_text
from bench.results import COPY, Cell, Result, Row, Spread

SCRIPT = machine.ROOT / "bench" / "gpu_report.sh"
LARGE = Cell("cuda", "float32", "pair", 16 << 20, 1, "device", "rotating")


def row(cell: Cell, peer: str, ratio: float) -> Row:
    def spread(middle: float) -> Spread:
        return Spread(middle, middle, middle)

    return Row(
        cell=cell,
        peer=peer,
        ours=spread(1.0),
        theirs=spread(ratio),
        ratio=spread(ratio),
        rounds=1,
        timer="graph",
        process="shared",
        input_sets=1,
        bytes_moved=1,
        copy_seconds=None,
        copy_fraction=None,
    )


@pytest.mark.parametrize(
    ("cell", "peer", "goal"),
    [
        (LARGE, COPY, 0.95),
        (LARGE, "torch", 2.2),
        (LARGE, "torch.compile", 0.98),
        (replace(LARGE, work="backward", dtype="bfloat16", size=256 << 20), COPY, 0.95),
        (replace(LARGE, work="training", dtype="float64", size=1024), "torch", 0.98),
        (replace(LARGE, work="training", size=1024, clock="wall", cache="warm"), "torch", 0.8696),
        (replace(LARGE, work="loss"), COPY, 0.90),
        (replace(LARGE, work="loss", size=1024, clock="wall", cache="warm"), "torch", 1.0),
    ],
)
def test_goals_judge_a_row_by_the_issue_s_table(cell: Cell, peer: str, goal: float) -> None:
    for ratio, verdict in ((goal + 0.001, "met"), (goal - 0.001, "missed")):
        text = goals.terminal([row(cell, peer, ratio)])
        assert f"{int(verdict == 'met')} of 1 met" in text
        assert verdict in text
        assert cell.clock in text


def test_goals_of_one_device_do_not_judge_the_other() -> None:
    on_cpu = Cell("cpu", "float32", "training", 64 << 10, 1, "wall", "warm")
    assert "1 of 1 met" in goals.terminal([row(on_cpu, "torch", 1.4)])
    assert {task.cell.device for task in goals.plan([1], "cuda")} == {"cuda"}
    assert {task.cell.device for task in goals.plan([1])} == {"cpu"}


def test_every_goal_is_among_the_rows_to_measure() -> None:
    tasks = goals.plan([1], "cuda")
    rows = [row(task.cell, peer, 100.0) for task in tasks for peer in task.peers]
    of_goals = sum(len(goal.dtypes) * len(goal.sizes) for goal in goals.GPU_GOALS)
    assert f"{of_goals} of {of_goals} met" in goals.terminal(rows)
    # What is large is 64 MiB at the least.
    for goal in goals.GPU_GOALS:
        if goal.peer == COPY:
            for dtype in goal.dtypes:
                assert min(goal.sizes) * works.DTYPES[dtype].itemsize >= 64 << 20


def test_a_large_row_on_a_gpu_is_not_left_out_for_the_time_it_takes_a_cpu() -> None:
    result = Result(machine={}, source={}, date="", command="")
    cell = replace(LARGE, size=256 << 20)
    assert runs._cost(cell, peers.PEERS["torch"], result) < 0.1
    assert runs._cost(replace(cell, device="cpu"), peers.PEERS["torch"], result) > 1


@pytest.mark.parametrize("name", ["torch", "torch.compile", "fused_sigmoid"])
def test_backward_alone_gives_the_gradient(name: str) -> None:
    cell = Cell("cpu", "float32", "backward", 1000, 1, "wall", "warm")
    buffers = works.make_buffers("backward", 1000, "float32", "cpu")
    peer = peers.FusedSigmoid() if name == "fused_sigmoid" else peers.PEERS[name]
    assert works.wrongness("backward", buffers, peer.prepare(cell)(buffers)()) is None
    assert "off by" in str(works.wrongness("backward", buffers, buffers.grad_output))


def test_copied_data_is_as_random_as_computed_data() -> None:
    source = works.make_buffers("forward", 1000, "float32", "cpu").copy_source
    assert len(source.unique()) > 900


def memory_of(saved: str, ours: float, torchs: float) -> dict[str, object]:
    size = memory.SIZE * 4
    return {
        "dtype": "float32",
        "saved": saved,
        "tensor_bytes": size,
        "ours": int(ours * size),
        "torch": int(torchs * size),
    }


@pytest.mark.parametrize(
    ("saved", "more", "verdict"),
    [
        *(("output", 0, "met"), ("output", 0.5, "missed"), ("input", 1, "met")),
        *(("derivative", 1, "met"), ("derivative", 2, "missed"), ("input", -1, "met")),
    ],
)
def test_memory_is_judged_in_tensors(saved: str, more: float, verdict: str) -> None:
    assert verdict in memory.table([memory_of(saved, 3 + more, 3)], "simple").splitlines()[-1]


@pytest.mark.gpu
def test_memory_of_a_training_step() -> None:
    found = memory.measure()
    assert "missed" not in memory.table(found, "simple")
    assert all(entry["torch"] >= entry["tensor_bytes"] for entry in found)


# In parts, for workers of the test run: each compiles dozens of kernels.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "columns"),
    [(gpu_kernels.SIZES, ()), *(((), (length,)) for length in gpu_kernels.COLUMNS)],
    ids=str,
)
@pytest.mark.parametrize("dtype", gpu_kernels.DTYPES)
def test_every_kernel_gives_the_bits_of_the_cpu(
    dtype: str, sizes: Sequence[int], columns: Sequence[int]
) -> None:
    assert list(gpu_kernels.differences(gpu_kernels.DTYPES[dtype], sizes, columns)) == []


def test_comparing_bits_finds_one_that_differs() -> None:
    x = torch.randn(10)
    other = x.clone()
    assert gpu_kernels.same((x, x), (x, other))
    other.view(torch.int32)[3] ^= 1
    assert not gpu_kernels.same((x, x), (x, other))
    assert gpu_kernels.same(x.double(), x.double() * (1 + 2**-52))
    assert not gpu_kernels.same(x.double(), x.double() * (1 + 2**-45))


def test_static_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    static = pytest.importorskip("bench.static")
    pytest.importorskip("triton")
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
        context.setattr(static, "ARCHITECTURES", {90: static.ARCHITECTURES[90]})
        context.setattr(static, "DTYPES", {"float32": "fp32"})
        assert command_line.main(["--static", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    stored = json.loads((tmp_path / "static.json").read_text(encoding="utf-8"))
    forward = stored["kernels"][0]
    assert (forward["kernel"], forward["dtype"], forward["capability"]) == (
        "sigmoid_value",
        "float32",
        90,
    )
    # 8 elements a thread: two loads and stores of 16 bytes, a reciprocal an element, 8 bytes moved.
    instructions = forward["instructions"]
    assert instructions["load"] == instructions["store"] == 2 / 8
    assert instructions["special"] == 1
    assert instructions["float64"] == instructions["local"] == 0
    assert forward["bandwidth_seconds"] == pytest.approx(8 / 3.35e12)
    assert forward["total"] == sum(instructions.values())
    assert forward["bound"] == "bandwidth"
    assert forward["loads_in_flight"] == forward["warps"] * 32 * 32
    patch.setattr(static, "RECORD", tmp_path / "static.json")
    try:
        for text in (shown, static.markdown()):
            assert f"{forward['total']:.1f}" in text
    finally:
        patch.undo()
    document = json.loads((machine.ROOT / "docs/figures/static.json").read_text(encoding="utf-8"))
    assert len(document["kernels"]) == 8 * 4 * 3 + 3 * 2 * 4


def test_tables_of_a_gpu() -> None:
    launches = gpu_tables.launches().splitlines()
    assert [line.split("|")[1].split(",")[0].strip() for line in launches[2:]] == [
        "forward-fresh",
        "training",
    ]
    found = json.loads((gpu_tables.FOLDER / "variants.json").read_text(encoding="utf-8"))["found"]
    rows = [
        [cell.strip() for cell in line.split("|")] for line in gpu_tables.variants().splitlines()
    ]
    for entry in found:
        if "microseconds" not in entry:
            assert (entry["values"], entry["derivatives"]) == (0, 0)
            continue
        if entry["work"].startswith("step"):  # has a table of its own
            continue
        size = f" {size_text(entry['size'])}" if entry["size"] <= 2**20 else ""
        name = f"{entry['work']} {entry['dtype']}{size}"
        (head,) = [at for at, row in enumerate(rows) if name in row]
        shown = {
            row[1]: row[rows[head].index(name)] for row in rows[head + 2 : rows.index([""], head)]
        }
        assert {name: float(time_) for name, time_ in shown.items() if time_} == {
            name: round(time_, 2) for name, time_ in entry["microseconds"].items()
        }


@pytest.mark.parametrize(
    ("registers", "warps"), [(16, 64), (32, 64), (38, 48), (40, 48), (41, 40), (64, 32), (255, 8)]
)
def test_resident_warps(registers: int, warps: int) -> None:
    # As NVIDIA's occupancy calculator gives them for these architectures.
    static = pytest.importorskip("bench.static")
    assert static.resident_warps(registers) == warps


SASS = """
--:-:0:-:1\tLDG.E.128 R4, desc[UR4][R2.64];
--:-:-:-:1\t@!P0 BRA LBB0;
--:-:-:-:1\tFCHK P0, R2, R3;
--:-:-:-:6\t@!P0 BRA LBB1;
--:-:-:-:2\tMOV R0, R3;
--:-:-:-:5\tCALL.REL.NOINC 0x24d0;
LBB1:
--:-:-:-:5\tDADD R2, R2, R4;
--:-:-:-:5\tHFMA2.MMA R2, -RZ, RZ, 0.1, -2;
--:-:-:-:5\tHFMA2.BF16_V2 R8, R2, R3, R4;
--:-:-:-:4\tSTG.E.128 desc[UR6][R2.64], R12;
--:-:-:-:5\tEXIT;
LBB0:
--:-:0:-:1\tCALL.REL.NOINC 0x24d0;
--:-:-:-:5\tEXIT;
"""


def test_instructions_are_those_executed_and_told_apart() -> None:
    static = pytest.importorskip("bench.static")
    block = static.whole_block(SASS)
    counted = {name: number for name, number in static.count(block).items() if number}
    # The move and the call that the second jump passes are left out, as is what follows the exit.
    assert counted == {"load": 1, "control": 3, "float": 2, "float64": 1, "integer": 1, "store": 1}
    with pytest.raises(ValueError, match="no exit"):
        static.whole_block(SASS.replace("EXIT", "NOP"))


def report(stage: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), stage, "60"],
        env=os.environ | {"OUT": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def parts(folder: Path) -> dict[str, str]:
    """Each part's line of the summary."""
    lines = (folder / "summary.txt").read_text(encoding="utf-8").splitlines()
    return {line[:11].strip(): line[11:] for line in lines[1:]}


def logs(folder: Path) -> set[str]:
    with tarfile.open(folder / "report.tar.gz") as archive:
        return {Path(name).name for name in archive.getnames()}


without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="here is a GPU, which it would measure"
)


@without_gpu
@pytest.mark.parametrize("stage", ["first", "second"])
def test_report_without_a_gpu(stage: str, tmp_path: Path) -> None:
    done = report(stage, tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    found = parts(tmp_path)
    assert set(found) >= {"facts", "build", "info", "the rest"}
    assert all(" rc 0 " in found[name] for name in ("facts", "build", "info"))
    assert found["the rest"] == " skipped: torch sees no CUDA device"
    assert logs(tmp_path) >= {"facts.log", "build.log", "info.log"}
    assert "route on GPU" in done.stdout
    assert torch.__version__ in done.stdout


def test_report_survives_parts_that_fail(tmp_path: Path) -> None:
    done = report("first", tmp_path, PYTHON="false")
    assert done.returncode == 1
    found = parts(tmp_path)
    assert " rc 1 " in found["build"]
    assert " rc 1 " in found["info"]


def test_report_that_is_killed_leaves_the_parts_that_ended(tmp_path: Path) -> None:
    # An interpreter that never ends the build.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *fused_sigmoid*) exec sleep 20;; esac\n'
        f'exec {sys.executable} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    out = tmp_path / "out"
    with subprocess.Popen(
        [str(SCRIPT), "second", "50"],
        env=os.environ | {"OUT": str(out), "PYTHON": str(python), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("facts"):
                break
        deadline = time.monotonic() + 20
        while not (out / "report.tar.gz").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGKILL)
    assert logs(out) == {"logs", "facts.log"}
    assert list(parts(out)) == ["facts"]


def test_report_asks_which_stage(tmp_path: Path) -> None:
    done = report("third", tmp_path)
    assert done.returncode == 2
    assert "first|second" in done.stdout


def test_every_variant_is_an_edit_of_the_kernels(tmp_path: Path) -> None:
    variants = pytest.importorskip("bench.gpu_variants")
    modules = {name: variants.load(edits, tmp_path) for name, edits in variants.SOURCES.items()}
    texts = {
        "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
        for folder in (Path(module.__file__).parent for module in modules.values())
    }
    assert len(texts) == len(modules)
    timed = {variant.source for variant in (*variants.LARGE, *variants.SMALL, *variants.FLOAT64)}
    assert timed == set(modules)
    assert set(variants.SAME_BITS) < set(modules)
    for work in (*variants.KERNELS.values(), *variants.STEPS.values()):
        assert all(("sigmoid", work) in module.KERNELS for module in modules.values())
    with pytest.raises(ValueError, match="no longer has 'gone'"):
        variants.load([("gone", "")], tmp_path)


def test_result_files_without_memory_are_read(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    results.write(Result(machine={}, source={}, date="", command=""), file)
    document = json.loads(file.read_text(encoding="utf-8"))
    del document["peak_memory"]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert results.read(file).peak_memory == []
