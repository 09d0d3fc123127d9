"""The operators ``torch.ops.fused_sigmoid`` keep every rule of torch's dispatcher: schemas, fake
tensors, autograd, vmap, autocast. The CUDA implementations run here on CPU tensors, with Triton
taken away."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import oracle
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_sigmoid
from fused_sigmoid.functions import function
from fused_sigmoid.functions.sigmoid import FLOOR_OF_BCE, FUNCTION, backward_before_bce
from tests import parameters

OPERATORS = torch.ops.fused_sigmoid
PACKAGE_PARENT = Path(fused_sigmoid.__file__).parent.parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


# What each operator computes, in long double, for its arguments that are read.
FUNCTIONAL: dict[str, Callable[..., tuple[Any, ...]]] = {
    "sigmoid": lambda x: (oracle.value(x),),
    "sigmoid_with_derivative": lambda x: (oracle.value(x), oracle.derivative(x)),
    "sigmoid_backward": lambda grad, x: (grad * oracle.derivative(x),),
    "sigmoid_backward_from_output": lambda grad, y: (grad * y * (1 - y),),
    "sigmoid_backward_from_derivative": lambda grad, d: (grad * d,),
    "sigmoid_backward_before_bce": lambda grad, y: (
        grad * numpy.maximum((1 - y) * y, FLOOR_OF_BCE),
    ),
}
OUT = {"sigmoid_out": "sigmoid", "sigmoid_with_derivative_out": "sigmoid_with_derivative"}
READS = {"sigmoid": 1, "sigmoid_with_derivative": 1} | {
    name: 2 for name in FUNCTIONAL if "backward" in name
}
BINARY = [name for name in FUNCTIONAL if READS[name] == 2]
UNARY = [name for name in FUNCTIONAL if READS[name] == 1]


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def others(name: str, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """What an operator takes besides tensors: the loss has their dtype."""
    return (dtype,) if name == "sigmoid_backward_before_bce" else ()


def on_tensors(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The operator as a function of tensors alone."""
    operator = getattr(OPERATORS, name)
    return lambda *tensors: operator(*tensors, *others(name, dtype))


LAYOUTS: dict[str, Callable[[torch.dtype, int], Tensor]] = {
    "contiguous": lambda dtype, seed: normal((3, 4), dtype, seed),
    "transposed": lambda dtype, seed: normal((4, 3), dtype, seed).t(),
    "0-d": lambda dtype, seed: normal((), dtype, seed),
    "empty": lambda dtype, seed: normal((0, 3), dtype, seed),
}


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def check_values(name: str, result: Any, *arguments: Tensor) -> None:
    """Against the oracle, to the precision of the result's dtype."""
    expected = FUNCTIONAL[name](*map(oracle.exact, arguments))
    results = outputs(result)
    assert len(results) == len(expected)
    for tensor, array in zip(results, expected, strict=True):
        tolerance = 8 * torch.finfo(tensor.dtype).eps
        assert tensor.shape == array.shape
        numpy.testing.assert_allclose(oracle.exact(tensor), array, tolerance, 0)


def test_all_operators_are_tested() -> None:
    registered = {
        schema.name.removeprefix("fused_sigmoid::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fused_sigmoid::")
    }
    # What a compiled region runs in its backward pass: tests/test_company_compiled.py. What the
    # node of a loss runs, which nothing traces: tests/test_loss_triton.py.
    others = {"sigmoid_backward_at_exit"} | {each for each in registered if each.startswith("_")}
    assert registered == set(FUNCTIONAL) | set(OUT) | others


