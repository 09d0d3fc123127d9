"""The bench tells the truth: its ratios on clocks with known answers, its rows, goals and files.

Times nothing that matters; fake clocks wherever a number is expected.
"""

from __future__ import annotations

import gc
import itertools
import json
import mmap
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import pytest
import torch

import fused_sigmoid
from bench import (
    buffers,
    goals,
    layouts,
    machine,
    report,
    results,
    runs,
    works,
)
from bench.peers import FUSED_SIGMOID, PEERS, CannotRunError, Peer
from bench.results import COPY, OURS, STREAMED_COPY, Cell, Result, Row, Skip, Spread, Task
from bench.timing import (
    Effort,
    PageFaults,
    Pairing,
    Sampler,
    measure_pair,
    spread,
    wall_sampler,
)
from tests import parameters

CELL = Cell("cpu", "float32", "forward", 1024, 1, "wall", "warm")
LARGER = replace(CELL, size=1 << 20)
GPU_CELL = Cell("cuda", "float32", "pair", 16 << 20, 1, "device", "rotating")


def row(peer: str, ours: float, theirs: float, cell: Cell = CELL) -> Row:
    def exactly(value: float) -> Spread:
        return Spread(value, value, value)

    return Row(
        *(cell, peer, exactly(ours), exactly(theirs), exactly(theirs / ours), 3),
        timer="wall",
        process="shared",
        input_sets=1,
        bytes_moved=8192,
        copy_seconds=1e-6,
        copy_fraction=0.5,
    )


def some_result(*rows: Row) -> Result:
    usual = [row(COPY, 2e-6, 1e-6), row("torch", 2e-6, 3e-6)]
    usual += [row(COPY, 2e-3, 1e-3, LARGER), row("torch", 2e-3, 5e-3, LARGER)]
    return Result(
        machine={"name": "A CPU", "cpu_capability": "AVX2", "versions": {"torch": "2.13.0"}},
        source={"commit": "0123456789abcdef", "dirty": False},
        date="2026-01-02T03:04:05+00:00",
        command="python -m bench",
        rows=list(rows) or usual,
        skips=[Skip(CELL, "flag_gems", "package flag_gems is not installed")],
        elapsed_seconds=1.5,
    )


# Ratios and times


def steady(seconds_per_call: float) -> Sampler:
    return Sampler(lambda passes: passes * seconds_per_call, calls=1)


def test_quartiles_are_those_of_a_literal_table() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratio_is_their_time_over_ours() -> None:
    pairing = measure_pair(steady(2e-6), steady(5e-6), Effort(rounds=4))
    medians = [each.median for each in (pairing.ours, pairing.theirs, pairing.ratio)]
    assert medians == pytest.approx([2e-6, 5e-6, 2.5])
    assert pairing.rounds == 4


def test_a_machine_that_slows_steadily_favours_neither() -> None:
    tick = count()

    def slowing(cost: float) -> Sampler:
        # Longer than a sample needs to be: one pass each, so every sample is one tick.
        return Sampler(lambda passes: passes * cost * (1 + 0.05 * next(tick)), calls=1)

    pairing = measure_pair(slowing(1.0), slowing(3.0), Effort(rounds=5, row_seconds=1e9))
    assert pairing.ratio.median == pytest.approx(3.0)
    assert pairing.ratio.first_quartile == pytest.approx(3.0)


def test_a_hiccup_moves_no_median() -> None:
    tick = count()

    def hiccuping(passes: int) -> float:
        return passes * (1.0 if next(tick) % 9 == 4 else 1e-3)

    pairing = measure_pair(Sampler(hiccuping, 1), steady(2e-3), Effort(rounds=21))
    assert pairing.ratio.median == pytest.approx(2.0)
    assert pairing.ours.median == pytest.approx(1e-3)


def test_samples_are_as_long_as_asked_without_garbage_collection() -> None:
    lengths: list[float] = []

    def seconds(passes: int) -> float:
        assert not gc.isenabled()
        lengths.append(passes * 1e-6)
        return lengths[-1]

    measure_pair(Sampler(seconds, 1), steady(1.0), Effort(rounds=3, sample_seconds=5e-4))
    assert 5e-4 <= min(lengths[-6:]) <= max(lengths[-6:]) < 5e-3
    assert gc.isenabled()


