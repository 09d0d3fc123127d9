"""Puts the fused sigmoid into models that were written with torch's: module by module, or for
every call inside a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import functional
from .modules import FusedSigmoid

# Where a module that was of a subclass of nn.Sigmoid keeps its class.
_ORIGINAL = "class_before_fused_sigmoid"


def replace_sigmoid(model: nn.Module, *, saved: str = "auto", subclasses: bool = False) -> int:
    """Turns every ``nn.Sigmoid`` in ``model`` into a :class:`FusedSigmoid`, in place.

    The module objects stay the same: hooks, training flags, sharing, names and the state dict
    are untouched, and ``model`` itself may be an ``nn.Sigmoid``.

    Args:
        model: the module to search, itself included.
        saved: what the new modules keep for the backward pass; see :class:`FusedSigmoid`, also
            for a sigmoid whose output goes to ``nn.BCELoss``.
        subclasses: whether modules of subclasses of ``nn.Sigmoid``, which may compute something
            else, are turned as well.

    Returns:
        How many modules were turned; a shared one counts once.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: ``saved`` is not one of the four.

    >>> from torch import nn
    >>> import fused_sigmoid
    >>> model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    >>> fused_sigmoid.replace_sigmoid(model)
    1
    >>> model[1]
    FusedSigmoid()
    """
    functional.check_saved(saved)
    turned = [
        module
        for module in _modules(model)
        if type(module) is nn.Sigmoid
        or (subclasses and isinstance(module, nn.Sigmoid) and type(module) is not FusedSigmoid)
    ]
    for module in turned:
        if type(module) is not nn.Sigmoid:
            module.__dict__[_ORIGINAL] = type(module)
        module.__class__ = FusedSigmoid
        module.__dict__["saved"] = saved
    return len(turned)


def restore_sigmoid(model: nn.Module) -> int:
    """Turns every :class:`FusedSigmoid` in ``model`` into an ``nn.Sigmoid``, in place, or into the
    subclass of it that it was.

    Returns:
        How many modules were turned; a shared one counts once.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
    """
    turned = [module for module in _modules(model) if type(module) is FusedSigmoid]
    for module in turned:
        module.__class__ = module.__dict__.pop(_ORIGINAL, nn.Sigmoid)
        module.__dict__.pop("saved", None)
    return len(turned)


def _modules(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"argument 'model' must be torch.nn.Module, not {type(model).__name__}")
    return list(model.modules())


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.sigmoid: functional.sigmoid,
    torch.Tensor.sigmoid: functional.sigmoid,
    torch.special.expit: functional.sigmoid,
    torch.nn.functional.sigmoid: functional.sigmoid,
    torch.sigmoid_: functional.sigmoid_,
    torch.Tensor.sigmoid_: functional.sigmoid_,
}


class override(TorchFunctionMode):  # noqa: N801 - used like a function
    """Inside ``with override():`` every sigmoid that Python code calls is the fused one.

    It catches ``torch.sigmoid``, ``Tensor.sigmoid``, ``Tensor.sigmoid_``, ``torch.sigmoid_``,
    ``torch.nn.functional.sigmoid`` and ``torch.special.expit``, and with them ``nn.Sigmoid``;
    not calls from C++ such as those inside ``nn.LSTM``. It holds for the current thread, nests,
    and ends with the block; gradients of tensors computed inside stay exact outside.

    >>> import torch, fused_sigmoid
    >>> x = torch.tensor([20.0], requires_grad=True)
    >>> with fused_sigmoid.override():
    ...     x.sigmoid().backward()
    >>> x.grad
    tensor([2.0612e-09])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))
