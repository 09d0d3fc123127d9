"""What is checked: the results of our functions and of torch's, by quantity, and their bounds.
Depends on the package under test, on reference.py and figures.py.

A target of 1 costs at -x what one of 0 costs at x, and the gradient there is the other's with the
sign turned: so taken, both have one reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .. import binary_cross_entropy as losses
from ..functions import sigmoid as sigmoids
from . import reference
from .figures import differing
from .reference import Reference

HALVES = (torch.float16, torch.bfloat16)

# Largest error by dtype and function: in ulp, of the second derivative as a part of it. Halves have
# to be correctly rounded instead.
ERROR_BOUNDS = {
    (torch.float32, "value"): 2.2,
    (torch.float32, "derivative"): 2.9,
    (torch.float64, "value"): 2.5,
    (torch.float64, "derivative"): 3.5,
    (torch.float64, "second derivative"): 1e-12,
    (torch.float32, "loss"): 2.5,
    (torch.float32, "loss gradient"): 2.5,
    (torch.float64, "loss"): 3.5,
    (torch.float64, "loss gradient"): 3.5,
}
# Functions of x that nowhere decrease.
INCREASING = ("value", "loss", "loss gradient")
# Of sigmoid_with_derivative; compared with the value of sigmoid, and no row of its own.
PAIR_VALUE = "value of the pair"
# Targets, and the sign of the logits that are taken with them.
TARGETS = {"t=0": (0.0, 1), "t=1": (1.0, -1)}


def function_of(quantity: str) -> str:
    """Which function a quantity is, as reference.py names them."""
    if quantity.startswith("gradient"):
        return "derivative"
    return "value" if quantity == PAIR_VALUE else quantity.split(",")[0]


def mirrored(quantity: str) -> str:
    """The quantity of the target 0 that is the same number."""
    return f"{function_of(quantity)}, t=0"


def sign_of_logits(quantity: str) -> int:
    """-1 of quantities that are taken at -x."""
    _, _, variant = quantity.partition(", ")
    return TARGETS[variant][1] if variant in TARGETS else 1


@dataclass(frozen=True)
class Order:
    """The results of one order of differentiation, and what they are judged by."""

    title: str
    ours: Callable[[Tensor], dict[str, Tensor]]
    torch: Callable[[Tensor], dict[str, Tensor]]
    references: Callable[[Tensor], dict[tuple[str, int], Reference]]


def _first(x: Tensor) -> dict[str, Tensor]:
    value, derivative = sigmoids.sigmoid_with_derivative(x)
    results = {
        PAIR_VALUE: value,
        "value": sigmoids.sigmoid(x),
        "derivative": derivative,
        "gradient": torch.ops.fused_sigmoid.sigmoid_backward(torch.ones_like(x), x),
    }
    # The other dtypes' autograd goes through the same kernels: two more passes would show nothing.
    if x.dtype in HALVES:
        for saved in ("derivative", "input"):
            input = x.detach().requires_grad_()
            output = sigmoids.sigmoid(input, saved=saved)
            (gradient,) = torch.autograd.grad(output, input, torch.ones_like(output))
            results[f"gradient, saved={saved}"] = gradient
    return results


def _first_of_torch(x: Tensor) -> dict[str, Tensor]:
    value = torch.sigmoid(x)
    derivative = torch.ops.aten.sigmoid_backward(torch.ones_like(value), value)
    return {"value": value, "derivative": derivative}


def _second(x: Tensor) -> dict[str, Tensor]:
    return {
        f"second derivative, saved={saved}": _double_backward(
            x, lambda input, saved=saved: sigmoids.sigmoid(input, saved=saved)
        )
        for saved in ("derivative", "input", "auto")
    }


def _second_of_torch(x: Tensor) -> dict[str, Tensor]:
    return {"second derivative": _double_backward(x, torch.sigmoid)}


def _double_backward(x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    input = x.detach().requires_grad_()
    ones = torch.ones_like(input)
    (gradient,) = torch.autograd.grad(function(input), input, ones, create_graph=True)
    (second,) = torch.autograd.grad(gradient, input, ones)
    return second


def _losses(x: Tensor) -> dict[str, Tensor]:
    return _losses_by(losses.binary_cross_entropy_with_logits, x)


def _losses_of_torch(x: Tensor) -> dict[str, Tensor]:
    return _losses_by(functional.binary_cross_entropy_with_logits, x)


def _losses_by(function: Callable[..., Tensor], x: Tensor) -> dict[str, Tensor]:
    results = {}
    for name, (target, sign) in TARGETS.items():
        logits = (x.detach() * sign).requires_grad_()
        loss = function(logits, torch.full_like(x, target), reduction="none")
        (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
        results[f"loss, {name}"] = loss.detach()
        # From 0, so that of a gradient of 0 the sign does not count.
        results[f"loss gradient, {name}"] = gradient if sign > 0 else 0 - gradient
    return results


FIRST = Order("", _first, _first_of_torch, reference.first_order)
SECOND = Order("second order", _second, _second_of_torch, reference.second_order)
LOSS = Order("loss", _losses, _losses_of_torch, reference.loss)


def wrong_special_values(order: Order, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """How many results at ±0, ±inf, NaN and the largest numbers are wrong in any bit."""
    nan, inf, largest, ln_2 = math.nan, math.inf, torch.finfo(dtype).max, math.log(2)
    inputs = torch.tensor([0.0, -0.0, inf, -inf, largest, -largest, nan], dtype=dtype)
    expected = {
        "value": [0.5, 0.5, 1, 0, 1, 0, nan],
        "derivative": [0.25, 0.25, 0, 0, 0, 0, nan],
        "loss": [ln_2, ln_2, inf, 0, largest, 0, nan],
        "loss gradient": [0.5, 0.5, 1, 0, 1, 0, nan],
    }
    return {
        quantity: differing(
            result.cpu(), torch.tensor(expected[function_of(quantity)], dtype=dtype)
        )
        for quantity, result in order.ours(inputs.to(device)).items()
    }
