"""``python -m fused_sigmoid check`` measures what is there, and notices each kind of fault."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import fused_sigmoid
from fused_sigmoid import __main__ as command_line
from fused_sigmoid import binary_cross_entropy as losses
from fused_sigmoid import check
from fused_sigmoid._extension import extension
from fused_sigmoid.check import figures, inputs, reference, report, sweep
from fused_sigmoid.functions import sigmoid as sigmoids

PACKAGE_PARENT = Path(fused_sigmoid.__file__).parent.parent
COARSE = check.Extent(float32_step=5_000_011, float64_inputs=700)

SETS = extension.instruction_sets()
OF_FLOATS = ("value", "derivative", "gradient")
OF_HALVES = (*OF_FLOATS, "gradient, saved=derivative", "gradient, saved=input")
OF_SECOND_ORDER = tuple(
    f"second derivative, saved={saved}" for saved in ("derivative", "input", "auto")
)
OF_LOSS = ("loss, t=0", "loss, t=1", "loss gradient, t=0", "loss gradient, t=1")
LOSS_0, LOSS_1, LOSS_GRADIENT_0, LOSS_GRADIENT_1 = OF_LOSS
# Where torch subtracts a number near 1 from 1, or one near x from x.
CANCELLING = (*OF_HALVES[1:], LOSS_0, LOSS_GRADIENT_1)
FLOATS, HALVES = ("float32", "float64"), ("float16", "bfloat16")
QUANTITIES = {
    "float16": OF_HALVES + OF_LOSS,
    "bfloat16": OF_HALVES + OF_LOSS,
    "float32": OF_FLOATS + OF_LOSS,
    "float64": OF_FLOATS + OF_LOSS + OF_SECOND_ORDER,
}


@pytest.fixture(autouse=True)
def _cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_PARENT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


# The command.


def test_command(tmp_path: Path) -> None:
    file = tmp_path / "new" / "check.json"
    process = run_python("-m", "fused_sigmoid", "check", "--all", "--json", str(file))
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    lines = process.stdout.splitlines()
    assert max(map(len, lines)) <= 132

    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["schema"], written["passed"], written["full"]) == (1, True, False)
    assert written["missed"] == []
    assert written["extent"] == {"float32_step": 1021, "float64_inputs": 200_000, "seed": 0}
    versions = {"fused_sigmoid": fused_sigmoid.__version__, "torch": metadata.version("torch")}
    assert versions.items() <= written["versions"].items()
    assert {"numpy", "python"} < set(written["versions"])
    machine = written["machine"]
    assert (machine["threads"] >= 1, machine["instruction_sets"]) == (True, list(SETS))
    assert written["date"]
    assert sum(written["seconds"].values()) > 0
    results = sum(row["inputs"] for row in written["rows"])
    on = f"{machine['cpu']} ({', '.join(SETS)})"
    assert lines[0].startswith(f"All bounds hold: {results:,} results checked on {on} in ")
    assert sum("  cpu " in line for line in lines) == len(written["rows"])

    rows = {(row["kernels"], row["dtype"], row["quantity"]): row for row in written["rows"]}
    assert len(rows) == len(written["rows"])
    of_each = [(dtype, quantity) for dtype, names in QUANTITIES.items() for quantity in names]
    assert set(rows) == {(name, *key) for name in SETS for key in of_each}
    for (_, dtype, quantity), row in rows.items():
        assert (row["device"], row["passed"]) == ("cpu", True)
        measured = row["figures"]
        error = measured["error"]
        assert "misplaced_nan" in measured
        if dtype in HALVES:
            assert row["inputs"] == 2**16
            assert 0.49 < error["ours"] <= 0.5
            assert (measured["misrounded"]["ours"], measured["misrounded"]["bound"]) == (0, 0)
        else:
            assert 0 < error["ours"] <= error["bound"]
            assert error["at"] is not None
        if dtype == "float32":
            assert row["inputs"] > 2**32 / 1021
        if quantity in CANCELLING:
            assert error["torch"] > 200
            zeroed = measured["zeroed"]
            assert zeroed.pop("torch") > 100
            others = {"at": None, "torch_at": None, "passed": True}
            assert zeroed == {"ours": 0, "bound": 0} | others


def test_a_file_is_refused_first_or_stays_as_it_was_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(extent: check.Extent, device: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupt)
    old, new, link = (tmp_path / name for name in ("old.json", "new.json", "link"))
    old.write_text("before", encoding="utf-8")
    link.symlink_to(new)
    for file in (old, new, link):
        assert command_line.main(["check", "--json", str(file)]) == 130
    assert (old.read_text(encoding="utf-8"), link.is_symlink()) == ("before", True)
    assert not new.exists()
    capsys.readouterr()
    for file in (tmp_path, old / "check.json"):
        with pytest.raises(SystemExit) as exit:
            command_line.main(["check", "--json", str(file)])
        (line,) = capsys.readouterr().err.splitlines()
        assert exit.value.code == 2
        assert f"argument --json: {str(file)!r} cannot be written: " in line


@pytest.mark.parametrize("names", [["mpmath"], ["numpy", "tabulate", "tqdm"]])
def test_missing_dependency(names: list[str]) -> None:
    # Imported before, so that it is only the check that misses it.
    code = (
        "import sys, fused_sigmoid.__main__ as command_line;"
        f"sys.modules |= dict.fromkeys({names});"
        "command_line.main(['info']); command_line.main(['check'])"
    )
    process = run_python("-c", code)
    assert process.returncode == 2
    assert process.stdout.startswith("fused_sigmoid")
    (line,) = process.stderr.splitlines()
    assert f"not installed: {', '.join(names)}; pip install 'fused_sigmoid[check]'" in line


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(input: Tensor, **arguments: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(sigmoids, "sigmoid", interrupt)
    before, threads = extension.instruction_set(), torch.get_num_threads()
    extension.select_instruction_set(SETS[-1])
    try:
        assert command_line.main(["check"]) == 130
        assert extension.instruction_set() == SETS[-1]
    finally:
        extension.select_instruction_set(before)
    assert torch.get_num_threads() == threads
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["interrupted; nothing is reported"]


# The text, of rows made up.


def a_row(quantity: str, *error: float | None, **others: Any) -> report.Row:
    """``error``: ours, its bound, where, torch's; ``others``: further figures, or the dtype."""
    kernels, dtype = others.pop("kernels", "avx2"), others.pop("dtype", "float32")
    found = {"error": report.Figure(*error)} | others
    return report.Row("cpu", kernels, dtype, quantity, 1000, "float64", "ulp", found)


