"""What test_gpu_launch.py runs in a process of its own, where a CUDA device is faked on the host's
memory: the node of the binary cross entropy and the operators behind it, with Triton's interpreter
in the place of the device. What is kept for the backward pass takes torch's own kernels."""

from __future__ import annotations

import importlib

import pytest
import torch

import fused_sigmoid
from fused_sigmoid import loss_operators
from tests import private_kernels
from tests.gpu_launch.scenarios import gpu, host

REDUCTIONS = ("none", "mean", "sum")
DTYPES = [torch.float64, torch.float32, torch.float16]  # of bfloat16 the interpreter is wrong


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that were launched."""
    import triton.language as tl

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    package = private_kernels.load("losses_on_a_fake_device").__package__
    module = importlib.import_module(f"{package}.binary_cross_entropy")
    names, launch = [], module._launch

    def on_host(kernel, programs, *arguments, **constants):
        names.append(kernel.fn.__name__)
        seen = (host_memory(each) if isinstance(each, torch.Tensor) else each for each in arguments)
        launch(kernel, programs, *seen, **constants)

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(tl, "sum", lambda x: tl.reduce(x, 0, tl.standard._sum_combine))
    monkeypatch.setattr(module, "_launch", on_host)
    monkeypatch.setattr(loss_operators, "loss_kernels", lambda: module)
    return names


def host_memory(tensor):
    assert tensor.is_cuda
    return torch.ops.fake_cuda.to_host(tensor)


def operands(dtype, size=3000):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).mul(4).to(dtype)
    return x, torch.rand(size, generator=generator).to(dtype)


def check(found, expected):
    assert found.is_cuda
    assert found.shape == expected.shape
    # The interpreter's fma rounds twice.
    torch.testing.assert_close(host(found.detach()), expected.detach(), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient(launched, dtype, reduction):
    x, t = operands(dtype)
    leaf, on_gpu = x.clone().requires_grad_(), gpu(x.clone()).requires_grad_()
    expected = fused_sigmoid.binary_cross_entropy_with_logits(
        leaf, t, reduction=reduction, return_probability=True
    )
    found = fused_sigmoid.binary_cross_entropy_with_logits(
        on_gpu, gpu(t), reduction=reduction, return_probability=True
    )
    for one, other in zip(found, expected, strict=True):
        check(one, other)
    of_sums = ["fused_binary_cross_entropy_total"] * (reduction != "none")
    assert launched == ["fused_binary_cross_entropy", *of_sums]


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_backward_pass_of_a_float16_mean(launched, factor):
    x, t = operands(torch.float16)
    grad = torch.tensor(factor, dtype=torch.float16)
    leaf, on_gpu = x.clone().requires_grad_(), gpu(x.clone()).requires_grad_()
    loss = fused_sigmoid.binary_cross_entropy_with_logits(leaf, t)
    (expected,) = torch.autograd.grad(loss, leaf, grad)
    loss = fused_sigmoid.binary_cross_entropy_with_logits(on_gpu, gpu(t))
    launched.clear()
    # The node alone: autograd's engine has threads for devices that torch was built for.
    with torch.no_grad():
        check(loss.grad_fn(gpu(grad)), expected)
    assert launched == ["fused_binary_cross_entropy"]


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_multiplication_by_a_number(launched, factor):
    x, _ = operands(torch.float32)
    tensor = gpu(x.clone())
    torch.ops.fused_sigmoid._multiply_by_number_(tensor, gpu(torch.tensor(factor)))
    check(tensor, factor * x)
    assert launched == ["fused_multiply_by_number"]


def test_without_a_gradient_none_is_written(launched):
    x, t = operands(torch.float32)
    found = fused_sigmoid.binary_cross_entropy_with_logits(gpu(x), gpu(t))
    check(found, fused_sigmoid.binary_cross_entropy_with_logits(x, t))
    assert not found.requires_grad
