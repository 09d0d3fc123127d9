"""A model written with torch's sigmoid becomes a fused one and back without losing anything, module
by module or for every call inside a block."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oracle
import own_process
import pytest
import torch
from torch import Tensor, nn
from torch import sigmoid as imported_by_name
from torch.utils.checkpoint import (
    CheckpointError,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.data import DataLoader, Dataset
from torch.utils.hooks import RemovableHandle

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, override, replace_sigmoid, restore_sigmoid

SAVED = ("auto", "derivative", "input", "output")
X = torch.tensor([-40.0, 0.0, 20.0, 40.0], dtype=torch.float64)
GRADIENT = oracle.derivative(oracle.exact(X))


def gradient_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    x = X.clone().requires_grad_()
    function(x).sum().backward()
    assert x.grad is not None
    return x.grad


def is_exact(gradient: Tensor) -> bool:
    return oracle.largest_error_in_ulp(gradient, GRADIENT) < 8


def test_torchs_gradient_is_told_from_ours() -> None:
    assert not is_exact(gradient_of(torch.sigmoid))
    assert is_exact(gradient_of(fused_sigmoid.sigmoid))


# replace_sigmoid and restore_sigmoid


class Gate(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Subclass(nn.Sigmoid):
    pass


class Nested(nn.Module):
    """A shared sigmoid, and one in each of torch's containers: 6 in all, 9 places."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sigmoid()
        self.first = Gate(shared)
        self.second = Gate(shared)
        self.list = nn.ModuleList([nn.Sigmoid(), nn.ReLU(), shared])
        self.dict = nn.ModuleDict({"a": nn.Sigmoid(), "b": nn.Tanh()})
        self.sequence = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sigmoid()), nn.Sigmoid())
        self.own = Subclass()
        self.already = FusedSigmoid("output")
        self.last = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sequence(self.second(self.first(x)))
        return self.last(self.own(self.dict["a"](self.list[0](x))))


