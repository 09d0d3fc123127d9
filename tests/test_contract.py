"""The drop-in contract: whatever torch.sigmoid accepts, the fused one accepts, and returns the same
dtype, shape, strides, layout, device and Python type, in every context torch has."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, masked, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, sigmoid_with_derivative

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of"),
]

SAVED = ("auto", "derivative", "input", "output")
TAIL = torch.tensor([40.0, -40.0, 0.5], dtype=torch.float64)
GRADIENT = oracle.derivative(oracle.exact(TAIL))

ROUTES: dict[str, Callable[[Any], Any]] = {
    "function": fused_sigmoid.sigmoid,
    "derivative": lambda input: fused_sigmoid.sigmoid(input, saved="derivative"),
    "input": lambda input: fused_sigmoid.sigmoid(input, saved="input"),
    "output": lambda input: fused_sigmoid.sigmoid(input, saved="output"),
    "module": FusedSigmoid(),
    "value of the pair": lambda input: sigmoid_with_derivative(input)[0],
    "derivative of the pair": lambda input: sigmoid_with_derivative(input)[1],
}


class Subclass(Tensor):
    pass


class WithTorchFunction(Tensor):
    calls: list[Any]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.sigmoid:
            result.seen = True
        return result


INPUTS: dict[str, Callable[[], Tensor]] = {
    "bool": lambda: torch.tensor([True, False]),
    "uint8": lambda: torch.tensor([0, 1, 255], dtype=torch.uint8),
    "int8": lambda: torch.tensor([-128, 1, 127], dtype=torch.int8),
    "int16": lambda: torch.tensor([-3, 4], dtype=torch.int16),
    "int32": lambda: torch.tensor([[-3], [4]], dtype=torch.int32),
    "int64": lambda: torch.tensor([-(2**63), 0, 2**63 - 1]),
    "uint16": lambda: torch.tensor([0, 1], dtype=torch.uint16),
    "uint32": lambda: torch.tensor([0, 1], dtype=torch.uint32),
    "uint64": lambda: torch.tensor([0, 1], dtype=torch.uint64),
    "complex64": lambda: torch.randn(3, dtype=torch.complex64),
    "complex128": lambda: torch.randn(3, 2, dtype=torch.complex128).t(),
    "conjugate view": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative view": lambda: torch._neg_view(torch.randn(3)),
    "imaginary part of a conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
    "real part": lambda: torch.randn(3, dtype=torch.complex64).real,
    "meta": lambda: torch.empty(4, 3, device="meta").t(),
    "meta of integers": lambda: torch.empty(3, device="meta", dtype=torch.int32),
    "Parameter": lambda: nn.Parameter(torch.randn(3)),
    "Buffer": lambda: nn.Buffer(torch.randn(3)),
    "requires_grad": lambda: torch.randn(3, requires_grad=True),
    "plain subclass": lambda: torch.randn(4, 3).t().as_subclass(Subclass),
    "subclass with __torch_function__": lambda: torch.randn(3).as_subclass(WithTorchFunction),
    "subclass with __torch_dispatch__": lambda: TwoTensor(torch.randn(3), torch.randn(3)),
    "zero tensor": lambda: torch._efficientzerotensor((3,)),
    "0-d": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "expanded": lambda: torch.randn(1, 4).expand(3, 4),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(4, 3).t(),
    "slice with a step": lambda: torch.randn(6, 8)[::2, 1::3],
    "mkldnn": lambda: torch.randn(3, 4).to_mkldnn(),
}
KINDS_WITHOUT_A_PAIR: dict[str, Callable[[], Tensor]] = {
    "quint8": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.quint8),
    "qint8": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
}


def values(tensor: Tensor) -> Tensor:
    if isinstance(tensor, TwoTensor):
        return torch.stack([values(tensor.a), values(tensor.b)])
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.detach().as_subclass(Tensor).resolve_neg().resolve_conj()


def same_input_twice(make: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(1)
    return first, make()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", INPUTS)
def test_result_is_of_the_kind_torch_gives(kind: str, route: str) -> None:
    ours, torchs = same_input_twice(INPUTS[kind])
    result, expected = ROUTES[route](ours), torch.sigmoid(torchs)
    assert oracle.description(result) == oracle.description(expected)
    if not expected.is_meta and route != "derivative of the pair":
        torch.testing.assert_close(values(result), values(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS_WITHOUT_A_PAIR)
def test_quantized(kind: str) -> None:
    ours, torchs = same_input_twice(KINDS_WITHOUT_A_PAIR[kind])
    for route in ("function", "derivative", "output", "module"):
        result, expected = ROUTES[route](ours), torch.sigmoid(torchs)
        assert oracle.description(result) == oracle.description(expected)
        assert (result.q_scale(), result.q_zero_point()) == (
            expected.q_scale(),
            expected.q_zero_point(),
        )
        assert torch.equal(values(result), values(expected))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.uint16], ids=str
)
def test_derivative_of_integers(dtype: torch.dtype) -> None:
    """Minus an unsigned integer wraps around, and minus a bool is an error."""
    integers = torch.tensor([0, 1]).to(dtype)
    value, derivative = sigmoid_with_derivative(integers)
    expected = [0.25, 0.19661193324148185]  # mpmath
    torch.testing.assert_close(derivative, torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(value, torch.tensor([0.5, 0.73105857863000488]))


def test_derivative_of_complex() -> None:
    x = torch.tensor([1 + 2j, -3j, 2], dtype=torch.complex128)
    _, derivative = sigmoid_with_derivative(x)
    exponential = torch.exp(-x)
    torch.testing.assert_close(derivative, exponential / (1 + exponential) ** 2)


@pytest.mark.parametrize("route", ["function", "derivative", "input", "module"])
def test_jagged(route: str) -> None:
    parts = [TAIL.clone()[:, None], TAIL.clone()[:2, None]]
    jagged = torch.nested.as_nested_tensor(parts, layout=torch.jagged).requires_grad_()
    result, expected = ROUTES[route](jagged), torch.sigmoid(jagged)
    assert oracle.description(result) == oracle.description(expected)
    assert torch.equal(result.values(), expected.values())
    (gradient,) = torch.autograd.grad(result.values().sum(), jagged)
    expected_gradient = oracle.derivative(oracle.exact(torch.cat(parts)))
    assert oracle.largest_error_in_ulp(gradient.values(), expected_gradient) < 8


@pytest.mark.parametrize("route", ROUTES)
def test_masked(route: str) -> None:
    mask = torch.tensor([True, False, True])
    tensor = masked.masked_tensor(torch.randn(3), mask)
    result, expected = ROUTES[route](tensor), torch.sigmoid(tensor)
    assert type(result) is type(expected)
    assert torch.equal(result.get_mask(), mask)
    if route != "derivative of the pair":
        torch.testing.assert_close(result.get_data()[mask], expected.get_data()[mask])


# Gradients in every kind of tensor that can carry one


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: nn.Parameter(x),
        lambda x: x.as_subclass(Subclass).requires_grad_(),
        lambda x: TwoTensor(x, x.clone()).requires_grad_(),
    ],
    ids=["Parameter", "subclass", "TwoTensor"],
)
@pytest.mark.parametrize("mode", [False, True], ids=["", "function mode"])
def test_gradient_keeps_its_tails(wrap: Callable[[Tensor], Tensor], saved: str, mode: bool) -> None:
    leaf = wrap(TAIL.clone())
    with torch.device("cpu") if mode else torch.enable_grad():
        y = fused_sigmoid.sigmoid(leaf, saved=saved)
        y.sum().backward()
    assert leaf.grad is not None
    gradient = leaf.grad.a if isinstance(leaf.grad, TwoTensor) else leaf.grad
    if saved == "output":
        y = (y.a if isinstance(y, TwoTensor) else y).detach().as_subclass(Tensor)
        assert torch.equal(gradient.as_subclass(Tensor), (1 - y) * y)
    else:
        assert oracle.largest_error_in_ulp(gradient, GRADIENT) < 8


@pytest.mark.parametrize(
    "view",
    [torch._neg_view, lambda x: torch.complex(torch.zeros_like(x), x).conj().imag],
    ids=["negative view", "imaginary part of a conjugate"],
)
def test_lazy_negation(view: Callable[[Tensor], Tensor]) -> None:
    leaf = TAIL.clone().requires_grad_()
    viewed = view(leaf)
    assert viewed.is_neg()
    value = fused_sigmoid.sigmoid(viewed)
    expected = oracle.value(-oracle.exact(TAIL))
    assert oracle.largest_error_in_ulp(value, expected) < 4
    value.sum().backward()
    assert oracle.largest_error_in_ulp(-leaf.grad, GRADIENT) < 8
    in_place = view(TAIL.clone()).detach()
    assert fused_sigmoid.sigmoid_(in_place) is in_place
    assert oracle.largest_error_in_ulp(in_place.resolve_neg(), expected) < 4
    out = torch._neg_view(torch.zeros(3, dtype=torch.float64))
    fused_sigmoid.sigmoid(TAIL, out=out)
    assert oracle.largest_error_in_ulp(out.resolve_neg(), oracle.value(oracle.exact(TAIL))) < 4


# Types with rules of their own


class Duck:
    """No tensor, but it answers to torch's functions."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return Answer(func)


