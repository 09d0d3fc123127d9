"""Random programs that compute sigmoids inside torch.utils.checkpoint, under the modes, hooks and
options that surround one of its two computations or both. A checkpoint takes what is saved the
second time for what was saved the first time, so that a sigmoid that saves another tensor the
second time would give a wrong gradient without a word.

A program is a Python function, written from one integer. Its gradients are compared with those of
the same text in float64 without checkpoint and modes: element by element and relatively where every
term is positive, so that nothing cancels, else absolutely. Run by tests/fuzz_programs.py.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as of_torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fused_sigmoid import override
from tests.inplace_programs import OURS, SIGMOIDS, TORCHS, Different

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# What "auto" keeps changes at 16 KiB.
FEW = (1, 100)
MANY = (4096, 8192)
# Units in the last place: a handful of roundings, which the slope of the next sigmoid multiplies.
TOLERANCE = 64


class Logging(TorchDispatchMode):
    """Sees every operation, and its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(f"{func}: {len(args)}")
        return func(*args, **(kwargs or {}))


class Identity(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def selective(operations: Sequence[Any] | None) -> Callable[[], Any]:
    """Saves what these operations of ATen compute; None is all of them."""
    save_all = lambda *_, **__: of_torch.CheckpointPolicy.MUST_SAVE  # noqa: E731
    policy: Any = save_all if operations is None else list(operations)
    return functools.partial(of_torch.create_selective_checkpoint_contexts, policy)


def dual(tensor: Tensor) -> Tensor:
    return forward_ad.make_dual(tensor, torch.ones_like(tensor))


def backward(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], retain_graph: bool = False
) -> list[Tensor]:
    """The gradients by way of `.grad`, which the reentrant checkpoint needs."""
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs], retain_graph)
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def gradients(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            *(outputs, leaves, [torch.ones_like(output) for output in outputs]),
            retain_graph=retain_graph or create_graph,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


_module = nn.Sigmoid()
# Names of torch's functions, which override() replaces.
OVERRIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "torch_sigmoid": lambda input: torch.sigmoid(input),
    "tensor_sigmoid": lambda input: input.sigmoid(),
    "functional_sigmoid": lambda input: nn.functional.sigmoid(input),
    "expit": lambda input: torch.special.expit(input),
    "nn_sigmoid": lambda input: _module(input),
}
OVERRIDDEN_ = {
    "torch_sigmoid_": lambda input: torch.sigmoid_(input),
    "tensor_sigmoid_": lambda input: input.sigmoid_(),
}
# Each of a name in the program's text; SIGMOIDS holds override() around the sigmoid alone.
SAVING = [name for name in SIGMOIDS if name != "pair_derivative"] + ["kept_input"]

CHECKPOINTS: dict[str, Any] = {
    "checkpoint": of_torch.checkpoint,
    "checkpoint_sequential": of_torch.checkpoint_sequential,
    "set_checkpoint_early_stop": of_torch.set_checkpoint_early_stop,
    "set_checkpoint_debug_enabled": of_torch.set_checkpoint_debug_enabled,
    "FlopCounterMode": FlopCounterMode,
    "Logging": Logging,
    "Identity": Identity,
    "FunctionMode": FunctionMode,
    "device": torch.device,
    "save_on_cpu": save_on_cpu,
    "dual_level": forward_ad.dual_level,
    "dual": dual,
    "override": override,
}


def _nothing(*_: Any, **__: Any) -> Any:
    return contextlib.nullcontext()


