"""Which of a test's parameters `make test` runs, and which `make test-all` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def chosen(values: Iterable[tuple[Any, ...]], is_in_suite: Callable[..., bool]) -> list[Any]:
    """The ``values`` as parameters. Those that are not in the suite are marked slow: each is like
    one in it but for a dtype, an architecture, a layout or a seed."""
    values = list(values)
    assert any(is_in_suite(*each) for each in values)
    return [
        pytest.param(*each, marks=() if is_in_suite(*each) else pytest.mark.slow) for each in values
    ]
