"""PyTorch's own test inputs: for every sample that its suite feeds to torch.sigmoid and nn.Sigmoid,
and to its tensor subclasses, ours gives the same kind of result with the same value."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial

import oracle
import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.common_subclass import subclass_db
from torch.testing._internal.composite_compliance import (
    check_all_permutations,
    check_backward_formula,
    check_forward_ad_formula,
    check_with_mode,
)

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, sigmoid_with_derivative

SAVED = ("auto", "derivative", "input", "output")
(SIGMOID,) = (info for info in op_db if info.name == "sigmoid")
(MODULE,) = (info for info in module_db if info.module_cls is nn.Sigmoid)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{saved: partial(fused_sigmoid.sigmoid, saved=saved) for saved in SAVED},
    "module": FusedSigmoid(),
    "value of the pair": lambda input: sigmoid_with_derivative(input)[0],
}
every_function = pytest.mark.parametrize("function", FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", sorted(SIGMOID.dtypes, key=str), ids=str)
every_gradient_dtype = pytest.mark.parametrize(
    "dtype", sorted((d for d in SIGMOID.dtypes if d.is_floating_point), key=str), ids=str
)


@functools.cache
def samples(dtype: torch.dtype) -> list[Tensor]:
    """Each also as torch's suite makes it noncontiguous; shared by the tests, who must not write to
    them. The largest would only take time."""
    inputs = [
        sample.input
        for contiguous in SIGMOID.reference_inputs("cpu", dtype)
        for sample in (contiguous, contiguous.noncontiguous())
        if sample.input.numel() < 2**14
    ]
    assert len(inputs) >= 60
    return inputs


def assert_same(result: Tensor, expected: Tensor) -> None:
    # torch's float32 flushes what is subnormal; ours is one rounding off at most elsewhere.
    tolerance: dict[str, float] = {}
    if expected.dtype in (torch.float32, torch.float64):
        info = torch.finfo(expected.dtype)
        tolerance = {"rtol": 8 * info.eps, "atol": info.smallest_normal}
    assert type(result) is type(expected)
    torch.testing.assert_close(result, expected, equal_nan=True, check_stride=True, **tolerance)
    for name in ("requires_grad", "is_leaf"):
        assert getattr(result, name) == getattr(expected, name)
    for name in ("storage_offset", "is_conj", "is_neg", "is_inference", "_is_view"):
        assert getattr(result, name)() == getattr(expected, name)()


@every_dtype
@every_function
def test_values(function: str, dtype: torch.dtype) -> None:
    for input in samples(dtype):
        assert_same(FUNCTIONS[function](input), torch.sigmoid(input))


@every_gradient_dtype
@pytest.mark.parametrize("saved", SAVED)
def test_gradients(saved: str, dtype: torch.dtype) -> None:
    """Both gradients are right where 1 - y has not lost its bits."""
    function = FUNCTIONS[saved]
    for sample in samples(dtype):
        input = sample.detach().requires_grad_()
        result, expected = function(input), torch.sigmoid(input)
        assert_same(result, expected)
        ones = torch.ones_like(expected)
        gradient, torchs = (
            torch.autograd.grad(output, input, ones)[0] for output in (result, expected)
        )
        assert (gradient.dtype, gradient.stride()) == (torchs.dtype, torchs.stride())
        near = (input.abs() < 2) | input.isnan()
        tolerance = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            gradient[near], torchs[near], rtol=tolerance, atol=0, equal_nan=True
        )


@every_dtype
def test_out_and_in_place(dtype: torch.dtype) -> None:
    for input in samples(dtype):
        expected = torch.sigmoid(input)
        out = torch.empty_like(expected)
        assert fused_sigmoid.sigmoid(input, out=out) is out
        assert_same(out, torch.sigmoid(input, out=torch.empty_like(expected)))
        if expected.dtype == dtype:
            ours, torchs = input.clone(), input.clone()
            assert fused_sigmoid.sigmoid_(ours) is ours
            assert_same(ours, torchs.sigmoid_())
            assert ours._version == torchs._version


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32, torch.bits8], ids=str
)
@every_function
def test_dtypes_that_torch_rejects(function: str, dtype: torch.dtype) -> None:
    assert dtype not in SIGMOID.dtypes
    input = torch.zeros(2, dtype=torch.uint8).view(dtype) if dtype == torch.bits8 else None
    input = torch.zeros(2).to(dtype) if input is None else input
    with pytest.raises(Exception) as expected:
        torch.sigmoid(input)
    with pytest.raises(expected.type):
        FUNCTIONS[function](input)


@pytest.mark.parametrize("dtype", MODULE.dtypes, ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("saved", SAVED)
def test_module_inputs(saved: str, training: bool, dtype: torch.dtype) -> None:
    inputs = MODULE.module_inputs_func(
        MODULE, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert len(inputs) >= 4
    for case in inputs:
        (input,) = case.forward_input.args
        # torch's suite gives these the memory format that they are named after, too.
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        memory_format = formats.get(input.dim(), torch.contiguous_format)
        input = input.detach().to(memory_format=memory_format).requires_grad_()
        result = FusedSigmoid(saved).train(training)(input)
        expected = nn.Sigmoid(*case.constructor_input.args).train(training)(input)
        assert_same(result, expected)
        gradient, torchs = (
            torch.autograd.grad(output.sum(), input)[0] for output in (result, expected)
        )
        assert gradient.stride() == torchs.stride()
        torch.testing.assert_close(gradient, torchs, rtol=1e-3, atol=1e-6)


# A diagonal needs one dimension, the others stand for any.
@pytest.mark.parametrize("name", [i.name for i in subclass_db.values() if "diag" not in i.name])
@every_function
def test_subclasses(function: str, name: str) -> None:
    (info,) = (info for info in subclass_db.values() if info.name == name)
    torch.manual_seed(0)
    input = info.create_fn((2, 3))
    result, expected = FUNCTIONS[function](input), torch.sigmoid(input)
    assert oracle.description(result) == oracle.description(expected)


@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
@every_function
def test_composite_compliance(function: str, shape: tuple[int, ...]) -> None:
    """Subclasses and modes that stand between torch and its kernels see every operation."""
    call, arguments = FUNCTIONS[function], (torch.randn(shape, requires_grad=True),)
    check_with_mode(call, arguments, {}, torch.testing.assert_close)
    check_all_permutations(call, arguments, {}, torch.testing.assert_close)
    check_backward_formula(
        call, arguments, {}, None, None, assert_equal_fn=torch.testing.assert_close
    )
    check_forward_ad_formula(call, arguments, {}, None, torch.testing.assert_close)
