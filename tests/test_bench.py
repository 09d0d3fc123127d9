"""The bench tells the truth: its ratios on clocks with known answers, its files, its refusals.

Times nothing that matters; fake clocks wherever a number is expected.
"""

from __future__ import annotations

import csv
import gc
import json
import mmap
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

import fused_sigmoid

torch = pytest.importorskip("torch")
for needed in ("matplotlib", "tabulate", "tqdm"):
    pytest.importorskip(needed)

from bench import __main__ as command_line  # noqa: E402
from bench import (  # noqa: E402
    alone,
    compatibility,
    figures,
    fresh_processes,
    goals,
    loss_memory,
    override,
    report,
    results,
    roofline,
    runs,
    sweep,
    works,
)
from bench.peers import (  # noqa: E402
    PEERS,
    CannotRunError,
    FusedSigmoid,
    Peer,
    StreamedCopy,
    TorchEager,
)
from bench.results import COPY, OURS, STREAMED_COPY, Cell, Result, Row, Skip, Spread, Task  # noqa: E402
from bench.timing import (  # noqa: E402
    Effort,
    Pairing,
    Sampler,
    measure_pair,
    spread,
    wall_sampler,
)
from fused_sigmoid._extension import extension  # noqa: E402

CELL = Cell("cpu", "float32", "forward", 1024, 1, "wall", "warm")
SMALL_RUN = [
    *("--device", "cpu", "--sizes", "64", "--dtypes", "float32", "--threads", "1"),
    *("--rounds", "2", "--minimum-rounds", "1", "--sample-seconds", "1e-5"),
    "--no-progress",
]


def test_goals_are_judged_by_the_median() -> None:
    cell = replace(CELL, size=2**16)
    rows = [
        row("torch", ours=1.0, theirs=2.2, cell=cell),
        row("torch", ours=1.0, theirs=2.19, cell=replace(cell, size=2**20)),
        row("torch", ours=1.0, theirs=1.7, cell=replace(cell, threads=2)),
        row("scipy", ours=1.0, theirs=9.0, cell=cell),
        row("torch", ours=1.0, theirs=9.0, cell=replace(cell, device="cuda")),
        row(COPY, ours=1.0, theirs=0.94, cell=replace(cell, size=2**24)),
        row("torch", ours=1.0, theirs=0.92, cell=replace(cell, work="training", size=1)),
        row("torch", ours=1.0, theirs=1.4, cell=replace(cell, layout="channels_last")),
    ]
    table = goals.terminal(rows).splitlines()
    verdicts = [line.split()[-1] for line in table[2:-1]]
    assert verdicts == ["met", "missed", "met", "missed", "met", "met"]
    assert table[-1] == "4 of 6 met"
    assert len(goals.markdown(rows).splitlines()) == 8


def test_the_goals_measure_every_row_they_judge_and_nothing_else() -> None:
    tasks = goals.plan([1, 2])
    wanted = sum(
        len(goal.dtypes) * len(goal.sizes) * sum(map(goal.is_about, (1, 2))) for goal in goals.GOALS
    )
    every = [row(peer, 1.0, 99.0, task.cell) for task in tasks for peer in task.peers]
    assert len({(judged.cell, judged.peer) for judged in every}) == len(every)
    assert goals.terminal(every).splitlines()[-1] == f"{wanted} of {wanted} met"
    judged = {
        (judged.cell.work, judged.cell.layout, judged.peer, judged.cell.size, judged.cell.threads)
        for _, judged in goals._pairs(every)
    }
    for asked in (
        ("forward", "contiguous", "torch", 2**26, 1),
        ("forward", "contiguous", COPY, 2**26, 2),
        ("forward-fresh", "contiguous", "torch", 1, 1),
        ("training", "contiguous", "torch", 1, 2),
        ("pair", "contiguous", "torch", 2**24, 1),
        ("forward", "contiguous", "torch+avx2", 2**20, 2),
        ("training", "channels_last", "torch", 2**16, 1),
        ("forward", "transposed", "torch", 2**16, 2),
        ("training", "slice", "torch", 2**20, 1),
        ("forward", "chunk", "torch", 2**16, 1),
        ("loss", "contiguous", "torch", 2**24, 2),
        ("loss", "contiguous", "torch.compile", 2**16, 1),
        ("loss-forward", "contiguous", "torch", 2**20, 1),
    ):
        assert asked in judged
    beside = [measured for measured in every if measured.peer == COPY]
    assert len(every) == wanted + len(beside) - sum(g.peer == COPY for g in goals.GOALS) * 4


def steady(seconds_per_call: float) -> Sampler:
    return Sampler(lambda passes: passes * seconds_per_call, calls=1)


def row(peer: str, ours: float, theirs: float, cell: Cell = CELL) -> Row:
    def exactly(value: float) -> Spread:
        return Spread(value, value, value)

    return Row(
        cell=cell,
        peer=peer,
        ours=exactly(ours),
        theirs=exactly(theirs),
        ratio=exactly(theirs / ours),
        rounds=3,
        timer="wall",
        process="shared",
        input_sets=1,
        bytes_moved=8192,
        copy_seconds=1e-6,
        copy_fraction=0.5,
    )


def some_result() -> Result:
    larger = replace(CELL, size=1 << 20)
    return Result(
        machine={"name": "A CPU", "cpu_capability": "AVX2", "versions": {"torch": "2.13.0"}},
        source={"commit": "0123456789abcdef", "dirty": False},
        date="2026-01-02T03:04:05+00:00",
        command="python -m bench",
        rows=[
            row(COPY, 2e-6, 1e-6),
            row("torch", 2e-6, 3e-6),
            row(COPY, 2e-3, 1e-3, larger),
            row("torch", 2e-3, 5e-3, larger),
        ],
        skips=[Skip(CELL, "flag_gems", "package flag_gems is not installed")],
        elapsed_seconds=1.5,
    )


