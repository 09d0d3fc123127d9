"""``python -m fused_sigmoid check`` measures what is there, and notices each kind of fault."""

from __future__ import annotations

import doctest
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
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
LOSSES = ("loss, t=0", "loss, t=1")
LOSS_GRADIENTS = ("loss gradient, t=0", "loss gradient, t=1")
OF_LOSS = LOSSES + LOSS_GRADIENTS
# Where torch subtracts a number near 1 from 1, or one near x from x.
CANCELLING = (*OF_HALVES[1:], LOSSES[0], LOSS_GRADIENTS[1])
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
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


# The command.


def test_command(tmp_path: Path) -> None:
    file = tmp_path / "new" / "check.json"
    process = run_python("-m", "fused_sigmoid", "check", "--json", str(file))
    assert process.stderr == ""
    assert process.returncode == 0, process.stdout
    assert "all bounds hold" in process.stdout.splitlines()[-1]
    assert max(map(len, process.stdout.splitlines())) <= 132

    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["schema"], written["passed"], written["full"]) == (1, True, False)
    assert written["missed"] == []
    assert written["extent"] == {"float32_step": 1021, "float64_inputs": 200_000, "seed": 0}
    assert written["versions"]["fused_sigmoid"] == fused_sigmoid.__version__
    assert written["versions"]["torch"] == metadata.version("torch")
    assert {"numpy", "python"} < set(written["versions"])
    assert written["machine"]["threads"] >= 1
    assert written["machine"]["cpu"]
    assert written["machine"]["instruction_sets"] == list(SETS)
    assert written["date"]
    assert sum(written["seconds"].values()) > 0

    rows = {(row["kernels"], row["dtype"], row["quantity"]): row for row in written["rows"]}
    assert len(rows) == len(written["rows"])
    assert set(rows) == {
        (name, dtype, quantity)
        for name in SETS
        for dtype, quantities in QUANTITIES.items()
        for quantity in quantities
    }
    for (_, dtype, quantity), row in rows.items():
        assert (row["device"], row["passed"]) == ("cpu", True)
        measured = row["figures"]
        assert {"error", "misplaced_nan"} <= set(measured)
        if dtype in ("float16", "bfloat16"):
            assert row["inputs"] == 2**16
            assert 0.49 < measured["error"]["ours"] <= 0.5
            assert measured["misrounded"] == _figure(0, 0, measured["misrounded"]["torch"])
        else:
            assert 0 < measured["error"]["ours"] <= measured["error"]["bound"]
            assert measured["error"]["at"] is not None
        if dtype == "float32":
            assert row["inputs"] > 2**32 / 1021
        if quantity in CANCELLING:
            assert measured["zeroed"] == _figure(0, 0, measured["zeroed"]["torch"])
            assert measured["zeroed"]["torch"] > 100
            assert measured["error"]["torch"] > 200


def _figure(ours: float, bound: float, of_torch: float) -> dict[str, Any]:
    others = {"at": None, "torch": of_torch, "torch_at": None, "passed": True}
    return {"ours": ours, "bound": bound} | others


def test_help() -> None:
    process = run_python("-m", "fused_sigmoid", "check", "--help")
    assert process.returncode == 0
    assert "--full" in process.stdout
    assert "--json FILE" in process.stdout


def test_unwritable_file_is_reported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "run", lambda extent: pytest.fail("has run"))
    (tmp_path / "file").touch()
    for file in (tmp_path, tmp_path / "file" / "check.json"):
        with pytest.raises(SystemExit) as exit:
            command_line.main(["check", "--full", "--json", str(file)])
        assert exit.value.code == 2
        error = capsys.readouterr().err
        assert "argument --json" in error
        assert str(file) in error


def test_file_stays_as_it_was_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(extent: check.Extent, device: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupt)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("before", encoding="utf-8")
    for file in (old, new):
        assert command_line.main(["check", "--json", str(file)]) == 130
    assert old.read_text(encoding="utf-8") == "before"
    assert not new.exists()