@pytest.mark.parametrize(
    ("name", "requires_grad", "dtype", "layout"),
    parameters.chosen(
        itertools.product(FUNCTIONAL, [False, True], DTYPES, LAYOUTS),
        # The dtypes are alike but for the kernel, which an opcheck does not judge.
        lambda _, requires_grad, dtype, layout: (
            dtype == torch.float32 if requires_grad else layout == "transposed"
        ),
    ),
    ids=str,
)
def test_opcheck(name: str, requires_grad: bool, dtype: torch.dtype, layout: str) -> None:
    arguments = tuple(
        LAYOUTS[layout](dtype, seed).requires_grad_(requires_grad) for seed in range(READS[name])
    )
    torch.library.opcheck(getattr(OPERATORS, name).default, (*arguments, *others(name, dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OUT)
def test_opcheck_of_out(name: str, dtype: torch.dtype, layout: str) -> None:
    input = LAYOUTS[layout](dtype, 0)
    out = [torch.empty_like(input) for _ in range(len(FUNCTIONAL[OUT[name]](0.0)))]
    torch.library.opcheck(getattr(OPERATORS, name).default, (input, *out))


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_gradcheck(name: str) -> None:
    arguments = tuple(
        normal((2, 3), torch.float64, seed).sigmoid().requires_grad_()
        for seed in range(READS[name])
    )
    operator = on_tensors(name, torch.float64)
    forward = name in UNARY
    assert torch.autograd.gradcheck(
        operator, arguments, check_batched_grad=True, check_forward_ad=forward
    )
    assert torch.autograd.gradgradcheck(operator, arguments, check_batched_grad=True)


# Batch dimensions of size 2 among 3s and 4s: a rule that mixes them up changes the shape.


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("name", UNARY)
def test_vmap_of_one_tensor(name: str, in_dim: int) -> None:
    input = normal((3, 4), torch.float64).unsqueeze(in_dim).repeat_interleave(2, in_dim)
    input = input * normal(tuple(input.shape), torch.float64, 1)
    check_values(name, torch.vmap(getattr(OPERATORS, name), in_dim)(input), *_first(input, in_dim))


@pytest.mark.parametrize(
    ("shapes", "in_dims"),
    [
        (((2, 3), (2, 3)), (0, 0)),
        (((2, 3), (3, 2)), (0, 1)),
        (((2, 3), (3,)), (0, None)),
        (((3,), (3, 2)), (None, -1)),
        (((2, 3), (4, 2, 3)), (0, 1)),
        (((2,), (4, 2, 3)), (0, 1)),
        (((2, 4, 1), (3,)), (0, None)),
        (((), (2,)), (None, 0)),
    ],
)
@pytest.mark.parametrize("name", BINARY)
def test_vmap_of_two_tensors(
    name: str, shapes: tuple[tuple[int, ...], ...], in_dims: tuple[int | None, ...]
) -> None:
    arguments = [normal(shape, torch.float64, seed) for seed, shape in enumerate(shapes)]
    result = torch.vmap(on_tensors(name, torch.float64), in_dims)(*arguments)
    samples = [
        FUNCTIONAL[name](
            *(
                oracle.exact(a if d is None else a.select(d, i))
                for a, d in zip(arguments, in_dims, strict=True)
            )
        )[0]
        for i in range(2)
    ]
    numpy.testing.assert_allclose(result.numpy(), numpy.stack(samples), 1e-15, 0)


@pytest.mark.parametrize("name", FUNCTIONAL)
@pytest.mark.parametrize(("outer", "inner"), list(itertools.product([0, 1, 2], [0, 1, -1])))
def test_nested_vmap(name: str, outer: int, inner: int) -> None:
    arguments = [normal((2, 3, 4), torch.float64, seed) for seed in range(READS[name])]
    operator = on_tensors(name, torch.float64)
    result = torch.vmap(torch.vmap(operator, inner), outer)(*arguments)
    moved = [a.movedim(outer, 0).movedim(inner + 1 if inner >= 0 else -1, 1) for a in arguments]
    check_values(name, result, *moved)


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, 2)])
@pytest.mark.parametrize("name", OUT)
def test_vmap_writes_to_out(name: str, in_dims: tuple[int, int]) -> None:
    functional = OUT[name]
    input = normal((3, 4), torch.float64).unsqueeze(in_dims[0]).repeat_interleave(2, in_dims[0])
    input = input * normal(tuple(input.shape), torch.float64, 1)
    shape = [3, 4]
    shape.insert(in_dims[1], 2)
    out = [torch.zeros(shape, dtype=torch.float64) for _ in range(len(FUNCTIONAL[functional](0.0)))]
    dims = (in_dims[0], *(in_dims[1] for _ in out))
    torch.vmap(getattr(OPERATORS, name), dims, out_dims=None)(input, *out)
    check_values(
        functional, tuple(o.movedim(in_dims[1], 0) for o in out), *_first(input, in_dims[0])
    )


