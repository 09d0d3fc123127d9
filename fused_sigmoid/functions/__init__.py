"""The elementwise functions, a file each, found by the names that the extension has for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from .._extension import extension
from .function import Function

_MODULES = {name: import_module(f"{__name__}.{name}") for name in extension.functions()}

FUNCTIONS: tuple[Function, ...] = tuple(module.FUNCTION for module in _MODULES.values())

# What users call, by its public name.
PUBLIC: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for function, module in _MODULES.items()
    for name in (function, f"{function}_", f"{function}_with_derivative")
}
