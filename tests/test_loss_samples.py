"""PyTorch's own test inputs for the binary cross entropy of logits and its module: ours gives the
same kind of result with the same value, and derivatives of the same orders and modes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
from torch.testing._internal.composite_compliance import (
    check_all_permutations,
    check_backward_formula,
    check_forward_ad_formula,
    check_with_mode,
)

import fused_sigmoid
from fused_sigmoid import FusedBCEWithLogitsLoss, binary_cross_entropy_with_logits

NAME = "nn.functional.binary_cross_entropy_with_logits"
(LOSS,) = (info for info in op_db if info.name == NAME)
(MODULE,) = (info for info in module_db if info.module_cls is nn.BCEWithLogitsLoss)
every_dtype = pytest.mark.parametrize("dtype", sorted(LOSS.dtypes, key=str), ids=str)
EXTENT = range(26)  # of torch's samples


def samples(dtype: torch.dtype, requires_grad: bool) -> list[Any]:
    found = list(LOSS.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(found) >= len(EXTENT)
    return found


def target_of(sample: Any, requires_grad: bool) -> Tensor:
    (target,) = sample.args
    return target.detach().requires_grad_(requires_grad)


def tolerance_of(dtype: torch.dtype) -> dict[str, float]:
    eps = torch.finfo(dtype).eps
    return {"rtol": 16 * eps, "atol": 16 * eps}


@every_dtype
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("noncontiguous", [False, True])
def test_values_and_gradients(dtype: torch.dtype, requires_grad: bool, noncontiguous: bool) -> None:
    """Kinds are those of torch's results, and values those of torch in float64: in float16 torch's
    own are off by a quarter."""
    for contiguous in samples(dtype, requires_grad=True):
        sample = contiguous.noncontiguous() if noncontiguous else contiguous
        ours = results_of(binary_cross_entropy_with_logits, sample, requires_grad)
        torchs = results_of(F.binary_cross_entropy_with_logits, sample, requires_grad)
        wide = results_of(F.binary_cross_entropy_with_logits, widened(sample), requires_grad)
        for result, expected, exact in zip(ours, torchs, wide, strict=True):
            assert type(result) is type(expected)
            torch.testing.assert_close(result, exact.to(dtype), **tolerance_of(dtype))
        assert ours[0].stride() == torchs[0].stride()


def results_of(function: Any, sample: Any, requires_grad: bool) -> list[Tensor]:
    """The loss, and its gradients by the logits and, if so wished, by the target."""
    x = sample.input.detach().requires_grad_()
    t = target_of(sample, requires_grad)
    loss = function(x, t, **sample.kwargs)
    return [loss, *torch.autograd.grad(loss.sum(), (x, t) if requires_grad else (x,))]


def widened(sample: Any) -> Any:
    return sample.transform(lambda each: each.double() if isinstance(each, Tensor) else each)


@pytest.mark.parametrize("number", EXTENT)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_derivatives(number: int, requires_grad: bool) -> None:
    sample = samples(torch.float64, requires_grad=True)[number]
    x = sample.input.detach().requires_grad_()
    t = target_of(sample, requires_grad)

    def loss(x: Tensor, t: Tensor) -> Any:
        return binary_cross_entropy_with_logits(x, t, **sample.kwargs)

    checks: dict[str, Any] = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(loss, (x, t), check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(loss, (x, t), check_fwd_over_rev=True, **checks)


@pytest.mark.parametrize("number", EXTENT[::3])
def test_composite_compliance(number: int) -> None:
    """Subclasses and modes that stand between torch and its kernels see every operation."""
    sample = samples(torch.float32, requires_grad=True)[number]
    arguments = (sample.input, *sample.args)
    equal = torch.testing.assert_close
    check_with_mode(binary_cross_entropy_with_logits, arguments, sample.kwargs, equal)
    check_all_permutations(binary_cross_entropy_with_logits, arguments, sample.kwargs, equal)
    check_backward_formula(
        *(binary_cross_entropy_with_logits, arguments, sample.kwargs, None, None),
        assert_equal_fn=equal,
    )
    check_forward_ad_formula(
        binary_cross_entropy_with_logits, arguments, sample.kwargs, None, equal
    )


@pytest.mark.parametrize("number", EXTENT)
def test_fake_tensors_have_the_same_metadata(number: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        sample = samples(dtype, requires_grad=False)[number]
        real = binary_cross_entropy_with_logits(sample.input, *sample.args, **sample.kwargs)
        with torch._subclasses.FakeTensorMode() as mode:
            x, t = mode.from_tensor(sample.input), mode.from_tensor(sample.args[0])
            others = {
                name: mode.from_tensor(each) if isinstance(each, Tensor) else each
                for name, each in sample.kwargs.items()
            }
            fake = binary_cross_entropy_with_logits(x, t, **others)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", MODULE.dtypes, ids=str)
def test_module_inputs(dtype: torch.dtype, turned: bool) -> None:
    inputs = MODULE.module_inputs_func(
        MODULE, device="cpu", dtype=dtype, requires_grad=True, training=True
    )
    assert len(inputs) >= 6
    for case in inputs:
        torchs = nn.BCEWithLogitsLoss(*case.constructor_input.args, **case.constructor_input.kwargs)
        ours: nn.Module = torchs
        if turned:
            ours = nn.BCEWithLogitsLoss(
                *case.constructor_input.args, **case.constructor_input.kwargs
            )
            assert fused_sigmoid.replace_sigmoid(ours) == 1
        else:
            ours = FusedBCEWithLogitsLoss(
                *case.constructor_input.args, **case.constructor_input.kwargs
            )
        assert ours.state_dict().keys() == torchs.state_dict().keys()
        x, t = case.forward_input.args
        results = []
        for module in (ours, torchs):
            leaf = x.detach().requires_grad_()
            loss = module(leaf, t)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, **tolerance_of(dtype))
        reference = case.reference_fn(ours, x.detach(), t)
        torch.testing.assert_close(results[0][0], reference, rtol=1e-5, atol=1e-6)
