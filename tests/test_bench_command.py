"""``python -m bench`` as a person uses it: what a run leaves, what it refuses before it measures,
and what it prints where."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as command_line
from bench import machine, peers, results, runs, works
from bench.peers import PEERS
from bench.results import COPY, OURS, STREAMED_COPY, Cell, Result
from fused_sigmoid._extension import extension

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--device", "cpu", "--sizes", "64", "--dtypes", "float32", "--threads", "1"),
    *("--rounds", "2", "--minimum-rounds", "1", "--sample-seconds", "1e-5", "--no-progress"),
]
FORWARD = [*SMALL, "--work", "forward", "--peers", "torch"]
needs_avx2 = pytest.mark.skipif(
    "avx2" not in extension.instruction_sets(), reason="this device runs no AVX2"
)


def found(arguments: Sequence[str], folder: Path, status: int = 0) -> Result:
    assert command_line.main([*arguments, "--output", str(folder)]) == status
    (file,) = (path for path in folder.iterdir() if path.suffix in (".json", ".gz"))
    return results.read(file)


def is_refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        command_line.main([*map(str, arguments)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives a peer other properties."""

    def changed(name: str, **fields: object) -> None:
        monkeypatch.setitem(PEERS, name, replace(PEERS[name], **fields))  # type: ignore[arg-type]

    return changed


# What a run leaves


def test_a_small_run_of_the_library_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's here"
    result = found([*SMALL, "--peers", "torch", "flag_gems"], folder)
    wanted = [(work, peer) for work in works.DEFAULT_WORKS for peer in (COPY, "torch")]
    assert [(r.cell.work, r.peer) for r in result.rows] == wanted
    assert all(r.ratio.median > 0 and r.copy_fraction for r in result.rows)
    assert [(s.cell.work, s.peer) for s in result.skips] == [
        (work, "flag_gems") for work in works.DEFAULT_WORKS
    ]
    assert result.command == shlex.join(
        ["python", "-m", "bench", *SMALL, "--peers", "torch", "flag_gems"]
    )
    assert [path.name for path in folder.iterdir()] == ["grid.json"]
    shown = capsys.readouterr().out
    assert "flag_gems" in shown
    assert f"wrote {folder / 'grid.json'}\n12 rows" in shown


@needs_avx2
def test_the_copy_past_the_caches_is_for_large_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LEAST_STREAMED_BYTES", 4_000_000)
    arguments = [*FORWARD[:-1], STREAMED_COPY, "--sizes", "1Ki", "1Mi"]
    result = found(arguments, tmp_path)
    assert [(r.cell.size, r.peer) for r in result.rows] == [
        *((2**10, COPY), (2**20, COPY), (2**20, STREAMED_COPY)),
    ]
    assert [(s.cell.size, s.peer) for s in result.skips] == [(2**10, STREAMED_COPY)]
    assert result.rows[1].copy_seconds == result.rows[2].copy_seconds


@needs_avx2
def test_a_process_of_its_own_has_its_settings_and_measures_ours_too(tmp_path: Path) -> None:
    result = found([*FORWARD, "torch+avx2"], tmp_path)
    (alone,) = (r for r in result.rows if r.peer == "torch+avx2")
    assert alone.ratio.median > 0
    assert "ATEN_CPU_CAPABILITY=avx2 FUSED_SIGMOID_CPU=avx2" in alone.process
    assert not any(name in os.environ for name in PEERS["torch+avx2"].environment)


