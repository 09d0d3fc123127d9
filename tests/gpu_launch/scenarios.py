"""What test_gpu_launch.py runs in a process of its own, where a CUDA device is faked on the host's
memory: the extension's launches, with everything real but the device, its driver and Triton."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import fused_sigmoid
from fused_sigmoid._extension import extension
from fused_sigmoid.triton import elementwise

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
DENSE, OF_ONE, ROWS = elementwise.Layout
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


def handle(number, parameters, odd=False, element_size=4, layout=DENSE):
    return parameters << 16 | odd << 15 | layout << 12 | number << 8 | element_size


OPERATORS_OF_WORKS = {
    "value": "sigmoid",
    "value_of_kept": "sigmoid",
    "value_and_derivative": "sigmoid_with_derivative",
}


class FakeTriton:
    """Stands for Triton's launch: computes on the host, and returns what Triton returns."""

    def __init__(self):
        self.calls, self.metadata, self.parameters, self.odd = [], {}, 2, False
        self.pause = 0.0
        self.function_type = int

    def launch(self, kernel, tensors, call):
        self.calls.append(elementwise._key(kernel, tensors, call))
        time.sleep(self.pause)
        operands = [host(t) for t in tensors[: kernel.reads]]
        name = OPERATORS_OF_WORKS.get(kernel.work, f"sigmoid_{kernel.work}")
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
        parameters = len(tensors) + len(call.numbers) + self.parameters
        size = tensors[0].element_size()
        function = handle(kernel.number, parameters, self.odd, size, call.layout)
        return types.SimpleNamespace(
            metadata=types.SimpleNamespace(**metadata), function=self.function_type(function)
        )


@pytest.fixture
def triton(monkeypatch):
    """A fake of Triton, on devices that nothing was compiled for: each test has its own dtype or
    key, since what the extension was given stays."""
    fake = FakeTriton()
    monkeypatch.setattr(elementwise, "launch_by_triton", fake.launch)
    monkeypatch.setattr(elementwise, "_compiled", {})
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
    assert first[GRID] == [20, 1, 1]  # of 256 elements each
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
        (torch.float32, torch.float32, 5),
        (torch.bfloat16, torch.bfloat16, 5),
        (torch.bfloat16, torch.float32, 6),
        (torch.float16, torch.float32, 6),
    ):
        operands = gpu(grad.to(dtype)), gpu(y.to(dtype))
        for _ in range(2):
            OPERATORS.sigmoid_backward_before_bce(*operands, loss_dtype)
        (launch,) = FAKE.take_launches()
        assert launch[FUNCTION] == handle(number, 6, element_size=dtype.itemsize)
        assert launch[PARAMETERS][:2] == [operand.data_ptr() for operand in operands]
    assert [key[0] for key in triton.calls] == [5, 5, 6, 6]


def test_an_input_that_is_kept_has_a_kernel_of_its_own(triton):
    x = values()
    kept = {"auto": 7, "input": 7, "output": 0}
    for saved, number in kept.items():
        for requires_grad, expected in ((True, number), (False, 0)):
            leaf = gpu(x.clone()).requires_grad_(requires_grad)
            for _ in range(2):
                check(fused_sigmoid.sigmoid(leaf, saved=saved).detach(), torch.sigmoid(x))
            assert FAKE.take_launches()[-1][FUNCTION] == handle(expected, 5)
    assert [key[0] for key in triton.calls] == [7, 0]


def test_a_gradient_of_one_number(triton):
    x = values(seed=1)
    y, d = torch.sigmoid(x), torch.sigmoid(x) * torch.sigmoid(-x)
    one = torch.tensor([0.0, 2.5])[1]
    for name, kept, expected in (
        ("sigmoid_backward", x, 2.5 * d),
        ("sigmoid_backward_from_output", y, 2.5 * (1 - y) * y),
        ("sigmoid_backward_from_derivative", d, 2.5 * d),
        ("sigmoid_backward_before_bce", y, 2.5 * (1 - y) * y),
    ):
        others = (torch.float32,) if name == "sigmoid_backward_before_bce" else ()
        for _ in range(2):
            result = getattr(OPERATORS, name)(gpu(one.expand(x.shape)), gpu(kept), *others)
            torch.testing.assert_close(host(result), expected, rtol=2e-6, atol=1e-30)
            assert result.shape == x.shape
        (launch,) = FAKE.take_launches()
        assert launch[PARAMETERS][0] == one.data_ptr()
        assert launch[GRID][0] == 20
    assert [key[1] for key in triton.calls] == [OF_ONE] * 4


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
    # What is wide: the operand is bit 0, the result bit 1.
    assert [key[4] for key in triton.calls] == [3, 2, 3, 3, 3, 3]