# Ratios and times


def test_quartiles_are_those_of_a_literal_table() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratio_is_their_time_over_ours() -> None:
    pairing = measure_pair(steady(2e-6), steady(5e-6), Effort(rounds=4))
    assert pairing.ratio.median == pytest.approx(2.5)
    assert pairing.ours.median == pytest.approx(2e-6)
    assert pairing.theirs.median == pytest.approx(5e-6)
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


def test_samples_are_as_long_as_asked() -> None:
    lengths: list[float] = []

    def seconds(passes: int) -> float:
        lengths.append(passes * 1e-6)
        return lengths[-1]

    measure_pair(Sampler(seconds, 1), steady(1.0), Effort(rounds=3, sample_seconds=5e-4))
    assert min(lengths[-6:]) >= 5e-4
    assert max(lengths[-6:]) < 5e-3


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


def test_garbage_collection_is_off_while_timing_and_on_after() -> None:
    states: list[bool] = []

    def seconds(passes: int) -> float:
        states.append(gc.isenabled())
        return float(passes)

    assert gc.isenabled()
    measure_pair(Sampler(seconds, 1), Sampler(seconds, 1), Effort(rounds=1))
    assert not any(states)
    assert gc.isenabled()


# What is measured


@pytest.mark.parametrize(
    ("work", "dtype", "expected"),
    [
        ("forward", "float32", 8_000),
        ("forward-fresh", "float64", 16_000),
        ("pair", "bfloat16", 6_000),
        ("training", "float32", 20_000),
        ("backward", "float16", 6_000),
        ("loss", "float32", 12_000),
        ("loss-forward", "bfloat16", 4_000),
        ("loss-none", "float32", 28_000),
    ],
)
def test_bytes_moved_and_the_copy_beside_them(work: str, dtype: str, expected: int) -> None:
    assert works.bytes_moved(work, 1000, dtype) == expected
    buffers = works.make_buffers(work, 1000, dtype, "cpu")
    assert buffers.copy_source.nbytes + buffers.copy_target.nbytes == expected


@pytest.mark.parametrize("work", list(works.WORKS))
@pytest.mark.parametrize("dtype", list(works.DTYPES))
def test_a_right_result_passes_the_guard(work: str, dtype: str) -> None:
    cell = replace(CELL, work=work, dtype=dtype)
    buffers = works.make_buffers(work, cell.size, dtype, "cpu")
    call = TorchEager().prepare(cell)(buffers)
    assert works.wrongness(work, buffers, call()) is None


def wrongness_of(peer: Peer, work: str, dtype: str, size: int = 1024) -> str | None:
    buffers = works.make_buffers(work, size, dtype, "cpu", copy=False)
    cell = replace(CELL, work=work, dtype=dtype, size=size)
    return works.wrongness(work, buffers, peer.prepare(cell)(buffers)())


@pytest.mark.parametrize("size", [1, 1023, 2**16])
@pytest.mark.parametrize("dtype", list(works.DTYPES))
@pytest.mark.parametrize("work", works.LOSS_WORKS)
def test_our_losses_pass_the_guard(work: str, dtype: str, size: int) -> None:
    assert wrongness_of(FusedSigmoid(), work, dtype, size) is None


def test_a_mean_s_gradient_is_judged_by_its_share_and_by_what_the_dtype_can_hold() -> None:
    for dtype in ("float32", "float16"):
        buffers = works.make_buffers("loss", 2**20, dtype, "cpu", copy=False)
        mean, gradient = FusedSigmoid().prepare(replace(CELL, work="loss"))(buffers)()
        assert works.wrongness("loss", buffers, (mean, gradient)) is None
        # Nothing at all, in place of a millionth at most.
        nothing = torch.zeros_like(gradient)
        assert "gradient is off by" in str(works.wrongness("loss", buffers, (mean, nothing)))


