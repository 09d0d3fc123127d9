"""What test_gpu_launch.py runs in a process of its own, where a CUDA device is faked on the host's
memory: the extension's launches, with everything real but the device, its driver and Triton."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import fused_sigmoid
from fused_sigmoid import triton_kernels
from fused_sigmoid._extension import extension

cpp_extension.load(
    "fake_cuda",
    [str(Path(__file__).with_name("fake_cuda.cpp"))],
    extra_cflags=["-O0", "-g0"],
    extra_ldflags=["-Wl,-soname,libcuda.so.1"],
    build_directory=os.environ["FAKE_CUDA_BUILD"],
    is_python_module=False,
)
FAKE = torch.ops.fake_cuda
OPERATORS = torch.ops.fused_sigmoid
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CONTEXT = 77

# Fields of a launch that the driver saw.
FUNCTION, GRID, BLOCK, SHARED, STREAM, DEVICE, CONTEXT_AT, EXTRA, PARAMETERS = (
    0,
    slice(1, 4),
    slice(4, 7),
    *(7, 8, 9, 10, 11),
    slice(12, None),
)


def gpu(tensor, device=0):
    return FAKE.to_device(tensor.contiguous() if tensor.dim() == 0 else tensor, device)


def host(tensor):
    return FAKE.to_host(tensor).clone()


def handle(number, parameters, odd=False, element_size=4):
    return parameters << 16 | odd << 15 | number << 8 | element_size


class FakeTriton:
    """Stands for Triton's launch: computes on the host, and returns what Triton returns."""

    def __init__(self):
        self.calls, self.metadata, self.parameters, self.odd = [], {}, 2, False
        self.pause = 0.0
        self.function_type = int

    def launch(self, kernel, tensors):
        self.calls.append(triton_kernels._key(kernel, tensors))
        time.sleep(self.pause)
        operands = [host(t) for t in tensors[: kernel.reads]]
        name = kernel.name.removesuffix("_of_one").removesuffix("_of_kept")
        name = f"sigmoid_{name}" if name.startswith("backward") else name
        loss_dtypes = {
            "sigmoid_backward_before_bce": (tensors[0].dtype,),
            "sigmoid_backward_before_float32_bce": (torch.float32,),
        }.get(name, ())
        results = getattr(OPERATORS, name.replace("float32_", ""))(*operands, *loss_dtypes)
        results = results if isinstance(results, tuple) else (results,)
        for out, result in zip(tensors[kernel.reads :], results, strict=True):
            FAKE.to_host(out).copy_(result)
        metadata = {
            "shared": 0,
            "num_ctas": 1,
            "num_warps": 4,
            "global_scratch_size": 0,
            "profile_scratch_size": 0,
            "launch_cooperative_grid": False,
            "launch_pdl": False,
            "target": types.SimpleNamespace(backend="cuda", warp_size=32),
        } | self.metadata
        passed = kernel.reads + kernel.writes + 1
        size = tensors[0].element_size()
        function = handle(kernel.number, passed + self.parameters, self.odd, size)
        return types.SimpleNamespace(
            metadata=types.SimpleNamespace(**metadata), function=self.function_type(function)
        )