def a_report(rows: Iterable[report.Row]) -> report.Report:
    machine = {"cpu": "a CPU", "cuda": []}
    return report.Report(False, {}, "", {}, machine, list(rows), {"all": 1.2})


ROWS = [
    *[
        a_row(
            "value", 0.5, None, -1, 24.25, dtype="float16", misrounded=report.Figure(0, 0, None, 8)
        )
    ],
    *[a_row(name, 2.5, 2.9, -4.0, 1.68e7) for name in OF_HALVES[1:]],
    a_row("derivative", 2.5, 2.9, 4.0, 1.68e7, kernels="default"),
    a_row(
        *("value", 1.1, 2.2, 3.5, 2.1e6),
        zeroed=report.Figure(0, 0, None, 30_000_000),
        misrounded=report.Figure(12, None, None, 40),  # which float32 may have
    ),
    *[a_row(f"loss {n}", 1, n, 0.5, 9) for n in range(3, 9)],
]
TEXT = """\
All bounds hold: 13,000 results checked on a CPU (avx2, default) in 1 s.

dtype    quantity                largest error    bound    torch's  kernels              at x
-------  --------------------  ---------------  -------  ---------  -----------------  ------
float32  derivative; gradient            2.500  2.9 ulp   1.68e+07  cpu avx2, default      -4
float32  value                           1.100  2.2 ulp    2.1e+06  cpu avx2              3.5
float32  loss 3                          1.000    3 ulp      9.000  cpu avx2              0.5
float32  loss 4                          1.000    4 ulp      9.000  cpu avx2              0.5
float32  loss 5                          1.000    5 ulp      9.000  cpu avx2              0.5
float32  loss 6                          1.000    6 ulp      9.000  cpu avx2              0.5

Zero where that is not right: 0 of ours, 30,000,000 of torch's.
Not the nearest number, in 16 bits: 0 of ours, 8 of torch's.

--all shows every row; --full checks all of float32."""


