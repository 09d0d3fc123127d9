"""Under torch's modes and tools all is as with torch.sigmoid: profilers see the operations, scalers
the overflows, switches of torch and of the processor are obeyed."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative

SAVED = ("auto", "derivative", "input", "output")
every_saved = pytest.mark.parametrize("saved", SAVED)
X = torch.tensor([-40.0, -3.0, 0.0, 3.0, 20.0, 40.0])


@every_saved
def test_profiler_sees_the_operations(saved: str) -> None:
    input = X.clone().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        sigmoid(input, saved=saved).sum().backward()
        sigmoid_with_derivative(X)
        sigmoid(X, out=torch.empty_like(X))
        sigmoid_(X.clone())
    shapes: dict[str, list[list[int]]] = {}
    for event in profiler.events():
        if event.name.startswith("fused_sigmoid::"):
            shapes.setdefault(event.name, event.input_shapes)
    names = {name.partition("::")[2] for name in shapes}
    assert {"sigmoid", "sigmoid_with_derivative", "sigmoid_out"} - names <= (
        {"sigmoid"} if saved == "derivative" else set()
    )
    assert any(name.startswith("sigmoid_backward") for name in names)
    assert all(found[0] == [len(X)] for found in shapes.values())
    assert any(event.name == "FusedSigmoidBackward" for event in profiler.events())


@every_saved
def test_gradient_scaler(saved: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), FusedSigmoid(saved), nn.Linear(4, 1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    scales = []
    for factor in (1e30, 1.0):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.ones(2, 3)).mean() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if factor > 1:
            assert all(map(torch.equal, before, model.parameters()))
    assert scales == [2.0**99, 2.0**99]
    assert not all(map(torch.equal, before, model.parameters()))


FLUSHED = """
import torch, fused_sigmoid
x = torch.tensor([-95.0, -80.0])
full = fused_sigmoid.sigmoid(x)
# By several threads: they compute as the calling one does, and are as they were afterwards.
torch.set_num_threads(3)
large = x.repeat(200_000)
large_full = fused_sigmoid.sigmoid(large)
assert torch.set_flush_denormal(True)
value, derivative = fused_sigmoid.sigmoid_with_derivative(x)
for result in (fused_sigmoid.sigmoid(x), value, derivative):
    assert result[0] == 0
    assert result[1] == full[1] > 0
for _ in range(20):
    assert torch.equal(fused_sigmoid.sigmoid(large), value.repeat(200_000))
torch.set_flush_denormal(False)
assert torch.equal(fused_sigmoid.sigmoid(x), full)
assert torch.equal(fused_sigmoid.sigmoid(large), large_full)
assert torch.equal(large_full, full.repeat(200_000))
assert full[0] > 0
"""


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush")
def test_flushing_of_subnormals_is_obeyed() -> None:
    subprocess.run([sys.executable, "-c", FLUSHED], check=True)


@pytest.mark.usefixtures("restored_threads")
def test_threads_may_change_while_kernels_run() -> None:
    input = torch.linspace(-20, 20, 200_000)
    expected = sigmoid(input)
    stop = threading.Event()
    wrong: list[Tensor] = []

    def work() -> None:
        while not stop.is_set():
            result = sigmoid(input)
            if not torch.equal(result, expected):
                wrong.append(result)

    worker = threading.Thread(target=work)
    worker.start()
    for count in (1, 2, 3, 1, 2) * 4:
        torch.set_num_threads(count)
        assert torch.equal(sigmoid(input), expected)
    stop.set()
    worker.join(60)
    assert not worker.is_alive()
    assert not wrong


@pytest.mark.gpu
@every_saved
def test_cuda_graph_replays_a_training_step(saved: str) -> None:
    # What make_graphed_callables returns is the module given, which from then on replays; the
    # gradient that a replay gives may be memory of the graph, which the next one overwrites.
    graphed = torch.cuda.make_graphed_callables(
        FusedSigmoid(saved), (X.to("cuda").requires_grad_(),)
    )
    for scale in (1, 0.5):
        results = []
        for module in (graphed, FusedSigmoid(saved)):
            leaf = (X * scale).to("cuda").requires_grad_()
            output = module(leaf)
            output.sum().backward()
            assert leaf.grad is not None
            results.append((output.detach().clone(), leaf.grad.clone()))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        value, derivative = torch.ops.fused_sigmoid.sigmoid_with_derivative(X * scale)
        torch.testing.assert_close(results[0][0].cpu(), value)
        torch.testing.assert_close(results[0][1].cpu(), derivative, rtol=1e-3, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cuda_autocast_leaves_the_dtype(dtype: torch.dtype) -> None:
    with torch.autocast("cuda", dtype=dtype):
        for given in (torch.float32, dtype):
            result = sigmoid(X.to("cuda", given))
            torch.testing.assert_close(result.cpu(), torch.sigmoid(X.to(given)))  # of its dtype