@pytest.fixture
def triton(monkeypatch):
    """A fake of Triton, on devices that nothing was compiled for: each test has its own dtype or
    key, since what the extension was given stays."""
    fake = FakeTriton()
    monkeypatch.setattr(triton_kernels, "_launch_by_triton", fake.launch)
    monkeypatch.setattr(triton_kernels, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    FAKE.set_context(CONTEXT)
    FAKE.set_device(0)
    extension.forget_gpu_kernels()
    FAKE.take_launches()
    return fake


def values(size=5000, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).to(dtype) * 3


def check(result, expected):
    torch.testing.assert_close(host(result), expected, rtol=1e-6, atol=1e-38)


def test_first_call_compiles_and_later_calls_do_not(triton):
    x = values()
    expected = torch.sigmoid(x)
    for _ in range(3):
        check(fused_sigmoid.sigmoid(gpu(x)), expected)
    assert len(triton.calls) == 1
    first, second = FAKE.take_launches()
    assert first[GRID] == [5, 1, 1]  # of 1024 elements each
    assert first[BLOCK] == [128, 1, 1]
    assert (first[SHARED], first[EXTRA], first[CONTEXT_AT]) == (0, 0, CONTEXT)
    pointers, count, unused = first[PARAMETERS][:2], first[PARAMETERS][2], first[PARAMETERS][3:]
    assert count == 5000
    assert unused == [0, 0]
    assert all(pointer % 16 == 0 for pointer in pointers)
    assert first[FUNCTION] == second[FUNCTION] == handle(0, 5)


def test_every_operation(triton):
    x, grad = values(seed=1), values(seed=2)
    y, d = torch.sigmoid(x), torch.sigmoid(x) * torch.sigmoid(-x)
    expected = {
        "sigmoid": ((x,), (y,)),
        "sigmoid_with_derivative": ((x,), (y, d)),
        "sigmoid_backward": ((grad, x), (grad * d,)),
        "sigmoid_backward_from_output": ((grad, y), (grad * (1 - y) * y,)),
        "sigmoid_backward_from_derivative": ((grad, d), (grad * d,)),
        "sigmoid_backward_before_bce": ((grad, y), (grad * (1 - y) * y,)),
    }
    for name, (operands, results) in expected.items():
        before = extension.gpu_launches()
        for _ in range(2):
            others = (torch.float32,) if name == "sigmoid_backward_before_bce" else ()
            got = getattr(OPERATORS, name)(*map(gpu, operands), *others)
            for result, reference in zip(
                got if isinstance(got, tuple) else (got,), results, strict=True
            ):
                torch.testing.assert_close(host(result), reference, rtol=2e-6, atol=1e-30)
        assert extension.gpu_launches() == before + 1
    assert len(triton.calls) == 6


def test_the_dtype_of_the_loss_chooses_the_kernel(triton):
    grad, y = values(seed=1), torch.sigmoid(values(seed=2))
    for dtype, loss_dtype, number in (
        (torch.float32, torch.float32, 8),
        (torch.bfloat16, torch.bfloat16, 8),
        (torch.bfloat16, torch.float32, 9),
        (torch.float16, torch.float32, 9),
    ):
        operands = gpu(grad.to(dtype)), gpu(y.to(dtype))
        for _ in range(2):
            OPERATORS.sigmoid_backward_before_bce(*operands, loss_dtype)
        (launch,) = FAKE.take_launches()
        assert launch[FUNCTION] == handle(number, 6, element_size=dtype.itemsize)
        assert launch[PARAMETERS][:2] == [operand.data_ptr() for operand in operands]
    assert [key[0] for key in triton.calls] == [8, 8, 9, 9]


def test_an_input_that_is_kept_has_a_kernel_of_its_own(triton):
    x = values()
    kept = {"auto": 10, "input": 10, "output": 0}
    for saved, number in kept.items():
        for requires_grad, expected in ((True, number), (False, 0)):
            leaf = gpu(x.clone()).requires_grad_(requires_grad)
            for _ in range(2):
                check(fused_sigmoid.sigmoid(leaf, saved=saved).detach(), torch.sigmoid(x))
            assert FAKE.take_launches()[-1][FUNCTION] == handle(expected, 5)
    assert [key[0] for key in triton.calls] == [10, 0]


def test_a_gradient_of_one_number(triton):
    x = values(seed=1)
    y, d = torch.sigmoid(x), torch.sigmoid(x) * torch.sigmoid(-x)
    one = torch.tensor([0.0, 2.5])[1]
    for name, kept, expected in (
        ("sigmoid_backward", x, 2.5 * d),
        ("sigmoid_backward_from_output", y, 2.5 * (1 - y) * y),
        ("sigmoid_backward_from_derivative", d, 2.5 * d),
    ):
        for _ in range(2):
            result = getattr(OPERATORS, name)(gpu(one.expand(x.shape)), gpu(kept))
            torch.testing.assert_close(host(result), expected, rtol=2e-6, atol=1e-30)
            assert result.shape == x.shape
        (launch,) = FAKE.take_launches()
        assert launch[PARAMETERS][0] == one.data_ptr()
        assert launch[GRID][0] == 5
    assert len(triton.calls) == 3


def test_out_and_in_place(triton):
    x = values()
    fused_sigmoid.sigmoid(gpu(x))  # the same kernel
    out = gpu(torch.zeros_like(x))
    assert fused_sigmoid.sigmoid(gpu(x), out=out) is out
    check(out, torch.sigmoid(x))
    inside = gpu(x.clone())
    assert fused_sigmoid.sigmoid_(inside) is inside
    check(inside, torch.sigmoid(x))
    OPERATORS.sigmoid_with_derivative(gpu(x))
    for in_place in (0, 1):
        input = gpu(x.clone())
        pair = [input, input]
        pair[1 - in_place] = gpu(torch.zeros_like(x))
        OPERATORS.sigmoid_with_derivative_out(input, *pair)
        check(pair[0], torch.sigmoid(x))
        check(pair[1], torch.sigmoid(x) * torch.sigmoid(-x))
    assert len(triton.calls) == 2
    assert len(FAKE.take_launches()) == 4


def test_dtype_device_and_alignment_have_kernels_of_their_own(triton):
    buffer = values(4097)
    for tensor, device in (
        (buffer[:4096], 0),
        (buffer[1:], 0),
        (buffer[:4096], 1),
        (buffer[:4096].double(), 0),
        (buffer[:4096].half(), 0),
        (buffer[:4096].bfloat16(), 0),
    ):
        before = len(triton.calls)
        for _ in range(2):
            OPERATORS.sigmoid.default.redispatch(CUDA, gpu(tensor, device))
        assert len(triton.calls) == before + 1
    assert len(set(triton.calls)) == 6
    # Operands are bit 0, the result bit 1.
    assert [key[3] for key in triton.calls] == [3, 2, 3, 3, 3, 3]


def test_a_small_call_takes_the_kernel_of_a_large_one(triton):
    for size in (100_000, 1, 7, 1024, 1025):
        x = values(size)
        check(fused_sigmoid.sigmoid(gpu(x)), torch.sigmoid(x))
    assert len(triton.calls) == 1
    assert [launch[GRID][0] for launch in FAKE.take_launches()] == [1, 1, 1, 2]


def test_a_block_has_as_many_elements_as_its_dtype_asks_for(triton):
    for dtype, blocks in ((torch.float64, 20), (torch.float32, 5), (torch.bfloat16, 5)):
        for _ in range(2):
            fused_sigmoid.sigmoid(gpu(values(5000, dtype=dtype)))
        (launch,) = FAKE.take_launches()
        assert launch[GRID] == [blocks, 1, 1]
        assert launch[PARAMETERS][2] == 5000


def test_empty_tensors_launch_nothing(triton):
    fused_sigmoid.sigmoid(gpu(values(3)))
    assert fused_sigmoid.sigmoid(gpu(torch.empty(3, 0))).shape == (3, 0)
    assert len(triton.calls) == 1
    assert FAKE.take_launches() == []


def test_current_stream_and_the_device_of_the_tensor(triton):
    x = values()
    for device in (0, 1):
        fused_sigmoid.sigmoid(gpu(x, device))
    FAKE.set_stream(1, 42)
    FAKE.set_stream(0, 7)
    for device in (1, 0):
        result = fused_sigmoid.sigmoid(gpu(x, device))
        assert result.device == torch.device("cuda", device)
    on_second, on_first = FAKE.take_launches()
    assert (on_second[DEVICE], on_second[STREAM]) == (1, 2042)
    assert (on_first[DEVICE], on_first[STREAM]) == (0, 1007)
    FAKE.set_stream(1, 0)
    FAKE.set_stream(0, 0)
    # The device that was current is so again.
    fused_sigmoid.sigmoid(gpu(x, 1))
    fused_sigmoid.sigmoid(gpu(x, 0))
    assert [launch[DEVICE] for launch in FAKE.take_launches()] == [1, 0]


def test_a_thread_without_a_context_gets_the_device_s(triton):
    x = gpu(values())
    fused_sigmoid.sigmoid(x)
    thread = threading.Thread(target=fused_sigmoid.sigmoid, args=(x,))
    thread.start()
    thread.join()
    (launch,) = FAKE.take_launches()
    assert launch[CONTEXT_AT] == CONTEXT


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.reshape(50, 100).t(),
        lambda x: x.reshape(2, 5, 20, 25).contiguous(memory_format=torch.channels_last),
        lambda x: x.reshape(10, 20, 25).permute(2, 0, 1),
        lambda x: x.reshape(5000, 1).t(),
    ],
)
def test_dense_layouts_go_as_they_are(triton, layout):
    x = layout(values())
    grad = torch.empty_like(x).copy_(layout(values(seed=3)))
    for _ in range(2):
        value = fused_sigmoid.sigmoid(gpu(x))
        gradient = OPERATORS.sigmoid_backward(gpu(grad), gpu(x))
    assert value.stride() == gradient.stride() == torch.sigmoid(x).stride()
    check(value, torch.sigmoid(x))
    expected = grad * torch.sigmoid(x) * torch.sigmoid(-x)
    torch.testing.assert_close(host(gradient), expected, rtol=2e-6, atol=1e-30)
    # The second call read the tensors themselves.
    launches = FAKE.take_launches()
    assert [launch[PARAMETERS][0] for launch in launches] == [x.data_ptr(), grad.data_ptr()]
    assert launches[1][PARAMETERS][1] == x.data_ptr()