def _first(tensor: Tensor, dim: int) -> tuple[Tensor]:
    return (tensor.movedim(dim, 0),)


STRIDED: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(2, 3, 4, 5),
    "transposed": lambda: torch.randn(4, 3).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "slice with a step": lambda: torch.randn(6, 8)[::2, ::2],
    "expanded": lambda: torch.randn(1, 4).expand(3, 4),
    "permuted": lambda: torch.randn(2, 3, 4).permute(2, 0, 1),
}


@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_real_fake_and_meta_strides_are_those_of_torch(name: str, layout: str) -> None:
    inputs = [STRIDED[layout]() for _ in range(READS[name])]
    expected = (torch.sigmoid if READS[name] == 1 else torch.mul)(*inputs)
    operator = on_tensors(name, inputs[0].dtype)
    results = [*outputs(operator(*inputs))]
    # Above autograd other tensors than the kernels' take ATen operations; below, the fake kernel.
    for context in (contextlib.nullcontext, torch._C._AutoDispatchBelowAutograd):
        with context():
            results += outputs(operator(*(input.to("meta") for input in inputs)))
            with FakeTensorMode() as mode:
                results += outputs(operator(*(mode.from_tensor(input) for input in inputs)))
    for result in results:
        assert (result.shape, result.stride()) == (expected.shape, expected.stride())
        assert result.dtype == expected.dtype


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
@pytest.mark.parametrize("name", UNARY)
def test_fake_result_of_integers_has_the_default_dtype(name: str, dtype: torch.dtype) -> None:
    input = torch.ones(3, dtype=dtype)
    for result in outputs(getattr(OPERATORS, name)(input.to("meta"))):
        assert result.dtype == torch.float32
    check_values(name, getattr(OPERATORS, name)(input), input)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_autocast_leaves_the_dtype_alone(name: str, dtype: torch.dtype) -> None:
    arguments = [normal((3,), dtype, seed).detach().requires_grad_() for seed in range(READS[name])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = outputs(on_tensors(name, dtype)(*arguments))
    results[0].sum().backward()
    assert all(result.dtype == dtype for result in results)
    assert all(argument.grad is not None and argument.grad.dtype == dtype for argument in arguments)


# The formula: what torch.compile, other devices and a GPU without Triton compute with.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(dtype: torch.dtype) -> None:
    x = torch.linspace(-80, 80, 1001, dtype=dtype)
    grad = normal((1001,), dtype)
    check_values("sigmoid", FUNCTION.value(x), x)
    check_values("sigmoid_with_derivative", FUNCTION.value_and_derivative(x), x)
    check_values("sigmoid_backward", FUNCTION.backward(grad, x), grad, x)
    check_values(
        "sigmoid_backward_from_derivative",
        FUNCTION.backward_from_derivative(grad, x),
        grad,
        x,
    )
    y = torch.linspace(0.01, 0.99, 1001, dtype=dtype)
    from_output = FUNCTION.backward_from_output(grad, y)
    check_values("sigmoid_backward_from_output", from_output, grad, y)
    before_bce = backward_before_bce(grad, y, dtype)
    check_values("sigmoid_backward_before_bce", before_bce, grad, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_formula_rounds_halves_once(dtype: torch.dtype) -> None:
    x = torch.linspace(-16, 16, 4001).to(dtype)
    results = (
        FUNCTION.value_and_derivative(x)[1],
        FUNCTION.backward(torch.ones_like(x), x),
    )
    expected = oracle.derivative(oracle.exact(x))
    for result in results:
        # The last hundredth of an ulp is float32's, in which it is computed.
        assert oracle.largest_error_in_ulp(result, expected) < 0.51


# CUDA implementations, called on CPU tensors past the dispatcher's choice.


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in list(sys.modules):
        if name.startswith("fused_sigmoid.triton"):
            monkeypatch.delitem(sys.modules, name)
    function.triton_kernels.cache_clear()
    yield
    function.triton_kernels.cache_clear()


@pytest.fixture
def cuda(without_triton: None) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function.triton_kernels()

    def call(name: str, *arguments: Tensor | torch.dtype) -> Any:
        return getattr(OPERATORS, name).default.redispatch(CUDA, *arguments)

    return call


@pytest.mark.usefixtures("without_triton")
def test_without_triton_the_formula_runs_with_one_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            OPERATORS.sigmoid.default.redispatch(CUDA, torch.zeros(2))
    (warning,) = caught
    assert warning.category is UserWarning
    assert "pip install triton" in str(warning.message)
    assert function.triton_kernels() == {}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.int32, torch.bool], ids=str)