def test_a_slow_row_stops_at_its_minimum() -> None:
    now = count(step=10)
    effort = Effort(rounds=50, minimum_rounds=3, row_seconds=1.0)
    pairing = measure_pair(steady(1.0), steady(1.0), effort, elapsed=lambda: next(now))
    assert pairing.rounds == 3


def test_calls_of_a_pass_share_its_time() -> None:
    clock, called = count(step=6000), []
    calls = [lambda: called.append("a"), lambda: called.append("b")]
    sampler = wall_sampler(calls, clock=lambda: next(clock))
    assert sampler.seconds(2) == pytest.approx(6e-6)
    assert called == ["a", "b", "a", "b"]
    pairing = measure_pair(Sampler(lambda passes: passes * 4e-3, calls=4), steady(1e-3), Effort())
    assert pairing.ratio.median == pytest.approx(1.0)


def test_page_faults_of_a_call_are_counted() -> None:
    def fresh() -> None:
        # Mapped anew, which what an allocator keeps of freed memory need not be.
        with mmap.mmap(-1, 1 << 22) as memory:
            memory.write(b"1" * len(memory))

    counted = [PageFaults(wall_sampler([call])) for call in (lambda: None, fresh)]
    for each in counted:
        each.sampler.seconds(4)
    assert counted[0].of_a_call() < 1 <= counted[1].of_a_call()


# What is measured


def wrongness_of(peer: Peer, cell: Cell) -> str | None:
    made = buffers.make_buffers(cell, copy=False)
    return buffers.wrongness(cell.work, made, peer.prepare(cell)(made)())


@pytest.mark.parametrize(
    ("work", "dtype", "expected"),
    [
        *(("forward", "float32", 8_000), ("forward-fresh", "float64", 16_000)),
        *(("pair", "bfloat16", 6_000), ("training", "float32", 20_000)),
        *(("backward", "float16", 6_000), ("loss", "float32", 12_000)),
        *(("loss-forward", "bfloat16", 4_000), ("loss-none", "float32", 28_000)),
    ],
)
def test_bytes_moved_and_the_copy_beside_them(work: str, dtype: str, expected: int) -> None:
    assert works.bytes_moved(work, 1000, dtype) == expected
    made = buffers.make_buffers(replace(CELL, work=work, dtype=dtype, size=1000))
    assert made.copy_source.nbytes + made.copy_target.nbytes == expected
    # Constant data switches fewer bits.
    assert len(made.copy_source.unique()) > 200


@pytest.mark.parametrize(
    ("work", "dtype", "size"),
    parameters.chosen(
        itertools.product(works.WORKS, works.DTYPES, [1, 1023, 2**16]),
        lambda _, dtype, size: size == 1023 or dtype == "float32",
    ),
)
def test_right_results_pass_the_guard(work: str, dtype: str, size: int) -> None:
    cell = replace(CELL, work=work, dtype=dtype, size=size)
    assert wrongness_of(FUSED_SIGMOID, cell) is None
    assert wrongness_of(PEERS["torch"], cell) is None


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("wrong", [0.5 + 1e-4, float("nan")])
def test_wrong_values_do_not(wrong: float, at: int) -> None:
    cell = replace(CELL, work="pair", size=3 * buffers.CHECKED_AT_EACH_END)
    made = buffers.make_buffers(cell)
    made.input[at] = 0.0
    value = torch.sigmoid(made.input)
    derivative = value * (1 - value)
    assert buffers.wrongness("pair", made, (value, derivative)) is None
    value[at] = wrong
    assert "value is off" in str(buffers.wrongness("pair", made, (value, derivative)))
    assert "float64" in str(buffers.wrongness("pair", made, (value.double(), derivative)))


@pytest.mark.parametrize("work", ["training", "backward", "bce", "loss", "loss-none"])
def test_gradients_of_the_wrong_sign_and_none_at_all_do_not(work: str) -> None:
    for dtype in ("float32", "float16"):
        made = buffers.make_buffers(replace(CELL, work=work, dtype=dtype, size=2**20), copy=False)
        result = FUSED_SIGMOID.prepare(replace(CELL, work=work))(made)()
        assert buffers.wrongness(work, made, result) is None
        loss, gradient = result if isinstance(result, tuple) else (None, result)
        # Of a mean's gradient, nothing in place of a millionth at most.
        for wrong in (-gradient, torch.zeros_like(gradient)):
            given = wrong if loss is None else (loss, wrong)
            assert "gradient is off by" in str(buffers.wrongness(work, made, given))