def kinds(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


def test_replace_reaches_every_sigmoid() -> None:
    model = Nested()
    x = torch.randn(2, 4)
    before = model(x)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    keys = list(model.state_dict())
    assert replace_sigmoid(model) == 6
    assert kinds(model, nn.Sigmoid) == 0
    assert kinds(model, FusedSigmoid) == 7
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == names
    assert list(model.state_dict()) == keys
    assert model.first.activation is model.second.activation is model.list[2]
    assert type(model.own) is Subclass
    assert model.already.saved == "output"
    torch.testing.assert_close(model(x), before)


def test_replaced_twice() -> None:
    model = Nested()
    replace_sigmoid(model)
    assert replace_sigmoid(model) == 0
    assert replace_sigmoid(nn.Linear(1, 1)) == 0
    assert restore_sigmoid(nn.Sigmoid()) == 0


class Functional(nn.Module):
    """As timm's own Sigmoid: no nn.Sigmoid, and no module of one inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


@pytest.mark.parametrize("make", [Functional, Subclass, nn.Identity])
def test_nothing_to_replace_is_said(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    assert replace_sigmoid(make()) == 0
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fused_sigmoid", logging.WARNING)
    message = record.getMessage()
    assert f"found no nn.Sigmoid and no nn.BCEWithLogitsLoss to turn in {make.__name__}." in message
    assert "with fused_sigmoid.override():" in message


def test_override_catches_what_is_no_nn_sigmoid() -> None:
    with override():
        assert is_exact(gradient_of(Functional()))


@pytest.mark.parametrize("make", [nn.Sigmoid, FusedSigmoid, Nested])
def test_something_to_replace_is_done_in_silence(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    replace_sigmoid(model)
    replace_sigmoid(model)
    assert caplog.records == []


class ByType:
    """A tool that looks modules up by their very type, as captum's DeepLift and BackPACK do: the
    rule for what it knows, the gradient for everything else."""

    def __init__(self) -> None:
        self.rules: dict[type[nn.Module], float] = {nn.Sigmoid: 2.0}

    def gradient(self, model: nn.Module) -> list[float]:
        hooks: list[RemovableHandle] = []
        for module in model.modules():
            if type(module) in self.rules:
                rule = self.rules[type(module)]
                hooks.append(
                    module.register_full_backward_hook(
                        lambda module, inputs, outputs, rule=rule: (rule * outputs[0],)
                    )
                )
        gradient = gradient_of(model)
        for hook in hooks:
            hook.remove()
        return gradient.tolist()


def test_tools_that_go_by_the_type() -> None:
    """The three remedies of docs/compatibility.md; without one such a tool is silently wrong."""
    tool, model = ByType(), nn.Sequential(nn.Sigmoid())
    right = tool.gradient(model)
    assert right == [2.0] * len(X)
    with override():
        assert tool.gradient(model) == right
    replace_sigmoid(model)
    assert tool.gradient(model) != right
    tool.rules[FusedSigmoid] = tool.rules[nn.Sigmoid]
    assert tool.gradient(model) == right
    del tool.rules[FusedSigmoid]
    restore_sigmoid(model)
    assert tool.gradient(model) == right


def test_deep_lift() -> None:
    captum = pytest.importorskip("captum.attr")
    rules = pytest.importorskip("captum.attr._core.deep_lift").SUPPORTED_NON_LINEAR
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1)).double()
    x = torch.randn(2, 3, dtype=torch.float64)

    def attributions() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return captum.DeepLift(model).attribute(x, torch.zeros_like(x))

    right = attributions()
    with override():
        torch.testing.assert_close(attributions(), right)
    replace_sigmoid(model)
    assert not torch.allclose(attributions(), right, rtol=1e-3)
    rules[FusedSigmoid] = rules[nn.Sigmoid]
    try:
        torch.testing.assert_close(attributions(), right)
    finally:
        del rules[FusedSigmoid]


def test_restore_undoes_it() -> None:
    model = Nested()
    modules = dict(model.named_modules())
    attributes = {name: dict(module.__dict__) for name, module in modules.items()}
    replace_sigmoid(model)
    model.already.__class__ = nn.ReLU  # was no nn.Sigmoid, and so is nothing to restore
    assert restore_sigmoid(model) == 6
    assert kinds(model, FusedSigmoid) == 0
    assert kinds(model, nn.Sigmoid) == 6
    for name, module in model.named_modules():
        assert module is modules[name]
        assert module.__dict__ == attributes[name]


def test_restore_drops_saved() -> None:
    module = FusedSigmoid("derivative")
    assert restore_sigmoid(module) == 1
    assert type(module) is nn.Sigmoid
    assert not hasattr(module, "saved")
    assert repr(module) == "Sigmoid()"


def test_the_root_itself() -> None:
    model: nn.Module = nn.Sigmoid()
    assert replace_sigmoid(model) == 1
    assert type(model) is FusedSigmoid
    assert model.saved == "auto"
    assert is_exact(gradient_of(model))


@pytest.mark.parametrize("saved", SAVED)
def test_saved_of_the_new_modules(saved: str) -> None:
    model = nn.Sequential(nn.Sigmoid())
    replace_sigmoid(model, saved=saved)
    assert model[0].saved == saved
    assert is_exact(gradient_of(model)) == (saved != "output")


def test_unknown_saved_changes_nothing() -> None:
    model = nn.Sequential(nn.Sigmoid())
    with pytest.raises(ValueError, match="argument 'saved' is 'nonsense'; accepted are 'auto'"):
        replace_sigmoid(model, saved="nonsense")
    assert type(model[0]) is nn.Sigmoid


def test_gradients_of_a_replaced_model_are_exact() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sigmoid())
    assert not is_exact(gradient_of(model))
    replace_sigmoid(model)
    assert is_exact(gradient_of(model))
    restore_sigmoid(model)
    assert not is_exact(gradient_of(model))


def test_hooks_and_flags_are_kept() -> None:
    model = nn.Sequential(nn.Sigmoid(), nn.Sigmoid()).eval()
    model[1].train()
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].note = "kept"
    replace_sigmoid(model)
    model(torch.randn(3, requires_grad=True)).sum().backward()
    assert calls == ["pre", "forward", "backward"]
    assert [model[0].training, model[1].training] == [False, True]
    assert model[0].note == "kept"
    restore_sigmoid(model)
    model(torch.randn(3, requires_grad=True)).sum().backward()
    assert calls == ["pre", "forward", "backward"] * 2


def test_handles_of_hooks_stay_good() -> None:
    module, calls = nn.Sigmoid(), []
    handles = [
        module.register_forward_hook(lambda *_: calls.append("forward")),
        module.register_full_backward_pre_hook(lambda *_: calls.append("backward")),
        module.register_state_dict_pre_hook(lambda *_: calls.append("state")),
        module.register_load_state_dict_post_hook(lambda *_: calls.append("load")),
    ]
    replace_sigmoid(module)
    for remaining in range(len(handles), -1, -1):
        module(torch.zeros(1, requires_grad=True)).backward()
        module.load_state_dict(module.state_dict())
        assert calls == ["forward", "backward", "state", "load"][len(handles) - remaining :]
        calls.clear()
        if remaining:
            handles[-remaining].remove()


def test_state_dict_goes_both_ways() -> None:
    plain, fused = Gate(nn.Sigmoid()), Gate(FusedSigmoid("derivative"))
    fused.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(2, 4)
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("function", [replace_sigmoid, restore_sigmoid])
@pytest.mark.parametrize("value", [None, torch.zeros(1), nn.Sigmoid, "model", [nn.Sigmoid()]])
def test_not_a_module(function: Callable[[Any], int], value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"argument 'model' must be torch.nn.Module, not {kind}"):
        function(value)


def test_subclasses_are_left_alone_unless_asked_for() -> None:
    model = nn.Sequential(Subclass(), nn.Sigmoid(), FusedSigmoid("input"))
    assert replace_sigmoid(model) == 1
    assert type(model[0]) is Subclass
    assert replace_sigmoid(model, saved="output", subclasses=True) == 1
    assert [type(module) for module in model] == [FusedSigmoid] * 3
    assert [module.saved for module in model] == ["output", "auto", "input"]
    twin = copy.deepcopy(model)
    for restored in (model, twin):
        assert restore_sigmoid(restored) == 3
        assert [type(module) for module in restored] == [Subclass, nn.Sigmoid, nn.Sigmoid]
        assert vars(restored[0]) == vars(Subclass())


class Scaled(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Named(FusedSigmoid):
    pass


def test_what_computes_something_else_is_left_alone() -> None:
    changed = nn.Sigmoid()
    original = changed.forward
    changed.forward = lambda input: 3 * original(input)  # as libraries that wrap modules do
    model = nn.Sequential(Scaled(), changed, Named("derivative"))
    expected = model(X)
    assert replace_sigmoid(model, subclasses=True) == 0
    assert [type(module) for module in model] == [Scaled, nn.Sigmoid, Named]
    torch.testing.assert_close(model(X), expected)
    assert restore_sigmoid(model) == 0


@pytest.mark.parametrize("kind", [nn.Sigmoid, Subclass])
def test_an_attribute_named_saved_comes_back(kind: type[nn.Sigmoid]) -> None:
    module = kind()
    module.saved = "by the user"
    model = nn.Sequential(module)
    attributes = dict(vars(module))
    assert replace_sigmoid(model, saved="output", subclasses=True) == 1
    assert not is_exact(gradient_of(model))
    for restored in (copy.deepcopy(model), model):
        assert restore_sigmoid(restored) == 1
        assert vars(restored[0]) == attributes
        assert restore_sigmoid(restored) == 0


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, activation=nn.Sigmoid(), batch_first=True)


def _parametrized() -> nn.Module:
    linear = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(linear, "weight", nn.Sigmoid())
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), linear)


@pytest.mark.parametrize("make", [_encoder, _parametrized])
def test_sigmoids_in_torchs_own_modules(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(3, 5, 4)
    keys, expected = list(model.state_dict()), model(x)
    assert replace_sigmoid(model) == 1
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_scripted_models_inside_are_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Sigmoid())), nn.Sigmoid())
    assert replace_sigmoid(model) == 1
    torch.testing.assert_close(model(torch.zeros(2)), torch.sigmoid(torch.full((2,), 0.5)))


def test_traced_models_keep_the_module() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), nn.Sigmoid()))
    assert replace_sigmoid(traced) == 1
    assert is_exact(gradient_of(traced))
    assert sum(node.op == "call_module" for node in traced.graph.nodes) == 2


def test_a_compiled_model_follows() -> None:
    model = torch.compile(nn.Sequential(nn.Identity(), nn.Sigmoid()), backend="aot_eager")
    assert not is_exact(gradient_of(model))
    assert replace_sigmoid(model) == 1
    assert is_exact(gradient_of(model))


# FusedSigmoid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("saved", SAVED)
def test_scripts(saved: str, tmp_path: Path) -> None:
    model = torch.jit.script(nn.Sequential(nn.Identity(), FusedSigmoid(saved)))
    torch.jit.save(model, tmp_path / "model.pt")
    for scripted in (model, torch.jit.load(tmp_path / "model.pt")):
        assert is_exact(gradient_of(scripted)) == (saved != "output")
        for x in (torch.arange(3), torch.ones(2, dtype=torch.complex64)):
            torch.testing.assert_close(scripted(x), torch.sigmoid(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("saved", SAVED)
def test_scripting_keeps_hooks_and_leaves_the_model_alone(saved: str) -> None:
    def doubled(self: nn.Module, input: tuple[Tensor], output: Tensor) -> Tensor:
        return output * 2

    activation = FusedSigmoid(saved).eval()
    activation.register_forward_hook(doubled)
    model = nn.Sequential(nn.Identity(), activation)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(X), 2 * torch.sigmoid(X))
    assert scripted[1].training is False
    assert model[1] is activation
    assert type(activation) is FusedSigmoid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replaced_models_are_scripted() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sigmoid(), Subclass())
    replace_sigmoid(model, subclasses=True)
    scripted = torch.jit.freeze(torch.jit.script(model.eval()))
    torch.testing.assert_close(scripted(X), torch.sigmoid(torch.sigmoid(X)))
    assert restore_sigmoid(model) == 2
    assert [type(module) for module in model[1:]] == [nn.Sigmoid, Subclass]


def test_is_an_nn_sigmoid() -> None:
    assert isinstance(FusedSigmoid(), nn.Sigmoid)
    assert list(FusedSigmoid().parameters()) == []


def test_repr() -> None:
    assert repr(FusedSigmoid()) == "FusedSigmoid()"
    assert repr(FusedSigmoid("derivative")) == "FusedSigmoid(saved='derivative')"
    assert repr(nn.Sequential(FusedSigmoid(saved="output"))) == (
        "Sequential(\n  (0): FusedSigmoid(saved='output')\n)"
    )


def _through_torch(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), _through_torch],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("replaced", [False, True])
def test_copies_keep_saved(
    duplicate: Callable[[nn.Module], nn.Module], saved: str, replaced: bool
) -> None:
    module: nn.Module = nn.Sigmoid() if replaced else FusedSigmoid(saved)
    if replaced:
        replace_sigmoid(module, saved=saved)
    twin = duplicate(module)
    assert type(twin) is FusedSigmoid
    assert twin is not module
    assert twin.saved == saved
    assert is_exact(gradient_of(twin)) == (saved != "output")


def test_loads_with_weights_only() -> None:
    file = io.BytesIO()
    torch.save(nn.Sequential(FusedSigmoid("derivative")), file)
    with torch.serialization.safe_globals([nn.Sequential, FusedSigmoid]):
        file.seek(0)
        (module,) = torch.load(file, weights_only=True)
    assert type(module) is FusedSigmoid
    assert module.saved == "derivative"


@pytest.mark.parametrize("saved", SAVED)
def test_saved_holds_on_every_route(saved: str) -> None:
    module = FusedSigmoid(saved)
    assert is_exact(gradient_of(module)) == (saved != "output")
    with torch.device("cpu"):  # an active function mode
        assert is_exact(gradient_of(module)) == (saved != "output")
    assert is_exact(torch.func.vmap(torch.func.grad(module))(X)) == (saved != "output")


@pytest.mark.parametrize("saved", SAVED)
def test_saved_decides_what_is_kept(saved: str) -> None:
    kept: list[Tensor] = []
    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = FusedSigmoid(saved)(x)
    pointers = {tensor.data_ptr() for tensor in kept}
    if saved == "input":
        assert pointers == {x.data_ptr()}
    elif saved == "output":
        assert pointers == {y.data_ptr()}
    elif saved == "derivative":
        assert len(pointers - {x.data_ptr(), y.data_ptr()}) == 1
    else:
        assert pointers != {y.data_ptr()}


# override


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sigmoid": torch.sigmoid,
    "torch.sigmoid imported by name": imported_by_name,
    "torch.sigmoid with a keyword": lambda x: torch.sigmoid(input=x),
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "torch.sigmoid_": lambda x: torch.sigmoid_(x * 1),
    "Tensor.sigmoid_": lambda x: (x * 1).sigmoid_(),
    "torch.nn.functional.sigmoid": nn.functional.sigmoid,
    "torch.special.expit": torch.special.expit,
    "nn.Sigmoid": nn.Sigmoid(),
    "a model": nn.Sequential(nn.Identity(), nn.Sigmoid()),
    "a Parameter": lambda x: torch.sigmoid(nn.Parameter(x.detach()) + 0 * x + x - x.detach()),
}


@pytest.mark.parametrize("name", CALLS)
def test_override_catches(name: str) -> None:
    assert not is_exact(gradient_of(CALLS[name]))
    with override():
        assert is_exact(gradient_of(CALLS[name]))
    assert not is_exact(gradient_of(CALLS[name]))


class InForward(torch.autograd.Function):
    """A Function that records the gradient of its forward itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = torch.sigmoid(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.autograd.grad(ctx.y, ctx.x, grad)[0]


class InBackward(torch.autograd.Function):
    """A Function whose backward calls the sigmoid again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = torch.sigmoid(x)
        return torch.autograd.grad(y, x, grad)[0]


def _gates(kind: type[nn.LSTMCell | nn.GRUCell]) -> Callable[[Tensor], Tensor]:
    """A cell in which x is what goes into its gates."""
    cell = kind(1, 1, bias=False, dtype=torch.float64).requires_grad_(False)
    for weight in cell.parameters():
        weight.fill_(1.0)

    def run(x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 1, dtype=x.dtype) + 0.5
        given = (state, state) if kind is nn.LSTMCell else state
        output = cell(x[:, None], given)
        return output[0] if kind is nn.LSTMCell else output

    return run


# What the docstring of override and docs/compatibility.md list as not caught.
NOT_CAUGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": lambda x: nn.functional.glu(torch.stack([torch.ones_like(x), x], -1)),
    "silu": nn.functional.silu,
    "LSTMCell": _gates(nn.LSTMCell),
    "GRUCell": _gates(nn.GRUCell),
    "torch.ops.aten.sigmoid": torch.ops.aten.sigmoid,
    "torch.ops.aten.sigmoid.default": torch.ops.aten.sigmoid.default,
    "scripted": lambda x: torch.jit.script(Functional())(x),
    "traced": lambda x: torch.jit.trace(torch.sigmoid, (X,))(x),
    "exported": lambda x: torch.export.export(nn.Sigmoid(), (X,)).module()(x),
    "the backward of a Function": InBackward.apply,
    "a function handed to torch's": lambda x: nn.functional.triplet_margin_with_distance_loss(
        x,
        torch.ones_like(x),
        torch.zeros_like(x),
        distance_function=lambda a, b: torch.sigmoid(a) * b,
        reduction="sum",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", NOT_CAUGHT)
def test_override_does_not_catch(name: str) -> None:
    """Nothing of ours is in the graph, and the gradient is torch's."""
    function = NOT_CAUGHT[name]
    expected = gradient_of(function)
    with override():
        gradient = gradient_of(function)
        output = function(X.clone().requires_grad_())
    assert torch.equal(gradient, expected)
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None:
            seen.add(node.name())
            nodes += [before for before, _ in node.next_functions]
    assert seen
    assert not any("Fused" in name for name in seen)


def test_override_does_not_catch_what_a_hook_calls() -> None:
    gradients = []

    def hook(grad: Tensor) -> None:
        with torch.enable_grad():
            gradients.append(gradient_of(torch.sigmoid))

    x = X.clone().requires_grad_()
    x.register_hook(hook)
    with override():
        (x * 1).sum().backward()
        assert is_exact(gradient_of(torch.sigmoid))
    assert not is_exact(gradients[0])


def test_override_catches_the_forward_of_a_function() -> None:
    x = X.clone().requires_grad_()
    for context, name in (
        (override(), "FusedSigmoidBackward"),
        (contextlib.nullcontext(), "SigmoidBackward0"),
    ):
        with context:
            function: Any = InForward.apply(x).grad_fn
            assert function.y.grad_fn.name() == name


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", CALLS)
def test_saved_of_a_block(name: str, saved: str) -> None:
    """Of everything in it but those in place, which have no saved."""
    with override(saved=saved):
        gradient = gradient_of(CALLS[name])
    assert is_exact(gradient) == (saved != "output" or name.endswith("_"))


@pytest.mark.parametrize("saved", SAVED)
def test_saved_of_a_block_is_what_the_functions_keep(saved: str) -> None:
    x = torch.randn(5, requires_grad=True)
    kept: list[list[Tensor]] = []
    for call in (
        lambda: fused_sigmoid.sigmoid(x, saved=saved),
        lambda: override(saved=saved)(torch.sigmoid)(x),
    ):
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept[-1].append(tensor.detach().clone()), lambda nothing: nothing
        ):
            call()
    assert kept[0]
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


def test_the_inner_block_has_its_own_saved() -> None:
    with override(saved="output"):
        with override():
            assert is_exact(gradient_of(torch.sigmoid))
        assert not is_exact(gradient_of(torch.sigmoid))


def test_compiled_once_more_for_another_saved() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.sigmoid(x * 1), backend="aot_eager", fullgraph=True)
    for saved in ("auto", "output", "input", "output"):
        with override(saved=saved):
            assert is_exact(gradient_of(compiled)) == (saved != "output")
    torch._dynamo.reset()