def test_cuda_values(cuda: Callable[..., Any], dtype: torch.dtype) -> None:
    x = (2 * normal((3, 4), torch.float64)).to(dtype)
    result_dtype = dtype if dtype.is_floating_point else torch.float32
    for name in UNARY:
        results = outputs(cuda(name, x))
        assert {result.dtype for result in results} == {result_dtype}
        check_values(name, results, x)
    if dtype.is_floating_point:
        for name in BINARY:
            y = torch.sigmoid(x)
            check_values(name, cuda(name, x, y, *others(name, dtype)), x, y)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_cuda_rejects(cuda: Callable[..., Any], dtype: torch.dtype) -> None:
    x = torch.zeros(3).to(dtype)
    for name in UNARY:
        with pytest.raises(NotImplementedError, match=rf"'input' has dtype {dtype}; accepted are"):
            cuda(name, x)


def test_cuda_backward_broadcasts_and_promotes(cuda: Callable[..., Any]) -> None:
    grad, x = normal((3, 1), torch.float64).float(), normal((4,), torch.float64)
    for name in BINARY:
        result = cuda(name, grad, x, *others(name, torch.float64))
        assert result.dtype == torch.float64
        check_values(name, result, grad, x)


OUT_TENSORS: dict[str, Callable[[], Tensor]] = {
    "fitting": lambda: torch.zeros(3, 4),
    "transposed": lambda: torch.zeros(4, 3).t(),
    "slice": lambda: torch.zeros(6, 8)[::2, ::2],
    "of a wider dtype": lambda: torch.zeros(3, 4, dtype=torch.float64),
    "of no elements": lambda: torch.zeros(0),
}


