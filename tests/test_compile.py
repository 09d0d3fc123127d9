"""Compiled and exported, a sigmoid costs what nn.Sigmoid costs: as many kernels, graphs and
compilations; and what is exported holds a plain sigmoid that other runtimes know."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_
from tests import parameters

SAVED = ("auto", "derivative", "input", "output")
every_saved = pytest.mark.parametrize("saved", SAVED)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


class Gated(nn.Module):
    """Linear, activation, multiplication by a gate, sum."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(64, 64), activation

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        return (self.activation(self.linear(input)) * gate).sum()


@functools.cache
def _kernels(make: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[int, int]:
    """How many Inductor generates for a training step, and how many calls of others it has."""
    torch._dynamo.reset()
    metrics.reset()
    input, gate = (torch.randn(32, 64, dtype=dtype, requires_grad=True) for _ in range(2))
    model = torch.compile(Gated(make()).to(dtype), fullgraph=True)
    with torch._inductor.config.patch(force_disable_caches=True):
        _, programs = run_and_get_code(lambda: model(input, gate).backward())
    calls = sum(len(re.findall(r"extern_kernels\.|torch\.ops\.", code)) for code in programs)
    return metrics.generated_kernel_count, calls


@pytest.mark.parametrize(
    ("dtype", "saved"),
    parameters.chosen(
        itertools.product([torch.float32, torch.bfloat16], ["auto", "output"]),
        lambda dtype, _: dtype == torch.bfloat16,
    ),
    ids=str,
)
def test_no_more_kernels_than_with_torchs(dtype: torch.dtype, saved: str) -> None:
    ours, calls = _kernels(functools.partial(FusedSigmoid, saved), dtype)
    theirs, their_calls = _kernels(nn.Sigmoid, dtype)
    assert 0 < ours <= theirs
    assert 0 < calls <= their_calls


# A step of another kind each, in an order in which shapes become dynamic.
CALLS: list[Callable[[], Tensor]] = [
    lambda: torch.randn(4, 3, requires_grad=True),
    lambda: torch.randn(5, 3, requires_grad=True),
    lambda: torch.randn(9, 3, requires_grad=True),
    lambda: torch.randn(1, 3, requires_grad=True),
    lambda: torch.randn(0, 3, requires_grad=True),
    lambda: torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True),
    lambda: torch.randn(4, 3, dtype=torch.float64, requires_grad=True),
    lambda: torch.randn(4, 3),
    lambda: torch.randn(3, 4).t(),
    lambda: torch.randn(2, 3, 4),
]


