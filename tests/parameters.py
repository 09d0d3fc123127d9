"""Which of a test's parameters `make test` runs, and which `make test-all` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def chosen(values: Iterable[tuple[Any, ...]], is_in_suite: Callable[..., bool]) -> list[Any]:
    """The ``values`` as parameters, slow where they are not in the suite: what differs from others
    by a dtype or an architecture alone, and is seen with those."""
    return [
        pytest.param(*each, marks=() if is_in_suite(*each) else pytest.mark.slow) for each in values
    ]