def test_a_block_is_as_large_as_the_dtype_and_the_count_ask_for(triton):
    small, large = 2**16, 2**16 + 1
    for dtype, sizes in (
        (torch.float64, (128, 256)),
        (torch.float32, (256, 1024)),
        (torch.float16, (256, 1024)),
        (torch.bfloat16, (256, 1024)),
    ):
        blocks = elementwise.BLOCKS[dtype]
        assert [(each.most, each.size) for each in blocks] == [
            (small, sizes[0]),
            (2**63 - 1, sizes[1]),
        ]
        triton.calls.clear()
        for counts, size in (((small, 1, 7, 1025), sizes[0]), ((large, 3 * large), sizes[1])):
            # One compilation serves every count of a block size, and no other.
            for count in counts:
                fused_sigmoid.sigmoid(gpu(values(count, dtype=dtype)))
            launches = FAKE.take_launches()
            assert [launch[GRID] for launch in launches] == [
                [-(-count // size), 1, 1] for count in counts[1:]
            ]
            assert [launch[PARAMETERS][2] for launch in launches] == list(counts[1:])
        assert [key[5] for key in triton.calls] == list(sizes)
        # Both stay: neither takes the place of the other.
        for count in (small, large, 1):
            fused_sigmoid.sigmoid(gpu(values(count, dtype=dtype)))
        assert [launch[GRID][0] for launch in FAKE.take_launches()] == [
            -(-small // sizes[0]),
            -(-large // sizes[1]),
            1,
        ]


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


# Each with the columns and the strides of what it makes of 6000 elements, and what of it and of the
# dense result is wide; each is read in one launch, without a copy.
ENDLESS = 2**31
IN_ROWS = {
    "part of each row": (lambda x: x.view(60, 100)[:, :80], (80, (100, 1), (80, 1)), 0b11),
    "part of each row, odd": (lambda x: x.view(60, 100)[:, 1:80], (79, (100, 1), (79, 1)), 0),
    "half of each row": (
        lambda x: x.view(30, 200).chunk(2, -1)[1],
        (100, (200, 1), (100, 1)),
        0b11,
    ),
    "half of the channels": (
        *(lambda x: x.view(5, 12, 10, 10).chunk(2, 1)[0], (600, (1200, 1), (600, 1)), 0b11),
    ),
    "every second row": (lambda x: x.view(60, 100)[::2], (100, (200, 1), (100, 1)), 0b11),
    "every second element": (lambda x: x[::2], (ENDLESS, (0, 2), (0, 1)), 0b10),
    "part of each column": (lambda x: x.view(60, 100).t()[:80], (80, (100, 1), (80, 1)), 0b11),
    "one column": (lambda x: x.view(60, 100)[:, 4:5], (ENDLESS, (0, 100), (0, 1)), 0b10),
    "a number for each row": (
        *(lambda x: x[:60].view(60, 1).expand(60, 100), (100, (1, 0), (100, 1)), 0b10),
    ),
    "a row for all": (lambda x: x[:100].expand(60, 100), (100, (0, 1), (100, 1)), 0b11),
}


def strides_of(launch, tensors):
    """The columns of a launch over rows, and the two strides of each tensor."""
    columns, _, _, *strides = launch[PARAMETERS][tensors + 1 : tensors + 10]
    return columns, [tuple(strides[2 * i : 2 * i + 2]) for i in range(tensors)]


@pytest.mark.parametrize("name", IN_ROWS)
def test_rows_go_as_they_are(triton, name):
    make, (columns, *strides), wide = IN_ROWS[name]
    x = make(values(6000))
    for _ in range(2):
        result = fused_sigmoid.sigmoid(gpu(x))
    check(result, torch.sigmoid(x))
    assert result.stride() == torch.sigmoid(x).stride()
    ((number, layout, *_, found, _),) = triton.calls
    assert (number, layout, found) == (0, ROWS, wide)
    (launch,) = FAKE.take_launches()
    assert launch[FUNCTION] == handle(0, 14, layout=ROWS)
    assert launch[PARAMETERS][:3] == [x.data_ptr(), result.data_ptr(), x.numel()]
    assert strides_of(launch, 2) == (columns, strides)


@pytest.mark.parametrize("name", IN_ROWS)
def test_gradients_in_rows_go_as_they_are(triton, name):
    make, (columns, *strides), wide = IN_ROWS[name]
    grad = make(values(6000))
    x = torch.sigmoid(grad)  # laid out as the result above
    expected = grad * torch.sigmoid(x) * torch.sigmoid(-x)
    for _ in range(2):
        result = OPERATORS.sigmoid_backward(gpu(grad), gpu(x))
    torch.testing.assert_close(host(result), expected, rtol=2e-6, atol=1e-30)
    ((number, layout, *_, found, _),) = triton.calls
    assert (number, layout, found) == (2, ROWS, wide and wide | 0b110)
    (launch,) = FAKE.take_launches()
    assert launch[PARAMETERS][:2] == [grad.data_ptr(), x.data_ptr()]
    assert strides_of(launch, 3) == (columns, [*strides, strides[1]])


@pytest.mark.parametrize(
    ("grad", "x", "columns", "strides"),
    [
        # Laid out otherwise than the input: transposed, and as a part of something larger.
        # The result is laid out as torch's would be, which is as the first operand.
        ((1, 60), (100, 1), 60, [(60, 1), (1, 100), (60, 1)]),
        ((100, 1), (1, 60), 100, [(100, 1), (1, 60), (100, 1)]),
        ((200, 2), (100, 1), ENDLESS, [(0, 2), (0, 1), (0, 1)]),
        ((100, 1), (400, 1), 100, [(100, 1), (400, 1), (100, 1)]),
        # One number is read as one from an input without gaps, and else as rows.
        ((0, 0), (300, 1), 100, [(0, 0), (300, 1), (100, 1)]),
    ],
)
def test_a_gradient_laid_out_otherwise_than_the_input(triton, grad, x, columns, strides):
    grad = values(60_000, seed=1).as_strided((60, 100), grad)
    x = values(60_000).as_strided((60, 100), x)
    expected = grad * torch.sigmoid(x) * torch.sigmoid(-x)
    for _ in range(2):
        result = OPERATORS.sigmoid_backward(gpu(grad), gpu(x))
    torch.testing.assert_close(host(result), expected, rtol=2e-6, atol=1e-30)
    assert result.stride() == torch.mul(grad, x).stride()
    (launch,) = FAKE.take_launches()
    assert launch[PARAMETERS][:2] == [grad.data_ptr(), x.data_ptr()]
    assert strides_of(launch, 3) == (columns, strides)


def test_out_and_in_place_in_rows(triton):
    x = values(6000).view(60, 100)
    for _ in range(2):
        memory = torch.full((60, 100), 7.0)
        out = gpu(memory)[:, 10:50]
        assert out._is_view()
        assert fused_sigmoid.sigmoid(gpu(x[:, :40]), out=out) is out
        check(out, torch.sigmoid(x[:, :40]))
        assert (memory[:, :10] == 7).all()
        assert (memory[:, 50:] == 7).all()
        inside = memory[:, 10:50].copy_(x[:, :40])
        moved = gpu(inside)
        assert fused_sigmoid.sigmoid_(moved) is moved
        check(moved, torch.sigmoid(x[:, :40]))
        value, derivative = torch.full((2, 60, 100), 7.0)
        pair = value[:, 10:50], derivative[:, ::2][:, :40]
        OPERATORS.sigmoid_with_derivative_out(gpu(x[:, :40]), *map(gpu, pair))
        check(gpu(pair[0]), torch.sigmoid(x[:, :40]))
        check(gpu(pair[1]), torch.sigmoid(x[:, :40]) * torch.sigmoid(-x[:, :40]))
        assert (value[:, 50:] == 7).all()
        assert (derivative[:, 1::2] == 7).all()
    assert {key[1] for key in triton.calls} == {ROWS}
    assert len(FAKE.take_launches()) == 6 - len(triton.calls)


def test_what_overlaps_is_not_launched(triton):
    # A kernel would read what it has written; torch's own way is not on this device.
    memory = gpu(values(10_000).view(100, 100))
    for _ in range(2):  # the kernels that these would be launched by
        fused_sigmoid.sigmoid(memory[:, :50])
        fused_sigmoid.sigmoid(gpu(values(20_000).view(100, 200))[:, ::2])
    assert len(FAKE.take_launches()) == 2
    for input, out in (
        (memory, memory.t()),
        (memory[:, :50], memory.t()[:, :50]),
        (memory[:50], memory[50:]),
        (memory[:, :50], memory[:, 25:75]),
    ):
        with pytest.raises(NotImplementedError):
            fused_sigmoid.sigmoid(input, out=out)
        # Into memory of its own at the most.
        assert out.data_ptr() not in [launch[PARAMETERS][1] for launch in FAKE.take_launches()]


def test_one_memory_under_two_storages_is_one(triton):
    memory = values(10_000).view(100, 100)
    for _ in range(2):
        OPERATORS.sigmoid_out(gpu(values(10_000).view(100, 100)), gpu(torch.zeros(100, 100)).t())
    assert len(FAKE.take_launches()) == 1
    # As of DLPack: each of these has a storage of its own.
    with pytest.raises(NotImplementedError):
        OPERATORS.sigmoid_out(gpu(memory), gpu(memory.t()))
    assert memory.data_ptr() not in [launch[PARAMETERS][1] for launch in FAKE.take_launches()]


@pytest.mark.parametrize("other", [lambda x: gpu(x, 1), lambda x: x])
def test_tensors_of_two_devices_are_not_launched(triton, other):
    x = values(seed=1)
    for _ in range(2):
        OPERATORS.sigmoid_backward(gpu(x), gpu(x))
    FAKE.take_launches()
    for pair in ((gpu(x), other(x)), (other(x), gpu(x))):
        with pytest.raises(RuntimeError, match="same device"):
            OPERATORS.sigmoid_backward(*pair)
    assert FAKE.take_launches() == []


def test_what_does_not_fit_is_left_to_the_other_way(triton):
    x = gpu(values())
    fused_sigmoid.sigmoid(x)
    OPERATORS.sigmoid_backward(x, x)

    def fits(kernel, *tensors):
        return extension.launch_gpu_kernel(kernel, tensors)

    assert fits(0, x, gpu(torch.zeros(5000)))
    # Unlike alignment, layout, dtype: not compiled yet.
    assert not fits(0, gpu(values(4000)[::2]), gpu(torch.zeros(2000)))
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
        elementwise._dense_kernel.pre_run_hooks,
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
    "the compiled kernel has other parameters than expected: there are more than 7": {
        "parameters": 5
    },
    "the compiled kernel has other parameters than expected: "
    "parameter 0 has error 0, offset 0, size 4": {"odd": True},
    # Of two tensors and a count, the count is missing: cuFuncGetParamInfo's error is told.
    "the compiled kernel has other parameters than expected: "
    "parameter 2 has error 1, offset 0, size 0": {"parameters": -1},
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
    assert elementwise.launcher().startswith("Triton (")
    assert reason in elementwise.launcher()


def test_on_amd_no_driver_of_cuda_is_asked(triton, monkeypatch):
    asked = []
    monkeypatch.setattr(extension, "add_gpu_kernel", lambda *arguments: asked.append(arguments))
    triton.metadata = REFUSALS["a launch for hip"]["metadata"]
    x = values()
    for tensor in (x, x[::2]):
        for _ in range(2):
            check(fused_sigmoid.sigmoid(gpu(tensor)), torch.sigmoid(tensor))
    assert len(triton.calls) == 4
    assert (asked, FAKE.take_launches()) == ([], [])
    info = importlib.import_module("fused_sigmoid.__main__")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: gpu(x))
    assert info.information()["route on GPU"] == (
        "Triton kernels on a GPU, launched by Triton (the compiled kernel needs a launch for hip)"
    )


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
    assert "no current context" in elementwise.launcher()


def test_the_variable_leaves_launches_to_triton(triton, monkeypatch):
    monkeypatch.setenv("FUSED_SIGMOID_LAUNCH", "triton")
    x = gpu(values())
    for _ in range(2):
        fused_sigmoid.sigmoid(x)
    assert len(triton.calls) == 2
    assert elementwise.launcher() == "Triton (FUSED_SIGMOID_LAUNCH=triton)"


def test_launcher_says_that_the_extension_launches(triton):
    fused_sigmoid.sigmoid(gpu(values()))
    assert elementwise.launcher() == "the extension"


def test_a_profiler_sees_the_operation(triton):
    x = gpu(values())
    fused_sigmoid.sigmoid(x)
    with torch.profiler.profile() as profile:
        fused_sigmoid.sigmoid(x)
    assert [e.count for e in profile.key_averages() if e.key == "fused_sigmoid::sigmoid"] == [1]
    assert len(FAKE.take_launches()) == 1