@pytest.mark.parametrize("work", works.LOSS_WORKS)
def test_a_loss_of_the_wrong_sign_is_refused(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_sigmoid.binary_cross_entropy_with_logits

    def negative(input, target, reduction="mean"):  # type: ignore[no-untyped-def]
        return -right(input, target, reduction=reduction)

    monkeypatch.setattr(fused_sigmoid, "binary_cross_entropy_with_logits", negative)
    assert "loss is off by" in str(wrongness_of(FusedSigmoid(), work, "float32"))
    result = runs.Result(machine={}, source={}, date="", command="")
    task = Task(replace(CELL, work=work), ("torch",))
    runs.run([task], runs.Patience(Effort(rounds=1)), result, show_progress=False)
    assert [(skip.peer, skip.reason[:20]) for skip in result.skips] == [
        (OURS, "wrong result: loss i")
    ]


@pytest.mark.parametrize("work", ["loss", "loss-none"])
def test_a_gradient_of_the_wrong_sign_is_refused(work: str) -> None:
    buffers = works.make_buffers(work, 1024, "float32", "cpu")
    loss, gradient = FusedSigmoid().prepare(replace(CELL, work=work))(buffers)()
    assert "gradient is off by" in str(works.wrongness(work, buffers, (loss, -gradient)))


def test_losses_are_judged_on_both_tails() -> None:
    x = torch.tensor([-40.0, 40.0, -40.0, 40.0], dtype=torch.float64)
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    small = 4.248354255291589e-18
    expected = torch.tensor([small, small, 40.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(works._losses(x, labels), expected, rtol=1e-15, atol=0)


def test_a_sigmoid_before_the_loss_is_a_peer_of_the_losses_alone() -> None:
    peer = PEERS["sigmoid+bce"]
    assert wrongness_of(peer, "loss", "float32", 2**16) is None
    # Where the sigmoid rounds to 1 the other label costs 100, and not the logit.
    assert "loss is off by" in str(wrongness_of(peer, "loss", "bfloat16", 2**16))
    with pytest.raises(CannotRunError, match="has no training"):
        peer.prepare(replace(CELL, work="training"))
    for other in ("scipy", "onnxruntime", "numexpr", "jax", "flag_gems"):
        with pytest.raises(CannotRunError):
            PEERS[other].prepare(replace(CELL, work="loss"))


@pytest.mark.parametrize("work", ["forward", "forward-fresh", "pair"])
@pytest.mark.parametrize("dtype", list(works.DTYPES))
@pytest.mark.parametrize("peer", ["scipy", "onnxruntime", "numexpr", "jax"])
def test_optional_peers_compute_a_sigmoid_or_say_why_not(peer: str, dtype: str, work: str) -> None:
    if PEERS[peer].package:
        pytest.importorskip(PEERS[peer].package)
    cell = replace(CELL, work=work, dtype=dtype)
    bind, reason = None, ""
    try:
        bind = PEERS[peer].prepare(cell)
    except CannotRunError as refusal:
        reason = str(refusal)
    if bind is None:
        assert f"has no {work}" in reason or dtype in reason
        return
    buffers = works.make_buffers(work, cell.size, dtype, "cpu")
    call = bind(buffers)
    assert works.wrongness(work, buffers, call()) is None
    if work == "forward":
        assert works.wrongness(work, buffers, buffers.value) is None
    buffers.input.add_(1)  # what was computed once must not be taken again
    assert works.wrongness(work, buffers, call()) is None


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("wrong", [0.5 + 1e-4, float("nan")])
def test_a_wrong_result_does_not(wrong: float, at: int) -> None:
    size = 3 * works.CHECKED_AT_EACH_END
    buffers = works.make_buffers("pair", size, "float32", "cpu")
    buffers.input[at] = 0.0
    value = torch.sigmoid(buffers.input)
    derivative = value * (1 - value)
    assert works.wrongness("pair", buffers, (value, derivative)) is None
    value[at] = wrong
    assert "value is off" in str(works.wrongness("pair", buffers, (value, derivative)))
    assert "float64" in str(works.wrongness("pair", buffers, (value.double(), derivative)))


def test_a_gradient_is_not_added_to_the_last_one() -> None:
    cell = replace(CELL, work="training")
    buffers = works.make_buffers("training", cell.size, "float32", "cpu")
    call = TorchEager().prepare(cell)(buffers)
    call()
    assert works.wrongness("training", buffers, call()) is None
    assert buffers.input.grad is None


def test_rotating_buffers_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.machine, "last_level_cache", lambda device: 40_000)
    assert len(runs._buffers(replace(CELL, cache="rotating"), True)) == 10  # of 8,192 bytes each
    assert len(runs._buffers(CELL, True)) == 1


def test_a_cell_that_does_not_fit_the_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.machine, "free_memory", lambda: 2**20)
    with pytest.raises(runs.CannotRunError, match=r"needs 1\.2 GiB, 0\.0 are free"):
        runs._buffers(replace(CELL, size=2**26), False)


def test_a_gpu_has_two_clocks_at_small_sizes() -> None:
    options = runs.Options("cuda", {"float32": (64, 1 << 20)}, ("forward",), (), (1,), "rotating")
    found = [(cell.size, cell.clock, cell.cache) for cell in runs.cells(options)]
    assert found == [
        (64, "device", "rotating"),
        (64, "wall", "warm"),
        (1 << 20, "device", "rotating"),
    ]


@pytest.mark.parametrize("layout", list(works.LAYOUTS))
@pytest.mark.parametrize("work", ["forward", "training"])
@pytest.mark.parametrize("size", [1, 6, 1000, 3 * works.CHECKED_AT_EACH_END])
def test_layouts_hold_as_many_elements_as_asked_for(layout: str, work: str, size: int) -> None:
    buffers = works.make_buffers(work, size, "float32", "cpu", layout)
    assert buffers.input.numel() == size
    assert buffers.input.is_contiguous() == (
        layout == "contiguous" or not works.is_distinct(layout, size)
    )
    cell = replace(CELL, work=work, size=size, layout=layout)
    result = TorchEager().prepare(cell)(buffers)()
    assert works.wrongness(work, buffers, result) is None
    result[(-1,) * result.dim()] += 1e-4
    assert "is off by" in str(works.wrongness(work, buffers, result))


def test_strides_are_those_of_the_names() -> None:
    strides = {
        layout: works.make_buffers("forward", 2**16, "float32", "cpu", layout).input.stride()
        for layout in works.LAYOUTS
    }
    assert strides == {
        "contiguous": (1,),
        "channels_last": (65536, 1, 2048, 64),
        "transposed": (1, 256),
        "chunk": (512, 1),
        "slice": (2,),
    }


def test_a_grid_has_no_cell_twice() -> None:
    options = runs.Options(
        "cpu",
        {"float32": (1, 64)},
        ("forward", "training"),
        (),
        (1,),
        "warm",
        tuple(works.LAYOUTS),
        ("auto", "input"),
    )
    found = [(c.size, c.work, c.layout, c.saved) for c in runs.cells(options)]
    assert len(set(found)) == len(found)
    # At one element every layout is the contiguous one; an image of one pixel is, too.
    assert [cell for cell in found if cell[0] == 1] == [
        (1, "forward", "contiguous", "auto"),
        (1, "training", "contiguous", "auto"),
        (1, "training", "contiguous", "input"),
    ]
    layouts = {layout for size, _, layout, _ in found if size == 64}
    assert layouts == {"contiguous", "transposed", "chunk", "slice"}


def test_page_faults_of_a_call_are_counted() -> None:
    def fresh() -> None:
        # Mapped anew, which what an allocator keeps of freed memory need not be.
        with mmap.mmap(-1, 1 << 22) as memory:
            memory.write(b"1" * len(memory))

    untouched = runs.PageFaults(wall_sampler([lambda: None]))
    touching = runs.PageFaults(wall_sampler([fresh]))
    for counted in (untouched, touching):
        counted.sampler.seconds(4)
    assert untouched.of_a_call() < 1
    assert touching.of_a_call() >= 1


# A sweep


def test_a_sweep_meets_every_range_of_sizes_early() -> None:
    cells = [replace(CELL, size=2**e, dtype=d) for e in range(27) for d in ("float32", "float64")]
    tasks = sweep.plan(cells)
    assert sorted(t.cell.size for t in tasks) == sorted(c.size for c in cells)
    exponents = [task.cell.size.bit_length() - 1 for task in tasks]
    assert exponents[:12] == [0, 0, 16, 16, 8, 8, 24, 24, 4, 4, 12, 12]


def test_a_sweep_shows_the_worst_first_and_calls_slower_what_three_quarters_of_rounds_say() -> None:
    def measured(size: int, ratio: float, third_quartile: float) -> Row:
        found = row("torch", 1.0, ratio, replace(CELL, size=size))
        return replace(found, ratio=Spread(ratio - 0.1, ratio, third_quartile))

    result = some_result()
    result.rows = [measured(4, 1.5, 1.6), measured(2, 0.9, 0.95), measured(8, 0.97, 1.01)]
    lines = sweep.terminal(result).splitlines()
    assert [line.split("]")[1].split("float32")[0].strip() for line in lines[2:5]] == [
        "slower",
        "as fast",
        "",
    ]
    assert lines[-1].startswith("1 of 3 slower than torch; 1 not measured")
    assert "0.90 [0.80, 0.95]" in sweep.markdown(result.rows).splitlines()[2]


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
        result = some_result()
        result.rows = []
        patience = runs.Patience(glance, doubtful_below, look)
        runs.run([Task(CELL, ("torch",))], patience, result, show_progress=False)
        assert [found.ratio.median for found in result.rows] == [ratio]
        assert efforts == ([glance, look] if ratio > 1 else [glance])


# Files


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    results.write(some_result(), tmp_path / "result.json")
    assert results.read(tmp_path / "result.json") == some_result()


def test_a_file_names_its_columns_once_and_what_all_rows_share(tmp_path: Path) -> None:
    results.write(some_result(), tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (stored["count"], len(stored["rows"])) == (4, 4)
    assert stored["in_every_row"]["dtype"] == "float32"
    first = dict(zip(stored["columns"], stored["rows"][1], strict=True))
    assert (first["peer"], first["size"], first["ratio median"]) == ("torch", 1024, 1.5)


def test_a_file_without_rows_and_one_with_a_row_too_few(tmp_path: Path) -> None:
    empty = replace(some_result(), rows=[], skips=[])
    results.write(empty, tmp_path / "result.json")
    assert results.read(tmp_path / "result.json") == empty
    results.write(some_result(), tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    document["rows"]["rows"].pop()
    (tmp_path / "result.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="3 rows where 4 were written"):
        results.read(tmp_path / "result.json")


def test_the_rows_are_a_table_too(tmp_path: Path) -> None:
    results.write_csv(some_result(), tmp_path / "result.csv")
    with (tmp_path / "result.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["peer"] for line in lines] == [COPY, "torch", COPY, "torch"]
    assert (lines[1]["dtype"], lines[1]["ratio median"]) == ("float32", "1.5")
    assert lines[3]["size"] == "1048576"


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema is 0; this version reads 2"):
        results.read(tmp_path / "result.json")


PAGE = """# Speed
before
<!-- figures:begin speed device=cpu threads=1 -->
stale
<!-- figures:end -->
after
<!-- figures:begin roofline -->
<!-- figures:end -->
<!-- figures:begin machine -->
<!-- figures:end -->
"""

FILLED = """# Speed
before
<!-- figures:begin speed device=cpu threads=1 -->
|   size |   ours |   torch |
|-------:|-------:|--------:|
|   1 Ki |   2 µs |    1.50 |
|   1 Mi |   2 ms |    2.50 |
<!-- figures:end -->
after
<!-- figures:begin roofline -->
|   size |   ours |   GB/s |   of copy_ |   of fastest size | binds               |
|-------:|-------:|-------:|-----------:|------------------:|:--------------------|
|   1 Ki |   2 µs |    4.1 |       50 % |              98 % | arithmetic in cache |
|   1 Mi |   2 ms | 0.0041 |       50 % |             100 % | arithmetic in cache |
<!-- figures:end -->
<!-- figures:begin machine -->
| device   | CPU capability   | versions     | commit       | date       | command           |
|:---------|:-----------------|:-------------|:-------------|:-----------|:------------------|
| A CPU    | AVX2             | torch 2.13.0 | 0123456789ab | 2026-01-02 | `python -m bench` |
<!-- figures:end -->
"""


def test_blocks_of_a_page_are_rewritten_and_a_stale_one_is_noticed(tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "result.json"
    results.write(some_result(), file)
    page.write_text(PAGE, encoding="utf-8")
    arguments = [str(file), "--write", str(page)]

    assert figures.main([*arguments, "--check"]) == 1
    assert page.read_text(encoding="utf-8") == PAGE
    assert figures.main(arguments) == 0
    assert page.read_text(encoding="utf-8") == FILLED
    assert figures.main([*arguments, "--check"]) == 0

    page.write_text(FILLED.replace("1.50", "1.75"), encoding="utf-8")
    assert figures.main([*arguments, "--check"]) == 1


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("sped", "no table 'sped'; accepted are machine, fresh-processes,"),
        ("speed colour=red", "'colour=red' is no filter; accepted are device=VALUE"),
        ("speed dtype=float64", "no row of the results matches"),
    ],
)
def test_a_marker_that_asks_for_what_is_not_there(marker: str, message: str) -> None:
    with pytest.raises(figures.BadBlockError, match=message.replace("[", r"\[")):
        figures.fill(f"<!-- figures:begin {marker} -->\n<!-- figures:end -->", [some_result()])


def test_a_block_may_be_of_one_kind_of_processor() -> None:
    other = some_result()
    other.machine = {**other.machine, "cpu_capability": "AVX512"}
    other.rows = [row("torch", 1.0, 7.0)]
    both = [some_result(), other]

    def filled(marker: str) -> str:
        begin = f"<!-- figures:begin {marker} -->\n"
        return figures.fill(f"{begin}<!-- figures:end -->", both).removeprefix(begin)

    assert ("1.50" in filled("speed capability=AVX2"), "7.00" in filled("speed")) == (True, True)
    assert "7.00" not in filled("speed capability=AVX2")
    assert "1.50" not in filled("speed capability=AVX512")
    assert "AVX512" in filled("machine")
    assert "AVX512" not in filled("machine capability=AVX2")
    assert "AVX2" not in filled("machine capability=AVX512")
    for marker in ("speed capability=SVE", "machine capability=SVE"):
        with pytest.raises(figures.BadBlockError, match="no row of the results matches"):
            filled(marker)
    with pytest.raises(
        figures.BadBlockError, match="only device, work, capability and cpu can be chosen"
    ):
        filled("machine dtype=float32")
    assert "AVX2" in filled("machine device=cpu")
    other.rows = [row("torch", 1.0, 7.0, replace(CELL, work="loss"))]
    assert "AVX512" not in filled("machine device=cpu work=forward,pair")
    assert "AVX2" not in filled("machine device=cpu work=loss")
    with pytest.raises(figures.BadBlockError, match="no row of the results matches"):
        filled("machine device=cuda")


def test_a_table_keeps_a_work_together_though_sizes_were_measured_in_turn() -> None:
    cells = [replace(CELL, size=size, work=work) for size in (1, 4) for work in ("pair", "forward")]
    table = report.markdown_speed([row("torch", 1.0, 2.0, cell) for cell in cells])
    found = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [(work.strip(), size.strip()) for work, size in found] == [
        ("pair", "1"),
        ("pair", "4"),
        ("forward", "1"),
        ("forward", "4"),
    ]


def test_a_marker_without_an_end() -> None:
    with pytest.raises(figures.BadBlockError, match="no figures:end"):
        figures.fill("<!-- figures:begin speed -->\n", [some_result()])


def test_pictures_are_drawn_from_the_file_alone(tmp_path: Path) -> None:
    results.write(some_result(), tmp_path / "result.json")
    assert figures.main([str(tmp_path / "result.json"), "--output", str(tmp_path / "drawn")]) == 0
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["speed-cpu-1-thread-float32.png", "time-cpu-1-thread-float32.png"]


def test_two_machines_get_pictures_of_their_own(tmp_path: Path) -> None:
    other = some_result()
    other.machine = {**other.machine, "cpu_capability": "AVX512"}
    drawn = figures.draw([some_result(), other], tmp_path)
    assert sorted(path.name for path in drawn) == [
        "speed-cpu-1-thread-a-cpu-avx2-float32.png",
        "speed-cpu-1-thread-a-cpu-avx512-float32.png",
        "time-cpu-1-thread-a-cpu-avx2-float32.png",
        "time-cpu-1-thread-a-cpu-avx512-float32.png",
    ]


def test_the_terminal_shows_rows_and_what_is_missing() -> None:
    text = report.terminal(some_result())
    assert "1.50 [1.50, 1.50]" in text
    assert "package flag_gems is not installed" in text


@pytest.mark.parametrize(
    ("size", "seconds", "of_copy", "faults", "binds"),
    [
        (1, 1e-6, 0.9, 0.0, "call overhead"),
        (2**10, 1.2e-6, 0.9, 0.0, "call overhead"),
        (2**16, 1.3e-5, 0.4, 0.0, "arithmetic in cache"),
        (2**20, 2.6e-4, 0.95, 0.0, "memory bandwidth"),
        (2**24, 8e-3, 0.95, 0.0, "memory bandwidth"),
        (2**24, 2e-2, 0.4, 4096.0, "page faults"),
        (2**24, 2e-2, 0.4, 0.0, "none alone"),
        (2**24, 2e-2, 0.4, None, "none of the measured"),
    ],
)
def test_what_binds_is_what_explains_the_time(
    size: int, seconds: float, of_copy: float, faults: float | None, binds: str
) -> None:
    def measured(size: int, seconds: float, of_copy: float, faults: float | None) -> Row:
        found = row(COPY, seconds, of_copy * seconds, replace(CELL, size=size))
        return replace(found, copy_fraction=of_copy, page_faults=faults)

    others = [measured(1, 1e-6, 0.9, 0.0), measured(2**16, 1.3e-5, 0.4, 0.0)]
    rows = [other for other in others if other.cell.size != size]
    rows.append(measured(size, seconds, of_copy, faults))
    assert roofline.shares(rows)[rows[-1].cell].binds == binds


def test_the_faster_of_two_copies_is_the_roofline() -> None:
    large = replace(CELL, size=2**24)
    copied = replace(row(COPY, 1e-2, 9e-3, large), copy_fraction=0.9)
    small = replace(row(COPY, 4e-7, 2e-7, CELL), copy_fraction=0.5)
    assert roofline.shares([small, copied])[large].binds == "memory bandwidth"
    streamed = row(STREAMED_COPY, 1e-2, 6e-3, large)
    share = roofline.shares([small, copied, streamed])[large]
    assert (share.memory, share.binds) == (0.6, "none of the measured")
    lines = report.markdown_roofline([small, copied, streamed]).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[4:6]] == [
        "of copy_",
        "of copy, non-temporal",
    ]
    shown = [[cell.strip() for cell in line.split("|")[4:6]] for line in lines[2:]]
    assert shown == [["50 %", ""], ["90 %", "60 %"]]
    assert "60 %" not in report.markdown_roofline([small, copied])
    assert report.markdown_speed([copied, streamed, row("torch", 1, 2, large)]).count("|") == 12


def test_two_results_are_compared_row_by_row_the_worst_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = some_result(), some_result()
    # The small rows twice as slow as they were, one large row faster, the other gone.
    after.rows = [row("torch", 4e-6, 3e-6), row("torch", 1e-3, 5e-3, before.rows[3].cell)]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for result, file in zip((before, after), files, strict=True):
        results.write(result, file)
    assert command_line.main(["--compare", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:-2]] == ["0.50", "2.00"]
    assert "1.50 [1.50, 1.50]" in lines[-4]
    assert "0.75 [0.75, 0.75]" in lines[-4]
    assert lines[-1] == "2 rows in both, 2 in A alone, 0 in B alone"


# Whole runs


@pytest.fixture
def torch_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's own behaviour, whatever state the library is in."""
    monkeypatch.setattr(FusedSigmoid, "prepare", lambda self, cell: TorchEager().prepare(cell))


@pytest.mark.usefixtures("torch_as_ours")
def test_the_copy_past_the_caches_is_for_large_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx2" not in extension.instruction_sets():
        pytest.skip("this device runs no AVX2")
    monkeypatch.setattr(StreamedCopy, "smallest_bytes", 4_000_000)
    arguments = [*SMALL_RUN, "--work", "forward", "--peers", STREAMED_COPY]
    arguments += ["--sizes", "1Ki", "1Mi", "--no-pictures", "--output", str(tmp_path)]
    assert command_line.main(arguments) == 0
    found = results.read(tmp_path / "result.json")
    assert [(r.cell.size, r.peer) for r in found.rows] == [
        (2**10, COPY),
        (2**20, COPY),
        (2**20, STREAMED_COPY),
    ]
    assert [(s.cell.size, s.peer) for s in found.skips] == [(2**10, STREAMED_COPY)]
    assert found.rows[1].copy_seconds == found.rows[2].copy_seconds


@pytest.mark.usefixtures("torch_as_ours")
def test_a_small_run_writes_rows_pictures_and_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_RUN, "--work", "forward", "training", "--peers", "torch", "flag_gems"]
    assert command_line.main([*arguments, "--output", str(tmp_path)]) == 0
    found = results.read(tmp_path / "result.json")
    assert [(r.cell.work, r.peer) for r in found.rows] == [
        ("forward", COPY),
        ("forward", "torch"),
        ("training", COPY),
        ("training", "torch"),
    ]
    assert all(r.ratio.median > 0 and r.copy_fraction for r in found.rows)
    assert {(s.cell.work, s.peer) for s in found.skips} == {
        ("forward", "flag_gems"),
        ("training", "flag_gems"),
    }
    assert str(tmp_path) not in found.command
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".png", ".png"]
    assert "flag_gems" in capsys.readouterr().out


def test_a_small_run_of_the_library_itself(tmp_path: Path) -> None:
    arguments = [*SMALL_RUN, "--peers", "torch", "--no-pictures", "--output", str(tmp_path)]
    assert command_line.main(arguments) == 0
    found = results.read(tmp_path / "result.json")
    assert [r.cell.work for r in found.rows if r.peer == "torch"] == list(works.DEFAULT_WORKS)
    assert not found.skips


@pytest.mark.usefixtures("torch_as_ours")
def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cell: Cell) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PEERS["scipy"], "prepare", interrupted)
    arguments = [*SMALL_RUN, "--work", "forward", "--peers", "torch", "scipy", "--no-pictures"]
    assert command_line.main([*arguments, "--output", str(tmp_path)]) == 130
    found = results.read(tmp_path / "result.json")
    assert found.interrupted
    assert [r.peer for r in found.rows] == [COPY, "torch"]