def test_a_process_of_its_own_that_dies_is_a_reason(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    change("torch+avx2", environment={"PYTHONHOME": "/nowhere"}, other_refusal=lambda cell: None)
    result = found([*FORWARD, "torch+avx2"], tmp_path)
    assert [r.peer for r in result.rows] == [COPY, "torch"]
    assert [s.peer for s in result.skips] == ["torch+avx2"]
    assert "BrokenProcessPool" in result.skips[0].reason


def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    def interrupted(cell: Cell) -> None:
        raise KeyboardInterrupt

    change("scipy", bind=interrupted, package=None)
    result = found([*FORWARD, "scipy"], tmp_path, 130)
    assert result.interrupted
    assert [r.peer for r in result.rows] == [COPY, "torch"]


def test_a_wrong_result_of_ours_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(runs.FUSED_SIGMOID, bind=lambda cell: lambda of: lambda: torch.tanh(of.input))
    monkeypatch.setattr(runs, "FUSED_SIGMOID", wrong)
    result = found(FORWARD, tmp_path, 1)
    assert not result.rows
    assert [(s.peer, s.reason[:12]) for s in result.skips] == [(OURS, "wrong result")]


def test_a_peer_that_fails_is_listed_and_the_rest_goes_on(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    def broken(cell: Cell) -> None:
        raise RuntimeError("no such symbol\nmore of it")

    change("scipy", bind=broken, package=None)
    result = found([*FORWARD, "scipy"], tmp_path)
    assert [r.peer for r in result.rows] == [COPY, "torch"]
    assert [s.reason for s in result.skips] == ["RuntimeError: no such symbol"]


def test_a_sweep_that_hit_its_limit_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "--sweep", "--work", "forward", "--layouts", "contiguous", "slice"]
    limited = found([*arguments, "--time-limit", "1e-9"], tmp_path)
    assert [skip.cell.layout for skip in limited.skips] == ["contiguous", "slice"]
    assert {skip.reason for skip in limited.skips} == {"the time limit of 1e-09 s"}
    file = tmp_path / "sweep.json.gz"
    assert command_line.main([*arguments, "--resume", str(file)]) == 0
    resumed = results.read(file)
    assert [(r.cell.layout, r.peer) for r in resumed.rows] == [
        *(("contiguous", "torch"), ("slice", "torch")),
    ]
    assert not resumed.skips
    assert command_line.main([*arguments, "--resume", str(file)]) == 0
    assert results.read(file).rows == resumed.rows  # nothing was left to do

    monkeypatch.setattr(machine, "commit", lambda: {"commit": "other", "dirty": False})
    assert "has source" in is_refused([*arguments, "--resume", file], capsys)


def test_no_result_takes_the_place_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even the same anew: that may be interrupted."""
    arguments = [*SMALL, "--goals", "--peers", "torch", "--sizes", "1", "--works", "loss"]
    assert len(found(arguments, tmp_path).rows) == 2  # of torch and of the copy
    before = (tmp_path / "goals.json").read_bytes()
    line = is_refused([*arguments, "--output", tmp_path], capsys)
    assert "goals.json is there; name another folder, or --resume FILE" in line
    assert (tmp_path / "goals.json").read_bytes() == before


def test_no_time_at_all_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    assert command_line.main([*FORWARD, "--time-limit", "0", "--output", str(folder)]) == 0
    assert "2 rows; a time limit of 0 measures none" in capsys.readouterr().out
    assert not folder.exists()


# What it refuses


@pytest.fixture
def never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that is taken must not start the full benchmark."""
    monkeypatch.setattr(runs.Run, "measure", lambda *rest: pytest.fail("it ran"))


@pytest.mark.usefixtures("never_runs")
@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        *(("--dtypes", "float31", "bfloat16"), ("--work", "no-such-work", "training")),
        *(("--peers", "numpy", "onnxruntime"), ("--layouts", "row", "channels_last")),
        *(("--device", "tpu", "cuda"), ("--saved", "all", "derivative")),
        *(("--sizes", "64K", "64Ki"), ("--sizes", "0", "64Ki"), ("--cache", "cold", "rotating")),
        *(("--threads", "0", "whole numbers from 1"), ("--threads", "9999", "CPUs")),
        *(("--rounds", "1.5", "whole numbers"), ("--row-seconds", "0", "above 0")),
        *(("--time-limit", "nan", "seconds"), ("--sample-seconds", "-1", "seconds")),
        *(("--resume", "/no/such/file", "No such file"), ("--resume", "/", "Is a directory")),
        *(("--resume", __file__, "is no result"), ("--output", "/proc/none", "cannot write")),
        ("--output", __file__, "cannot write"),
    ],
)
def test_a_bad_argument_is_answered_in_a_line_with_what_is_accepted(
    option: str, value: str, accepted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = is_refused([*SMALL, f"{option}={value}"], capsys)
    assert line.startswith("python -m bench: error: argument ")
    assert option in line
    assert accepted in line


@pytest.mark.usefixtures("never_runs")
@pytest.mark.parametrize(
    "text",
    *[["", "[]", "{}", '{"schema": 2}', '{"schema": 3}', '{"schema": 3, "rows": 1, "skips": []}']],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_file_that_is_no_result_is_refused(
    text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    line = is_refused(["--compare", tmp_path / name, tmp_path / name], capsys)
    assert f"argument --compare: {tmp_path / name} is no result of this benchmark" in line


# As a program


def program(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Of bash, in which $BENCH is the command."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"PYTHONPATH": str(ROOT), "BENCH": f"{sys.executable} -m bench", **variables}
    shell = ("bash", "-c", command)
    return subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    result = results.read(next(results.FOLDER.glob("*/goals.json")))
    # More than a pipe holds, whoever runs first.
    rows = [
        replace(row, cell=replace(row.cell, size=row.cell.size + 64 * more))
        for row in result.rows
        for more in range(20)
    ]
    results.write(replace(result, rows=rows), file)
    for arguments, status in ((f"--compare {file} {file}", 141), ("--help", 0)):
        done = program(f"$BENCH {arguments} | head -1; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (status, "")
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_ascii_is_enough(variables: dict[str, str]) -> None:
    file = next(results.FOLDER.glob("*/goals.json"))
    assert "µs" in program(f"$BENCH --compare {file} {file}", PYTHONUTF8="1").stdout
    done = program(f"$BENCH --compare {file} {file}", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert " us " in done.stdout


@pytest.mark.parametrize("missing", ["torch", "pandas", "tabulate", "tqdm"])
def test_help_needs_nothing_and_a_run_says_what_to_install(missing: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {missing!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    path = f"{tmp_path}:{ROOT}"
    shown = program("$BENCH --help", PYTHONPATH=path)
    assert (shown.returncode, shown.stderr) == (0, "")
    for name in (*works.WORKS, *PEERS, "--resume", "transposed"):
        assert name in shown.stdout
    done = program("$BENCH --quick", PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"python -m bench: error: {missing} is not installed ({missing}): pip install -e '.[bench]'"
    ]


def test_outside_of_a_checkout_it_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    for file in (ROOT / "bench").glob("*.py"):
        (tmp_path / "bench" / file.name).write_bytes(file.read_bytes())
    done = program(f"cd {tmp_path} && $BENCH --quick", PYTHONPATH=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "checkout of fused_sigmoid" in done.stderr