class Answer(Duck):
    def __init__(self, function: Any) -> None:
        self.function = function


@pytest.mark.parametrize("saved", SAVED)
def test_duck_types_are_asked_for_torchs_function(saved: str) -> None:
    assert fused_sigmoid.sigmoid(Duck(), saved=saved).function is torch.sigmoid  # type: ignore
    assert fused_sigmoid.sigmoid_(Duck()).function is torch.sigmoid_  # type: ignore
    value, derivative = sigmoid_with_derivative(Duck())  # type: ignore
    assert value.function is torch.sigmoid  # type: ignore
    assert derivative.function is torch.mul  # type: ignore
    assert fused_sigmoid.sigmoid(torch.zeros(1), out=Duck()).function is torch.sigmoid  # type: ignore


def test_subclass_sees_torchs_function() -> None:
    result = fused_sigmoid.sigmoid(torch.zeros(2).as_subclass(WithTorchFunction))
    assert result.seen  # type: ignore[attr-defined]


# `out`


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, 4),
        lambda: torch.zeros(4, 3).t(),
        lambda: torch.zeros(6, 8)[::2, ::2],
        lambda: torch.zeros(3, 4, dtype=torch.float64),
        lambda: torch.zeros(3, 4, dtype=torch.complex64),
        lambda: torch.zeros(0),
        lambda: torch.zeros(3, 4).as_subclass(Subclass),
        lambda: nn.Parameter(torch.zeros(3, 4), requires_grad=False),
    ],
    ids=["dense", "transposed", "slice", "wider", "complex", "empty", "subclass", "Parameter"],
)
def test_out(make: Callable[[], Tensor], dtype: torch.dtype) -> None:
    x = (2 * torch.randn(3, 4)).to(dtype)
    ours, torchs = make(), make()
    assert fused_sigmoid.sigmoid(x, out=ours) is ours
    torch.sigmoid(x, out=torchs)
    assert oracle.description(ours) == oracle.description(torchs)
    tolerance = 8 * torch.finfo(ours.dtype if dtype != torch.bfloat16 else dtype).eps
    torch.testing.assert_close(values(ours), values(torchs), rtol=max(tolerance, 1e-6), atol=0)
    assert ours._version > 0