def test_saved_of_a_block_with_out() -> None:
    x = torch.tensor([-95.0, 0.0])
    out = torch.zeros(2)
    with override(saved="derivative"):
        assert torch.sigmoid(x, out=out) is out
    assert torch.equal(out, fused_sigmoid.sigmoid(x))


def test_unknown_saved_of_a_block() -> None:
    accepted = ", ".join(map(repr, SAVED))
    with pytest.raises(ValueError, match=f"^argument 'saved' is 'all'; accepted are {accepted}$"):
        override(saved="all")


def not_decorated(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("misplaced", "advice"),
    [
        (not_decorated, r"not_decorated was given: decorate with '@override\(\)'"),
        (torch.sigmoid, r"sigmoid was given: decorate with '@override\(\)'"),
        (
            nn.Sequential(),
            r"Sequential was given: .*'with override\(\):'.*replace_sigmoid\(model\)",
        ),
        ("output", r"'output' was given without: write 'override\(saved=...\)'"),
        (None, "None was given without"),
    ],
)
def test_what_override_does_not_take(misplaced: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=r"^override\(\) takes .*" + advice):
        override(misplaced)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_override_reaches_past_functions_unchanged() -> None:
    """With and without keywords, and of any arguments."""
    x = torch.arange(6.0).reshape(2, 3)
    with override():
        assert x.shape == (2, 3)
        assert x.sum(dim=0, keepdim=True).shape == (1, 3)
        assert torch.equal(torch.add(x, x, alpha=2), x * 3)
        assert torch.zeros(2, dtype=torch.float64).dtype == torch.float64


