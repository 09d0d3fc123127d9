"""GPU kernels are compiled once and then launched without Python: with the right arguments, on the
right device and stream, safely from threads, and by Triton itself where that cannot be.

Without a GPU a fake of one is built, with a fake of the CUDA driver, and the rest is real. On a GPU
the tests marked gpu run.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import fused_sigmoid
from fused_sigmoid import FusedSigmoid
from fused_sigmoid._extension import extension

pytest.importorskip("triton")

FOLDER = Path(__file__).parent
SCENARIOS = [FOLDER / "gpu_launch" / name for name in ("scenarios.py", "loss_scenarios.py")]


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None,
    reason="this torch has a CUDA of its own, and there cannot be two",
)
def test_on_a_fake_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, SCENARIOS)],
        cwd=FOLDER.parent,
        env=os.environ | {"FAKE_CUDA_BUILD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_numbers_are_those_of_the_extension() -> None:
    from fused_sigmoid.triton import elementwise

    header = (FOLDER.parent / "csrc" / "gpu_launch.h").read_text(encoding="utf-8")
    text = header[header.index("enum class Layout {") :].split("}")[0]
    layouts = re.findall(r"^  (\w+),", text, re.M)
    assert layouts == [layout.name.lower() for layout in elementwise.Layout]
    assert f"layout_count = {len(layouts)};" in header
    # A function's works follow those of the function before it.
    works = [work for work, _, _ in extension.works()]
    numbers = [(function, work) for function in extension.functions() for work in works]
    for key, kernel in elementwise.KERNELS.items():
        assert (kernel.function, kernel.work) == key == numbers[kernel.number]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((10_000, [torch.zeros(1)]), ValueError),
        ((0, [torch.zeros(1)]), TypeError),
        ((0, [torch.zeros(1), 1.0]), TypeError),
        (("sigmoid", [torch.zeros(1)]), TypeError),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], error: type[Exception]) -> None:
    for function in (extension.launch_gpu_kernel, extension.gpu_call):
        with pytest.raises(error):
            function(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "dtype", "wide", "error"),
    [
        (3, torch.float32, 0, ValueError),
        (-1, torch.float32, 0, ValueError),
        (0, torch.float32, 8, ValueError),
        (0, "float32", 0, TypeError),
    ],
)
def test_wrong_keys(layout: int, dtype: object, wide: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        extension.add_gpu_kernel(0, layout, 0, dtype, wide, 0, 1, 0, 1, 32, ())


def test_rows_are_divided_by_a_product() -> None:
    # As the kernels divide: the high half of a product in 32 bits, a sum and a shift.
    random = np.random.default_rng(0)
    lengths = [1, 2, 3, 5, 7, 2**20 - 1, 2**20, 2**20 + 1, 2**30 - 1, 2**30, 2**30 + 1]
    lengths += [int(2**exponent) for exponent in random.uniform(1, 30.99, 300)]
    for length in lengths:
        # Two rows with a gap behind each, of which neither the memory nor a result is needed.
        rows = torch.empty_strided((2, length), (length + 1, 1), device="meta")
        if 2 * length > 2**31 - 1 or length == 1:
            continue
        _, _, numbers = extension.gpu_call(0, [rows, rows])
        assert numbers[:2] == (2 * length, length)
        factor, shift = numbers[2:4]
        assert 0 <= factor < 2**32
        places = random.integers(0, 2**31, 2000).astype(np.uint64)
        edges = np.arange(1, min(1000, 2**31 // length) + 1) * length
        edges = np.concatenate([edges, 2**31 // length * length - edges])
        places = np.concatenate([places, *(np.clip(edges + d, 0, 2**31 - 1) for d in (-1, 0, 1))])
        places = places.astype(np.uint64)
        total = (places * np.uint64(factor) >> np.uint64(32)) + places
        assert total.max() < 2**32
        np.testing.assert_array_equal(total >> np.uint64(shift), places // np.uint64(length))


def test_what_lies_in_no_layout_has_no_call() -> None:
    def layout(number: int, *tensors: torch.Tensor) -> int | None:
        found = extension.gpu_call(number, tensors)
        return found and found[0]

    dense, rows = 0, 2
    x = torch.zeros(8, 8, 8)
    assert layout(0, x, x) == dense
    assert layout(0, x[:, :4, :4], torch.zeros(8, 4, 4)) is None  # three dimensions
    assert layout(0, x[:, :4], torch.zeros(8, 4, 8)) == rows
    # A result must not overlap itself; an operand may.
    for overlapping in (x[:1].expand(8, 8, 8), x.flatten().as_strided((8, 8), (4, 1))):
        apart = torch.zeros(overlapping.shape)
        assert layout(0, overlapping, apart) == rows
        assert layout(0, apart, overlapping) is None
        assert layout(1, apart, overlapping, apart) is None
        assert layout(1, apart, apart, overlapping) is None
    # Rows are divided in 32 bits.
    number = torch.zeros(1, 1, dtype=torch.uint8)
    for length, expected in ((2**30 - 1, rows), (2**30, None)):
        result = torch.empty(length, 2, dtype=torch.uint8)
        assert layout(0, number.expand(length, 1).expand(length, 2), result) == expected


def test_info_says_who_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from fused_sigmoid.triton import elementwise

    info = importlib.import_module("fused_sigmoid.__main__")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: device)
    tried = []
    monkeypatch.setattr(info, "sigmoid", tried.append)
    monkeypatch.setattr(info, "_reading", lambda: "")
    for reason, launcher in (("", "the extension"), ("too old", "Triton (too old)")):
        compiled = {(0, 0, 0, torch.float32, 3, 256): (None, reason)}
        monkeypatch.setattr(elementwise, "_compiled", compiled)
        assert info.information()["route on GPU"] == (
            f"Triton kernels on a GPU, launched by {launcher}"
        )
    assert tried == ["cuda", "cuda"]

    def fails(_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(info, "sigmoid", fails)
    route = info.information()["route on GPU"]
    assert route == "Triton kernels, which fail: RuntimeError: no compiler"


# On a real GPU.


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5000, device="cuda")


def on_cpu(x: torch.Tensor) -> torch.Tensor:
    """The value by the CPU's kernel, whose bits the GPU's are to be."""
    return fused_sigmoid.sigmoid(x.cpu()).to(x.device)


def assert_launched_by_the_extension(count: int, before: int) -> None:
    from fused_sigmoid.triton import elementwise

    assert elementwise.launcher() == "the extension"
    assert extension.gpu_launches() - before == count


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_results_are_those_of_the_first_launch(dtype: torch.dtype) -> None:
    for size in (1, 1000, 1024, 100_003):
        for offset in (0, 1):
            input = (torch.randn(size + offset, device="cuda") * 4).to(dtype)[offset:]
            operands = (torch.randn_like(input), input)
            first = torch.ops.fused_sigmoid.sigmoid_backward(*operands)
            before = extension.gpu_launches()
            second = torch.ops.fused_sigmoid.sigmoid_backward(*operands)
            assert_launched_by_the_extension(1, before)
            assert torch.equal(first, second)
            on_cpu = torch.ops.fused_sigmoid.sigmoid_backward(*(t.cpu() for t in operands))
            if dtype != torch.float64:
                assert torch.equal(second.cpu(), on_cpu)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("columns", [64, 63])
def test_a_gate_is_read_where_it_is(dtype: torch.dtype, columns: int) -> None:
    # The half of each row behind a Linear, and the gradient in another half.
    both = (torch.randn(3000, 2 * columns, device="cuda") * 4).to(dtype)
    gate, grad = both.chunk(2, -1)[1], torch.randn_like(both).chunk(2, -1)[0]
    expected = torch.ops.fused_sigmoid.sigmoid_backward(grad.cpu(), gate.cpu())
    for _ in range(2):
        before = extension.gpu_launches()
        value = fused_sigmoid.sigmoid(gate)
        gradient = torch.ops.fused_sigmoid.sigmoid_backward(grad, gate)
    assert_launched_by_the_extension(2, before)
    tolerance = 8 * torch.finfo(dtype).eps if dtype == torch.float64 else 0
    on_cpu = fused_sigmoid.sigmoid(gate.cpu())
    torch.testing.assert_close(value.cpu(), on_cpu, rtol=tolerance, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=tolerance, atol=0)
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    result = fused_sigmoid.sigmoid(gate)
    assert torch.cuda.max_memory_allocated() - start <= result.nbytes + 512
    for out in (both.clone().chunk(2, -1)[1], gate):
        assert fused_sigmoid.sigmoid(gate, out=out) is out
        assert torch.equal(out, value)


@pytest.mark.gpu
@pytest.mark.parametrize("saved", ["auto", "input", "output", "derivative"])
def test_a_training_step_has_two_launches(x: torch.Tensor, saved: str) -> None:
    module = FusedSigmoid(saved=saved)
    grad = torch.randn_like(x)
    for _ in range(2):
        before = extension.gpu_launches()
        leaf = x.clone().requires_grad_()
        module(leaf).backward(grad)
    # The derivative's memory takes the gradient by torch's product.
    assert_launched_by_the_extension(1 if saved == "derivative" else 2, before)
    expected = grad * torch.sigmoid(x.double()) * torch.sigmoid(-x.double())
    torch.testing.assert_close(leaf.grad, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_launches_follow_the_current_stream(x: torch.Tensor) -> None:
    expected = on_cpu(x)
    fused_sigmoid.sigmoid(x)  # compiles
    side = torch.cuda.Stream()
    input = torch.zeros_like(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # whoever is not behind this reads what is not there yet
        input.copy_(x)
        result = fused_sigmoid.sigmoid(input)
    side.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.gpu
def test_a_graph_captures_and_replays(x: torch.Tensor) -> None:
    input, out = x.clone(), torch.empty_like(x)
    fused_sigmoid.sigmoid_with_derivative(fused_sigmoid.sigmoid(input, out=out))  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, derivative = fused_sigmoid.sigmoid_with_derivative(
            fused_sigmoid.sigmoid(input, out=out)
        )
    for scale in (1.0, -2.0):
        input.copy_(x * scale)
        graph.replay()
        expected = fused_sigmoid.sigmoid_with_derivative(on_cpu(x * scale).cpu())
        assert torch.equal(value.cpu(), expected[0])
        assert torch.equal(derivative.cpu(), expected[1])


@pytest.mark.gpu
def test_a_new_thread_can_launch(x: torch.Tensor) -> None:
    expected = on_cpu(x)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fused_sigmoid.sigmoid(x))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.gpu
def test_a_tensor_of_another_device(x: torch.Tensor) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    expected = on_cpu(x)
    other = x.to("cuda:1")
    for _ in range(2):
        result = fused_sigmoid.sigmoid(other)
        assert result.device == other.device
        assert torch.equal(result.to(x.device), expected)
    assert torch.cuda.current_device() == x.get_device()


@pytest.mark.gpu
def test_hooks_of_triton_see_launches(x: torch.Tensor) -> None:
    from triton import knobs

    fused_sigmoid.sigmoid(x)
    seen = []

    def hook(metadata: object) -> None:
        seen.append(metadata)

    knobs.runtime.launch_enter_hook.add(hook)
    try:
        before = extension.gpu_launches()
        result = fused_sigmoid.sigmoid(x)
        assert extension.gpu_launches() == before
        assert len(seen) == 1
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert torch.equal(result, on_cpu(x))
    assert torch.equal(fused_sigmoid.sigmoid(x), on_cpu(x))
    assert extension.gpu_launches() == before + 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("saved", "more"), [("output", 0), ("input", 1), ("derivative", 1)])
def test_peak_memory_of_a_training_step(dtype: torch.dtype, saved: str, more: int) -> None:
    # Of a layer whose input nobody else keeps: nn.Sigmoid needs the output, the gradient coming
    # in, and the one going out.
    size = 4 << 20
    bytes_of_one = size * dtype.itemsize

    def peak(module: torch.nn.Module) -> int:
        source = torch.zeros(size, dtype=dtype, device="cuda", requires_grad=True)
        grad = torch.ones(size, dtype=dtype, device="cuda")
        module(source * 1).backward(grad)
        source.grad = None
        gc.collect()  # of other tests' tensors
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        module(source * 1).backward(grad)
        found = torch.cuda.max_memory_allocated() - start
        assert source.grad is not None
        assert (source.grad == 0.25).all()
        return found

    difference = peak(FusedSigmoid(saved=saved)) - peak(torch.nn.Sigmoid())
    assert difference <= more * bytes_of_one
