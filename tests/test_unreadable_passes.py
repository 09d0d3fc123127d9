"""Where the graph of a backward pass cannot be read, the gradient is nn.Sigmoid's product for every
consumer, and ``python -m fused_sigmoid info`` says so."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fused_sigmoid import sigmoid, sigmoid_, sigmoid_with_derivative
from fused_sigmoid._extension import extension

X = torch.tensor([-100.0, -20.0, -1.0, 0.0, 2.0, 16.6, 17.4, 30.0])


@pytest.fixture
def _unreadable() -> Iterator[None]:
    extension.set_reading_backward_passes(False)
    yield
    extension.set_reading_backward_passes(True)
    sigmoid(torch.ones(1, requires_grad=True)).sum().backward()


SIGMOIDS = {
    **{
        saved: (lambda x, saved=saved: sigmoid(x, saved=saved))
        for saved in ("auto", "derivative", "input", "output")
    },
    "in place": lambda x: sigmoid_(x * 1),
    "value of the pair": lambda x: sigmoid_with_derivative(x)[0],
    "torch.compile": lambda x: torch.compile(sigmoid, backend="aot_eager")(x),
}
LOSSES = {
    "sum": lambda y: y.sum(),
    "BCE": lambda y: F.binary_cross_entropy(y, torch.zeros_like(y)),
    "log": lambda y: -torch.log(1 + 1e-6 - y).sum(),
}


def _gradients(function: object, loss: object) -> tuple[Tensor, Tensor, Tensor]:
    x = X.clone().requires_grad_()
    y = function(x)  # type: ignore[operator]
    y.retain_grad()
    loss(y).backward()  # type: ignore[operator]
    assert x.grad is not None
    assert y.grad is not None
    return x.grad, y.grad, y.detach()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SIGMOIDS)
@pytest.mark.usefixtures("_unreadable")
def test_the_product_of_nn_sigmoid(name: str, loss: str) -> None:
    gradient, of_output, y = _gradients(SIGMOIDS[name], LOSSES[loss])
    assert torch.equal(gradient, torch.ops.aten.sigmoid_backward(of_output, y))


def test_info() -> None:
    information = importlib.import_module("fused_sigmoid.__main__").information
    assert information()["gradient before losses"].startswith("as its consumers need it")


@pytest.mark.usefixtures("_unreadable")
def test_info_says_so() -> None:
    information = importlib.import_module("fused_sigmoid.__main__").information
    assert information()["gradient before losses"].startswith("nn.Sigmoid's, everywhere")
    assert not extension.can_read_backward_passes()