def test_gradients_stay_exact_outside() -> None:
    x = X.clone().requires_grad_()
    with override():
        y = torch.sigmoid(x)
    y.sum().backward()
    assert is_exact(x.grad)


@pytest.mark.parametrize("function", [torch.sigmoid, torch.special.expit])
def test_override_with_out(function: Callable[..., Tensor]) -> None:
    # Where float32 sigmoids of torch are 0, ours is not: that shows whose value it is.
    x = torch.tensor([-95.0, 0.0])
    out = torch.zeros(2)
    with override():
        assert function(x, out=out) is out
    assert oracle.largest_error_in_ulp(out, oracle.value(oracle.exact(x))) <= 3


def test_override_in_place_returns_its_argument() -> None:
    x = torch.tensor([-95.0, 0.0])
    with override():
        assert x.sigmoid_() is x
        assert torch.sigmoid_(x) is x


def test_override_leaves_everything_else_alone() -> None:
    x = torch.randn(3)
    with override():
        assert torch.equal(torch.tanh(x), x.tanh())
        assert torch.equal(nn.functional.logsigmoid(x), nn.LogSigmoid()(x))
        assert torch.sigmoid(torch.ones(2, dtype=torch.complex64)).dtype == torch.complex64
        assert torch.sigmoid(torch.tensor([1, 2])).dtype == torch.float32
        with pytest.raises(TypeError, match="must be Tensor, not float"):
            torch.sigmoid(1.0)  # type: ignore[arg-type]