def test_what_does_not_fit_is_left_to_the_other_way(triton):
    x = gpu(values())
    fused_sigmoid.sigmoid(x)
    OPERATORS.sigmoid_backward(x, x)
    fits = extension.launch_gpu_kernel
    assert fits(0, x, gpu(torch.zeros(5000)))
    # Unlike alignment, dtype: not compiled yet.
    assert not fits(0, gpu(values(4000)), gpu(torch.zeros(4001)[1:]))
    assert not fits(0, gpu(values(dtype=torch.double)), gpu(torch.zeros(5000).double()))
    assert not fits(1, x, gpu(torch.zeros(5000)), gpu(torch.zeros(5000)))
    assert not fits(0, values(), torch.zeros(5000))  # on the CPU


def test_hooks_of_triton_see_every_launch(triton):
    from triton import knobs

    def hook(*_):
        pass

    x = values()
    runtime = knobs.runtime
    for hooks in (
        runtime.launch_enter_hook.calls,
        runtime.launch_exit_hook.calls,
        triton_kernels.SIGMOID.function.pre_run_hooks,
    ):
        for _ in range(2):
            fused_sigmoid.sigmoid(gpu(x))
        seen, launched = len(triton.calls), len(FAKE.take_launches())
        assert launched
        hooks.append(hook)
        try:
            for _ in range(2):
                check(fused_sigmoid.sigmoid(gpu(x)), torch.sigmoid(x))
            assert len(triton.calls) == seen + 2
            assert FAKE.take_launches() == []
        finally:
            hooks.remove(hook)
        fused_sigmoid.sigmoid(gpu(x))
        assert len(triton.calls) == seen + 2
        assert len(FAKE.take_launches()) == 1


