"""What test_gpu_launch.py runs in a process of its own, where a CUDA device is faked on the host's
memory: the node of the binary cross entropy and the operators behind it, with Triton's interpreter
in the place of the device. What is kept for the backward pass takes torch's own kernels."""

from __future__ import annotations

import contextlib
import importlib
import struct
import types

import pytest
import torch

import fused_sigmoid
from fused_sigmoid import loss_operators
from fused_sigmoid._extension import extension
from fused_sigmoid.triton import binary_cross_entropy as losses
from tests import private_kernels
from tests.gpu_launch.scenarios import (
    BLOCK,
    CONTEXT,
    FAKE,
    GRID,
    PARAMETERS,
    SHARED,
    gpu,
    handle,
    host,
)

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

    def on_host(kernel, *arguments, **constants):
        names.append(kernel.fn.__name__)
        seen = (host_memory(each) if isinstance(each, torch.Tensor) else each for each in arguments)
        launch(kernel, *seen, **constants)

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(tl, "sum", lambda x, axis=0: tl.reduce(x, axis, tl.standard._sum_combine))
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


# After the first launch of a kernel the extension's own.


class FakeKernel:
    """Stands for a kernel of Triton: computes nothing, and returns what Triton returns."""

    def __init__(self, number, shared):
        self.number, self.shared, self.launches, self.pre_run_hooks = number, shared, 0, []

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, enable_fp_fusion, **constants):
            self.launches += 1
            metadata = {
                "shared": self.shared,
                "num_ctas": 1,
                "num_warps": num_warps,
                "global_scratch_size": 0,
                "profile_scratch_size": 0,
                "launch_cooperative_grid": False,
                "launch_pdl": False,
                "target": types.SimpleNamespace(backend="cuda", warp_size=32),
            }
            unused = 2
            parameters = sum(each is not None for each in arguments) + unused
            return types.SimpleNamespace(
                metadata=types.SimpleNamespace(**metadata),
                function=handle(self.number, parameters, element_size=0),
            )

        return launch


@pytest.fixture
def compiled(monkeypatch):
    """The three kernels, of which nothing was compiled yet."""
    names = ("binary_cross_entropy", "binary_cross_entropy_total", "multiply_by_number")
    kernels = [FakeKernel(number, shared) for number, shared in enumerate((32, 512, 0))]
    for name, kernel in zip(names, kernels, strict=True):
        monkeypatch.setattr(losses, f"fused_{name}", kernel)
    monkeypatch.setattr(losses, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    FAKE.set_context(CONTEXT)
    FAKE.set_device(0)
    extension.forget_gpu_kernels()
    FAKE.take_launches()
    return kernels


def bits(number):
    return struct.unpack("q", struct.pack("d", number))[0]


def counts(kernels):
    return [kernel.launches for kernel in kernels]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [3000, 70_000])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("with_probability", [False, True])
def test_a_second_call_is_the_extensions(
    compiled, dtype, size, reduction, with_gradient, with_probability
):
    x, t = map(gpu, operands(dtype, size))
    x.requires_grad_(with_gradient)

    def call():
        return fused_sigmoid.binary_cross_entropy_with_logits(
            x, t, reduction=reduction, return_probability=with_probability
        )

    call()
    is_reduced = reduction != "none"
    assert counts(compiled) == [1, is_reduced, 0]
    assert FAKE.take_launches() == []
    found = call()
    assert counts(compiled) == [1, is_reduced, 0]
    first, *others = FAKE.take_launches()
    loss, probability = found if with_probability else (found, None)
    elements = losses._programs_for(dtype, size).size
    programs = -(-size // elements)
    divisor = size if reduction == "mean" else 1
    assert first[GRID] == [programs, 1, 1]
    assert (first[BLOCK], first[SHARED]) == ([128, 1, 1], 32)
    *pointers, scale, count, _, _ = first[PARAMETERS]
    assert (scale, count) == (bits(1 / divisor), size)
    # The gradient of a float16 mean is not kept.
    has_gradient = with_gradient and (dtype, reduction) != (torch.float16, "mean")
    assert len(pointers) == 3 + has_gradient + with_probability
    assert pointers[:2] == [x.data_ptr(), t.data_ptr()]
    if with_probability:
        assert pointers[-1] == probability.data_ptr()
        assert (probability.dtype, probability.requires_grad) == (dtype, False)
    assert (loss.dtype, loss.requires_grad) == (dtype, with_gradient)
    if is_reduced:
        (total,) = others
        assert (total[GRID], total[BLOCK], total[SHARED]) == ([1, 1, 1], [512, 1, 1], 512)
        assert total[PARAMETERS][:4] == [*(pointers[2], loss.data_ptr(), bits(divisor), programs)]
    else:
        assert others == []
        assert pointers[2] == loss.data_ptr()


def test_what_else_there_is_takes_tritons_launch(compiled, monkeypatch):
    # The device copies nothing.
    monkeypatch.setattr(losses, "_laid_out", lambda tensor, like, dtype: tensor)
    x, t = map(gpu, operands(torch.float32))
    number, many = gpu(torch.tensor(2.0)), gpu(torch.rand(3000))
    unaligned = gpu(torch.zeros(3001))[1:]
    calls = {
        "a weight": (x, t, number),
        "weights": (x, t, many),
        "another dtype": (x, gpu(torch.zeros(3000, dtype=torch.float64))),
        "unaligned logits": (unaligned, t),
        "unaligned targets": (x, unaligned),
        "gaps": (gpu(torch.zeros(6000))[::2], t),
    }
    run = fused_sigmoid.binary_cross_entropy_with_logits
    run(x, t)
    for what, given in calls.items():
        for _ in range(2):
            before = counts(compiled)
            run(*given)
            FAKE.take_launches()
            assert counts(compiled)[0] == before[0] + 1, what
    before = counts(compiled)
    run(x, t)
    assert counts(compiled) == before
    assert len(FAKE.take_launches()) == 2


def test_hooks_see_launches(compiled):
    x, t = map(gpu, operands(torch.float32))
    run = fused_sigmoid.binary_cross_entropy_with_logits
    run(x, t)
    for kernel in compiled[:2]:
        kernel.pre_run_hooks.append(print)
        before = counts(compiled)
        run(x, t)
        assert counts(compiled) == [each + 1 for each in before[:2]] + before[2:]
        kernel.pre_run_hooks.clear()
    FAKE.take_launches()
    run(x, t)
    assert len(FAKE.take_launches()) == 2