def test_override_nests() -> None:
    with override():
        with override():
            assert is_exact(gradient_of(torch.sigmoid))
        assert is_exact(gradient_of(torch.sigmoid))
        with torch.device("cpu"):
            assert is_exact(gradient_of(torch.sigmoid))
    with torch.device("cpu"), override():
        assert is_exact(gradient_of(torch.sigmoid))
    assert not is_exact(gradient_of(torch.sigmoid))


def test_one_override_can_be_entered_again() -> None:
    block = override()
    for _ in range(2):
        with block:
            assert is_exact(gradient_of(torch.sigmoid))
        assert not is_exact(gradient_of(torch.sigmoid))


def test_override_ends_with_an_exception() -> None:
    def leave() -> None:
        with override():
            torch.sigmoid(torch.eye(2).to_sparse())

    with pytest.raises(NotImplementedError):
        leave()
    assert torch.overrides._get_current_function_mode() is None
    assert not is_exact(gradient_of(torch.sigmoid))


def test_other_threads_are_unaffected() -> None:
    inside, done = threading.Event(), threading.Event()
    gradients: list[Tensor] = []

    def other() -> None:
        inside.wait()
        gradients.append(gradient_of(torch.sigmoid))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with override():
        inside.set()
        assert done.wait(60)
        gradients.append(gradient_of(torch.sigmoid))
    thread.join()
    assert [is_exact(gradient) for gradient in gradients] == [False, True]


