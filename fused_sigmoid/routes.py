"""Where a call of a public function goes that no kernel took at once: the table ``ROUTES``.

Depends on torch and the extension; the files in functions/ call it. Compilers trace all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from ._extension import KERNEL_DTYPES, extension

if TYPE_CHECKING:
    from .functions.function import Function

if torch.__version__.startswith("2.11."):
    # Dynamo of torch 2.11 takes the function for True in every compilation (pytorch#176347).
    def is_exporting() -> bool:
        return torch.compiler._is_exporting_flag

else:
    from torch.compiler import is_exporting

SAVED = ("auto", "derivative", "input", "output")

ACCEPTED = (
    "accepted are strided tensors of float64, float32, float16, bfloat16, complex128, complex64, "
    "bool and integers"
)


class Call(NamedTuple):
    """A call of a public function: the elementwise function that was called, the first argument,
    and the others by name. The three public functions of ``f`` are ``f``, ``f_`` (in place) and
    ``f_with_derivative``; the extension's nodes and the operators have their names."""

    function: Function
    public: Callable[..., Any]
    input: Any
    others: dict[str, Any]

    def tensors(self) -> tuple[Any, Any]:
        return self.input, self.others.get("out")


def _has_type_with_rules(call: Call) -> bool:
    # torch.fx's type records any function: with torch's in the graph, a traced model would train
    # with torch's gradient.
    return (
        has_torch_function(call.tensors())
        and not isinstance(call.input, torch.fx.Proxy)
        and any(map(has_own_rules, call.tensors()))
    )


def _is_exported(call: Call) -> bool:
    return is_exporting() if is_compiling() else torch.jit.is_tracing()  # type: ignore[attr-defined]


def _original(call: Call) -> Any:
    suffix = call.public.__name__.removeprefix(call.function.name)
    others = {name: other for name, other in call.others.items() if name != "saved"}
    return getattr(call.function, f"original{suffix}")(call.input, **others)


def _original_or_what_is_accepted(call: Call) -> Any:
    """torch's own operation; of an input that it rejects, a message that says what is accepted."""
    input = call.input
    try:
        return _original(call)
    except (NotImplementedError, RuntimeError) as error:
        supported = input.layout == torch.strided and not input.is_quantized
        if (supported and not isinstance(error, NotImplementedError)) or is_compiling():
            raise
        # torch rejects `out` then, or that forward-mode AD follows one of the two.
        if _has_kernel(input):
            raise
        kind = f"{'nested, ' if input.is_nested else ''}layout {input.layout}, dtype {input.dtype}"
        name = call.function.name
        raise type(error)(f"{name}(): argument 'input' has {kind}; {ACCEPTED}") from error


def _handed_over(call: Call) -> Any:
    return handle_torch_function(call.public, call.tensors(), call.input, **call.others)


def _rejected(call: Call) -> Any:
    name, kind = call.public.__name__, type(call.input).__name__
    raise TypeError(f"{name}(): argument 'input' must be Tensor, not {kind}")


def _composed(call: Call) -> Any:
    if call.public.__name__ == f"{call.function.name}_with_derivative":
        return call.function.value_and_derivative(call.input)
    return _original(call)


def _node_or_composed(call: Call) -> Any:
    node = getattr(extension, f"followed_{call.public.__name__}")
    # The node gives None where autograd does not follow the input.
    result = node(call.input, *call.others.values())
    return _composed(call) if result is None else result


def _operator(call: Call) -> Any:
    name, operators = call.public.__name__, torch.ops.fused_sigmoid
    if name == f"{call.function.name}_":
        # The backward pass gets a copy of the input, which is overwritten here.
        return call.input.copy_(getattr(operators, call.function.name)(call.input.clone()))
    return getattr(operators, name)(call.input, **call.others)


# A call takes the first route whose condition holds.
ROUTES = (
    # A type with rules of its own knows torch's functions, and not ours.
    (_has_type_with_rules, _original),
    # Active modes, and types that inherit torch's rules or disable them, get our function.
    (lambda call: has_torch_function(call.tensors()), _handed_over),
    (lambda call: not isinstance(call.input, Tensor), _rejected),
    # No gradient is recorded of what is written to `out`.
    (lambda call: "out" in call.others, _original_or_what_is_accepted),
    # Complex, integer, quantized, sparse and mkldnn tensors have no kernel.
    (lambda call: not _has_kernel(call.input), _original_or_what_is_accepted),
    # torch.export and torch.jit.trace make graphs for inference, which other tools read.
    (_is_exported, _composed),
    # What torch.compile makes under torch.no_grad is for inference as well.
    (lambda call: is_compiling() and not torch.is_grad_enabled(), _composed),
    # In eager mode, subclasses and dispatch modes see the ATen operations that the extension's node
    # composes the value of.
    (lambda call: not (is_compiling() or _is_transformed(call.input)), _node_or_composed),
    # torch.compile and the transforms of torch.func differentiate the operator.
    (lambda call: True, _operator),
)


def run(function: Function, public: Callable[..., Any], input: Any, **others: Any) -> Any:
    """The result of a call of ``public``, by the first route that is open to it."""
    given = {name: other for name, other in others.items() if other is not None}
    call = Call(function, public, input, given)
    for is_open, result_of in ROUTES:
        if is_open(call):
            return result_of(call)
    raise AssertionError("the last route is open to every call")


def check_saved(saved: object) -> None:
    """ValueError, worded like the extension's own, unless ``saved`` is one of the four."""
    if saved not in SAVED:
        accepted = ", ".join(map(repr, SAVED))
        raise ValueError(f"argument 'saved' is {saved!r}; accepted are {accepted}")


def transforms() -> list[Any]:
    """The types of the active ``torch.func`` transforms, the outermost first."""
    return [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]


def _is_transformed(input: Tensor) -> bool:
    """Whether a transform of ``torch.func`` is active, or was when it made the tensor."""
    return bool(transforms()) or torch._C._functorch.is_gradtrackingtensor(input)


def has_own_rules(argument: Any) -> bool:
    """Whether its type has a ``__torch_function__`` of its own; a type that inherits or disables it
    takes our functions, and so do jagged tensors."""
    rules = getattr(type(argument), "__torch_function__", None)
    if rules is None or rules is torch._C._disabled_torch_function_impl:
        return False
    if getattr(argument, "layout", None) is torch.jagged:
        return False
    inherited = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    return getattr(rules, "__func__", None) is not inherited


def _has_kernel(input: Tensor) -> bool:
    # The jagged layout is strided data inside. The older nested tensors call themselves strided,
    # and have no sigmoid.
    if input.dtype not in KERNEL_DTYPES:
        return False
    return input.layout == torch.jagged or (input.layout == torch.strided and not input.is_nested)