def test_a_gradient_is_not_added_to_the_last_one() -> None:
    cell = replace(CELL, work="training")
    made = buffers.make_buffers(cell)
    call = PEERS["torch"].prepare(cell)(made)
    call()
    assert buffers.wrongness("training", made, call()) is None
    assert made.input.grad is None


@pytest.mark.parametrize("work", works.LOSS_WORKS)
def test_a_loss_of_the_wrong_sign_is_refused(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_sigmoid.binary_cross_entropy_with_logits

    def negative(input, target, reduction="mean"):  # type: ignore[no-untyped-def]
        return -right(input, target, reduction=reduction)

    monkeypatch.setattr(fused_sigmoid, "binary_cross_entropy_with_logits", negative)
    result = Result({}, {}, "", "")
    task = Task(replace(CELL, work=work), ("torch",))
    runs.Run(result, Effort(rounds=1), show_progress=False).measure([task])
    assert not result.rows
    assert [(skip.peer, skip.reason[:24]) for skip in result.skips] == [
        (OURS, "wrong result: loss is of")
    ]


def test_a_sigmoid_before_the_loss_is_a_peer_of_the_losses_alone() -> None:
    peer, cell = PEERS["sigmoid+bce"], replace(CELL, work="loss", size=2**16)
    assert wrongness_of(peer, cell) is None
    # Where the sigmoid rounds to 1 the other label costs 100, and not the logit.
    assert "loss is off by" in str(wrongness_of(peer, replace(cell, dtype="bfloat16")))
    for name, work in product(("sigmoid+bce", "scipy", "jax", "flag_gems"), ("training", "loss")):
        if (name, work) != ("sigmoid+bce", "loss"):
            with pytest.raises(CannotRunError):
                PEERS[name].prepare(replace(CELL, work=work))


@pytest.mark.parametrize("work", ["forward", "forward-fresh", "pair"])
@pytest.mark.parametrize("dtype", list(works.DTYPES))
@pytest.mark.parametrize("name", ["scipy", "onnxruntime", "numexpr", "jax"])
def test_optional_peers_compute_a_sigmoid_or_say_why_not(name: str, dtype: str, work: str) -> None:
    pytest.importorskip(name)
    cell = replace(CELL, work=work, dtype=dtype)
    if PEERS[name].refusal(cell):
        assert PEERS[name].refusal(cell) in ("has no such work", "has no such dtype")
        return
    made = buffers.make_buffers(cell)
    call = PEERS[name].prepare(cell)(made)
    assert buffers.wrongness(work, made, call()) is None
    if work == "forward":
        assert buffers.wrongness(work, made, made.value) is None
    made.input.add_(1)  # what was computed once must not be taken again
    assert buffers.wrongness(work, made, call()) is None


@pytest.mark.parametrize("work", list(works.WORKS))
def test_compiled_works_compute_the_same(work: str) -> None:
    cell = replace(CELL, work=work)
    assert wrongness_of(PEERS["torch.compile"], cell) is None


def test_peers_refuse_what_they_cannot_do() -> None:
    for peer, cell, reason in (
        (STREAMED_COPY, CELL, "is for works that move 64 MiB and more"),
        ("scipy", replace(CELL, layout="slice"), "is compared on contiguous inputs alone"),
        ("scipy", replace(CELL, threads=2), "runs on one thread"),
        ("torch+thp", replace(CELL, device="cuda"), "runs on cpu only"),
        ("torch+thp", CELL, "huge pages are for fresh CPU outputs of 2 MiB and more"),
    ):
        assert PEERS[peer].refusal(cell) == reason
    absent = replace(PEERS["torch"], package="no_such_package")
    assert absent.refusal(CELL) == "package no_such_package is not installed"


def test_rotating_buffers_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.machine, "last_level_cache", lambda device: 40_000)
    assert len(runs._buffers(replace(CELL, cache="rotating"), True)) == 10  # of 8,192 bytes each
    assert len(runs._buffers(CELL, True)) == 1