class _overriding_nothing(contextlib.ContextDecorator):  # noqa: N801 - in place of override
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _call(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    return function(*arguments)


def _call_in_turn(functions: Any, segments: int, input: Any, **_: Any) -> Any:
    for function in functions:
        input = function(input)
    return input


WITHOUT_CHECKPOINTS: dict[str, Any] = {
    **dict.fromkeys(CHECKPOINTS, _nothing),
    "checkpoint": _call,
    "checkpoint_sequential": _call_in_turn,
    "dual": lambda tensor: tensor,
    "override": _overriding_nothing,
}


def _exact_pair(input: Tensor) -> tuple[Tensor, Tensor]:
    """A sigmoid and its derivative in operations whose own derivatives keep both tails."""
    e = torch.exp(-torch.where(input < 0, -input, input))
    t = e / (1 + e)
    return torch.where(input < 0, t, 1 - t), t - t * t


def _exact(input: Tensor) -> Tensor:
    return _exact_pair(input)[0]


EXACT: dict[str, Any] = {
    **dict.fromkeys([*SIGMOIDS, "kept_input", *OVERRIDDEN], _exact),
    **dict.fromkeys(["sigmoid_", "overridden_", *OVERRIDDEN_], lambda x: x.copy_(_exact(x))),
    "pair": _exact_pair,
}

MODES = (
    *("FlopCounterMode(display=False)", "Logging()", "Identity()", "FunctionMode()"),
    *("device('cpu')", "set_checkpoint_debug_enabled(True)"),
)
FORWARD_MODES = (*MODES, "set_checkpoint_early_stop(False)", "save_on_cpu()", "dual_level()")
CONTEXTS = (
    *("selective([torch.ops.aten.sigmoid.default])", "selective([torch.ops.aten.mul.Tensor])"),
    *("selective([])", "selective(None)"),
    "selective([torch.ops.aten.sigmoid.default, torch.ops.aten.sigmoid_.default])",
)
OVERRIDES = (
    *("lambda: (override(), override())", "lambda: (nullcontext(), override())"),
    *("lambda: (override(), nullcontext())", "lambda: (nullcontext(), nullcontext())"),
)


class Writer:
    """Writes one program, and notes what may come of it."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.is_override = generator.random() < 0.3
        self.is_reentrant = generator.random() < 0.25
        self.is_relative = True  # whether every term of the gradients is positive
        self.may_refuse = False  # what saved="input" keeps is changed
        self.is_decorated = self.is_override and generator.random() < 0.2
        # Whether both computations of every sigmoid are known to run inside override().
        self.is_inside = self.is_decorated
        self.count = 0

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def name(self) -> str:
        self.count += 1
        return f"h{self.count}"

    def sigmoid(self) -> str:
        if self.is_override:
            return self.random.choice(list(OVERRIDDEN))
        name = self.random.choice(SAVING)
        if name == "output":
            self.is_relative = False
        return name

    def sigmoid_(self) -> str:
        names = list(OVERRIDDEN_) if self.is_override else ["sigmoid_", "overridden_"]
        return self.random.choice(names)

    def region(self, name: str) -> list[str]:
        """A function of one tensor and of w, which it finds around it."""
        lines, terms = [f"def {name}(h):"], ["h"]
        add = lines.append
        sigmoids: list[str] = []
        for _ in range(self.random.randint(1, 4)):
            of, new = self.random.choice(terms), self.name()
            kind = self.random.randrange(9)
            if kind < 3 or not sigmoids:
                factor, gate = self.random.choice(["", " * 0.5"]), self.random.choice(["", " * w"])
                add(f"{new} = {self.sigmoid()}({of}{factor}){gate}")
            elif kind == 3:
                # Of one sigmoid the next, from where it bends.
                add(f"{new} = {self.sigmoid()}({self.random.choice(sigmoids)} * 4 - 2)")
            elif kind == 4:
                add(f"{new} = {of} * 1")
                add(f"{self.sigmoid_()}({new})")
            elif kind == 5:
                one, other = self.random.choice(sigmoids), self.random.choice(sigmoids)
                add(f"{new} = {one} {self.random.choice('+*')} {other}")
            elif kind == 6:
                # Exact where the input is kept no more; and a kept input that is asked for raises.
                self.is_relative = False
                inner = self.name()
                chosen = self.sigmoid()
                self.may_refuse |= chosen == "kept_input"
                add(f"{inner} = {of} * 1")
                write = self.random.choice(
                    ["{0}.mul_({1}({0}))", "{2} = {1}({0}); {0}.mul_(0.5)", "{0}.add_({1}({0}))"]
                )
                add(write.format(inner, chosen, new))
                if not write.startswith("{2}"):
                    new = inner
            elif kind == 7 and not self.is_override:
                self.is_relative = False
                other = self.name()
                add(f"{new}, {other} = pair({of})")
                sigmoids.append(other)
            else:
                add(f"{new} = {of} * 1")
                add(f"{new}.view(-1)[: len({new}) // 2].mul_(0.5)")
                terms.append(new)
                continue
            sigmoids.append(new)
            terms.append(new)
        add(f"return {' + '.join(self.random.sample(sigmoids, min(2, len(sigmoids))))}")
        body = [lines[0], *(f"    {line}" for line in lines[1:])]
        return ["@override()", *body] if self.is_decorated else body

    def options(self) -> str:
        chosen = [f"use_reentrant={self.is_reentrant}"]
        if self.chance(0.2):
            chosen.append("preserve_rng_state=False")
        if self.is_reentrant:
            return ", ".join(chosen)
        if self.chance(0.2):
            chosen.append("determinism_check='none'")
        if self.chance(0.2):
            chosen.append("early_stop=False")
        if self.chance(0.05):
            chosen.append("debug=True")
        if self.chance(0.3):
            contexts = self.random.choice(OVERRIDES if self.is_override else CONTEXTS)
            chosen.append(f"context_fn={contexts}")
        return ", ".join(chosen)

    def forward(self) -> tuple[list[str], list[str], str]:
        """The regions, the statements, and the outputs."""
        input = "x * 1"
        kind = self.random.choice(["one", "one", "nested", "two", "sequential"])
        one = self.region("one")
        if kind == "one":
            return one, [f"y = checkpoint(one, {input}, {self.options()})"], "y"
        other = self.region("other")
        if kind == "nested":
            outer = ["def outer(h):", f"    return one(checkpoint(other, h * 1, {self.options()}))"]
            lines = [*one, *other, *outer]
            return lines, [f"y = checkpoint(outer, {input}, {self.options()})"], "y"
        if kind == "two":
            calls = [f"y = checkpoint(one, {input}, {self.options()})"]
            source = self.random.choice([input, "y * 2"])
            if self.is_reentrant and source != input:
                # An autograd Function that may be a loss: the gradient is nn.Sigmoid's.
                self.is_relative = False
            calls.append(f"z = checkpoint(other, {source}, {self.options()})")
            return [*one, *other], calls, "y, z"
        options = f"use_reentrant={self.is_reentrant}"
        return (
            [*one, *other],
            [f"y = checkpoint_sequential([one, other, one], 2, {input}, {options})"],
            "y",
        )

    def modes(self, of: Sequence[str], probability: float) -> list[str]:
        return [self.random.choice(of)] if self.chance(probability) else []

    def program(self) -> str:
        regions, calls, outputs = self.forward()
        around = self.modes(FORWARD_MODES, 0.5)
        if "dual_level()" in around:
            calls = [call.replace("x * 1", "dual(x * 1)") for call in calls]
        later = self.modes(MODES, 0.4)
        if around and around[0] in MODES and self.chance(0.3):
            later = list(around)
        if self.is_override:
            place = self.random.choice(["forward", "forward", "both", "both", "backward", "none"])
            around += ["override()"] * (place in ("forward", "both"))
            self.is_inside |= place in ("forward", "both") and not self.is_reentrant
            both = sum(OVERRIDES[0] in call for call in [*regions, *calls])
            self.is_inside |= 0 < both == sum("checkpoint" in line for line in [*regions, *calls])
            later += ["override()"] * (place in ("backward", "both"))
            self.random.shuffle(around)
            self.random.shuffle(later)
        lines = [*regions, *self.block(around, calls), "found = []"]
        is_selective = any("selective(" in line for line in [*regions, *calls])
        for call in self.passes(outputs, is_selective):
            lines += self.block(later, [call])
            if self.chance(0.3):
                later = self.modes(MODES, 0.5)
        lines.append(f"return [{outputs}, *found]")
        return "\n".join(["def program(x, w):", *(f"    {line}" for line in lines)])

    def block(self, modes: Sequence[str], calls: Sequence[str]) -> list[str]:
        if not modes:
            return list(calls)
        return [f"with {', '.join(modes)}:", *(f"    {call}" for call in calls)]

    def passes(self, outputs: str, is_selective: bool) -> list[str]:
        """The backward passes: one, two over the same graph, over parts of it, of second order.
        Where a policy chooses what is saved torch allows one alone."""
        every, last = f"[{outputs}]", f"[{outputs.split(', ')[-1]}]"
        function = "backward" if self.is_reentrant or self.chance(0.5) else "gradients"
        one = f"found += {function}({every}, [x, w])"
        again = f"found += {function}({every}, [x, w], retain_graph=True)"
        part = f"found += {function}({last}, [x, w], retain_graph=True)"
        if is_selective:
            return [one]
        choices = [[one], [again, one], [part, one], [part], [again, part, one]]
        if not self.is_reentrant:
            choices.append([f"found += gradients({last}, [x])"])
            first = f"first = gradients({every}, [x, w], create_graph=True)"
            choices.append([first, "found += first + gradients(first, [x, w])"])
        chosen = self.random.choice(choices)
        if "create_graph" in chosen[0]:
            self.is_relative = False
        return chosen


class Program(NamedTuple):
    seed: int
    text: str
    dtype: torch.dtype
    sizes: tuple[int, int]
    is_override: bool
    is_relative: bool
    may_refuse: bool

    def __str__(self) -> str:
        compared = "relatively" if self.is_relative else "absolutely"
        return f"seed {self.seed}: {self.dtype}, {self.sizes} elements, {compared}\n{self.text}"


def write(seed: int) -> Program:
    generator = random.Random(seed)
    writer = Writer(generator)
    text = writer.program()
    sizes = (generator.choice(FEW), generator.choice(MANY))
    # What is computed outside of override() has torch's gradient, without the positive tail: the
    # forward pass, or the second computation of a reentrant checkpoint.
    is_exact = writer.is_inside or not writer.is_override
    return Program(
        *(seed, text, generator.choice(DTYPES), sizes, writer.is_override),
        *(writer.is_relative and is_exact, writer.may_refuse),
    )


def inputs(program: Program, size: int, dtype: torch.dtype) -> list[Tensor]:
    """x, of which every fifth saturates the sigmoid, and w, whose products with it are exact."""
    generator = torch.Generator().manual_seed(program.seed)
    x = torch.rand(size, generator=generator, dtype=torch.float64) * 18 - 9
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
    x = torch.where(torch.arange(size) % 5 == program.seed % 5, 20 * signs, x).to(program.dtype)
    w = torch.randint(1, 3, (size,), generator=generator) / 2
    return [x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()]


def function(text: str, *namespaces: dict[str, Any]) -> Callable[..., Any]:
    names: dict[str, Any] = {
        "torch": torch,
        "nullcontext": contextlib.nullcontext,
        "selective": selective,
        "backward": backward,
        "gradients": gradients,
    }
    for namespace in namespaces:
        names |= namespace
    exec(text, names)
    made: Callable[..., Any] = names["program"]
    return made


def run(body: Callable[..., Any], leaves: Sequence[Tensor]) -> list[Tensor]:
    return [result.detach().clone() for result in body(*leaves)]


def compare(program: Program, found: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    unit = torch.finfo(program.dtype).eps
    for at, (got, exact) in enumerate(zip(found, expected, strict=True)):
        if got.dtype != program.dtype:
            raise Different(f"result {at} has dtype {got.dtype}")
        scale = exact.abs() if program.is_relative else exact.abs().max().clamp(min=1)
        wrong = (got.double() - exact).abs() / (unit * scale)
        wrong = torch.where(got.double() == exact, 0, wrong)
        if not wrong.max() <= TOLERANCE:
            raise Different(f"result {at} of {len(found)} is wrong by {wrong.max():.3g} ulp")
    return len(found)


def try_program(program: Program, tally: Counter[str]) -> None:
    """Runs the program with ours at both sizes; raises Different."""
    ours = function(program.text, OURS, OVERRIDDEN, OVERRIDDEN_, CHECKPOINTS)
    torchs_names = {**CHECKPOINTS, "override": _overriding_nothing}
    torchs = function(program.text, TORCHS, OVERRIDDEN, OVERRIDDEN_, torchs_names)
    exact = function(program.text, WITHOUT_CHECKPOINTS, EXACT)
    ran: list[bool] = []
    for size in program.sizes:
        try:
            run(torchs, inputs(program, size, program.dtype))
            torch_runs = True
        except Exception:
            tally["refused by torch"] += 1
            torch_runs = False
        expected = run(exact, inputs(program, size, torch.float64))
        try:
            found = run(ours, inputs(program, size, program.dtype))
        except Exception as error:
            if torch_runs and not _may_refuse(program, error):
                raise Different(f"{size} elements: {type(error).__name__}: {error}") from error
            tally["refused by ours"] += torch_runs
            ran += [False] * torch_runs
            continue
        tally["compared"] += compare(program, found, expected)
        tally["runs"] += 1
        ran += [True] * torch_runs
    if len(set(ran)) > 1:
        raise Different(f"runs at one size alone: {ran}")


def _may_refuse(program: Program, error: Exception) -> bool:
    """Whether ours may raise this where torch's program runs."""
    if program.is_override and isinstance(error, of_torch.CheckpointError):
        return "fused_sigmoid.override() is entered where" in str(error)
    return program.may_refuse and "modified" in str(error)
