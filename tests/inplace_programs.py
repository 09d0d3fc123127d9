"""Random programs that change tensors in place around a sigmoid, run with our sigmoid and with
torch's. What torch's program computes, ours has to compute too: nn.Sigmoid keeps its output alone,
so that its input may be changed at will, and models do that.

A program is a Python function, written from one integer. It is elementwise, so that no sum hides an
error, and its numbers are multiples of 1/32 up to 4 until a sigmoid is taken of them, so that both
sides take the same branch of a ReLU. Run by tests/fuzz_programs.py.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, override, sigmoid, sigmoid_with_derivative

# Of a difference from torch's result, relative to the largest number of that result or to 1. Beside
# it stands torch's own error in that dtype.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-4,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}
DTYPES = tuple(TOLERANCE)
# Rows of the first and the second run. What "auto" keeps changes at 16 KiB and 8 MiB.
FEW_ROWS = (1, 25, 100)
MANY_ROWS = (1024, 2048, 4096, 8192)
HUGE_ROWS = (1 << 21) + 1
COLUMNS = (1, 2, 4)


# What the program's text calls, ours and torch's.


def _torch_pair(input: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.sigmoid(input)
    return value, value * (1 - value)


def _overridden(input: Tensor) -> Tensor:
    with override():
        return torch.sigmoid(input)


def _overridden_(input: Tensor) -> Tensor:
    with override():
        return input.sigmoid_()


_module = FusedSigmoid()

SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "auto": lambda input: sigmoid(input),
    "derivative": lambda input: sigmoid(input, saved="derivative"),
    "output": lambda input: sigmoid(input, saved="output"),
    "module": lambda input: _module(input),
    "operator": lambda input: torch.ops.fused_sigmoid.sigmoid(input),
    "pair_value": lambda input: sigmoid_with_derivative(input)[0],
    "pair_derivative": lambda input: sigmoid_with_derivative(input)[1],
    "overridden": _overridden,
}
# Alone in its program, since what it refuses is nobody else's fault.
INPUT = "kept_input"
OURS: dict[str, Callable[[Tensor], Any]] = {
    **SIGMOIDS,
    INPUT: lambda input: sigmoid(input, saved="input"),
    "pair": sigmoid_with_derivative,
    "sigmoid_": lambda input: fused_sigmoid.sigmoid_(input),
    "overridden_": _overridden_,
}
TORCHS: dict[str, Callable[[Tensor], Any]] = {
    **dict.fromkeys(OURS, lambda input: torch.sigmoid(input)),
    "pair": _torch_pair,
    "pair_derivative": lambda input: _torch_pair(input)[1],
    "sigmoid_": lambda input: input.sigmoid_(),
    "overridden_": lambda input: input.sigmoid_(),
}


def every_third(tensor: Tensor) -> Tensor:
    return (torch.arange(tensor.numel()) % 3 == 0).view(tensor.shape)


# Of one tensor `{0}` to another of its shape, which may be written to.
SAME_SHAPE = ("{0}", "{0}", "{0}[:]", "{0}.t().t()", "{0}.view({0}.shape)", "{0}.detach()")
# To views of other shapes.
PARTS = (
    *("{0}[0]", "{0}[:, 0]", "{0}[: len({0}) // 2]", "{0}[::2]", "{0}[:, 1:]", "{0}.t()"),
    *("{0}.view(-1)[1:]", "{0}.narrow(0, 0, 1)", "{0}.select(1, 0)", "{0}.diagonal()"),
    *("{0}.unsqueeze(0)", "{0}.reshape(-1)", "{0}.unflatten(1, (-1, 1))"),
)
# One of many views, which may be written to without a gradient alone.
ONE_OF_MANY = ("{0}.unbind(1)[0]", "{0}.chunk(2)[0]", "{0}.split(1)[0]")
READ_ONLY = ("{0}.expand(2, *{0}.shape)", "{0}[:, :1].expand({0}.shape)")
# A sigmoid of another shape, brought back.
AROUND = (
    *("{1}({0})", "{1}({0})", "{1}({0}.t()).t()", "{1}({0}.view(-1)).view({0}.shape)"),
    *("{1}({0}.unsqueeze(0))[0]", "{1}({0}[:])", "{1}({0}.clone())", "{1}({0} * 1)"),
)
# Changes of a tensor or view `{0}` in place that keep its numbers exact.
WRITES = (
    *("{0}.mul_(0.5)", "{0}.neg_()", "{0}.add_(0.5)", "{0}.sub_(0.25)", "{0}.zero_()"),
    *("{0}.fill_(0.25)", "{0}.masked_fill_(every_third({0}), 0.5)", "{0}.copy_({0} * 0.5)"),
    *("F.dropout({0}, 0.0, True, True)", "{0}[...] = 0.75", "{0}.index_fill_(0, first, 0.5)"),
    *("{0}[first] = 0.5", "{0}[0] = 0.25", "{0}.div_(-2)", "{0}.masked_scatter_({0} > 0, -{0})"),
)
# The same with a kink, for exact numbers alone.
KINKS = (
    *("{0}.relu_()", "{0}.relu_()", "F.relu({0}, inplace=True)", "{0}.clamp_(-1.0, 1.0)"),
    *("F.hardtanh({0}, inplace=True)", "F.leaky_relu({0}, 0.5, inplace=True)", "{0}.abs_()"),
    "F.threshold({0}, 0.25, 0.5, inplace=True)",
)
# Of the shape or of the history alone.
METADATA = ("{0}.unsqueeze_(0).squeeze_(0)", "{0}.t_().t_()", "{0}.detach_()")
LEAVES = ("a", "b", "p")


class Writer:
    """Writes the statements of one program. Knows of each name the tensor whose memory it shares,
    which memory holds exact numbers, and which is kept by torch's program for its backward pass:
    mostly another is written to, since from the others torch's program ends in an error."""

    def __init__(self, generator: random.Random, is_compiled: bool) -> None:
        self.random = generator
        self.is_compiled = is_compiled
        self.root = {name: name for name in LEAVES}
        self.is_exact = dict.fromkeys(LEAVES, True)
        self.kept: set[str] = set()
        self.full: list[str] = []  # of the leaves' shape
        self.parts: list[str] = []
        self.inputs: list[str] = []  # what a sigmoid was taken of
        self.is_input_program = generator.random() < 0.1
        self.count = 0

    def sigmoid(self) -> str:
        return INPUT if self.is_input_program else self.random.choice(list(SIGMOIDS))

    def name(self, letter: str, root: str | None, is_exact: bool) -> str:
        name = f"{letter}{self.count}"
        self.count += 1
        self.root[name] = root or name
        if root is None:
            self.is_exact[name] = is_exact
        return name

    def exact(self, name: str) -> bool:
        return self.is_exact[self.root[name]]

    def spoil(self, name: str) -> None:
        self.is_exact[self.root[name]] = False

    def keep(self, name: str) -> str:
        self.kept.add(self.root[name])
        return name

    def view(self, of: str, may_be_one_of_many: bool = False) -> str:
        if of not in self.full or self.random.random() < 0.4:
            return of
        kinds = SAME_SHAPE + PARTS + (ONE_OF_MANY if may_be_one_of_many else ())
        return self.random.choice(kinds).format(of)

    def source(self) -> str:
        return self.random.choice(self.full)

    def writable(self, names: Sequence[str]) -> str:
        free = [name for name in names if self.root[name] not in self.kept]
        return self.random.choice(free if free and self.random.random() < 0.95 else names)

    def forward(self) -> list[str]:
        lines = [self.start()]
        for _ in range(self.random.randint(3, 9)):
            kinds = [self.start, self.take, self.take, self.take, self.write, self.write]
            kinds += [self.write, self.gate, self.keep_view, self.in_place, self.silently]
            kinds += [self.combine] + [self.pair] * (not self.is_input_program)
            lines += self.random.choice(kinds)().splitlines()
        return lines

    def start(self) -> str:
        """A tensor of its own, from leaves or others."""
        leaf = self.random.choice(LEAVES)
        sources = [f"{leaf} * 1", f"{leaf} * 0.5", f"{leaf}.clone()", f"{leaf} + 0.5"]
        sources += ["a * p", "a - b", "torch.where(every_third(a), a, b)"]
        is_exact = True
        if self.full:
            other = self.source()
            sources = [*sources, f"{other} * 1", f"{other}.clone()", f"{other} * 0.5 + {leaf}"]
        chosen = self.random.choice(sources)
        if chosen == "a * p":
            self.kept |= {"a", "p"}
        if self.full and other in chosen:
            is_exact = self.exact(other)
        name = self.name("h", None, is_exact)
        self.full.append(name)
        return f"{name} = {chosen}"

    def take(self) -> str:
        """A sigmoid of a tensor, a leaf or a part."""
        of = self.random.choice(LEAVES) if self.random.random() < 0.15 else self.source()
        self.inputs.append(of)
        sigmoid = self.sigmoid()
        if of in self.full and self.random.random() < 0.4:
            view = self.random.choice(PARTS + ONE_OF_MANY + READ_ONLY).format(of)
            name = self.keep(self.name("s", None, False))
            self.parts.append(name)
            return f"{name} = {sigmoid}({view})"
        if self.parts and self.random.random() < 0.15:
            part = self.random.choice(self.parts)
            name = self.keep(self.name("s", None, False))
            self.parts.append(name)
            return f"{name} = {sigmoid}({part})"
        name = self.keep(self.name("s", None, False))
        self.full.append(name)
        return f"{name} = {self.random.choice(AROUND).format(of, sigmoid)}"

    def pair(self) -> str:
        of = self.source()
        self.inputs.append(of)
        value = self.keep(self.name("s", None, False))
        derivative = self.name("d", None, False)
        self.full += [value, derivative]
        return f"{value}, {derivative} = pair({of})"

    def gate(self) -> str:
        """SiLU and gates, in place or not."""
        of, sigmoid = self.source(), self.sigmoid()
        self.inputs.append(of)
        kind = self.random.randrange(6)
        if kind < 4:
            into = of if kind == 0 else self.writable(self.full)
            self.spoil(into)
            writes = ("{0}.mul_({1}({0}))", "{0}.mul_({1}({2}))", "{0}.copy_({1}({2}))")
            writes += ("{0}[:, 0] = {1}({2})[:, 0]",)
            return writes[kind].format(into, sigmoid, of)
        other = of if kind == 4 else self.source()
        self.keep(other)
        name = self.name("g", None, False)
        self.full.append(name)
        return f"{name} = {other} * {sigmoid}({of})"

    def combine(self) -> str:
        """Another tensor's numbers written into one."""
        into, other = self.writable(self.full), self.source()
        if not self.exact(other):
            self.spoil(into)
        writes = ("{0}.add_({1}, alpha=0.5)", "{0}.copy_({1})", "{0}.lerp_({1}, 0.5)")
        writes += ("{0}[:, :1] = {1}[:, :1]", "{0} += {1} * 0.25")
        return self.random.choice(writes).format(into, other)

    def in_place(self) -> str:
        of = self.writable(self.full)
        self.spoil(of)
        self.keep(of)
        if self.is_input_program:
            return f"{of}.tanh_()"
        function = self.random.choice(["sigmoid_", "sigmoid_", "overridden_"])
        return f"{function}({self.view(of)})"

    def keep_view(self) -> str:
        """A view that later statements write through or take the sigmoid of."""
        of = self.source()
        name = self.name("v", self.root[of], False)
        if self.random.random() < 0.5:
            self.full.append(name)
            return f"{name} = {self.random.choice(SAME_SHAPE[2:]).format(of)}"
        self.parts.append(name)
        return f"{name} = {self.random.choice(PARTS).format(of)}"

    def target(self) -> str:
        """What to write to: mostly a tensor whose sigmoid was taken."""
        inputs = [name for name in self.inputs if name not in LEAVES]
        if inputs and self.random.random() < 0.7:
            return self.writable(inputs)
        return self.writable(self.full + self.parts)

    def write(self, is_silent: bool = False) -> str:
        name = self.target()
        if not self.is_compiled and name in self.full and self.random.random() < 0.05:
            return self.random.choice(METADATA).format(name)
        kind = self.random.choice(WRITES + KINKS * 2 if self.exact(name) else WRITES)
        if kind in KINKS and not is_silent:
            self.keep(name)
        return kind.format(self.view(name, may_be_one_of_many=is_silent))

    def silently(self) -> str:
        """A change without a gradient, of parameters too."""
        leaves = [name for name in self.inputs if name in LEAVES]
        # Compiled, what is kept may be computed again from arguments that have changed since.
        if not self.is_compiled and self.random.random() < (0.5 if leaves else 0.1):
            leaf = self.writable(leaves or LEAVES)
            write = self.random.choice(WRITES + KINKS).format(leaf)
        else:
            write = self.write(is_silent=True)
        return f"with torch.no_grad():\n    {write}"

    def changes(self) -> list[str]:
        """What happens between the forward pass and a backward pass."""
        lines = []
        for _ in range(self.random.randint(0, 3)):
            lines += self.silently().splitlines()
        return lines

    def results(self) -> list[str]:
        """Some of the tensors, and the last."""
        names = self.full + self.parts
        chosen = self.random.sample(names, min(len(names), self.random.randint(1, 4)))
        last = max(names, key=lambda name: int(name[1:]))
        return sorted({*chosen, last}, key=lambda name: int(name[1:]))


