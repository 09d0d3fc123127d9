"""The memory of an output is like that of torch's own sigmoid to all that looks at a storage: lazy
clones, shared memory, resizing, reports. Small outputs, and those that huge pages back."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, multiprocessing
from torch.profiler import profile

from fused_sigmoid import sigmoid, sigmoid_with_derivative

Sigmoid = Callable[[Tensor], Tensor]
SIZES = [9, 300_000, 9_000_000]  # from 8 Mi elements on glibc maps each output anew


def _gradient(x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    sigmoid(leaf).backward(torch.ones_like(x))
    assert leaf.grad is not None
    return leaf.grad


OUTPUTS: dict[str, Sigmoid] = {
    "value": sigmoid,
    "pair's value": lambda x: sigmoid_with_derivative(x)[0],
    "derivative": lambda x: sigmoid_with_derivative(x)[1],
    "gradient": _gradient,
}

pytestmark = [
    pytest.mark.parametrize("size", SIZES),
    pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS.keys()),
]


def test_lazy_clone_is_written_apart(output: Sigmoid, size: int) -> None:
    tensor = output(torch.zeros(size))
    before = tensor[-1].item()
    clone = torch._lazy_clone(tensor)
    clone.add_(1)
    assert (tensor[-1].item(), clone[-1].item()) == (before, before + 1)
    assert clone.data_ptr() != tensor.data_ptr()


def test_shared_memory(output: Sigmoid, size: int) -> None:
    """Another process writes to it, to one element: a forked one has no threads of OpenMP."""
    tensor = output(torch.zeros(size))
    before = tensor[-1].item()
    tensor.share_memory_()
    assert tensor.is_shared()
    other = multiprocessing.get_context("fork").Process(target=tensor[-1:].add_, args=(1,))
    other.start()
    other.join()
    assert other.exitcode == 0
    assert tensor[-1].item() == before + 1


def test_resized(output: Sigmoid, size: int) -> None:
    tensor = output(torch.zeros(size))
    before = tensor[-1].item()
    storage = tensor.untyped_storage()
    assert storage.nbytes() == 4 * size
    assert storage.resizable()
    tensor.resize_(2 * size)
    assert (tensor[size - 1].item(), storage.nbytes()) == (before, 8 * size)
    tensor.resize_(1)
    storage.resize_(4)
    assert (tensor.item(), storage.nbytes()) == (before, 4)
    storage.resize_(0)
    assert storage.data_ptr() == 0


def test_saved_whole_and_no_more(output: Sigmoid, size: int) -> None:
    file, of_torch = io.BytesIO(), io.BytesIO()
    tensor = output(torch.zeros(size))
    torch.save(tensor, file)
    torch.save(torch.zeros(size), of_torch)
    assert file.tell() == of_torch.tell()
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), tensor)


def test_memory_in_a_profile(output: Sigmoid, size: int) -> None:
    """As many bytes as the tensors have, all given back."""
    x = torch.zeros(size)
    with profile(profile_memory=True, acc_events=True) as profiled:
        output(x)
    changes = [event.self_cpu_memory_usage for event in profiled.key_averages()]
    assert sum(changes) == 0
    tensor_bytes = 4 * size
    assert {abs(change) % tensor_bytes for change in changes} == {0}
    assert max(changes) > 0