def test_a_cell_that_does_not_fit_the_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.machine, "free_memory", lambda: 2**20)
    with pytest.raises(CannotRunError, match=r"needs 1\.2 GiB, 0\.0 are free"):
        runs._buffers(replace(CELL, size=2**26), False)


@pytest.mark.parametrize("layout", list(layouts.LAYOUTS))
@pytest.mark.parametrize("work", ["forward", "training"])
@pytest.mark.parametrize("size", [1, 6, 1000, 3 * buffers.CHECKED_AT_EACH_END])
def test_layouts_hold_as_many_elements_as_asked_for(layout: str, work: str, size: int) -> None:
    cell = replace(CELL, work=work, size=size, layout=layout)
    made = buffers.make_buffers(cell)
    assert made.input.numel() == size
    is_plain = layout == "contiguous" or not layouts.is_distinct(layout, size)
    assert made.input.is_contiguous() == is_plain
    result = PEERS["torch"].prepare(cell)(made)()
    assert buffers.wrongness(work, made, result) is None
    result[(-1,) * result.dim()] += 1e-4
    assert "is off by" in str(buffers.wrongness(work, made, result))


def test_strides_are_those_of_the_names() -> None:
    strides = {
        layout: buffers.make_buffers(replace(CELL, size=2**16, layout=layout)).input.stride()
        for layout in layouts.LAYOUTS
    }
    assert strides == {
        "contiguous": (1,),
        "channels_last": (65536, 1, 2048, 64),
        "transposed": (1, 256),
        "chunk": (512, 1),
        "slice": (2,),
    }


def test_a_grid_has_no_cell_twice() -> None:
    sizes = {"float32": (1, 64)}
    works_, every = ("forward", "training"), tuple(layouts.LAYOUTS)
    cells = runs.cells("cpu", sizes, works_, (1,), "warm", every, ("auto", "input"))
    found = [(c.size, c.work, c.layout, c.saved) for c in cells]
    assert len(set(found)) == len(found)
    # At one element every layout is the contiguous one; an image of one pixel is, too.
    assert [cell for cell in found if cell[0] == 1] == [
        (1, "forward", "contiguous", "auto"),
        (1, "training", "contiguous", "auto"),
        (1, "training", "contiguous", "input"),
    ]
    of_64 = {layout for size, _, layout, _ in found if size == 64}
    assert of_64 == {"contiguous", "transposed", "chunk", "slice"}


def test_a_gpu_has_two_clocks_at_small_sizes() -> None:
    cells = runs.cells("cuda", {"float32": (64, 1 << 20)}, ("forward",), (1,), "rotating")
    assert [(cell.size, cell.clock, cell.cache) for cell in cells] == [
        (64, "device", "rotating"),
        (64, "wall", "warm"),
        (1 << 20, "device", "rotating"),
    ]


def test_a_sweep_meets_every_range_of_sizes_early() -> None:
    cells = [replace(CELL, size=2**e, dtype=d) for e in range(27) for d in ("float32", "float64")]
    walked = runs.by_halves(cells)
    assert sorted(c.size for c in walked) == sorted(c.size for c in cells)
    exponents = [cell.size.bit_length() - 1 for cell in walked]
    assert exponents[:12] == [0, 0, 16, 16, 8, 8, 24, 24, 4, 4, 12, 12]


def test_a_doubtful_row_is_measured_again_and_the_second_time_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    efforts = []

    def pair(ours: Sampler, theirs: Sampler, effort: Effort) -> Pairing:
        efforts.append(effort)
        theirs_seconds = 0.9 if len(efforts) == 1 else 1.2
        ours.seconds(1)
        return Pairing(*(Spread(x, x, x) for x in (1.0, theirs_seconds, theirs_seconds)), 3)

    monkeypatch.setattr(runs, "measure_pair", pair)
    glance, look = Effort(rounds=3), Effort(rounds=21)
    for doubtful_below, ratio in ((1.0, 1.2), (0.8, 0.9)):
        efforts.clear()
        result = Result({}, {}, "", "")
        run = runs.Run(result, glance, doubtful_below, look, show_progress=False)
        run.measure([Task(CELL, ("torch",))])
        assert [found.ratio.median for found in result.rows] == [ratio]
        assert efforts == ([glance, look] if ratio > 1 else [glance])