def test_out_is_the_input() -> None:
    for dtype in oracle.DTYPES:
        x = TAIL.to(dtype, copy=True)
        expected = fused_sigmoid.sigmoid(x)
        assert fused_sigmoid.sigmoid(x, out=x) is x
        assert oracle.same_bits(x, expected)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_every_order_of_dimensions(dtype: torch.dtype) -> None:
    """Slices, expanded and overlapping views, dimensions of one element with any stride."""
    random.seed(0)
    memory = (4 * torch.randn(4096)).to(dtype)
    for _ in range(1500):
        sizes = random.choices((1, 1, 2, 3, 5, 40), k=random.randint(1, 4))
        strides = random.choices((0, 1, 2, 3, 5, 8, 12, 40), k=len(sizes))
        x = memory.as_strided(sizes, strides)
        expected = fused_sigmoid.sigmoid(x.contiguous())
        derivative = sigmoid_with_derivative(x.contiguous())[1]
        out = torch.empty_strided((2, *expected.shape), [1, *(2 * s for s in expected.stride())])[0]
        out = out.to(dtype)
        ours, torchs = fused_sigmoid.sigmoid(x), torch.sigmoid(x)
        pair = sigmoid_with_derivative(x)
        grad = torch.ops.fused_sigmoid.sigmoid_backward(torch.ones_like(ours), x)
        where = f"sizes {sizes}, strides {strides}"
        assert ours.stride() == torchs.stride(), where
        assert pair[0].stride() == pair[1].stride() == torchs.stride(), where
        assert oracle.same_bits(ours, expected), where
        assert oracle.same_bits(fused_sigmoid.sigmoid(x, out=out), expected), where
        assert oracle.same_bits(pair[0], expected), where
        assert oracle.same_bits(pair[1], derivative), where
        assert oracle.same_bits(grad, derivative), where


@pytest.mark.usefixtures("restored_threads")
def test_rows_too_many_for_one_thread() -> None:
    torch.set_num_threads(3)
    x = (4 * torch.randn(30_000, 4))[:, :2]
    expected = fused_sigmoid.sigmoid(x.contiguous())
    assert oracle.same_bits(fused_sigmoid.sigmoid(x), expected)
    assert oracle.same_bits(fused_sigmoid.sigmoid(x.t()), expected.t())
    assert oracle.same_bits(fused_sigmoid.sigmoid(x, out=torch.empty(30_000, 3)[:, 1:]), expected)


# Contexts