@torch._dynamo.config.patch(recompile_limit=32)
def _compilations(function: Callable[[Tensor], Tensor]) -> list[int]:
    """How many graphs there are after each call."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    counts = []
    for make in CALLS:
        result = compiled(make())
        if result.requires_grad:
            result.sum().backward()
        counts.append(counter.frame_count)
    with torch.no_grad():
        compiled(CALLS[0]())
    with torch.inference_mode():
        compiled(CALLS[7]())
    return [*counts, counter.frame_count]


@functools.cache
def _compilations_of_torchs() -> list[int]:
    return _compilations(nn.Sigmoid())


@every_saved
def test_no_more_compilations_than_with_torchs(saved: str) -> None:
    assert _compilations(FusedSigmoid(saved)) == _compilations_of_torchs()


def test_functions_compile_as_often_as_torchs() -> None:
    assert _compilations(sigmoid) == _compilations(torch.sigmoid)
    in_place = _compilations(lambda input: sigmoid_(input * 1))
    assert in_place == _compilations(lambda input: torch.sigmoid_(input * 1))


def test_recompiles_for_the_training_flag_are_torchs() -> None:
    counts = []
    for activation in (FusedSigmoid(), nn.Sigmoid()):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = nn.Sequential(nn.Linear(3, 3), activation)
        compiled = torch.compile(model, backend=counter)
        for training in (True, False, True):
            model.train(training)
            compiled(torch.randn(4, 3)).sum().backward()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@every_saved
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_size(dynamic: bool, saved: str) -> None:
    module = torch.compile(FusedSigmoid(saved), fullgraph=True, dynamic=dynamic)
    for count in (1, 2, 33):
        input = torch.linspace(-20, 9, count, dtype=torch.float64).requires_grad_()
        output = module(input)
        output.sum().backward()
        exact = oracle.exact(input.detach())
        torch.testing.assert_close(output, oracle.rounded(oracle.value(exact), input.dtype))
        assert input.grad is not None
        tolerance = 1e-10 if saved == "output" else 1e-14
        expected = oracle.rounded(oracle.derivative(exact), input.dtype)
        torch.testing.assert_close(input.grad, expected, rtol=tolerance, atol=0)


# Exported.


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), FusedSigmoid(), nn.Linear(8, 1))
        self.output = FusedSigmoid()

    def forward(self, input: Tensor) -> Tensor:
        return self.output(self.layers(input))


def test_dynamic_export_is_decomposed_to_plain_sigmoids() -> None:
    model, batch = Model(), torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    graph = program.run_decompositions().graph
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.aten.sigmoid.default) == 2
    input = torch.randn(7, 4)
    torch.testing.assert_close(program.module()(input), model(input))


def _make_fx(model: nn.Module, input: Tensor) -> nn.Module:
    return make_fx(model)(input)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("record", "exact"),
    [
        (lambda model, x: torch.export.export(model, (x,)).module(), False),
        (lambda model, x: torch.export.export(model, (x,), strict=True).module(), False),
        (lambda model, x: torch.export.export(model, (x,)).run_decompositions().module(), False),
        (torch.jit.trace, False),
        (_make_fx, False),
        (lambda model, x: torch.fx.symbolic_trace(model), True),
        (lambda model, x: torch.jit.script(model), True),
        (lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True), True),
    ],
    ids=[
        "export",
        "strict",
        "decomposed",
        "trace",
        "make_fx",
        "symbolic_trace",
        "script",
        "compile",
    ],
)
@pytest.mark.parametrize("recorded_with_gradient", [True, False])
def test_gradient_of_a_recorded_graph(
    record: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]],
    exact: bool,
    recorded_with_gradient: bool,
) -> None:
    """Torch's in what holds ATen's sigmoid: README and docs/compatibility.md say so."""

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        input = torch.tensor([-20.0, 0.0, 5.0, 20.0], requires_grad=True)
        function(input).sum().backward()
        assert input.grad is not None
        return input.grad

    example = torch.zeros(4, requires_grad=recorded_with_gradient)
    recorded = gradient(record(nn.Sequential(FusedSigmoid()), example))
    if exact:
        torch.testing.assert_close(recorded, gradient(sigmoid), rtol=1e-6, atol=0)
        assert recorded[3] > 0
    else:
        assert torch.equal(recorded, gradient(torch.sigmoid))
        assert recorded[3] == 0


QUICKLY_COMPILED = {"aot_inductor.compile_wrapper_opt_level": "O0"}
RUN_PACKAGE = """
import sys, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
input, expected = torch.load(sys.argv[2])
torch.testing.assert_close(model(input), expected)
assert "fused_sigmoid" not in sys.modules
"""


def test_ahead_of_time_package_runs_without_us(tmp_path: Path) -> None:
    model, input = Model().eval(), torch.randn(5, 4)
    with torch.no_grad():
        program = torch.export.export(model, (input,))
        package = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(
            program, package_path=package, inductor_configs=QUICKLY_COMPILED
        )
        torch.save((input, model(input)), tmp_path / "data.pt")
    done = subprocess.run(
        [sys.executable, "-c", RUN_PACKAGE, package, str(tmp_path / "data.pt")],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if "cannot enable executable stack" in done.stderr:
        pytest.skip("glibc from 2.41 on does not load what torch packs")
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_holds_sigmoids_that_onnxruntime_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, input = Model().eval(), torch.randn(5, 4)
    program = torch.onnx.export(model, (input,), dynamo=True, verbose=False)
    assert program is not None
    operators = [node.op_type for node in program.model.graph]
    assert operators.count("Sigmoid") == 2
    assert set(operators) == {"Gemm", "Sigmoid"}
    file = tmp_path / "model.onnx"
    program.save(file)
    session = onnxruntime.InferenceSession(file)
    (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(input), rtol=1e-5, atol=1e-6)