def test_threads_that_race_for_the_first_call_compile_once(triton):
    triton.pause = 0.1
    x = values()
    results = [None] * 8
    barrier = threading.Barrier(len(results))

    def run(i):
        FAKE.set_context(CONTEXT)
        barrier.wait()
        results[i] = fused_sigmoid.sigmoid(gpu(x))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(triton.calls) == 1
    assert len(FAKE.take_launches()) == len(results) - 1
    for result in results:
        check(result, torch.sigmoid(x))


def test_an_error_of_the_driver_is_raised_once(triton):
    x = values()
    fused_sigmoid.sigmoid(gpu(x))
    FAKE.fail_next(700)
    with pytest.raises(RuntimeError, match="an illegal memory access was encountered"):
        fused_sigmoid.sigmoid(gpu(x))
    FAKE.fail_next(3)
    with pytest.raises(RuntimeError, match="CUDA error at the launch of a kernel: 3"):
        fused_sigmoid.sigmoid(gpu(x))
    check(fused_sigmoid.sigmoid(gpu(x)), torch.sigmoid(x))


REFUSALS = {
    "shared memory": {"metadata": {"shared": 1024}},
    "scratch memory": {"metadata": {"global_scratch_size": 8}},
    "a cluster": {"metadata": {"num_ctas": 2}},
    "launch attributes": {"metadata": {"launch_pdl": True}},
    "a launch for hip": {
        "metadata": {"target": types.SimpleNamespace(backend="hip", warp_size=64)}
    },
    "other parameters than expected: there are more than 7": {"parameters": 5},
    "other parameters than expected: parameter 0 has error 0, offset 0, size 4": {"odd": True},
    "is not as expected": {"function_type": str},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_kernel_that_is_not_as_expected_stays_with_triton(triton, reason):
    for name, setting in REFUSALS[reason].items():
        setattr(triton, name, setting)
    x = values()
    for _ in range(3):
        check(fused_sigmoid.sigmoid(gpu(x)), torch.sigmoid(x))
    assert len(triton.calls) == 3
    assert FAKE.take_launches() == []
    assert triton_kernels.launcher().startswith("Triton (")
    assert reason in triton_kernels.launcher()


def test_a_kernel_without_parameters_of_triton_is_launched(triton):
    triton.parameters = 0
    x = values()
    for _ in range(2):
        check(fused_sigmoid.sigmoid(gpu(x)), torch.sigmoid(x))
    (launch,) = FAKE.take_launches()
    assert len(launch[PARAMETERS]) == 3


def test_without_a_context_nothing_is_handed_over(triton):
    FAKE.set_context(0)
    fused_sigmoid.sigmoid(gpu(values()))
    assert "no current context" in triton_kernels.launcher()


def test_the_variable_leaves_launches_to_triton(triton, monkeypatch):
    monkeypatch.setenv("FUSED_SIGMOID_LAUNCH", "triton")
    x = gpu(values())
    for _ in range(2):
        fused_sigmoid.sigmoid(x)
    assert len(triton.calls) == 2
    assert triton_kernels.launcher() == "Triton (FUSED_SIGMOID_LAUNCH=triton)"


def test_launcher_says_that_the_extension_launches(triton):
    fused_sigmoid.sigmoid(gpu(values()))
    assert triton_kernels.launcher() == "the extension"


def test_a_profiler_sees_the_operation(triton):
    x = gpu(values())
    fused_sigmoid.sigmoid(x)
    with torch.profiler.profile() as profile:
        fused_sigmoid.sigmoid(x)
    assert [e.count for e in profile.key_averages() if e.key == "fused_sigmoid::sigmoid"] == [1]
    assert len(FAKE.take_launches()) == 1
