"""Which parameters and which tests of a GPU `make test` runs, and which `make test-all` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch


def chosen(values: Iterable[tuple[Any, ...]], is_in_suite: Callable[..., bool]) -> list[Any]:
    """The ``values`` as parameters. Those that are not in the suite are marked slow: each is like
    one in it but for a dtype, an architecture, a layout or a seed."""
    values = list(values)
    assert any(is_in_suite(*each) for each in values)
    return [
        pytest.param(*each, marks=() if is_in_suite(*each) else pytest.mark.slow) for each in values
    ]


# Tests of a GPU's file. Without a GPU they run on the CPU among all tests, so that they are found
# right when there is one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
of_a_gpu = pytest.mark.gpu if DEVICE == "cuda" else pytest.mark.slow