def test_a_wrong_result_of_ours_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tanh(self: FusedSigmoid, cell: Cell):  # type: ignore[no-untyped-def]
        return lambda buffers: lambda: torch.tanh(buffers.input)

    monkeypatch.setattr(FusedSigmoid, "prepare", tanh)
    arguments = [*SMALL_RUN, "--work", "forward", "--peers", "torch", "--output", str(tmp_path)]
    assert command_line.main(arguments) == 1
    found = results.read(tmp_path / "result.json")
    assert not found.rows
    assert [(s.peer, s.reason[:12]) for s in found.skips] == [(OURS, "wrong result")]


@pytest.mark.usefixtures("torch_as_ours")
def test_a_peer_that_fails_is_listed_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(cell: Cell) -> None:
        raise RuntimeError("no such symbol\nmore of it")

    monkeypatch.setattr(PEERS["torch"], "prepare", broken)
    arguments = [*SMALL_RUN, "--work", "forward", "--peers", "torch", "--no-pictures"]
    assert command_line.main([*arguments, "--output", str(tmp_path)]) == 0
    found = results.read(tmp_path / "result.json")
    assert [r.peer for r in found.rows] == [COPY]
    assert [s.reason for s in found.skips] == ["RuntimeError: no such symbol"]


@pytest.mark.usefixtures("torch_as_ours")
def test_a_sweep_that_hit_its_limit_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_RUN, "--sweep", "--work", "forward", "--layouts", "contiguous", "slice"]
    assert command_line.main([*arguments, "--time-limit", "1e-9", "--output", str(tmp_path)]) == 0
    file = tmp_path / "sweep.json"
    assert [skip.cell.layout for skip in results.read(file).skips] == ["contiguous", "slice"]
    assert command_line.main([*arguments, "--resume", str(file)]) == 0
    found = results.read(file)
    assert [(r.cell.layout, r.peer) for r in found.rows] == [
        ("contiguous", "torch"),
        ("slice", "torch"),
    ]
    assert not found.skips
    measured = found.rows
    assert command_line.main([*arguments, "--resume", str(file)]) == 0
    assert results.read(file).rows == measured  # nothing was left to do

    monkeypatch.setattr(command_line.machine, "commit", lambda: {"commit": "other", "dirty": False})
    with pytest.raises(SystemExit):
        command_line.main([*arguments, "--resume", str(file)])
    assert "other" in capsys.readouterr().err