class Program(NamedTuple):
    """A program and the way it is run."""

    seed: int
    text: str
    mode: str
    dtype: torch.dtype
    rows: tuple[int, int]
    columns: int
    is_input_program: bool

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.mode}, {self.dtype}, {self.rows} rows of {self.columns}\n"
            f"{self.text}"
        )


# How a program that is not compiled is run.
EAGER = ("plain", "identity", "clone", "save_on_cpu", "twice", "twice", "func.grad", "func.vjp")


def write(seed: int, backend: str | None = None) -> Program:
    """The program of a number, to be compiled by a backend or else run in a mode of EAGER."""
    generator = random.Random(seed)
    chosen = backend or generator.choice(EAGER)
    is_inline = backend is not None or chosen.startswith("func")
    writer = Writer(generator, backend is not None)
    lines = writer.forward()
    results = ", ".join(writer.results())
    if is_inline:
        body = [*lines, *writer.changes(), f"return [{results}]"]
        if backend is None:
            body[-1] += ", None, None"
    else:
        between = writer.changes() or ["pass"]
        later = (writer.changes() if chosen == "twice" else []) or ["pass"]
        body = [*lines, "def between():", *(f"    {line}" for line in between)]
        body += ["def later():", *(f"    {line}" for line in later)]
        body.append(f"return [{results}], between, later")
    text = "\n".join(["def program(a, b, p):", *(f"    {line}" for line in body)])
    rows = (generator.choice(FEW_ROWS), generator.choice(MANY_ROWS))
    if generator.random() < 0.002 and not is_inline:
        rows = (rows[0], HUGE_ROWS)
    dtype = generator.choice(DTYPES)
    if chosen == "inductor":
        # It rounds halves once for many operations, other ones with torch's sigmoid than with ours.
        dtype = generator.choice((torch.float64, torch.float32))
    columns = 1 if rows[1] == HUGE_ROWS else generator.choice(COLUMNS)
    return Program(seed, text, chosen, dtype, rows, columns, writer.is_input_program)