def test_default_device_and_other_function_modes() -> None:
    class Count(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = TAIL.clone().requires_grad_()
    with Count() as count:
        value = fused_sigmoid.sigmoid(x, saved="derivative")
        fused_sigmoid.sigmoid(x.detach(), out=torch.empty(0, dtype=x.dtype))
        sigmoid_with_derivative(x)
        fused_sigmoid.sigmoid_(x * 1)
    assert count.names.count("sigmoid") == 2
    assert "sigmoid_with_derivative" in count.names
    assert "sigmoid_" in count.names
    value.sum().backward()
    assert oracle.largest_error_in_ulp(x.grad, GRADIENT) < 8

    torch.set_default_device("meta")
    try:
        assert fused_sigmoid.sigmoid(TAIL).device.type == "cpu"
        assert FusedSigmoid()(torch.zeros(2)).device.type == "meta"
    finally:
        torch.set_default_device(None)


@pytest.fixture
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_default_dtype")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    for kind in (torch.int64, torch.bool):
        x = torch.ones(3, dtype=kind)
        assert fused_sigmoid.sigmoid(x).dtype == dtype
        assert {result.dtype for result in sigmoid_with_derivative(x)} == {dtype}
        assert torch.ops.fused_sigmoid.sigmoid(x).dtype == dtype
    assert fused_sigmoid.sigmoid(torch.ones(3, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("saved", SAVED)
def test_autocast(saved: str, dtype: torch.dtype) -> None:
    x = TAIL.to(dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fused_sigmoid.sigmoid(x, saved=saved)
        pair = sigmoid_with_derivative(x)
        assert y.dtype == torch.sigmoid(x).dtype == dtype
        linear = nn.Linear(3, 3)(torch.randn(2, 3))
        assert fused_sigmoid.sigmoid(linear, saved=saved).dtype == torch.bfloat16
    assert {result.dtype for result in pair} == {dtype}
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x = TAIL.clone().requires_grad_()
        y = fused_sigmoid.sigmoid(x)
        out = torch.empty(0, dtype=x.dtype)
        fused_sigmoid.sigmoid(x.detach(), out=out)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(y, out)
    assert oracle.largest_error_in_ulp(x.grad, GRADIENT) < 8


def test_no_grad_and_inference_mode() -> None:
    x = TAIL.clone().requires_grad_()
    with torch.no_grad():
        assert not fused_sigmoid.sigmoid(x).requires_grad
        assert not any(result.requires_grad for result in sigmoid_with_derivative(x))
    with torch.inference_mode():
        result = fused_sigmoid.sigmoid(x)
        assert result.is_inference()
        assert not result.requires_grad
    assert not fused_sigmoid.sigmoid(x.detach()).requires_grad


def test_no_element_is_an_error_and_nothing_is_shared() -> None:
    x = torch.tensor([-math.inf, math.inf, math.nan])
    value, derivative = sigmoid_with_derivative(x)
    assert value[:2].tolist() == [0, 1]
    assert derivative[:2].tolist() == [0, 0]
    assert value.isnan().tolist() == derivative.isnan().tolist() == [False, False, True]
    assert len({t.untyped_storage().data_ptr() for t in (x, value, derivative)}) == 3


@pytest.mark.parametrize("saved", SAVED)
def test_many_threads_at_once(saved: str) -> None:
    """16 threads in every phase of forward, backward and in place, against one."""
    inputs = [torch.randn(257 + 64 * i, dtype=torch.float64) * 5 for i in range(16)]
    start = threading.Barrier(len(inputs))

    def run(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start.wait()
        for _ in range(20):
            x = input.clone().requires_grad_()
            y = fused_sigmoid.sigmoid(x, saved=saved)
            y.sum().backward()
            in_place = fused_sigmoid.sigmoid_(input.clone())
        assert x.grad is not None
        return y.detach(), x.grad, in_place

    with ThreadPoolExecutor(len(inputs)) as pool:
        results = list(pool.map(run, inputs))
    for input, (value, gradient, in_place) in zip(inputs, results, strict=True):
        exact = oracle.exact(input)
        assert oracle.largest_error_in_ulp(value, oracle.value(exact)) < 4
        assert torch.equal(value, in_place)
        if saved == "output":
            assert torch.equal(gradient, (1 - value) * value)
        else:
            assert oracle.largest_error_in_ulp(gradient, oracle.derivative(exact)) < 8


def test_no_tensor_is_kept_alive() -> None:
    """Functions in C++ can hold their own output in a cycle that Python never sees."""
    import gc
    import weakref

    for saved in SAVED:
        x = torch.randn(8, requires_grad=True)
        y = fused_sigmoid.sigmoid(x, saved=saved)
        y.sum().backward(retain_graph=True)
        z = fused_sigmoid.sigmoid_(x * 1)
        pair = sigmoid_with_derivative(x)
        nodes = [weakref.ref(t.untyped_storage()) for t in (y, z, *pair)]
        del x, y, z, pair
        gc.collect()
        assert [node() for node in nodes] == [None] * 4