def test_the_worst_rows() -> None:
    assert report.text(a_report(ROWS)) == TEXT


def test_missed_bounds_are_named_and_come_first() -> None:
    names = {"misrounded": 3, "special_values": 1, "zeroed": 2}
    broken = {name: report.Figure(count, 0) for name, count in names.items()}
    of_half = a_row("value", 0.5, None, -1, 24.25, dtype="float16", **broken)
    of_float = a_row("loss, t=0", math.inf, 2.5, 1.0, 1.5)
    verdict, table, sums, _ = report.text(a_report([*ROWS, of_half, of_float])).split("\n\n")
    assert verdict == (
        "4 bounds do not hold: float16 value: misrounded (cpu avx2); float16 value: special values "
        "(cpu avx2); float16 value: zeroed (cpu avx2); and 1 more. "
        "15,000 results checked on a CPU (avx2, default) in 1 s."
    )
    lines = [" ".join(line.split()) for line in table.splitlines()[2:5]]
    assert lines[0] == "float32 loss, t=0 inf 2.5 ulp 1.500 cpu avx2 1 error"
    assert lines[1].endswith("24.250 cpu avx2 -1 misrounded 3, special values 1, zeroed 2")
    assert "derivative; gradient" in lines[2]
    assert [line.split(": ")[1].split()[0] for line in sums.splitlines()] == ["2", "3"]


@pytest.mark.parametrize("every", [False, True])
def test_columns_that_do_not_fit_are_left_out(every: bool) -> None:
    heads = []
    for width in (1000, 80, 66):
        lines = report.text(a_report(ROWS), every, width).splitlines()
        assert max(map(len, lines)) <= width
        heads.append([line for line in lines if "torch's" in line and "bound" in line][-1])
    left_out = {"at x", "zeroed" if every else "kernels"}
    assert all(name in heads[0] and name not in heads[-1] for name in left_out)
    assert "kernels" in heads[1] or not every


def test_every_row() -> None:
    text = report.text(a_report(ROWS), every=True)
    assert text.startswith("All bounds hold")
    assert "\n\nfloat16: 1,000 inputs against float64\nquantity" in text
    assert sum("  cpu " in line for line in text.splitlines()) == len(ROWS)
    assert "0 / 3e+07" in text


# A run, and what it notices. Each fault changes results of the functions under test.

Rows = dict[tuple[str, str, str], report.Row]
Change = Callable[[Tensor, Tensor], Tensor]
Where = set[tuple[str, str]]


def coarse_rows() -> Rows:
    found = check.run(COARSE)
    return {(row.kernels, row.dtype, row.quantity): row for row in found.rows}


@pytest.fixture(scope="module")
def sound() -> Rows:
    return coarse_rows()


def same(x: Tensor, result: Tensor) -> Tensor:
    return result


def flush(x: Tensor, result: Tensor) -> Tensor:
    return torch.where(result.abs() < torch.finfo(x.dtype).smallest_normal, 0, result)


def up(count: int) -> Callable[[Tensor], Tensor]:
    """So many numbers further from 0."""
    return lambda result: (result.view(oracle.BITS[result.dtype]) + count).view(result.dtype)


