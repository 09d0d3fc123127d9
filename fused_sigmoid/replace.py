"""Puts the fused sigmoid into models that were written with torch's: module by module, or for
every call inside a ``with`` block."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._contextlib import context_decorator

from .binary_cross_entropy import binary_cross_entropy_with_logits
from .functions.sigmoid import sigmoid, sigmoid_
from .modules import FusedBCEWithLogitsLoss, FusedSigmoid
from .routes import check_saved, has_own_rules, transforms

_LOGGER = logging.getLogger(__package__)

# torch's modules, and what they become.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sigmoid: FusedSigmoid,
    nn.BCEWithLogitsLoss: FusedBCEWithLogitsLoss,
}

# Where a turned module keeps its class, if that was a subclass, and an attribute of its own that
# was named ``saved``.
_CLASS = "class_before_fused_sigmoid"
_SAVED = "saved_before_fused_sigmoid"


def replace_sigmoid(model: nn.Module, *, saved: str = "auto", subclasses: bool = False) -> int:
    """Turns every ``nn.Sigmoid`` in ``model`` into a :class:`FusedSigmoid`, and every
    ``nn.BCEWithLogitsLoss`` into a :class:`FusedBCEWithLogitsLoss`, in place.

    The module objects stay the same: hooks, training flags, sharing, names, buffers and the state
    dict are untouched, and ``model`` itself may be such a module. What is turned already keeps its
    ``saved``. A module with a ``forward`` of its own, be it the class's or set on the object, may
    compute something else and is left alone.

    It does not see what is no such module: calls of ``torch.sigmoid`` in a ``forward``, classes
    of other libraries such as ``timm.layers.Sigmoid``. :class:`override` catches those. Where there
    was nothing to turn, a warning of the logger ``fused_sigmoid`` says so.

    Tools that look modules up by their very type do not know the new one, and DeepLift of captum
    then gives wrong attributions in silence: see "Tools that go by the type" in
    docs/compatibility.md, or use :class:`override`, which leaves the modules as they are.

    Args:
        model: the module to search, itself included.
        saved: what the new sigmoids keep for the backward pass; see :func:`fused_sigmoid.sigmoid`.
        subclasses: whether modules of subclasses are turned as well. Until :func:`restore_sigmoid`
            they are of the fused class, without the methods of the subclass.

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
    check_saved(saved)
    modules = _modules(model)
    turned = [module for module in modules if _can_be_turned(module, subclasses)]
    for module in turned:
        original = _original_of(module)
        if type(module) is not original:
            module.__dict__[_CLASS] = type(module)
        module.__class__ = _FUSED[original]
        if original is nn.Sigmoid:
            if "saved" in module.__dict__:
                module.__dict__[_SAVED] = module.__dict__["saved"]
            module.__dict__["saved"] = saved
    if not turned and not any(isinstance(module, tuple(_FUSED.values())) for module in modules):
        # Not an error, yet nothing came of the call, which its returned 0 is easily missed to say.
        _LOGGER.warning(
            "replace_sigmoid() found no nn.Sigmoid and no nn.BCEWithLogitsLoss to turn in %s. It "
            "leaves alone calls of torch.sigmoid and the like, classes of other libraries, and "
            "subclasses without subclasses=True; run the model inside "
            "'with fused_sigmoid.override():' to catch what Python code calls",
            type(model).__name__,
        )
    return len(turned)


def restore_sigmoid(model: nn.Module) -> int:
    """Turns every :class:`FusedSigmoid` in ``model`` into an ``nn.Sigmoid``, and every
    :class:`FusedBCEWithLogitsLoss` into an ``nn.BCEWithLogitsLoss``, in place, or into the subclass
    of it that it was.

    Returns:
        How many modules were turned; a shared one counts once.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
    """
    turned = [module for module in _modules(model) if type(module) in _FUSED.values()]
    for module in turned:
        original = _original_of(module)
        module.__class__ = module.__dict__.pop(_CLASS, original)
        if original is nn.Sigmoid:
            module.__dict__.pop("saved", None)
            if _SAVED in module.__dict__:
                module.__dict__["saved"] = module.__dict__.pop(_SAVED)
    return len(turned)


def _original_of(module: nn.Module) -> type[nn.Module]:
    """The class of torch that the module's is, or derives from."""
    return next(original for original in _FUSED if isinstance(module, original))


def _can_be_turned(module: nn.Module, subclasses: bool) -> bool:
    if not isinstance(module, tuple(_FUSED)):
        return False
    original = _original_of(module)
    # A parametrized tensor is a property of the module's own class, which a turned one has not.
    has_all_tensors = original is nn.Sigmoid or not parametrize.is_parametrized(module)
    return (
        (subclasses or type(module) is original)
        and has_all_tensors
        and getattr(module.forward, "__func__", None) is original.forward
    )


def _modules(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"argument 'model' must be torch.nn.Module, not {type(model).__name__}")
    return list(model.modules())