@pytest.mark.usefixtures("torch_as_ours")
def test_goals_of_some_works_do_not_take_the_place_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_RUN, "--goals", "--peers", "torch", "--output", str(tmp_path)]
    arguments += ["--sizes", "1", "--works"]
    assert command_line.main([*arguments, "loss", "training"]) == 0
    file = tmp_path / "goals.json"
    everything = file.read_bytes()
    assert {r.cell.work for r in results.read(file).rows} == {"loss", "training"}
    with pytest.raises(SystemExit):
        command_line.main([*arguments, "loss"])
    assert "holds 2 rows that this run does not measure" in capsys.readouterr().err
    assert file.read_bytes() == everything
    # More takes its place, and so does the same anew.
    assert command_line.main([*arguments, "loss", "training", "bce"]) == 0
    assert {r.cell.work for r in results.read(file).rows} == {"loss", "training", "bce"}


def test_a_process_of_its_own_has_its_settings_and_measures_ours_too(tmp_path: Path) -> None:
    if "avx2" not in extension.instruction_sets():
        pytest.skip("this CPU runs no AVX2")
    arguments = [*SMALL_RUN, "--work", "forward", "--peers", "torch+avx2", "--no-pictures"]
    assert command_line.main([*arguments, "--output", str(tmp_path)]) == 0
    found = results.read(tmp_path / "result.json")
    (alone,) = [r for r in found.rows if r.peer == "torch+avx2"]
    assert alone.ratio.median > 0
    assert "ATEN_CPU_CAPABILITY=avx2 FUSED_SIGMOID_CPU=avx2" in alone.process


