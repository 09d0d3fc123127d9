"""A few of the random programs that `make fuzz` runs by the thousand (tests/fuzz_programs.py), and
that they see what they are for."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_sigmoid
from tests import checkpoint_programs, company_programs, fuzz_programs, inplace_programs
from tests.company_verdicts import ExactSigmoid, Product

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _logger_of_torch() -> Any:
    """Checkpoints with debug=True leave torch's logger of operations on, which pytest's handler
    takes for messages with arguments to fill in."""
    logger = logging.getLogger("LoggingTensor")
    before = logger.level, logger.propagate
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]


def _check(found: fuzz_programs.Found) -> None:
    assert not found.failures, "\n\n".join(found.failures)
    assert found.tally["compared"] > 0


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_programs_that_change_tensors(first: int) -> None:
    _check(fuzz_programs.in_place(range(first, first + 100)))


def test_compiled_programs() -> None:
    _check(fuzz_programs.compiled(range(8), "aot_eager"))


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_programs_with_checkpoints(first: int) -> None:
    _check(fuzz_programs.checkpoints(range(first, first + 50)))


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_programs_that_give_outputs_to_losses(first: int) -> None:
    _check(fuzz_programs.company(range(first, first + 100)))


@pytest.mark.parametrize("programs", [inplace_programs, checkpoint_programs, company_programs])
def test_a_number_is_a_program(programs: Any) -> None:
    assert str(programs.write(3)) == str(programs.write(3))
    assert programs.write(3).text != programs.write(4).text


class KeepsTheInput(torch.autograd.Function):
    """And does not look whether it has changed."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.input = input.detach()
        return torch.sigmoid(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid_with_derivative(ctx.input)[1] * grad


def _keeps_another_under_modes(input: Tensor) -> Tensor:
    under_mode = torch._C._len_torch_dispatch_stack() > 0
    return fused_sigmoid.sigmoid(input, saved="input" if under_mode else "derivative")


def _differ(part: Callable[[Any], fuzz_programs.Found], count: int) -> list[str]:
    return part(range(count)).failures


def test_an_input_that_is_kept_unguarded_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inplace_programs.OURS, "auto", KeepsTheInput.apply)
    assert _differ(fuzz_programs.in_place, 50)


def test_a_refusal_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        inplace_programs.OURS, "auto", lambda input: fused_sigmoid.sigmoid(input, saved="input")
    )
    assert any("modified" in failure for failure in _differ(fuzz_programs.in_place, 50))


def test_what_is_kept_under_modes_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inplace_programs.OURS, "auto", _keeps_another_under_modes)
    assert _differ(fuzz_programs.checkpoints, 150)


def test_torchs_tail_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inplace_programs.OURS, "auto", torch.sigmoid)
    assert _differ(fuzz_programs.checkpoints, 50)


@pytest.mark.parametrize("wrong", [ExactSigmoid, Product])
def test_one_gradient_for_all_losses_is_seen(
    wrong: type[torch.autograd.Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact derivative before BCELoss as well as nn.Sigmoid's product before a gate."""
    for name in company_programs.SIGMOIDS:
        monkeypatch.setitem(company_programs.SIGMOIDS, name, wrong.apply)
    kinds = {"right", "mixed"} if wrong is ExactSigmoid else {"right", "exact"}
    failures = _differ(fuzz_programs.company, 60)
    assert {
        kind for kind in kinds if any(f": {kind}, " in failure for failure in failures)
    } == kinds


@pytest.mark.parametrize(
    "ours",
    [None, torch.tensor([0.5, torch.nan]), torch.tensor([0.5, 0.26]), torch.tensor([[0.5, 0.25]])],
)
def test_a_difference_is_seen(ours: Tensor | None) -> None:
    torchs = torch.tensor([0.5, 0.25])
    assert inplace_programs.compare([torchs], [torchs], [torchs.double()]) == 1
    with pytest.raises(inplace_programs.Different):
        inplace_programs.compare([ours], [torchs], [torchs.double()])


def test_the_long_run_ends_with_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(seeds: Any) -> fuzz_programs.Found:
        return fuzz_programs.Found(Counter(programs=len(seeds)), ["seed 3"])

    monkeypatch.setattr(fuzz_programs, "run", lambda part, *_: {"failures": len(part([]).failures)})
    monkeypatch.setattr(fuzz_programs, "in_place", fails)
    monkeypatch.setattr(sys, "argv", ["fuzz_programs", "--only", "in place"])
    with pytest.raises(SystemExit, match="see above"):
        fuzz_programs.main()


@pytest.mark.xfail(strict=True, reason="the partitioner reads arguments again, as for torch.sin")
@pytest.mark.parametrize("is_inside", [True, False])
def test_compiled_an_argument_changes_meanwhile(is_inside: bool) -> None:
    """Inside the compiled function the gradient is wrong without a word, outside it is an error.
    The programs leave the arguments of compiled functions alone."""
    torch._dynamo.reset()
    x = torch.tensor([1.0, -2.0], requires_grad=True)

    @torch.compile(backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        value = fused_sigmoid.sigmoid(x * 2).sum()
        if is_inside:
            with torch.no_grad():
                x.mul_(0.5)
        return value

    expected = 2 * fused_sigmoid.sigmoid_with_derivative(x.detach() * 2)[1]
    value = compiled(x)
    if not is_inside:
        with torch.no_grad():
            x.mul_(0.5)
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], expected)