def function(text: str, sigmoids: dict[str, Callable[[Tensor], Any]]) -> Callable[..., Any]:
    """The text's ``program`` with the given sigmoids."""
    first = torch.zeros(1, dtype=torch.int64)
    names = {"torch": torch, "F": F, "every_third": every_third, "first": first, **sigmoids}
    exec(text, names)
    made: Callable[..., Any] = names["program"]
    return made


def inputs(program: Program, rows: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(program.seed)
    shape = (rows, program.columns)
    drawn = [torch.randint(-64, 65, shape, generator=generator) / 32 for _ in LEAVES]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def _weights(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each result other factors, so that no two changes make up for each other."""
    return [
        (torch.arange(tensor.numel()).view(tensor.shape) * (3 + at) % 7 * 0.25 - 0.75).to(
            tensor.dtype
        )
        for at, tensor in enumerate(tensors)
    ]


def _gradients(
    results: Sequence[Tensor], leaves: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor]:
    """None where no gradient is; an error of torch's where no result has one."""
    chosen = [result for result in results if result.requires_grad]
    return list(
        torch.autograd.grad(
            *(chosen, leaves, _weights(chosen)), allow_unused=True, create_graph=create_graph
        )
    )


def _copies(results: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if result is None else result.detach().clone() for result in results]


@contextlib.contextmanager
def _hooks(mode: str) -> Iterator[None]:
    if mode == "identity":
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            yield
    elif mode == "clone":
        with saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
            yield
    elif mode == "save_on_cpu":
        with save_on_cpu():
            yield
    else:
        yield


def run(body: Callable[..., Any], leaves: Sequence[Tensor], mode: str) -> list[Tensor | None]:
    """The values and gradients of the program run in a mode."""
    if mode.startswith("func"):
        return _run_transformed(body, leaves, mode)
    with _hooks(mode):
        results, between, later = body(*leaves)
    found = _copies(results)
    between()
    gradients = _gradients(results, leaves, create_graph=mode == "twice")
    found += _copies(gradients)
    if mode == "twice":
        later()
        again = [gradient for gradient in gradients if gradient is not None]
        if any(gradient.requires_grad for gradient in again):
            found += _copies(_gradients(again, leaves))
    return found


def _run_transformed(
    body: Callable[..., Any], leaves: Sequence[Tensor], mode: str
) -> list[Tensor | None]:
    values: list[Tensor | None] = []

    def results(*arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(body(*arguments)[0])

    def loss(*arguments: Tensor) -> Tensor:
        found = results(*arguments)
        terms = zip(found, _weights(found), strict=True)
        return torch.stack([(result * weights).sum() for result, weights in terms]).sum()

    arguments = [leaf.detach() for leaf in leaves]
    if mode == "func.grad":
        return list(torch.func.grad(loss, argnums=(0, 1, 2))(*arguments))
    values, pull = torch.func.vjp(results, *arguments)
    return [*_copies(values), *pull(tuple(_weights(values)))]


class Different(AssertionError):  # noqa: N818 - what it says of ours
    """Ours does not do what torch's program does."""


def compare(
    ours: Sequence[Tensor | None],
    torchs: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
) -> int:
    """Compares what ours computed with torch's; ``reference`` is torch's in float64, by which its
    own error is judged. Returns how many tensors were compared."""
    if len(ours) != len(torchs):
        raise Different("the gradients have a gradient on one side alone")
    compared = 0
    for at, (our, their, exact) in enumerate(zip(ours, torchs, reference, strict=True)):
        if (our is None) != (their is None):
            raise Different(f"result {at}: a gradient is there on one side alone")
        if our is None or their is None or our.numel() == 0:
            continue
        if (our.shape, our.dtype) != (their.shape, their.dtype):
            raise Different(f"result {at}: {our.dtype} {our.shape}, {their.dtype} {their.shape}")
        assert exact is not None
        own_error = (their.double() - exact).abs().max()
        allowed = TOLERANCE[our.dtype] * exact.abs().max().clamp(min=1) + 8 * own_error
        difference = (our.double() - their.double()).abs().max()
        if not difference <= allowed:
            raise Different(
                f"result {at} of {len(ours)} parts by {difference:.3g}, allowed are {allowed:.3g}"
            )
        compared += 1
    return compared


def _refuses(program: Program, error: Exception) -> bool:
    """Whether ours may raise this where torch's program runs."""
    return program.is_input_program and "modified" in str(error)


def try_program(program: Program, tally: Counter[str]) -> None:
    """Runs the program with both sigmoids and both sizes; raises Different."""
    ours, torchs = (function(program.text, sigmoids) for sigmoids in (OURS, TORCHS))
    # Of what hooks keep nobody looks at the version: torch's program is wrong where it raises
    # without them.
    torchs_mode = "plain" if program.mode in ("identity", "clone", "save_on_cpu") else program.mode
    ran: list[bool] = []
    for rows in program.rows:
        leaves = inputs(program, rows, program.dtype)
        try:
            expected = run(torchs, leaves, torchs_mode)
        except Exception:
            tally["refused by torch"] += 1
            continue
        wide = inputs(program, rows, torch.float64)
        reference = run(torchs, wide, torchs_mode)
        leaves = inputs(program, rows, program.dtype)
        try:
            found = run(ours, leaves, program.mode)
        except Exception as error:
            if not _refuses(program, error):
                raise Different(f"{rows} rows: {type(error).__name__}: {error}") from error
            tally["refused by saved='input'"] += 1
            ran.append(False)
            continue
        tally["compared"] += compare(found, expected, reference)
        tally["runs"] += 1
        ran.append(True)
    if len(set(ran)) > 1:
        raise Different(f"runs at one size alone: {ran}")


def run_compiled(
    programs: Sequence[Program],
    sigmoids: dict[str, Callable[[Tensor], Any]],
    rows: int,
    dtype: torch.dtype | None = None,
) -> list[list[Tensor | None]]:
    """The values and gradients of several programs compiled as one function."""
    bodies = [function(program.text, sigmoids) for program in programs]
    leaves = [inputs(program, rows, dtype or program.dtype) for program in programs]

    def all_of_them(every: list[list[Tensor]]) -> list[list[Tensor]]:
        return [body(*own) for body, own in zip(bodies, every, strict=True)]

    torch._dynamo.reset()
    everything = torch.compile(all_of_them, backend=programs[0].mode)(leaves)
    found = [_copies(results) for results in everything]
    # One backward pass: AOTAutograd's graph is run once.
    results = [result for own in everything for result in own if result.requires_grad]
    flat = [leaf for own in leaves for leaf in own]
    gradients = torch.autograd.grad(results, flat, _weights(results), allow_unused=True)
    for at, own_found in enumerate(found):
        own_found += _copies(gradients[3 * at : 3 * at + 3])
    return found


def runs_compiled(programs: Sequence[Program], rows: int) -> list[Program]:
    """Those that torch's sigmoid runs compiled, also all at once."""
    try:
        run_compiled(programs, TORCHS, rows)
    except Exception:
        if len(programs) == 1:
            return []
        half = len(programs) // 2
        return runs_compiled(programs[:half], rows) + runs_compiled(programs[half:], rows)
    return list(programs)


def runs_alone(program: Program, rows: int) -> bool:
    """Whether torch runs it without a compiler, which takes less time to find out."""
    body = function(program.text, TORCHS)
    try:
        leaves = inputs(program, rows, program.dtype)
        return bool(_gradients(body(*leaves), leaves))
    except Exception:
        return False


def try_compiled(programs: Sequence[Program], tally: Counter[str]) -> None:
    """Compiles those that torch runs, and compares all their results; raises Different."""
    rows = random.Random(programs[0].seed).choice(FEW_ROWS + MANY_ROWS)
    able = runs_compiled([program for program in programs if runs_alone(program, rows)], rows)
    tally["refused by torch"] += len(programs) - len(able)
    if not able:
        return
    expected = run_compiled(able, TORCHS, rows)
    reference = run_compiled(able, TORCHS, rows, torch.float64)
    try:
        found = run_compiled(able, OURS, rows)
    except Exception as error:
        for program in able if len(able) > 1 else ():
            try_compiled([program], Counter())
        raise Different(f"compiled, {rows} rows: {type(error).__name__}: {error}") from error
    for program, ours, torchs, exact in zip(able, found, expected, reference, strict=True):
        try:
            tally["compared"] += compare(ours, torchs, exact)
        except Different as difference:
            raise Different(f"{difference}; compiled, {rows} rows\n{program}") from difference
        tally["runs"] += 1


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The warning of a changed input is what these programs are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