@pytest.mark.parametrize("name", ["mpmath", "numpy", "tabulate", "tqdm"])
def test_missing_dependency(name: str) -> None:
    # Imported before, so that it is only the check that misses it.
    code = (
        "import sys, fused_sigmoid.__main__ as command_line;"
        f"sys.modules[{name!r}] = None; command_line.main(['check'])"
    )
    process = run_python("-c", code)
    assert process.returncode == 2
    assert f"{name} is not installed" in process.stderr
    assert "pip install 'fused_sigmoid[check]'" in process.stderr


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


def test_package_imports_nothing_of_the_check() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import fused_sigmoid;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before});"
        "print(*(name for name in sys.modules if name.startswith('fused_sigmoid.check')))"
    )
    process = run_python("-c", code)
    new, of_check = process.stdout.splitlines()
    assert "fused_sigmoid" in new.split()
    assert not {"mpmath", "numpy", "tabulate", "tqdm"} & set(new.split())
    assert of_check == ""


def test_examples_of_the_docstrings() -> None:
    results = doctest.testmod(check)
    assert (results.attempted > 0, results.failed) == (True, 0)


# A run, and what it notices. Each fault changes results of the functions under test.

Rows = dict[tuple[str, str, str], report.Row]
Change = Callable[[Tensor, Tensor], Tensor]


def coarse_rows() -> Rows:
    found = check.run(COARSE)
    return {(row.kernels, row.dtype, row.quantity): row for row in found.rows}


@pytest.fixture(scope="module")
def sound() -> Rows:
    return coarse_rows()


@pytest.fixture
def fault_of_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As ``fault``, of the loss or its gradient with one target."""
    real = losses.binary_cross_entropy_with_logits

    def install(target: float, loss: Change | None = None, gradient: Change | None = None) -> None:
        def changed(x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
            result: Tensor = real(x, t, **arguments)
            if t[0] == target and loss is not None:
                result.data = loss(x.detach(), result.detach())
            if t[0] == target and gradient is not None:
                x.register_hook(lambda found: gradient(x.detach(), found))
            return result

        monkeypatch.setattr(losses, "binary_cross_entropy_with_logits", changed)

    return install


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``fault(value=change, derivative=change)`` has every function return
    ``change(x, result)``; ``functions`` names those that do, if not all."""
    real = sigmoids.sigmoid, sigmoids.sigmoid_with_derivative
    backward = torch.ops.fused_sigmoid.sigmoid_backward

    def same(x: Tensor, result: Tensor) -> Tensor:
        return result

    def install(
        value: Change = same,
        derivative: Change = same,
        functions: tuple[str, ...] = ("sigmoid", "pair", "gradient"),
    ) -> None:
        def sigmoid(x: Tensor, **arguments: Any) -> Tensor:
            y = real[0](x, **arguments)
            return y if x.requires_grad else value(x, y)

        def sigmoid_with_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
            y, dy = real[1](x)
            return value(x, y), derivative(x, dy)

        if "sigmoid" in functions:
            monkeypatch.setattr(sigmoids, "sigmoid", sigmoid)
        if "pair" in functions:
            monkeypatch.setattr(sigmoids, "sigmoid_with_derivative", sigmoid_with_derivative)
        if "gradient" in functions:
            monkeypatch.setattr(
                torch.ops.fused_sigmoid,
                "sigmoid_backward",
                lambda g, x: derivative(x, backward(g, x)),
            )

    return install


def missed(rows: Rows, sound: Rows) -> dict[str, set[tuple[str, str]]]:
    """The figures that hold in a sound run and are missed in this one, and the rows they are of.
    Every instruction set misses the same."""
    assert rows.keys() == sound.keys()
    found: list[dict[str, set[tuple[str, str]]]] = []
    for name in SETS:
        found.append({})
        for (kernels, dtype, quantity), row in rows.items():
            if kernels == name:
                for figure in set(row.missed) - set(sound[kernels, dtype, quantity].missed):
                    found[-1].setdefault(figure, set()).add((dtype, quantity))
    assert all(other == found[0] for other in found)
    return found[0]