# torch.utils.checkpoint computes again outside of every torch function mode (pytorch#84864). Two
# sigmoids keep different tensors of one shape: with torch's in place of ours an output would be
# taken for an input or a derivative. So a sigmoid is computed again by the one that computed it the
# first time, and likewise a loss. What a checkpoint knows of its two computations is its frame,
# where each function that was overridden is noted.
_OVERRIDDEN = "overridden_by_fused_sigmoid"
_ENTERED = "entered_by_fused_sigmoid"


def _checkpoint() -> dict[str, Any] | None:
    """What the running checkpoint's function that packs tensors holds: in the first computation its
    ``frame``, in the second a reference to that. None outside of checkpoints, and for Dynamo."""
    if is_dynamo_compiling():
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or getattr(hooks[0], "__module__", "") != checkpoint.__name__:
        return None
    pack = inspect.unwrap(hooks[0])
    cells = pack.__closure__ or ()
    held = {
        name: cell.cell_contents
        for name, cell in zip(pack.__code__.co_freevars, cells, strict=True)
    }
    if "frame" in held or {"target_frame_ref", "gid"} <= held.keys():
        return held
    raise checkpoint.CheckpointError(
        f"fused_sigmoid.override() does not know the checkpoints of torch {torch.__version__}, and "
        "cannot see to it that they compute the same sigmoid again; use "
        "fused_sigmoid.replace_sigmoid(model) in place of override()"
    )


# How many tensors were kept before a sigmoid, and whether it keeps any: one that does not may stand
# at the position of one that does.
_Position = tuple[int, bool]


def _overridden(frame: Any, saved: str) -> dict[_Position, str]:
    """What each overridden sigmoid of the checkpoint keeps."""
    if not hasattr(frame, _OVERRIDDEN):
        setattr(frame, _OVERRIDDEN, {})
        frame.recompute_fn = override(saved=saved)(frame.recompute_fn)
    noted: dict[_Position, str] = getattr(frame, _OVERRIDDEN)
    return noted


def _compute(
    ours: Callable[[str], Tensor],
    theirs: Callable[[], Tensor],
    operands: tuple[Tensor | None, ...],
    saved: str,
) -> Tensor:
    """A sigmoid of a block with ``saved``. Where a checkpoint computes it again it is torch's, if
    it was not overridden the first time."""
    held = _checkpoint()
    if held is None:
        return ours(saved)
    if "frame" in held:
        frame = held["frame"]
        position = len(frame.weak_holders)
        value = ours(saved)
        _overridden(frame, saved)[position, len(frame.weak_holders) > position] = saved
        return value
    frame = held["target_frame_ref"]()
    # Tensors of a transform do not say whether they require a gradient.
    is_recorded = any(each is not None and each.requires_grad for each in operands)
    keeps = torch.is_grad_enabled() and (is_recorded or bool(transforms()))
    position = frame.recomp_counter[held["gid"]]
    kept = getattr(frame, _OVERRIDDEN, {}).get((position, keeps))
    return theirs() if kept is None else ours(kept)


def _sigmoid(input: Tensor, *, out: Tensor | None = None, saved: str) -> Tensor:
    if out is not None:
        return sigmoid(input, out=out, saved=saved)
    return _compute(
        lambda saved: sigmoid(input, saved=saved), lambda: torch.sigmoid(input), (input,), saved
    )


def _sigmoid_(input: Tensor, *, saved: str) -> Tensor:
    return _compute(lambda _: sigmoid_(input), lambda: torch.sigmoid_(input), (input,), saved)


def _set_grad_enabled(enabled: bool, *, saved: str) -> None:
    # A checkpoint looks at everything that is kept without recording, also by a compiled function,
    # whose sigmoids do not come by here: what was compiled in the block is to be computed again in
    # a block.
    held = _checkpoint()
    if held is not None and "frame" in held:
        _overridden(held["frame"], saved)
    torch._C._set_grad_enabled(enabled)


def _enter_checkpoint() -> None:
    """Notes that a block begins in the first computation, so that one may in the second. In that
    alone, a compiled function would be compiled with the sigmoid that it did not have."""
    held = _checkpoint()
    if held is None:
        return
    if "frame" in held:
        setattr(held["frame"], _ENTERED, True)
        return
    frame = held["target_frame_ref"]()
    if not (hasattr(frame, _ENTERED) or hasattr(frame, _OVERRIDDEN)):
        raise checkpoint.CheckpointError(
            "fused_sigmoid.override() is entered where torch.utils.checkpoint computes again, and "
            "was not the first time. Enter it in both computations: decorate the checkpointed "
            "function with '@override()', or pass context_fn=lambda: (override(), override())"
        )


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    saved: str,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = _reduction_of(size_average, reduce)

    def theirs() -> Tensor:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(input, target, weight, pos_weight=pos_weight, reduction=reduction)

    def ours(_: str) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, weight, pos_weight=pos_weight, reduction=reduction
        )

    return _compute(ours, theirs, (input, target, weight, pos_weight), saved)