def test_override_under_compile() -> None:
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def inside(x: Tensor) -> Tensor:
        with override():
            return torch.sigmoid(x * 1)

    assert is_exact(gradient_of(inside))

    around = torch.compile(lambda x: torch.sigmoid(x * 1), backend="aot_eager", fullgraph=True)
    with override():
        assert is_exact(gradient_of(around))
    torch._dynamo.reset()


def test_override_with_transforms() -> None:
    with override():
        gradient = torch.func.vmap(torch.func.grad(torch.sigmoid))(X)
    assert is_exact(gradient)


def test_override_leaves_no_trace() -> None:
    names = [
        (torch, "sigmoid"),
        (torch, "sigmoid_"),
        (Tensor, "sigmoid"),
        (Tensor, "sigmoid_"),
        (nn.functional, "sigmoid"),
        (torch.special, "expit"),
        (nn.Sigmoid, "forward"),
    ]
    before = [getattr(*name) for name in names]
    with override():
        gradient_of(torch.sigmoid)
        assert all(getattr(*name) is old for name, old in zip(names, before, strict=True))
    assert all(getattr(*name) is old for name, old in zip(names, before, strict=True))
    assert torch.overrides._get_current_function_mode_stack() == []


def test_threads_with_blocks_of_their_own() -> None:
    """The blocks begin and end in turn; each thread sees its own alone."""
    in_turn = threading.Barrier(2, timeout=60)

    def work(first: bool) -> list[bool]:
        seen = []
        block = contextlib.ExitStack()
        for step in range(4):
            if step == (0 if first else 1):
                block.enter_context(override())
            if step == (2 if first else 3):
                block.close()
            in_turn.wait()
            seen.append(is_exact(gradient_of(torch.sigmoid)))
            in_turn.wait()
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [True, False])) == [
            [True, True, False, False],
            [False, True, True, False],
        ]