@pytest.mark.usefixtures("torch_as_ours")
def test_rows_past_the_time_limit_are_listed(tmp_path: Path) -> None:
    arguments = [*SMALL_RUN, "--work", "forward", "--time-limit", "1e-9", "--peers", "torch"]
    assert command_line.main([*arguments, "--output", str(tmp_path)]) == 0
    found = results.read(tmp_path / "result.json")
    assert not found.rows
    assert {s.reason for s in found.skips} == {"the time limit of 1e-09 s"}


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        (["--dtypes", "float31"], "bfloat16"),
        (["--work", "no-such-work"], "training"),
        (["--peers", "numpy"], "onnxruntime"),
        (["--device", "tpu"], "cuda"),
        (["--sizes", "64K"], "64Ki"),
        (["--threads", "0"], "whole numbers from 1"),
    ],
)
def test_a_bad_name_is_answered_with_the_accepted_ones(
    arguments: list[str],
    accepted: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A name that is taken must not start the full benchmark.
    monkeypatch.setattr(runs, "run", lambda *rest, **named: pytest.fail(f"{arguments} was run"))
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert accepted in capsys.readouterr().err.partition("error:")[2]


def test_what_override_costs_is_measured_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(override, "RECORD", tmp_path / "override.json")
    monkeypatch.setattr(override, "ROUNDS", 1)
    x = torch.ones(1)
    works = {"x.shape": lambda: x.shape, "torch.sigmoid(x)": lambda: torch.sigmoid(x)}
    monkeypatch.setattr(override, "works", lambda: works)
    assert override.main(["--write"]) == 0
    stored = json.loads((tmp_path / "override.json").read_text(encoding="utf-8"))
    assert list(stored["seconds_a_call"]) == ["x.shape", "torch.sigmoid(x)"]
    for found in stored["seconds_a_call"].values():
        assert all(value > 0 for value in found.values())
    assert stored["seconds_a_call"]["x.shape"]["inside / without"] > 1
    assert "torch.sigmoid(x)" in override.markdown()


def test_memory_of_a_loss_is_counted_in_tensors() -> None:
    def twice() -> None:
        held = [torch.empty(1000), torch.empty(10)]
        held.pop()
        torch.empty(500)

    assert loss_memory.allocations(twice) == [4000, 40, -40, 2000, -2000, -4000]
    rows = loss_memory.measure(sizes=(2**14,))
    assert len(rows) == 4
    for found in rows:
        # The gradient, which the backward pass returns; with it each loss, where there are any.
        assert found.ours_kept == found.tensor_bytes
        assert found.ours_peak <= found.torch_peak
        if found.reduction == "mean":
            assert found.ours_peak < 1.1 * found.tensor_bytes < found.torch_peak
    lines = loss_memory.table(rows, "pipe").splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:5]] == [
        *("float32", "mean", "16 Ki", "1.00"),
    ]