def _reduction_of(size_average: bool | None, reduce: bool | None) -> str:
    """What torch's two old names for the reduction mean, of which torch warns."""
    if not is_dynamo_compiling():
        torch.nn._reduction.legacy_get_string(size_average, reduce)
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


# What takes their place, with the block's ``saved``.
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.sigmoid: _sigmoid,
    torch.Tensor.sigmoid: _sigmoid,
    torch.special.expit: _sigmoid,
    torch.nn.functional.sigmoid: _sigmoid,
    torch.sigmoid_: _sigmoid_,
    torch.Tensor.sigmoid_: _sigmoid_,
    torch.nn.functional.binary_cross_entropy_with_logits: _loss,
    torch._C._set_grad_enabled: _set_grad_enabled,
}

Function = TypeVar("Function", bound=Callable[..., Any])


class override(TorchFunctionMode):  # noqa: N801 - used like a function
    """Inside ``with override():`` every sigmoid that Python code calls is the fused one, and so is
    every binary cross entropy with logits.

    It catches ``torch.sigmoid``, ``Tensor.sigmoid``, ``Tensor.sigmoid_``, ``torch.sigmoid_``,
    ``torch.nn.functional.sigmoid``, ``torch.special.expit`` and
    ``torch.nn.functional.binary_cross_entropy_with_logits``, however they were imported, and with
    them ``nn.Sigmoid``, ``nn.BCEWithLogitsLoss`` and the classes of other libraries that call one
    of these.

    It does not catch, and the gradient stays torch's in:

    - functions with a sigmoid inside, ``torch.nn.functional.glu`` and ``silu`` among them, and
      ``nn.LSTM``, ``nn.GRU`` and their cells;
    - ATen's operators by name, ``torch.ops.aten.sigmoid``, and what holds them: scripted, traced
      and exported models;
    - what the backward pass runs, be it a hook or the ``backward`` of an autograd Function; the
      ``forward`` of a Function is caught, but its gradient is what its ``backward`` says;
    - functions handed to a function of torch that other modes and types may override too, such as
      the ``distance_function`` of ``triplet_margin_with_distance_loss``;
    - ``torch.sigmoid_`` and ``torch.nn.functional.sigmoid`` in code compiled by ``torch.compile``,
      since Dynamo does not show them to modes.

    Args:
        saved: what every sigmoid of the block keeps for the backward pass; see
            :func:`fused_sigmoid.sigmoid`. Of those in place it changes nothing.

    Raises:
        TypeError: anything but ``saved`` is given, as by ``@override`` without parentheses.
        ValueError: ``saved`` is none of the four.

    It nests, ends with the block, and as the decorator ``@override()`` holds while the function
    (or a generator, between its yields) runs. Gradients of tensors computed inside stay exact
    outside. As every mode of torch it belongs to the thread: another thread is not affected, but
    the other tasks of an event loop are if the block holds an ``await``.

    Every call of torch in the block, ``x + a`` and ``x.shape`` too, goes through Python first, as
    in any mode of torch, which takes most of a microsecond (docs/performance.md has the figures).
    :func:`replace_sigmoid` costs no other call anything.

    What ``torch.utils.checkpoint`` computes in the block it computes by the same sigmoid again,
    wherever the backward pass runs; with ``use_reentrant=True`` it leaves the block for that
    (pytorch#84864), and the gradient is torch's.

    >>> import torch, fused_sigmoid
    >>> x = torch.tensor([20.0], requires_grad=True)
    >>> with fused_sigmoid.override():
    ...     x.sigmoid().backward()
    >>> x.grad
    tensor([2.0612e-09])
    """

    def __init__(self, *misplaced: NoReturn, saved: str = "auto") -> None:
        if misplaced:
            raise TypeError(_advice(misplaced[0]))
        super().__init__()
        check_saved(saved)
        self.saved = saved

    def __enter__(self) -> override:
        _enter_checkpoint()
        super().__enter__()
        return self

    def __call__(self, function: Function) -> Function:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"override() cannot decorate {function.__qualname__}, a coroutine function: while "
                "it awaits, the override would hold for the other tasks of the thread"
            )
        return context_decorator(lambda: self, function)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Called for every function of torch: what is not replaced must get past in little time.
        replacement = _REPLACEMENTS.get(func)
        # A type with rules of its own sees the function that was called.
        if replacement is None or (types and any(map(has_own_rules, args))):
            return func(*args, **kwargs) if kwargs else func(*args)
        return replacement(*args, **(kwargs or {}), saved=self.saved)


def _advice(misplaced: object) -> str:
    """What to write in place of ``override(misplaced)``."""
    if isinstance(misplaced, nn.Module):
        return (
            f"override() takes no module, {type(misplaced).__name__} was given: call the model "
            "inside 'with override():', or turn its nn.Sigmoid modules by replace_sigmoid(model)"
        )
    if callable(misplaced):
        name = getattr(misplaced, "__qualname__", repr(misplaced))
        return f"override() takes no function, {name} was given: decorate with '@override()'"
    return (
        f"override() takes the keyword argument 'saved' alone, {misplaced!r} was given without: "
        "write 'override(saved=...)'"
    )
