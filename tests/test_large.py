"""Tensors of more than 2³¹ elements get the same values and gradients as small ones: no index, on
any route, wraps around."""

from __future__ import annotations

import oracle
import pytest
import torch
from torch import Tensor

from fused_sigmoid import sigmoid, sigmoid_

# A prime, so that an index that lost a multiple of a power of two meets another number.
PERIOD = 65_521
ROWS = 2**31 // PERIOD + 2
DTYPE = torch.bfloat16
# Of the input, the output, what is kept and the gradient, and the chunk being compared.
NEEDED = (4 * 2 * ROWS * PERIOD) + 2**30

pytestmark = pytest.mark.slow


def _available() -> int:
    with open("/proc/meminfo") as file:
        sizes = dict(line.split(":") for line in file)
    return int(sizes["MemAvailable"].split()[0]) * 1024


@pytest.fixture(autouse=True)
def _memory() -> None:
    if _available() < NEEDED:
        pytest.skip(f"needs {NEEDED / 2**30:.0f} GiB of memory")


def _row() -> Tensor:
    return oracle.every_half(DTYPE)[:PERIOD].nan_to_num()


def _input() -> Tensor:
    # Written in place: repeat() of a row would need the memory twice.
    input = torch.empty(ROWS * PERIOD, dtype=DTYPE)
    input.view(ROWS, PERIOD).copy_(_row())
    assert input.numel() > 2**31
    return input


def _assert_rows(tensor: Tensor, expected: Tensor) -> None:
    for rows in tensor.detach().view(ROWS, PERIOD).split(2048):
        assert torch.equal(rows, expected.expand_as(rows))


@pytest.mark.parametrize("saved", ["derivative", "input"])
def test_value_and_gradient(saved: str) -> None:
    input = _input().requires_grad_()
    value = sigmoid(input, saved=saved)
    row = oracle.exact(_row())
    _assert_rows(value, oracle.rounded(oracle.value(row), DTYPE))
    # One number expanded: a gradient of the output's size would need as much memory again.
    value.backward(torch.ones((), dtype=DTYPE).expand_as(value))
    assert input.grad is not None
    del value
    _assert_rows(input.grad, oracle.rounded(oracle.derivative(row), DTYPE))


def test_in_place_and_every_other_element() -> None:
    tensor = _input()
    sigmoid_(tensor)
    expected = oracle.rounded(oracle.value(oracle.exact(_row())), DTYPE)
    _assert_rows(tensor, expected)
    # Strided, from beyond the 2³¹st element on; the neighbours stay as they are.
    tail = tensor.view(ROWS, PERIOD)[-3:].view(-1)
    sigmoid(tail[::2].clone(), out=tail[::2])
    twice = oracle.rounded(oracle.value(oracle.exact(expected)), DTYPE)
    index = torch.arange(tail.numel())
    rows = torch.where(index % 2 == 0, twice.repeat(3), expected.repeat(3))
    assert torch.equal(tail, rows)
