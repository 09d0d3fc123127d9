"""More than one process or thread: data-parallel and sharded training, distributed tensors, forked
and spawned workers. Every process is given a limit of time: one that hangs fails."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oracle
import own_process
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_with_derivative

SECONDS = 120
WORLD = 2
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


def _run_ranks(name: str, folder: Path) -> None:
    """Calls the function of this module in WORLD processes that know each other."""
    code = own_process.program("test_processes", f"run_rank({name!r}, *sys.argv[1:])")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder / "rendezvous")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(outputs)


def run_rank(name: str, text: str, rendezvous: str) -> None:
    rank = int(text)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    try:
        globals()[name](rank)
    finally:
        dist.destroy_process_group()
    # Gloo's threads may still hold tensors of Python, which they cannot give back once the
    # interpreter ends: the process would abort (https://github.com/pytorch/pytorch/issues/190489).
    os._exit(0)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid())
    assert fused_sigmoid.replace_sigmoid(model) == 2
    return model


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) for _ in range(3)]


def _train(model: nn.Module, part: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in _batches():
        optimizer.zero_grad()
        model(batch[part]).square().mean().backward()
        optimizer.step()


def _own_part(rank: int) -> slice:
    return slice(rank * 8 // WORLD, (rank + 1) * 8 // WORLD)


def _assert_trained_alike(parameters: list[Tensor]) -> None:
    alone = _model()
    before = [parameter.detach().clone() for parameter in alone.parameters()]
    _train(alone, slice(None))
    for ours, expected, start in zip(parameters, alone.parameters(), before, strict=True):
        assert not torch.equal(expected, start)
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-6)


def train_data_parallel(rank: int) -> None:
    model = nn.parallel.DistributedDataParallel(_model())
    _train(model, _own_part(rank))
    _assert_trained_alike([parameter.detach() for parameter in model.module.parameters()])


def train_fully_sharded(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = _model()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _train(model, _own_part(rank))
    _assert_trained_alike([parameter.full_tensor().detach() for parameter in model.parameters()])


def distribute_tensors(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (WORLD,))
    full = torch.linspace(-20, 20, 24).reshape(4, 6)
    expected = oracle.rounded(oracle.derivative(oracle.exact(full)), torch.float32)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        saved: FusedSigmoid(saved) for saved in ("auto", "derivative", "input", "output")
    }
    functions["pair"] = lambda input: sigmoid_with_derivative(input)[0]
    for placement in (Shard(0), Shard(1), Replicate()):
        for name, function in functions.items():
            input = distribute_tensor(full, mesh, [placement]).requires_grad_()
            ones = distribute_tensor(torch.ones_like(full), mesh, [placement])
            with CommDebugMode() as communication:
                output = function(input)
                output.backward(ones)
            assert communication.get_total_counts() == 0, (placement, name)
            assert output.placements == (placement,)
            assert input.grad is not None
            assert input.grad.placements == (placement,)
            torch.testing.assert_close(output.full_tensor(), torch.sigmoid(full))
            # torch's own gradient is right on the negative side alone.
            right = full < (0 if name == "output" else math.inf)
            gradient = input.grad.full_tensor()
            torch.testing.assert_close(gradient[right], expected[right], rtol=1e-6, atol=0)


def parallelize_layers(rank: int) -> None:
    """Columns of one layer and rows of the next: the sigmoid between them works on shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (WORLD,))
    batch = _batches()[0]
    for local in (True, False):
        model, alone = _model()[:3], _model()[:3]
        plan = {"0": ColwiseParallel(use_local_output=local), "2": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
        with CommDebugMode() as communication:
            output = model(batch)
            output.square().sum().backward()
        assert communication.get_total_counts() == 1  # the sum over the rows, of torch
        alone(batch).square().sum().backward()
        torch.testing.assert_close(output, alone(batch))
        for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad)