def test_a_large_row_on_a_gpu_is_not_left_out_for_the_time_it_takes_a_cpu() -> None:
    run = runs.Run(Result({}, {}, "", ""), Effort())
    cell = replace(GPU_CELL, size=256 << 20)
    assert run._cost(cell, PEERS["torch"]) < 0.1
    assert run._cost(replace(cell, device="cpu"), PEERS["torch"]) > 1


# Goals


@pytest.mark.parametrize(
    ("cell", "peer", "goal"),
    [
        (replace(CELL, size=2**16), "torch", 2.2),
        (replace(CELL, size=2**20, threads=2), "torch", 1.7),
        (replace(CELL, size=2**24), COPY, 0.95),
        (replace(CELL, size=2**20, threads=2), "torch+avx2", 1.2),
        (replace(CELL, size=2**16, layout="channels_last"), "torch", 1.3),
        (replace(CELL, work="training", size=1), "torch", 0.9091),
        (replace(CELL, work="pair", size=2**24), "torch", 6.0),
        (replace(CELL, work="loss", size=2**16), "torch.compile", 3.0),
        (replace(CELL, work="loss-forward", size=2**20), "torch", 10.0),
        (GPU_CELL, COPY, 0.95),
        (GPU_CELL, "torch", 2.2),
        (GPU_CELL, "torch.compile", 0.98),
        (replace(GPU_CELL, work="backward", dtype="bfloat16", size=256 << 20), COPY, 0.95),
        (replace(GPU_CELL, work="training", dtype="float64", size=1024), "torch", 0.98),
        (replace(GPU_CELL, work="training", size=1024, clock="wall"), "torch", 0.8696),
        (replace(GPU_CELL, work="loss"), COPY, 0.90),
        (replace(GPU_CELL, work="loss", size=1024, clock="wall"), "torch", 1.0),
    ],
)
def test_goals_judge_a_row_by_its_median(cell: Cell, peer: str, goal: float) -> None:
    for ratio, met in ((goal + 0.001, True), (goal - 0.001, False)):
        judged = goals.judged([row(peer, 1.0, ratio, cell)])
        assert (list(judged["met"]), float(judged["goal"].iloc[0])) == (
            [met],
            pytest.approx(goal, abs=1e-4),
        )
        assert f"{int(met)} of 1 met" in report.goals_text([row(peer, 1.0, ratio, cell)])


def test_rows_without_a_goal_are_not_judged() -> None:
    without = [row("scipy", 1.0, 9.0, replace(CELL, size=2**16)), row("torch", 1.0, 9.0)]
    without += [row("torch", 1.0, 9.0, replace(CELL, size=2**16, device="cuda"))]
    without += [row("torch", 1.0, 9.0, replace(CELL, work="loss", size=2**16, threads=2))]
    assert goals.judged(without).empty
    assert report.goals_text([]).endswith("0 of 0 met")


@pytest.mark.parametrize(("device", "threads"), [("cpu", (1, 2)), ("cuda", (1,))])
def test_goals_measure_every_row_they_judge_and_nothing_else(
    device: str, threads: tuple[int, ...]
) -> None:
    tasks = goals.plan(threads, device)
    rows = [row(peer, 1.0, 99.0, task.cell) for task in tasks for peer in task.peers]
    assert len({(found.cell, found.peer) for found in rows}) == len(rows)
    judged = goals.judged(rows)
    known = goals.CPU_GOALS if device == "cpu" else goals.GPU_GOALS
    wanted = [
        (goal.work, goal.layout, dtype, size, goal.peer)
        for goal in known
        for dtype, size, count in product(goal.dtypes, goal.sizes, threads)
        if goal.for_threads(count) is not None
    ]
    found = judged[["work", "layout", "dtype", "size", "peer"]].itertuples(index=False, name=None)
    assert sorted(found) == sorted(wanted)
    assert all(judged["met"])
    # What else is measured is the copy, once beside each cell.
    copies = sum(peer == COPY for *_, peer in wanted)
    assert len(rows) == len(wanted) - copies + len(tasks)


# Files