def test_page_of_releases_holds_the_committed_outcomes() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    outcomes, page = docs / "figures/compatibility.json", docs / "compatibility.md"
    assert compatibility.main([str(outcomes), "--write", str(page), "--check"]) == 0


def test_pages_hold_the_committed_results() -> None:
    root = Path(__file__).resolve().parent.parent
    names = ("result", "goals", "sweep")
    found = sorted(str(p) for name in names for p in root.glob(f"bench/results/*/{name}.json"))
    found = [path for path in found if "/quick/" not in path]
    filled = ("README.md", "docs/performance.md", "docs/gpu.md", "docs/company.md")
    pages = [str(root / name) for name in filled]
    assert figures.main([*found, "--write", *pages, "--check"]) == 0


def fresh_row(*ours: float, allocator: str = "glibc", work: str = "pair") -> fresh_processes.Row:
    def processes(seconds: tuple[float, ...], page_faults: float) -> list[dict[str, float]]:
        return [{"seconds": one, "page_faults": page_faults} for one in seconds]

    return {
        "allocator": allocator,
        "work": work,
        "elements": 2**18,
        "threads": 2,
        "ours": processes(ours, 0.0),
        "torch": processes((1.0, 1.2, 0.9)[: len(ours)], 480.0),
    }


def test_a_slow_process_misses_the_goal_whatever_the_median() -> None:
    noise = fresh_processes.NOISE
    fast, slow = fresh_row(0.5, 0.5, 1 + noise), fresh_row(0.5, 0.5, 1.01 + noise)
    assert fresh_processes.is_met(fast)
    assert not fresh_processes.is_met(slow)
    # Torch's second process was slow, and so was the machine, it seems; its third was not.
    assert fresh_processes.is_met(fresh_row(0.5, 1.2 + noise, 0.5))
    assert not fresh_processes.is_met(fresh_row(0.5, 0.5, 1.2 + noise))
    other = fresh_row(2.0, allocator="jemalloc")
    head, _, line = fresh_processes.table([slow, other], "pipe").splitlines()
    assert [cell.strip() for cell in head.split("|")[4:6]] == ["glibc", "jemalloc"]
    cells = [cell.strip() for cell in line.split("|")[1:6]]
    assert cells[:3] == ["pair", "256 Ki", "2"]
    assert cells[3:] == ["2.00, 2 of 3, 0 / 480", "0.50, 0 of 1, 0 / 480"]