class Gradients(Dataset[Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return gradient_of(torch.sigmoid)


def test_override_holds_in_forked_workers() -> None:
    own_process.call("test_replace", "see_what_workers_compute()")


def see_what_workers_compute() -> None:
    loader = DataLoader(
        Gradients(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    with override():
        assert [is_exact(gradient) for gradient in loader] == [True, True]
    assert [is_exact(gradient) for gradient in loader] == [False, False]


class Recorder(Tensor):
    """A type with rules of its own, which go by the function that was called."""

    called: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls.called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, Tensor.sigmoid, torch.special.expit, torch.sigmoid_, Tensor.sigmoid_],
    ids=["torch.sigmoid", "Tensor.sigmoid", "expit", "torch.sigmoid_", "Tensor.sigmoid_"],
)
def test_types_with_rules_see_what_was_called(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(2).as_subclass(Recorder)
    Recorder.called.clear()
    with override():
        function(x)
    assert Recorder.called[-1] == function


# override as a decorator


@override()
def decorated(x: Tensor) -> Tensor:
    """What it says."""
    return torch.sigmoid(x)


def test_decorated_function() -> None:
    assert is_exact(gradient_of(decorated))
    assert not is_exact(gradient_of(torch.sigmoid))
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "What it says.")
    with pytest.raises(TypeError, match="must be Tensor, not float"):
        decorated(1.0)  # type: ignore[arg-type]
    assert torch.overrides._get_current_function_mode_stack() == []


def test_decorated_generator_does_not_hold_between_yields() -> None:
    @override()
    def gradients() -> Iterator[Tensor]:
        yield gradient_of(torch.sigmoid)
        yield gradient_of(torch.sigmoid)

    for gradient in gradients():
        assert is_exact(gradient)
        assert not is_exact(gradient_of(torch.sigmoid))


def test_coroutines_are_not_decorated() -> None:
    async def coroutine() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield

    for function in (coroutine, generator):
        with pytest.raises(TypeError, match=f"cannot decorate .*{function.__name__}, a coroutine"):
            override()(function)


@pytest.mark.parametrize("compiled_outside", [True, False])
def test_decorated_and_compiled(compiled_outside: bool) -> None:
    torch._dynamo.reset()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)

    def function(x: Tensor) -> Tensor:
        return torch.sigmoid(x * 1)

    both = compiler(override()(function)) if compiled_outside else override()(compiler(function))
    assert is_exact(gradient_of(both))
    torch._dynamo.reset()


@pytest.mark.xfail(strict=True, reason="Dynamo hides these from modes: pytorch#133137")
@pytest.mark.parametrize("name", ["torch.sigmoid_", "torch.nn.functional.sigmoid"])
def test_override_of_what_dynamo_hides(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True)
    with override():
        assert is_exact(gradient_of(compiled))


# override and torch.utils.checkpoint, which computes again outside of the block (pytorch#84864)

CHECKPOINTED: dict[str, Callable[[Tensor], Tensor]] = {
    "out of place": lambda x: torch.sigmoid(x * 1) * 1,
    "in place": lambda x: (x * 1).sigmoid_() * 1,
    "halfway in a model": nn.Sequential(nn.Identity(), nn.Sigmoid(), nn.Identity()),
}
every_checkpointed = pytest.mark.parametrize("name", CHECKPOINTED)


def _checkpointed(function: Callable[[Tensor], Tensor], **arguments: Any) -> Tensor:
    return gradient_of(lambda x: checkpoint(function, x, use_reentrant=False, **arguments))


CHECKPOINT_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no check": {"determinism_check": "none"},
    "no early stop": {"early_stop": False},
    "sigmoid is saved": {
        "context_fn": functools.partial(
            create_selective_checkpoint_contexts, [torch.ops.aten.sigmoid.default]
        )
    },
}


@every_checkpointed
@pytest.mark.parametrize("option", CHECKPOINT_OPTIONS)
def test_a_checkpoint_computes_the_same_sigmoid_again(name: str, option: str) -> None:
    """Else the output of one would be taken for the input of the other."""
    if (name, option) == ("in place", "sigmoid is saved"):
        pytest.skip("torch refuses it: what the policy saved is changed in place")
    function, arguments = CHECKPOINTED[name], CHECKPOINT_OPTIONS[option]
    with override():
        assert is_exact(_checkpointed(function, **arguments))
        leaf = X.clone().requires_grad_()
        value = checkpoint(function, leaf, use_reentrant=False, **arguments)
    value.sum().backward()
    assert leaf.grad is not None
    assert is_exact(leaf.grad)
    leaf = X.clone().requires_grad_()
    value = checkpoint(function, leaf, use_reentrant=False, **arguments)
    with override():
        value.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, gradient_of(function))


@every_checkpointed
def test_a_block_around_one_computation(name: str) -> None:
    function = CHECKPOINTED[name]
    nothing = contextlib.nullcontext
    for saved in SAVED:
        block = functools.partial(override, saved=saved)
        exact = saved != "output" or name == "in place"
        assert is_exact(_checkpointed(function, context_fn=_contexts(block, nothing))) == exact
        with pytest.raises(CheckpointError, match=r"fused_sigmoid\.override.*@override"):
            _checkpointed(function, context_fn=_contexts(nothing, block))