def at(place: float, dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> Change:
    """The change for one input of one dtype."""

    def changed(x: Tensor, result: Tensor) -> Tensor:
        return torch.where(x == place, change(result), result) if x.dtype == dtype else result

    return changed


def plant(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Change],
    target: float = 1.0,
    functions: tuple[str, ...] = ("sigmoid", "pair", "gradient"),
) -> None:
    """Has the functions return ``change(x, result)``, those of the loss for one target."""
    real = sigmoids.sigmoid, sigmoids.sigmoid_with_derivative
    backward = torch.ops.fused_sigmoid.sigmoid_backward
    real_loss = losses.binary_cross_entropy_with_logits
    value, derivative, of_loss, of_gradient = (
        changes.get(name, same) for name in ("value", "derivative", "loss", "loss gradient")
    )

    def sigmoid(x: Tensor, **arguments: Any) -> Tensor:
        y = real[0](x, **arguments)
        return y if x.requires_grad else value(x, y)

    def sigmoid_with_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
        y, dy = real[1](x)
        return value(x, y), derivative(x, dy)

    def sigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
        return derivative(x, backward(g, x))

    def loss(x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        result: Tensor = real_loss(x, t, **arguments)
        if t[0] == target:
            result.data = of_loss(x.detach(), result.detach())
            x.register_hook(lambda found: of_gradient(x.detach(), found))
        return result

    if "sigmoid" in functions:
        monkeypatch.setattr(sigmoids, "sigmoid", sigmoid)
    if "pair" in functions:
        monkeypatch.setattr(sigmoids, "sigmoid_with_derivative", sigmoid_with_derivative)
    if "gradient" in functions:
        monkeypatch.setattr(torch.ops.fused_sigmoid, "sigmoid_backward", sigmoid_backward)
    monkeypatch.setattr(losses, "binary_cross_entropy_with_logits", loss)


def newly_missed(rows: Rows, sound: Rows) -> dict[str, Where]:
    """The figures that hold in a sound run alone, and of which rows."""
    by_set: list[dict[str, Where]] = []
    for name in SETS:
        by_set.append({})
        for (kernels, *key), row in rows.items():
            if kernels == name:
                for figure in set(row.missed) - set(sound[(name, *key)].missed):
                    by_set[-1].setdefault(figure, set()).add(tuple(key))
    assert all(other == by_set[0] for other in by_set)
    # Strict JSON has no infinity.
    json.dumps(report.document(a_report(rows.values())), allow_nan=False)
    return by_set[0]


def of(dtypes: Iterable[str], *quantities: str) -> Where:
    return {(dtype, quantity) for dtype in dtypes for quantity in quantities}


def test_sound(sound: Rows) -> None:
    # The bound of σ'' is tested by the command as a whole.
    assert {row.quantity for row in sound.values() if row.missed} <= set(OF_SECOND_ORDER)


F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
INF = math.inf
ROWS_OF = {
    "value": ("value",),
    "derivative": ("derivative", "gradient"),
    "loss": (LOSS_1,),
    "loss gradient": (LOSS_GRADIENT_1,),
}
# Function, dtype, x, what becomes of the result; the figures that are missed then, and the first.
ONE_WRONG_RESULT = [
    ("value", F32, 1.0, up(3), "error", 3),
    ("value", F32, 64.0, up(1), "outside_range", 1),
    # 1000 neighbours below 1 are 500 ulp of 1.
    ("value", F64, INF, up(-1000), "error special_values", 500),
    ("value", F16, 1.0, up(1), "misrounded", 1),
    ("value", BF16, 1.0, lambda result: result - result / 8, "decreasing misrounded", 1),
    ("value", BF16, -1.0, lambda result: result - result / 8, "decreasing misrounded", 1),
    ("derivative", F32, -2.0, up(1), "asymmetric", 1),
    ("derivative", F32, -4.0, up(4), "error asymmetric", 4),
    ("derivative", F32, 2.0, lambda result: result * math.nan, "misplaced_nan asymmetric", 1),
    ("derivative", F32, 2.0, lambda result: result / 0, "error outside_range asymmetric", INF),
    ("derivative", F32, -INF, torch.neg, "special_values asymmetric", 1),
    ("loss", F32, -2.0, up(3), "error asymmetric", 3),
    ("loss gradient", F32, 4.0, up(4), "error asymmetric", 4),
    ("loss gradient", F32, 2.0, up(1), "asymmetric", 1),
]


@pytest.mark.parametrize(
    "wrong",
    ONE_WRONG_RESULT,
    # Without the function: its address would differ in each process of the suite.
    ids=lambda case: " ".join(str(part) for part in case if not callable(part)),
)
def test_one_wrong_result(wrong: Any, sound: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    function, dtype, x, change, missed, first = wrong
    plant(monkeypatch, {function: at(x, dtype, change)})
    rows = coarse_rows()
    names, of_dtype = missed.split(), str(dtype).removeprefix("torch.")
    assert newly_missed(rows, sound) == dict.fromkeys(names, of([of_dtype], *ROWS_OF[function]))
    for kernels in SETS:
        figure = rows[kernels, of_dtype, ROWS_OF[function][-1]].figures[names[0]]
        measured = figure.ours if math.isinf(first) else round(figure.ours)
        assert (measured, figure.at) == (first, x if names[0] == "error" else None)


def misses(in_floats: str, in_halves: str, in_all: str, *quantities: str) -> dict[str, Where]:
    """The rows of these quantities, by the figures that are missed in some dtypes."""
    dtypes = ((in_floats, FLOATS), (in_halves, HALVES), (in_all, FLOATS + HALVES))
    return {name: of(which, *quantities) for names, which in dtypes for name in names.split()}


PAIR = ROWS_OF["derivative"]
LOSS_OF_TORCH = {
    "changes": {"loss": lambda x, result: x - torch.nn.functional.logsigmoid(x)},
    "target": 0.0,
}
# These do not go through what is changed.
BY_AUTOGRAD = {"unlike_pair": of(HALVES, *OF_HALVES[3:])}
# What is changed; the figures that are missed then in floats, in halves and in all, and of what.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Where]]] = {
    "derivative from the rounded value": (
        {"changes": {"derivative": lambda x, y: torch.sigmoid(x) * (1 - torch.sigmoid(x))}},
        misses("error", "misrounded", "zeroed asymmetric", *PAIR) | BY_AUTOGRAD,
    ),
    "flushed subnormals": (
        {"changes": {"value": flush, "derivative": flush}},
        misses("error", "misrounded", "zeroed", *OF_FLOATS) | BY_AUTOGRAD,
    ),
    "lost NaN": (
        {"changes": {"value": lambda x, result: result.nan_to_num(0.5)}},
        misses("", "misrounded decreasing", "misplaced_nan special_values", "value"),
    ),
    "value unlike that of the pair": (
        {"changes": {"value": at(2.0, F32, up(1))}, "functions": ("sigmoid",)},
        {"unlike_pair": of(["float32"], "value")},
    ),
    "gradient unlike that of the pair": (
        {"changes": {"derivative": at(2.0, F32, up(1))}, "functions": ("gradient",)},
        dict.fromkeys(("unlike_pair", "asymmetric"), of(["float32"], "gradient")),
    ),
    "loss as torch forms it": (
        LOSS_OF_TORCH,
        misses("error", "misrounded decreasing", "zeroed misplaced_nan special_values", LOSS_0)
        | misses("", "", "asymmetric", LOSS_1),
    ),
    "wrong sign of a loss's gradient": (
        {"changes": {"loss gradient": lambda x, result: -result}},
        misses(
            *("error", "misrounded decreasing", "outside_range special_values asymmetric"),
            LOSS_GRADIENT_1,
        ),
    ),
    "loss of an infinite logit": (
        {"changes": {"loss": lambda x, result: result + 0 * x}},
        misses("", "misrounded", "misplaced_nan special_values asymmetric", LOSS_1),
    ),
    "flushed losses": (
        {"changes": {"loss": flush, "loss gradient": flush}, "target": 0.0},
        misses("error", "misrounded", "zeroed", LOSS_0, LOSS_GRADIENT_0)
        | misses("", "", "asymmetric", LOSS_1, LOSS_GRADIENT_1),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, sound: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, missed = FAULTS[name]
    plant(monkeypatch, **fault)
    assert newly_missed(coarse_rows(), sound) == missed


@pytest.mark.skipif(len(SETS) < 2, reason="this CPU has one instruction set")
def test_instruction_sets_that_disagree(monkeypatch: pytest.MonkeyPatch, sound: Rows) -> None:
    def change(x: Tensor, result: Tensor) -> Tensor:
        nudged = at(0.5, torch.float32, up(1))
        return nudged(x, result) if extension.instruction_set() == SETS[-1] else result

    plant(monkeypatch, {"value": change})
    rows = coarse_rows()
    found = {key: row.missed for key, row in rows.items() if row.missed != sound[key].missed}
    assert found == {(SETS[-1], "float32", "value"): ["unlike_first_set"]}
    assert rows[SETS[-1], "float32", "value"].figures["unlike_first_set"].ours == 1


def test_figures_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, **LOSS_OF_TORCH)
    monkeypatch.setattr(sigmoids, "sigmoid", lambda x, **arguments: torch.sigmoid(x))
    rows = coarse_rows()
    of_torch = [("float64", quantity) for quantity in OF_SECOND_ORDER] + [("float32", LOSS_0)]
    for key in of_torch:
        error = rows[(SETS[0], *key)].figures["error"]
        assert not error.passed
        assert (error.ours, error.at) == (error.torch, error.torch_at)


def test_exit_status_and_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "SHORT", COARSE)
    plant(monkeypatch, {"value": at(1.0, F16, up(1))})
    file = tmp_path / "check.json"
    assert command_line.main(["check", "--json", str(file)]) == 1
    verdict = capsys.readouterr().out
    count = "1 bound does" if len(SETS) == 1 else f"{len(SETS)} bounds do"
    missed = f"{count} not hold: float16 value: misrounded (cpu {', '.join(SETS)}). "
    assert " ".join(verdict.split()).startswith(missed)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert not written["passed"]
    assert f"cpu {SETS[0]}, float16, value: misrounded" in written["missed"]


def test_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Some decreases are from one chunk to the next.
    plant(monkeypatch, {"value": lambda x, result: 1 - result})
    found = []
    for size in (2**16, 1000):
        monkeypatch.setattr(sweep, "CPU_CHUNK", size)
        rows = coarse_rows()
        # torch's own results depend on an element's place.
        found.append([(f.ours, f.at) for row in rows.values() for f in row.figures.values()])
    assert found[0] == found[1]
    decreasing = rows[SETS[0], "float32", "value"].figures["decreasing"]
    assert decreasing.ours > 1


def test_long_double_of_64_bits_at_least(sound: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LONG_DOUBLE_BITS", 53)
    monkeypatch.setattr(check, "MPMATH_INPUTS", 140)
    rows = coarse_rows()
    for quantity in OF_FLOATS + OF_LOSS:
        row = rows[SETS[0], "float64", quantity]
        assert row.reference.startswith("mpmath")
        assert row.inputs < 300
        assert row.missed == []
        assert 0.5 < row.figures["error"].ours < 3


# The reference, against that of the tests.

FUNCTIONS: dict[str, Callable[[oracle.LongDouble], oracle.LongDouble]] = {
    "value": oracle.value,
    "derivative": oracle.derivative,
    "loss": lambda x: np.logaddexp(np.longdouble(0), x),
    "loss gradient": oracle.value,
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_reference(dtype: torch.dtype, sign: int) -> None:
    if dtype in oracle.HALVES:
        chosen = inputs.every_magnitude(dtype)
    elif dtype == torch.float32:
        chosen = inputs.some_float32(500_009)
    else:
        chosen = inputs.some_float64(2000)
    magnitude = chosen.part(0, chosen.count)
    x = oracle.exact(magnitude) * sign
    references = reference.first_order(magnitude) | reference.loss(magnitude)
    for name, function in FUNCTIONS.items():
        with np.errstate(invalid="ignore"):  # among the inputs are infinity and NaN
            expected = function(x)
        found = references[name, sign]
        assert oracle.same_bits(found.rounded, oracle.rounded(expected, dtype))
        # What is off by less than an ulp, and by any number of them.
        nearby = torch.nextafter(found.rounded, torch.ones_like(found.rounded))
        for result in (found.rounded, nearby, torch.ones_like(nearby)):
            with np.errstate(invalid="ignore"):
                error = np.where(np.isnan(x), np.nan, oracle.error_in_ulp(result, expected))
            assert_close(found.error(result).numpy(), error, expected)


def assert_close(errors: Any, expected: Any, exact: oracle.LongDouble) -> None:
    """Except next to a power of two, below which an ulp is half of what it is above: which of them
    it is depends on the last digit of the exact result."""
    significand, _ = np.frexp(exact)
    clear = (significand - 0.5 > 1e-12) & (1 - significand > 1e-12)
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float64)
    np.testing.assert_allclose(errors[clear], expected[clear], 1e-3, 1e-6)


@pytest.mark.parametrize("name", [*FUNCTIONS, "second derivative"])
def test_mpmath_reference(name: str) -> None:
    function = FUNCTIONS.get(name, oracle.second_derivative)
    magnitudes = inputs.some_float64(300)
    numbers = magnitudes.part(0, magnitudes.count)
    x = torch.cat([numbers, -numbers])
    if name == "second derivative":
        x = x[(x.abs() < 700) & (x != 0)]
    # An infinite loss has no ulp.
    x = x[x.isfinite()] if name == "loss" else x[~x.isnan()]
    expected = function(oracle.exact(x))
    result = torch.from_numpy(expected.astype(np.float64)) * (1 + 4 * 2.0**-53)
    pairs = zip(x.tolist(), result.tolist(), strict=True)
    errors = np.array([reference.exact_error(name, *pair) for pair in pairs])
    unit: Any = oracle.ulp(expected, torch.float64)
    if name == "second derivative":
        unit = np.maximum(np.abs(expected), np.longdouble(2.0**-1022))
    known = np.abs(oracle.exact(result) - expected) / unit
    assert_close(errors, known, expected)


# The inputs.


def test_every_pattern_is_an_input() -> None:
    for dtype in oracle.HALVES:
        magnitudes = inputs.every_magnitude(dtype)
        assert magnitudes.count == 2**15
        both = torch.cat([magnitudes.part(0, 2**15), -magnitudes.part(0, 2**15)])
        assert len(both.view(torch.int16).unique()) == 2**16
    floats = inputs.every_magnitude(torch.float32)
    assert floats.count == 2**31
    for start, stop in ((0, 5), (2**30 - 2, 2**30 + 2), (2**31 - 3, 2**31)):
        patterns = floats.part(start, stop).view(torch.int32)
        assert patterns.tolist() == list(range(start, stop))


def test_inputs_of_float32_hold_the_boundaries() -> None:
    magnitudes = inputs.some_float32(1021)
    patterns = magnitudes.part(0, magnitudes.count).view(torch.int32)
    assert (patterns.diff() > 0).all()
    assert magnitudes.count > 2**31 / 1021
    boundaries = [0.0, 2.0**-126, 104.0, 110.0, math.inf]
    boundaries += [k / 16 * math.log(2) for k in range(16 * 151)]
    for pattern in torch.tensor(boundaries).view(torch.int32).tolist():
        near = torch.arange(max(pattern - 64, 0), pattern + 65, dtype=torch.int32)
        first = int(torch.searchsorted(patterns, near[0]))
        assert torch.equal(patterns[first : first + len(near)], near)


def test_inputs_of_float64() -> None:
    magnitudes = inputs.some_float64(7000)
    numbers = magnitudes.part(0, magnitudes.count)
    assert 6500 < magnitudes.count <= 7004
    assert (numbers[:-1].diff() > 0).all()
    assert numbers[-1].isnan()
    assert oracle.same_bits(numbers, inputs.some_float64(7000).part(0, magnitudes.count))
    for low, high in ((0, 1e-300), (0.1, 1), (5, 40), (700, 745.2), (1e300, math.inf)):
        assert ((numbers > low) & (numbers < high)).sum() > 20
    # Ten million, as the full check promises.
    assert 2 * inputs.some_float64(check.FULL.float64_inputs // 2).count >= 10_000_000


def test_differing() -> None:
    nan, other = torch.tensor([0x7FC0_0000, 0x7F80_0001], dtype=torch.int32).view(torch.float32)
    a = torch.stack([nan, nan, torch.tensor(0.0), torch.tensor(1.0), nan])
    b = torch.stack([nan, other, torch.tensor(-0.0), torch.tensor(1.0), torch.tensor(2.0)])
    assert figures.differing(a, b) == 2
    assert figures.differing(a, a) == 0