def sum_partial_tensors(rank: int) -> None:
    """The sigmoid of a sum is not the sum of sigmoids: torch sums first, and so do we."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = init_device_mesh("cpu", (WORLD,))
    part = torch.tensor([-9.0, 0.5, 9.0])
    exact = oracle.exact(WORLD * part)
    for saved in ("auto", "derivative", "input"):
        input = DTensor.from_local(part, mesh, [Partial()]).requires_grad_()
        output = sigmoid(input, saved=saved)
        output.sum().backward()
        assert output.placements == torch.sigmoid(input).placements == (Replicate(),)
        assert input.grad is not None
        value, gradient = output.full_tensor().detach(), input.grad.full_tensor()
        assert oracle.largest_error_in_ulp(value, oracle.value(exact)) < 3
        assert oracle.largest_error_in_ulp(gradient, oracle.derivative(exact)) < 8


# To start the processes takes longer than the work.
def train(rank: int) -> None:
    train_data_parallel(rank)
    train_fully_sharded(rank)


def distribute(rank: int) -> None:
    distribute_tensors(rank)
    parallelize_layers(rank)
    sum_partial_tensors(rank)


@pytest.mark.parametrize("work", [train, distribute], ids=lambda f: f.__name__)
def test_ranks(work: Callable[[int], None], tmp_path: Path) -> None:
    _run_ranks(work.__name__, tmp_path)


# Workers.

LARGE = 300_000  # more than one thread's share


class Gates(Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        input = torch.full((LARGE,), float(index), requires_grad=True)
        sigmoid(input).sum().backward()
        assert input.grad is not None
        return input.grad[:2]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method: str) -> None:
    own_process.call("test_processes", f"load_by_workers({method!r})")


def load_by_workers(method: str) -> None:
    # The parent's threads have run before the fork.
    sigmoid(torch.randn(LARGE))
    loader = DataLoader(Gates(), num_workers=2, multiprocessing_context=method, timeout=SECONDS)
    found = torch.cat(list(loader))[:, 0]
    expected = oracle.derivative(oracle.exact(torch.arange(6.0)))
    torch.testing.assert_close(found, oracle.rounded(expected, torch.float32), rtol=1e-6, atol=0)


def test_many_threads_with_policies_of_their_own() -> None:
    policies = ["auto", "derivative", "input", "output"] * 4

    def work(at: int) -> bool:
        saved, count = policies[at], 7 ** (1 + at % 6)
        x = torch.linspace(-9, 9, count)
        expected = torch.autograd.grad(sigmoid(leaf := x.clone().requires_grad_()).sum(), leaf)[0]
        for _ in range(5):
            leaf = x.clone().requires_grad_()
            sigmoid(leaf, saved=saved).sum().backward()
            assert leaf.grad is not None
            tolerance = 1e-2 if saved == "output" else 0
            torch.testing.assert_close(leaf.grad, expected, rtol=tolerance, atol=0)
        return True

    with ThreadPoolExecutor(len(policies)) as pool:
        assert all(pool.map(work, range(len(policies)), timeout=SECONDS))


LARGE_CALLS = (
    "sigmoid(x)",
    "sigmoid(x, out=y)",
    "sigmoid(x.t())",
    "sigmoid(x[:, ::2])",
    "sigmoid_(x)",
    "sigmoid_with_derivative(x)",
    "sigmoid_(x.requires_grad_().clone())",
    "torch.ops.fused_sigmoid.sigmoid_backward(y, x)",
)

# torch makes its threads when it first has work for them: each call is a forked process's first.
COUNT_THREADS = """
import os, sys, torch
from fused_sigmoid import *
torch.set_num_threads(3)
x, y = torch.empty(512, 512), torch.empty(512, 512)
for call in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        before = len(os.listdir("/proc/self/task"))
        eval(call)
        print(call, len(os.listdir("/proc/self/task")) - before, sep=": ", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux lists them")
def test_large_tensors_go_to_the_threads_of_torch() -> None:
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("OMP_")}
    found = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, *LARGE_CALLS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    assert found.stdout.splitlines() == [f"{call}: 2" for call in LARGE_CALLS]