@pytest.mark.parametrize("name", ["result.json", "result.json.gz"])
@pytest.mark.parametrize("result", [some_result(), replace(some_result(), rows=[], skips=[])])
def test_a_result_survives_its_file(name: str, result: Result, tmp_path: Path) -> None:
    results.write(result, tmp_path / name)
    written = (tmp_path / name).read_bytes()
    assert results.read(tmp_path / name) == result
    results.write(result, tmp_path / name)
    assert (tmp_path / name).read_bytes() == written


def test_a_file_names_its_columns_once_and_keeps_a_line_a_row(tmp_path: Path) -> None:
    results.write(some_result(), tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    stored = json.loads(text)["rows"]
    first = dict(zip(stored["columns"], stored["data"][1], strict=True))
    assert (first["peer"], first["size"], first["ratio median"]) == ("torch", 1024, 1.5)
    assert sum('"torch"' in line for line in text.splitlines()) == 3  # the version is one


def test_results_and_pages_are_no_change_of_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
        subprocess.run(("git", *identity, *arguments), cwd=tmp_path, check=True)

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.delenv("SOURCE_COMMIT", raising=False)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    for name in ("README.md", "docs/a.md", "bench/results/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert machine.commit()["dirty"] is False
    (tmp_path / "bench/runs.py").touch()
    found = machine.commit()
    assert (len(found["commit"]), found["dirty"]) == (40, True)
    monkeypatch.setenv("SOURCE_COMMIT", "abc")
    assert machine.commit() == {"commit": "abc", "dirty": None}


def test_sections_of_a_record_are_kept_beside_each_other(tmp_path: Path) -> None:
    for name in ("load", "fuzz", "load"):
        results.record_section(tmp_path / "record.json", name, {"calls": 3})
    stored = json.loads((tmp_path / "record.json").read_text())
    assert list(stored) == ["fuzz", "load"]
    named = ("date", "commit", "dirty", "cpu", "logical_cpus", "versions", "figures")
    assert tuple(stored["load"]) == named


# Texts


def test_a_sweep_shows_the_worst_first_and_calls_slower_what_three_quarters_of_rounds_say() -> None:
    def measured(size: int, ratio: float, third_quartile: float) -> Row:
        found = row("torch", 1.0, ratio, replace(CELL, size=size))
        return replace(found, ratio=Spread(ratio - 0.1, ratio, third_quartile))

    rows = (measured(4, 1.5, 1.6), measured(2, 0.9, 0.95), measured(8, 0.97, 1.01))
    text = report.sweep_text(some_result(*rows))
    verdicts = [line.split("]")[1].split("float32")[0].strip() for line in text.splitlines()[2:5]]
    assert verdicts == ["slower", "as fast", ""]
    assert "1 of 3 rows slower than torch" in text
    assert "package flag_gems is not installed" in text


def test_two_results_are_compared_row_by_row_the_worst_first() -> None:
    before = some_result()
    # The small row twice as fast as it was, the large one slower, the copies gone.
    after = some_result(row("torch", 1e-6, 3e-6), row("torch", 4e-3, 5e-3, LARGER))
    lines = report.compared(before, after).splitlines()
    found = [[line.split()[at] for at in (0, 1, 4)] for line in lines[-4:-2]]
    assert found == [["0.50", "2.50", "1.25"], ["2.00", "1.50", "3.00"]]
    assert lines[-1] == "2 rows in both, 2 in A alone, 0 in B alone"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_tables_are_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = some_result()
    texts: tuple[Callable[[], str], ...] = (
        lambda: report.rows_text(result),
        lambda: report.sweep_text(result),
        lambda: report.compared(result, result),
        lambda: report.goals_text([row("torch", 1.0, 2.0, replace(CELL, size=2**16))]),
    )
    monkeypatch.delenv("COLUMNS", raising=False)
    full = [text() for text in texts]
    assert "[1.50, 1.50]" in full[0]
    monkeypatch.setenv("COLUMNS", str(columns))
    # What is less needed goes before anything is cut.
    assert (".." in texts[0]()) == (columns < 40)
    for text, whole in zip(texts, full, strict=True):
        tables = [line for line in text().splitlines() if "  " in line and "rows" not in line]
        assert max(map(len, tables)) <= columns
        assert len(text().splitlines()) >= len(whole.splitlines())
