"""What is checked: the results of our functions and of torch's, by quantity, and their bounds.
Depends on the package under test, on reference.py and figures.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
}
# Of sigmoid_with_derivative; compared with the value of sigmoid, and no row of its own.
PAIR_VALUE = "value of the pair"


def function_of(quantity: str) -> str:
    """Which function a quantity is: "value", "derivative" or "second derivative"."""
    if quantity.startswith("gradient"):
        return "derivative"
    return "value" if quantity == PAIR_VALUE else quantity.split(",")[0]


@dataclass(frozen=True)
class Order:
    """The results of one order of differentiation, and what they are judged by."""

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


FIRST = Order(_first, _first_of_torch, reference.first_order)
SECOND = Order(_second, _second_of_torch, reference.second_order)


def wrong_special_values(device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """How many results at ±0, ±inf, NaN and the largest numbers are wrong in any bit."""
    nan, inf, largest = math.nan, math.inf, torch.finfo(dtype).max
    inputs = torch.tensor([0.0, -0.0, inf, -inf, largest, -largest, nan], dtype=dtype)
    expected = {
        "value": torch.tensor([0.5, 0.5, 1, 0, 1, 0, nan], dtype=dtype),
        "derivative": torch.tensor([0.25, 0.25, 0, 0, 0, 0, nan], dtype=dtype),
    }
    return {
        quantity: differing(result.cpu(), expected[function_of(quantity)])
        for quantity, result in _first(inputs.to(device)).items()
    }