@pytest.mark.parametrize(("seconds", "status"), [(0.5, 0), (1.5, 1)])
def test_fresh_processes_are_kept_by_allocator_and_judged(
    seconds: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_processes, "RECORD", tmp_path / "fresh_processes.json")

    def measured(allocator: str, processes: int) -> list[fresh_processes.Row]:
        return [fresh_row(*[seconds] * processes, allocator=allocator)]

    monkeypatch.setattr(fresh_processes, "measure", measured)
    assert fresh_processes.main(["--allocators", "mimalloc", "--processes", "2"]) == status
    assert fresh_processes.main(["--processes", "3"]) == status
    filled = figures.fill("<!-- figures:begin fresh-processes -->\n<!-- figures:end -->\n", [])
    assert filled.index("glibc") < filled.index("mimalloc")
    assert filled.index("of 3, 0 / 480") < filled.index("of 2, 0 / 480")


@pytest.mark.parametrize("work", fresh_processes.WORKS)
@pytest.mark.parametrize("side", ["ours", "torch"])
def test_a_work_alone_in_a_process(side: str, work: str) -> None:
    row = {"allocator": "glibc", "work": work, "elements": 64, "threads": 1}
    found = fresh_processes._in_a_process(row, side)
    assert found["seconds"] > 0
    assert found["page_faults"] >= 0


def test_an_allocator_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fresh_processes.ALLOCATORS, "jemalloc", "libof_nobody.so")
    row = {"allocator": "jemalloc", "work": "pair", "elements": 64, "threads": 1}
    with pytest.raises(RuntimeError, match="libof_nobody"):
        fresh_processes._in_a_process(row, "torch")


def test_torch_is_alone_in_its_process() -> None:
    program = "import sys; from bench import alone; alone.call_of('torch', 'pair', 9)();"
    program += "sys.exit('fused_sigmoid' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=fresh_processes.ROOT, check=True)


def test_calls_are_warmed_up_then_counted() -> None:
    calls: list[None] = []
    alone.measure(lambda: calls.append(None))
    assert len(calls) > alone.WARM_UP_CALLS + alone.LEAST_CALLS