@pytest.mark.parametrize("kind", OUT_TENSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_cuda_out(cuda: Callable[..., Any], dtype: torch.dtype, kind: str) -> None:
    x = (2 * normal((3, 4), torch.float64)).to(dtype)
    for name, functional in OUT.items():
        out = [OUT_TENSORS[kind]() for _ in range(len(FUNCTIONAL[functional](0.0)))]
        before = [(o.data_ptr(), o.stride()) for o in out]
        cuda(name, x, *out)
        assert all(o.shape == x.shape for o in out)
        if kind != "of no elements":
            assert [(o.data_ptr(), o.stride()) for o in out] == before
        for tensor, expected in zip(out, FUNCTIONAL[functional](oracle.exact(x)), strict=True):
            numpy.testing.assert_allclose(oracle.exact(tensor), expected, 1e-6, 0)


def test_cuda_in_place(cuda: Callable[..., Any]) -> None:
    x = normal((3, 4), torch.float32)
    expected = oracle.value(oracle.exact(x)), oracle.derivative(oracle.exact(x))
    in_place = x.clone()
    cuda("sigmoid_out", in_place, in_place)
    numpy.testing.assert_allclose(in_place.numpy(), expected[0], 1e-6)
    in_place, second = x.clone(), torch.empty_like(x)
    cuda("sigmoid_with_derivative_out", in_place, in_place, second)
    numpy.testing.assert_allclose(in_place.numpy(), expected[0], 1e-6)
    numpy.testing.assert_allclose(second.numpy(), expected[1], 1e-6)


@pytest.fixture
def cuda_with_raw_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Kernels that write wherever they are told, unless a result overlaps itself, as Triton's do;
    here they refuse instead."""

    def write(input: Tensor, out: Tensor) -> bool:
        assert (input.shape, input.dtype) == (out.shape, out.dtype)
        if 0 not in out.stride():
            pytest.fail("a kernel would write to memory that does not fit")
        return False

    def backward(grad: Tensor, other: Tensor) -> Tensor:
        assert (grad.shape, grad.dtype) == (other.shape, other.dtype)
        return grad * other

    kernels = {("sigmoid", "value"): types.SimpleNamespace(run=torch.sigmoid, write=write)}
    for name in BINARY:
        work = name.removeprefix("sigmoid_")
        kernels["sigmoid", work] = types.SimpleNamespace(run=backward)
    monkeypatch.setattr(function, "triton_kernels", lambda: kernels)
    return lambda name, *arguments: getattr(OPERATORS, name).default.redispatch(CUDA, *arguments)


_memory = torch.zeros(4)
_integers = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("input", "out", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "can't be cast"),
        (_integers, torch.zeros(3, dtype=torch.int64), "can't be cast"),
        (_integers, _integers, "can't be cast"),
        (torch.zeros(3), torch.zeros(1).expand(3), "single memory location"),
        (_memory[:3], _memory[1:], "memory location"),
    ],
    ids=["integer out", "integers", "integers in place", "expanded", "partly overlapping"],
)
def test_cuda_rejects_out(
    cuda_with_raw_kernels: Callable[..., Any], input: Tensor, out: Tensor, message: str
) -> None:
    before = out.tolist()
    with pytest.raises(RuntimeError, match=message):
        cuda_with_raw_kernels("sigmoid_out", input, out)
    assert out.tolist() == before


def test_cuda_backward_kernels_get_equal_shapes_and_dtypes(
    cuda_with_raw_kernels: Callable[..., Any],
) -> None:
    grad, x = normal((3, 1), torch.float64).float(), normal((4,), torch.float64)
    for name in BINARY:
        result = cuda_with_raw_kernels(name, grad, x, *others(name, torch.float64))
        assert torch.equal(result, grad * x)


def test_import_is_silent_and_leaves_triton_alone() -> None:
    program = """
import sys, warnings
import torch
before = set(sys.modules)
warnings.simplefilter("error")
import fused_sigmoid
x = torch.zeros(3, requires_grad=True)
fused_sigmoid.FusedSigmoid()(x).sum().backward()
print([name for name in set(sys.modules) - before if name.split(".")[0] != "fused_sigmoid"])
print("fused_sigmoid.triton" in sys.modules, "triton" in set(sys.modules) - before)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)}
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    third_party, triton = process.stdout.splitlines()
    assert triton == "False False"
    # torch and the standard library are there already, but for parts they load lazily.
    assert not any(name in third_party for name in ("numpy", "triton", "scipy", "mpmath"))


@pytest.mark.parametrize("size", [100, 50_000])
@pytest.mark.parametrize("lazy", [0, 1, 2])
def test_pair_leaves_alone_what_an_output_shares_until_it_is_written(lazy: int, size: int) -> None:
    shared = torch.linspace(-5, 5, size)
    kept = shared.clone()
    copy = torch._lazy_clone(shared)
    tensors = [torch.linspace(-3, 3, size), torch.empty(size), torch.empty(size)]
    tensors[lazy] = copy
    expected = torch.ops.fused_sigmoid.sigmoid_with_derivative(tensors[0].clone())
    torch.ops.fused_sigmoid.sigmoid_with_derivative_out(*tensors)
    assert torch.equal(tensors[1], expected[0])
    assert torch.equal(tensors[2], expected[1])
    assert torch.equal(shared, kept)