def _contexts(*made: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(make() for make in made)


def test_sigmoids_inside_and_outside_of_a_block_in_a_checkpoint() -> None:
    def mixed(x: Tensor) -> Tensor:
        with override():
            ours = torch.sigmoid(x * 1)
        return 2 * torch.sigmoid(x * 1) + 3 * ours

    ours, theirs = gradient_of(fused_sigmoid.sigmoid), gradient_of(torch.sigmoid)
    torch.testing.assert_close(_checkpointed(mixed), 2 * theirs + 3 * ours, rtol=1e-6, atol=0)
    with override():
        torch.testing.assert_close(_checkpointed(mixed), 5 * ours, rtol=1e-6, atol=0)


@pytest.mark.parametrize("check", ["default", "none"])
def test_a_checkpoint_of_a_transform_in_a_block(check: str) -> None:
    """Inside of vmap no tensor says that it requires a gradient."""

    def mapped(x: Tensor) -> Tensor:
        return torch.vmap(torch.sigmoid)(x * 1) * 1

    with override():
        assert is_exact(_checkpointed(mapped, determinism_check=check))


def test_what_keeps_nothing_has_the_same_bits_again() -> None:
    """Else a mask that is made of it may differ."""
    points = torch.randn(5000)
    found: list[Tensor] = []

    def masked(x: Tensor) -> Tensor:
        with torch.no_grad():
            found.append(torch.sigmoid(x))
        found.append(torch.sigmoid(points))
        return x[found[-2] >= 0.5].sin()

    with override():
        checkpoint(masked, points.clone().requires_grad_(), use_reentrant=False).sum().backward()
    first, again = found[:2], found[2:]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], torch.sigmoid(points))


def test_blocks_of_a_checkpoint_keep_again_what_they_kept() -> None:
    """The second computation runs outside of both blocks."""

    def twice(x: Tensor) -> Tensor:
        with override(saved="output"):
            y = torch.sigmoid(x * 1)
        return y + torch.sigmoid(x * 2)

    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(twice(x).sum(), x)
    with override(saved="input"):
        result = checkpoint(twice, x, use_reentrant=False)
    result.sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_nested_checkpoints_in_a_block() -> None:
    def inner(x: Tensor) -> Tensor:
        return checkpoint(CHECKPOINTED["out of place"], x, use_reentrant=False)

    with override():
        assert is_exact(_checkpointed(lambda x: inner(x) + 0 * torch.sigmoid(inner(x))))


def test_an_unknown_checkpoint_is_an_error_of_ours() -> None:
    def pack(tensor: Tensor) -> Tensor:
        return tensor

    pack.__module__ = "torch.utils.checkpoint"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.raises(CheckpointError, match=r"fused_sigmoid\.replace_sigmoid"),
        override(),
    ):
        torch.sigmoid(X.clone().requires_grad_())


@every_checkpointed
def test_override_of_both_computations(name: str) -> None:
    function = CHECKPOINTED[name]
    assert not is_exact(_checkpointed(function))
    assert is_exact(_checkpointed(function, context_fn=lambda: (override(), override())))
    assert is_exact(_checkpointed(override()(lambda x: function(x))))
    with override():
        assert is_exact(_checkpointed(override()(lambda x: function(x))))
        same = contextlib.nullcontext
        assert is_exact(_checkpointed(function, context_fn=lambda: (same(), override())))


@pytest.mark.parametrize("check", ["default", "none"])
def test_a_compiled_function_in_a_checkpoint_is_not_mixed(check: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.sigmoid(x * 1) * 1, backend="aot_eager")
    with override():
        assert is_exact(_checkpointed(compiled, determinism_check=check))
        # Nothing of torch is called by Python code but for what is compiled.
        alone = torch.compile(torch.sigmoid, backend="aot_eager")
        assert is_exact(_checkpointed(alone, determinism_check=check))
    contexts = (contextlib.nullcontext(), override())
    with pytest.raises(CheckpointError, match="fused_sigmoid"):
        _checkpointed(compiled, context_fn=lambda: contexts, determinism_check=check)
    assert torch.equal(_checkpointed(compiled), gradient_of(torch.sigmoid))


def test_a_compiled_function_in_a_decorated_checkpoint() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.sigmoid(x * 1) * 1, backend="aot_eager")
    assert is_exact(_checkpointed(override()(lambda x: compiled(x))))


def test_reentrant_checkpoint_has_torchs_gradient() -> None:
    with override():
        gradient = gradient_of(lambda x: checkpoint(torch.sigmoid, x * 1, use_reentrant=True))
    assert torch.equal(gradient, gradient_of(torch.sigmoid))


def test_values_in_a_checkpoint_keep_their_kind() -> None:
    kinds = [
        torch.randn(()),
        torch.randn(0, 3),
        torch.randn(4, 3).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3).as_subclass(nn.Buffer),
        torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(1, 3)], layout=torch.jagged),
    ]
    kinds = [kind.requires_grad_() for kind in kinds]

    def check(x: Tensor) -> Tensor:
        for kind in kinds:
            changed = kind.clone()
            assert changed.sigmoid_() is changed
            for value in (torch.sigmoid(kind), changed):
                assert type(value) is type(kind * 1)
                assert (value.shape, value.stride()) == (kind.shape, kind.stride())
                with torch._C.DisableTorchFunction():
                    torch.testing.assert_close(value, torch.sigmoid(kind))
        return x * 1

    with override():
        checkpoint(check, X.clone().requires_grad_(), use_reentrant=False).sum().backward()