def at(place: float, dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> Change:
    """The change for one input of one dtype."""

    def changed(x: Tensor, result: Tensor) -> Tensor:
        return torch.where(x == place, change(result), result) if x.dtype == dtype else result

    return changed


def up(count: int) -> Callable[[Tensor], Tensor]:
    """So many numbers further from 0."""
    return lambda result: (result.view(oracle.BITS[result.dtype]) + count).view(result.dtype)


def derivatives(dtype: str) -> set[tuple[str, str]]:
    return {(dtype, "derivative"), (dtype, "gradient")}


def every(*quantities: str) -> set[tuple[str, str]]:
    return {(dtype, quantity) for dtype in QUANTITIES for quantity in quantities}


def test_sound(sound: Rows) -> None:
    assert {(dtype, quantity) for _, dtype, quantity in sound} == {
        (dtype, quantity) for dtype, quantities in QUANTITIES.items() for quantity in quantities
    }
    for (_, _, quantity), row in sound.items():
        # The bound of σ'' is tested by the command as a whole.
        assert row.missed == [] or quantity in OF_SECOND_ORDER


def test_derivative_from_the_rounded_value(fault: Callable[..., None], sound: Rows) -> None:
    fault(derivative=lambda x, result: torch.sigmoid(x) * (1 - torch.sigmoid(x)))
    found = missed(coarse_rows(), sound)
    floats = derivatives("float32") | derivatives("float64")
    assert found["error"] == floats
    assert found["misrounded"] == derivatives("float16") | derivatives("bfloat16")
    assert found["zeroed"] >= floats | derivatives("float16")


def test_flushed_subnormals(fault: Callable[..., None], sound: Rows) -> None:
    def flush(x: Tensor, result: Tensor) -> Tensor:
        return torch.where(result < torch.finfo(x.dtype).smallest_normal, 0, result)

    fault(value=flush, derivative=flush)
    found = missed(coarse_rows(), sound)
    assert found["zeroed"] == every(*OF_FLOATS)
    assert "special_values" not in found


def test_three_ulp(fault: Callable[..., None], sound: Rows) -> None:
    fault(value=at(1.0, torch.float32, up(3)), derivative=at(-4.0, torch.float32, up(4)))
    rows = coarse_rows()
    found = missed(rows, sound)
    assert found == {
        "error": {("float32", "value")} | derivatives("float32"),
        "asymmetric": derivatives("float32"),
    }
    for name in SETS:
        value, derivative = (rows[name, "float32", q].figures["error"] for q in OF_FLOATS[:2])
        assert (value.at, derivative.at) == (1.0, -4.0)
        assert 2.5 < value.ours < 3.5
        assert 3.5 < derivative.ours < 4.5


def test_float64_errors_are_those_of_mpmath(fault: Callable[..., None], sound: Rows) -> None:
    fault(value=at(math.inf, torch.float64, up(-1000)))
    rows = coarse_rows()
    assert missed(rows, sound)["error"] == {("float64", "value")}
    error = rows[SETS[0], "float64", "value"].figures["error"]
    assert (error.ours, error.at) == (500, math.inf)


def test_lost_nan(fault: Callable[..., None], sound: Rows) -> None:
    fault(value=lambda x, result: result.nan_to_num(0.5))
    found = missed(coarse_rows(), sound)
    assert found["misplaced_nan"] == found["special_values"] == every("value")


def test_nan_for_a_number(fault: Callable[..., None], sound: Rows) -> None:
    fault(derivative=at(2.0, torch.float32, lambda result: result * math.nan))
    rows = coarse_rows()
    assert missed(rows, sound)["misplaced_nan"] == derivatives("float32")
    assert rows[SETS[0], "float32", "derivative"].figures["misplaced_nan"].ours == 1


def test_infinite_result(fault: Callable[..., None], sound: Rows) -> None:
    fault(derivative=at(2.0, torch.float32, lambda result: result / 0))
    rows = coarse_rows()
    found = missed(rows, sound)
    assert found["error"] == found["outside_range"] == derivatives("float32")
    document = report.document(_report(rows))
    assert "Infinity" not in json.dumps(document, allow_nan=False)


def test_one_wrong_half(fault: Callable[..., None], sound: Rows) -> None:
    fault(value=at(1.0, torch.float16, up(1)))
    rows = coarse_rows()
    assert missed(rows, sound) == {"misrounded": {("float16", "value")}}
    assert rows[SETS[0], "float16", "value"].figures["misrounded"].ours == 1


@pytest.mark.parametrize("place", [1.0, -1.0])
def test_decreasing_half(place: float, fault: Callable[..., None], sound: Rows) -> None:
    fault(value=at(place, torch.bfloat16, lambda result: result - result / 8))
    found = missed(coarse_rows(), sound)
    assert found["decreasing"] == found["misrounded"] == {("bfloat16", "value")}


def test_asymmetric_derivative(fault: Callable[..., None], sound: Rows) -> None:
    fault(derivative=at(-2.0, torch.float32, up(1)))
    rows = coarse_rows()
    assert missed(rows, sound)["asymmetric"] == derivatives("float32")
    assert rows[SETS[0], "float32", "gradient"].figures["asymmetric"].ours == 1


def test_value_above_1(fault: Callable[..., None], sound: Rows) -> None:
    fault(value=at(64.0, torch.float32, up(1)))
    assert missed(coarse_rows(), sound) == {"outside_range": {("float32", "value")}}


def test_negative_zero(fault: Callable[..., None], sound: Rows) -> None:
    fault(derivative=at(-math.inf, torch.float32, torch.neg))
    found = missed(coarse_rows(), sound)
    assert found["special_values"] == found["asymmetric"] == derivatives("float32")


def test_functions_that_disagree(fault: Callable[..., None], sound: Rows) -> None:
    nudged = at(2.0, torch.float32, up(1))
    fault(value=nudged, functions=("sigmoid",))
    assert missed(coarse_rows(), sound) == {"unlike_pair": {("float32", "value")}}
    fault(derivative=nudged, functions=("gradient",))
    assert missed(coarse_rows(), sound)["unlike_pair"] >= {("float32", "gradient")}


@pytest.mark.skipif(len(SETS) < 2, reason="this CPU has one instruction set")
def test_instruction_sets_that_disagree(fault: Callable[..., None], sound: Rows) -> None:
    def change(x: Tensor, result: Tensor) -> Tensor:
        nudged = at(0.5, torch.float32, up(1))
        return nudged(x, result) if extension.instruction_set() == SETS[-1] else result

    fault(value=change)
    rows = coarse_rows()
    found = {key: row.missed for key, row in rows.items() if row.missed != sound[key].missed}
    assert found == {(SETS[-1], "float32", "value"): ["unlike_first_set"]}
    assert rows[SETS[-1], "float32", "value"].figures["unlike_first_set"].ours == 1


def test_second_derivative(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigmoids, "sigmoid", lambda x, **arguments: torch.sigmoid(x))
    rows = coarse_rows()
    for quantity in OF_SECOND_ORDER:
        error = rows[SETS[0], "float64", quantity].figures["error"]
        assert not error.passed
        assert (error.ours, error.at) == (error.torch, error.torch_at)


# Of the loss.


def test_loss_of_torch(fault_of_loss: Callable[..., None], sound: Rows) -> None:
    fault_of_loss(0.0, loss=lambda x, result: x - torch.nn.functional.logsigmoid(x))
    rows = coarse_rows()
    found = missed(rows, sound)
    of_floats = {("float32", LOSSES[0]), ("float64", LOSSES[0])}
    of_halves = {("float16", LOSSES[0]), ("bfloat16", LOSSES[0])}
    assert found["error"] == of_floats
    assert found["misrounded"] == found["decreasing"] == of_halves
    assert found["zeroed"] == of_floats | of_halves
    assert found["asymmetric"] == every(LOSSES[1])
    error = rows[SETS[0], "float32", LOSSES[0]].figures["error"]
    assert (error.ours, error.at) == (error.torch, error.torch_at)


def test_wrong_sign_of_a_loss_gradient(fault_of_loss: Callable[..., None], sound: Rows) -> None:
    fault_of_loss(1.0, gradient=lambda x, result: -result)
    found = missed(coarse_rows(), sound)
    wrong = every(LOSS_GRADIENTS[1])
    assert found["outside_range"] == found["special_values"] == found["asymmetric"] == wrong
    assert found["error"] == {(dtype, LOSS_GRADIENTS[1]) for dtype in ("float32", "float64")}


def test_loss_of_an_infinite_logit(fault_of_loss: Callable[..., None], sound: Rows) -> None:
    fault_of_loss(1.0, loss=lambda x, result: result + 0 * x)
    found = missed(coarse_rows(), sound)
    assert found["misplaced_nan"] == found["special_values"] == every(LOSSES[1])
    assert "error" not in found


def test_a_few_ulp_of_the_loss(fault_of_loss: Callable[..., None], sound: Rows) -> None:
    fault_of_loss(
        1.0,
        loss=at(-2.0, torch.float32, up(3)),
        gradient=at(4.0, torch.float32, up(4)),
    )
    rows = coarse_rows()
    wrong = {("float32", LOSSES[1]), ("float32", LOSS_GRADIENTS[1])}
    assert missed(rows, sound) == {"error": wrong, "asymmetric": wrong}
    places = {q: rows[SETS[0], "float32", q].figures["error"].at for _, q in wrong}
    assert places == {LOSSES[1]: -2.0, LOSS_GRADIENTS[1]: 4.0}
    for _, quantity in wrong:
        assert rows[SETS[0], "float32", quantity].figures["asymmetric"].ours == 1


def test_flushed_losses(fault_of_loss: Callable[..., None], sound: Rows) -> None:
    def flush(x: Tensor, result: Tensor) -> Tensor:
        return torch.where(result.abs() < torch.finfo(x.dtype).smallest_normal, 0, result)

    fault_of_loss(0.0, loss=flush, gradient=flush)
    found = missed(coarse_rows(), sound)
    assert found["zeroed"] == every(LOSSES[0], LOSS_GRADIENTS[0])
    assert "special_values" not in found


def test_exit_status_and_verdict(
    fault: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(check, "SHORT", COARSE)
    fault(value=at(1.0, torch.float16, up(1)))
    file = tmp_path / "check.json"
    assert command_line.main(["check", "--json", str(file)]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    places = ", ".join(f"cpu {name}" for name in SETS)
    assert "missed" in verdict
    assert f"float16 value: misrounded ({places})" in verdict
    written = json.loads(file.read_text(encoding="utf-8"))
    assert not written["passed"]
    assert f"cpu {SETS[0]}, float16, value: misrounded" in written["missed"]


def _report(rows: Rows) -> report.Report:
    return report.Report(
        full=False, extent={}, date="", versions={}, machine={}, rows=list(rows.values())
    )


def test_size_of_the_chunks_changes_nothing(
    fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some decreases are from one chunk to the next.
    fault(value=lambda x, result: torch.where(x.abs() < 1e30, result, 1 - result))
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


def test_the_full_check_takes_ten_million_inputs_of_float64() -> None:
    assert 2 * inputs.some_float64(check.FULL.float64_inputs // 2).count >= 10_000_000


def test_differing() -> None:
    nan, other = torch.tensor([0x7FC0_0000, 0x7F80_0001], dtype=torch.int32).view(torch.float32)
    a = torch.stack([nan, nan, torch.tensor(0.0), torch.tensor(1.0), nan])
    b = torch.stack([nan, other, torch.tensor(-0.0), torch.tensor(1.0), torch.tensor(2.0)])
    assert figures.differing(a, b) == 2
    assert figures.differing(a, a) == 0
