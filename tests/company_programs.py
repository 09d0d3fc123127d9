"""Random programs that give the outputs of sigmoids to losses: as they are, or through views,
copies, complements, means and products, gates and layers, one beside another. Their gradients are
compared with the truth, which the same text computes in float64 from probabilities that are known
from both sides, σ(x) and σ(-x), so that nothing cancels.

A program is a Python function, written from one integer. It is of one of three kinds. "right": all
outputs go to BCELoss as they are, and the gradient is BCEWithLogitsLoss's. "exact": nothing divides
by 1 - y, and the gradient is bit for bit what reaches the outputs times the exact derivative.
"mixed": anything, and no gradient is worse than nn.Sigmoid's. Run by tests/fuzz_programs.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, override, sigmoid, sigmoid_with_derivative
from tests import oracle
from tests.company_connections import LOGITS, both_sides, dice, matrix, weights
from tests.company_verdicts import (
    EXPECTED,
    FLOOR,
    LEAST,
    ExactSigmoid,
    KeptDerivative,
    Product,
    exact_derivative,
)
from tests.inplace_programs import Different

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of an element's scale, in eps: some ten roundings one after the other. A factor that does not
# cancel is wrong by more where the sigmoid saturates.
TOLERANCE = {torch.float64: 128, torch.float32: 64, torch.bfloat16: 16, torch.float16: 32}
ROWS = (2, 4, 6)
# "auto" keeps the derivative of so many.
MANY_ROWS = 384
COLUMNS = 12


# The sigmoids, and what is expected of each bit for bit.


def _overridden(input: Tensor) -> Tensor:
    with override():
        return torch.sigmoid(input)


_module = FusedSigmoid()

SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "auto": lambda input: sigmoid(input),
    "module": lambda input: _module(input),
    "derivative": lambda input: sigmoid(input, saved="derivative"),
    "kept_input": lambda input: sigmoid(input, saved="input"),
    "operator": lambda input: torch.ops.fused_sigmoid.sigmoid(input),
    "pair_value": lambda input: sigmoid_with_derivative(input)[0],
    "overridden": _overridden,
    "in_place": lambda input: fused_sigmoid.sigmoid_(input * 1),
    "checkpointed": lambda input: checkpoint(_module, input, use_reentrant=False),
}


def _expected_in_place(input: Tensor) -> Tensor:
    return (ExactSigmoid if input.dtype == torch.float64 else KeptDerivative).apply(input * 1)


BITS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(SIGMOIDS, EXPECTED["auto"]),
    "derivative": EXPECTED["derivative"],
    "pair_value": EXPECTED["derivative"],
    "kept_input": EXPECTED["input"],
    "in_place": _expected_in_place,
}


class Pair(NamedTuple):
    """A probability and its complement."""

    value: Tensor
    complement: Tensor


def _pair(input: Tensor) -> Pair:
    return Pair(*both_sides(input))


TRUTH: dict[str, Callable[[Tensor], Pair]] = dict.fromkeys(SIGMOIDS, _pair)


# What is done with probabilities: with a tensor of them, and with both sides. The same for both
# sides are the ways on which each number stays what it is, and those that mix linearly.


class Function(NamedTuple):
    of_tensors: Callable[..., Tensor]
    of_pairs: Callable[..., Any]


def _each_side(way: Callable[..., Tensor]) -> Function:
    def of_pairs(*pairs: Pair) -> Pair:
        return Pair(way(*(pair.value for pair in pairs)), way(*(pair.complement for pair in pairs)))

    return Function(way, of_pairs)


def _order(z: Tensor) -> Tensor:
    return (torch.arange(z.numel()) * 7 + 3) % (z.numel() - 1)


def _some(z: Tensor) -> Tensor:
    return torch.arange(z.numel()) % 5 == 1


def _copied(z: Tensor) -> Tensor:
    buffer = torch.full((z.numel() + 3,), 0.5, dtype=z.dtype)
    buffer[1:-2].copy_(z)
    return buffer[1:-2]


def _filled_in_place(z: Tensor) -> Tensor:
    copy = z.clone()
    copy.view(-1, COLUMNS)[:, 2].fill_(0.5)
    return copy


def _swapped_in_place(z: Tensor) -> Tensor:
    copy = z.clone()
    copy[:COLUMNS] = z[COLUMNS : 2 * COLUMNS]
    return copy


def _hooked(z: Tensor) -> Tensor:
    hooked = z * 1 if z.is_leaf else z
    if hooked.requires_grad:
        hooked.register_hook(lambda grad: grad.clone())
    return hooked


WAYS: dict[str, Function] = {
    "flipped": _each_side(lambda z: z.flip(0)),
    "rolled": _each_side(lambda z: z.roll(5)),
    "cloned": _each_side(lambda z: z.clone()),
    "viewed": _each_side(lambda z: z.view(-1, COLUMNS).view(-1)),
    "transposed": _each_side(lambda z: z.view(-1, COLUMNS).t().reshape(-1)),
    "indexed": _each_side(lambda z: z[_order(z)]),
    "gathered": _each_side(lambda z: z.gather(0, _order(z))),
    "sliced_and_cat": _each_side(lambda z: torch.cat([z[7:], z[:7]])),
    "chunked_and_stacked": _each_side(lambda z: torch.stack(z.chunk(2)).flatten()),
    "unbound": _each_side(lambda z: torch.cat(z.view(-1, COLUMNS).unbind(0)[::-1])),
    "padded": _each_side(lambda z: F.pad(z, (2, 1), value=0.5)[2:-1]),
    "where": _each_side(lambda z: torch.where(_some(z), 0.5, z)),
    "masked": _each_side(lambda z: z.masked_fill(_some(z), 0.5)),
    "copied": _each_side(_copied),
    "filled_in_place": _each_side(_filled_in_place),
    "swapped_in_place": _each_side(_swapped_in_place),
    "hooked": Function(_hooked, lambda p: p),
    "identity": _each_side(lambda z: nn.Identity()(z)),
    "wide": _each_side(lambda z: z.double().to(z.dtype)),
    "interleaved": _each_side(lambda z: z.repeat_interleave(2)[: z.numel()]),
    # Past its bounds: at them torch 2.14 gives no gradient.
    "clamped": _each_side(lambda z: z.clamp(-1, 2)),
}
LINEAR: dict[str, Function] = {
    "complement": Function(lambda z: 1 - z, lambda p: Pair(p.complement, p.value)),
    "halved": Function(lambda z: z / 2, lambda p: Pair(p.value / 2, (1 + p.complement) / 2)),
    "inside": Function(
        lambda z: z * 0.875 + 0.0625,
        lambda p: Pair(p.value * 0.875 + 0.0625, p.complement * 0.875 + 0.0625),
    ),
    "mean": _each_side(lambda y, z: (y + z) / 2),
    "mean_of_stack": _each_side(lambda y, z: torch.stack([y, z]).mean(0)),
    "mixed": _each_side(lambda y, z: y * 0.25 + z * 0.75),
    "lerp": _each_side(lambda y, z: torch.lerp(y, z, 0.25)),
    "mean_of_neighbours": _each_side(
        lambda z: z.view(-1, 2).mean(1, keepdim=True).expand(-1, 2).reshape(-1)
    ),
}
MADE: dict[str, Function] = {
    "product": Function(
        lambda y, z: y * z,
        lambda p, q: Pair(p.value * q.value, p.complement + p.value * q.complement),
    ),
    "square": Function(
        lambda z: z * z, lambda p: Pair(p.value * p.value, p.complement * (1 + p.value))
    ),
    "root": Function(
        lambda z: z.sqrt(),
        lambda p: Pair(p.value.sqrt(), p.complement / (1 + p.value.sqrt())),
    ),
    "either": Function(
        lambda y, z: 1 - (1 - y) * (1 - z),
        lambda p, q: Pair(p.value + q.value * p.complement, p.complement * q.complement),
    ),
}
OF_TWO = ("mean", "mean_of_stack", "mixed", "lerp", "product", "either")


# Losses.


def _of_value(loss: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return Function(loss, lambda p, t: loss(p.value, t))


def _by_hand(y: Tensor, t: Tensor, least: float) -> Tensor:
    return -(t * (y + least).log() + (1 - t) * (1 - y + least).log()).mean()


def _by_hand_truth(p: Pair, t: Tensor, least: float) -> Tensor:
    return -(t * (p.value + least).log() + (1 - t) * (p.complement + least).log()).mean()


def _likelihood(p: Pair, t: Tensor) -> Tensor:
    return -(t * p.value.log() + (1 - t) * p.complement.log())


def _focal(y: Tensor, t: Tensor) -> Tensor:
    hit = t * y + (1 - t) * (1 - y)
    return -((1 - hit) ** 2 * (hit + 1e-7).log()).mean()


def _focal_truth(p: Pair, t: Tensor) -> Tensor:
    hit = t * p.value + (1 - t) * p.complement
    miss = t * p.complement + (1 - t) * p.value
    return -(miss**2 * (hit + 1e-7).log()).mean()


BCE: dict[str, Function] = {
    "bce": Function(
        lambda y, t: F.binary_cross_entropy(y, t, reduction="sum"),
        lambda p, t: _likelihood(p, t).sum(),
    ),
    "bce_mean": Function(F.binary_cross_entropy, lambda p, t: _likelihood(p, t).mean()),
    "bce_weighted": Function(
        lambda y, t: F.binary_cross_entropy(y, t, weights(y)),
        lambda p, t: (_likelihood(p, t) * weights(t)).mean(),
    ),
    "bce_each": Function(
        lambda y, t: F.binary_cross_entropy(y, t, reduction="none").view(-1, 2).sum(1).mean(),
        lambda p, t: _likelihood(p, t).view(-1, 2).sum(1).mean(),
    ),
    "bce_in_rows": Function(
        lambda y, t: F.binary_cross_entropy(y.view(-1, COLUMNS).t(), t.view(-1, COLUMNS).t()),
        lambda p, t: _likelihood(p, t).mean(),
    ),
}
DIVIDING: dict[str, Function] = {
    "by_hand": Function(lambda y, t: _by_hand(y, t, 0), lambda p, t: _likelihood(p, t).mean()),
    "by_hand_and_epsilon": Function(
        lambda y, t: _by_hand(y, t, 1e-7), lambda p, t: _by_hand_truth(p, t, 1e-7)
    ),
    "log_of_complement": Function(
        lambda y, t: -(1 - y).log().mean(), lambda p, t: -p.complement.log().mean()
    ),
    "log1p": Function(
        lambda y, t: -torch.log1p(-y).mean(), lambda p, t: -p.complement.log().mean()
    ),
    "reciprocal": Function(
        lambda y, t: (1e-3 / (1 - y)).mean(), lambda p, t: (1e-3 / p.complement).mean()
    ),
    "root_of_complement": Function(
        lambda y, t: (1 - y).sqrt().mean(), lambda p, t: p.complement.sqrt().mean()
    ),
    "log_of": _of_value(lambda y, t: -y.log().mean()),
    "root_of": _of_value(lambda y, t: y.sqrt().mean()),
    "reciprocal_of": _of_value(lambda y, t: (1e-3 / y).mean()),
    "logit": Function(
        lambda y, t: torch.logit(y).mean(),
        lambda p, t: (p.value.log() - p.complement.log()).mean(),
    ),
    "focal": Function(_focal, _focal_truth),
}
ORDINARY: dict[str, Function] = {
    "mean_of": _of_value(lambda y, t: y.mean()),
    "mse": _of_value(F.mse_loss),
    "huber": _of_value(lambda y, t: F.huber_loss(y, t, delta=0.25)),
    "dice": _of_value(dice),
    "square_of": _of_value(lambda y, t: (y * y).mean()),
    "softplus": _of_value(lambda y, t: F.softplus(y).mean()),
    "in_a_layer": _of_value(
        lambda y, t: ((y.view(-1, COLUMNS) @ matrix(COLUMNS, 4, y)).tanh()).square().mean()
    ),
    "log": _of_value(lambda y, t: (y + 0.125).log().mean()),
}
# Of hidden numbers, not of probabilities.
OF_HIDDEN = {
    "mse_of_hidden": lambda h, t: F.mse_loss(h, t),
    "tanh_of_hidden": lambda h, t: (h.tanh() * weights(h)).mean(),
    "with_logits": lambda h, t: F.binary_cross_entropy_with_logits(h, t),
}


def _layer(y: Tensor, w: Tensor) -> Tensor:
    """A gate in rows, and a layer after it: hidden numbers, as many."""
    rows = y.view(-1, COLUMNS)
    features = (torch.arange(rows.numel()) % 5 * 0.5 - 0.75).view(rows.shape).to(y.dtype)
    return ((rows * features) @ w).flatten()


LAYER = Function(_layer, lambda p, w: _layer(p.value, w))

FUNCTIONS = {**WAYS, **LINEAR, **MADE, **BCE, **DIVIDING, **ORDINARY, "layer": LAYER}


class Writer:
    """Writes one program."""

    def __init__(self, generator: random.Random, kind: str) -> None:
        self.random = generator
        self.kind = kind
        self.lines: list[str] = []
        self.probabilities: list[str] = []
        self.hidden: list[str] = []
        self.unused: list[str] = []
        self.count = 0
        self.sigmoids = 0
        self.is_mixing = False

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def sigmoid(self) -> None:
        sources = ["x", "z", "x * 1", "z * 0.5", "x + z", *self.hidden]
        name = self.name("p")
        chosen = self.random.choice(list(SIGMOIDS))
        self.lines.append(f"{name} = {chosen}({self.random.choice(sources)} + d[{self.sigmoids}])")
        self.sigmoids += 1
        self.probabilities.append(name)
        self.unused.append(name)

    def probability(self) -> str:
        if self.unused and self.random.random() < 0.6:
            return self.unused.pop(self.random.randrange(len(self.unused)))
        return self.random.choice(self.probabilities)

    def step(self) -> None:
        kinds = [WAYS, WAYS, WAYS]
        if self.kind == "mixed":
            kinds += [LINEAR, LINEAR, MADE]
        function = self.random.choice(list(self.random.choice(kinds)))
        arguments = [self.probability() for _ in range(1 + (function in OF_TWO))]
        name = self.name("p")
        self.lines.append(f"{name} = {function}({', '.join(arguments)})")
        self.probabilities.append(name)
        self.unused.append(name)

    def layer(self) -> None:
        self.is_mixing = True
        name = self.name("h")
        self.lines.append(f"{name} = layer({self.probability()}, w)")
        self.hidden.append(name)

    def losses(self) -> list[str]:
        kinds = {
            "right": [BCE],
            "exact": [ORDINARY],
            "mixed": [BCE, BCE, DIVIDING, ORDINARY],
        }[self.kind]
        chosen = []
        for _ in range(self.random.randint(1, 3)):
            factor = self.random.choice(["", " * 0.5", " * 4", " / 3"])
            if self.hidden and self.kind != "right" and self.random.random() < 0.4:
                loss = self.random.choice(list(OF_HIDDEN))
                chosen.append(f"{loss}({self.random.choice(self.hidden)}, t){factor}")
                continue
            loss = self.random.choice(list(self.random.choice(kinds)))
            self.is_mixing |= loss == "in_a_layer"
            chosen.append(f"{loss}({self.probability()}, t){factor}")
        return chosen

    def program(self) -> str:
        self.sigmoid()
        for _ in range(self.random.randint(1, 7)):
            makers = [self.sigmoid, self.step, self.step, self.step]
            # A gate before BCELoss is ordinary company, whose truth is no loss with logits.
            if self.kind != "right":
                makers.append(self.layer)
            self.random.choice(makers)()
        losses = ", ".join(self.losses())
        body = [*self.lines, f"return [{losses}]"]
        return "\n".join(["def program(x, z, w, t, d):", *(f"    {line}" for line in body)])


class Program(NamedTuple):
    seed: int
    text: str
    kind: str
    mode: str
    dtype: torch.dtype
    rows: int
    sigmoids: int
    is_mixing: bool

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.kind}, {self.mode}, {self.dtype}, {self.rows} rows\n"
            f"{self.text}"
        )


MODES = ("backward", "backward", "grad", "twice", "create_graph", "one by one")


def write(seed: int) -> Program:
    generator = random.Random(seed)
    kind = generator.choice(["right", "exact", "mixed", "mixed"])
    writer = Writer(generator, kind)
    text = writer.program()
    rows = MANY_ROWS if generator.random() < 0.05 else generator.choice(ROWS)
    # BCELoss hands more to a float16 than it can hold.
    dtype = generator.choice(DTYPES[:3] if kind == "right" else DTYPES)
    mode = generator.choice(MODES)
    return Program(seed, text, kind, mode, dtype, rows, writer.sigmoids, writer.is_mixing)


Body = Callable[..., list[Tensor]]


def function(text: str, sigmoids: dict[str, Any], functions: dict[str, Callable[..., Any]]) -> Body:
    names: dict[str, Any] = {**functions, **sigmoids, **OF_HIDDEN}
    exec(text, names)
    made: Body = names["program"]
    return made


OF_TENSORS = {name: function.of_tensors for name, function in FUNCTIONS.items()}
OF_PAIRS = {name: function.of_pairs for name, function in FUNCTIONS.items()}


class Inputs(NamedTuple):
    """The logits x and z, which saturate the sigmoid here and there, targets, and the leaves: the
    weights of the layers, and for each sigmoid zeros that are added to its own logits. With these
    the gradient of each can be told from that of others of the same logits, where two that are
    wrong may make up for each other."""

    x: Tensor
    z: Tensor
    t: Tensor
    leaves: list[Tensor]


def inputs(program: Program, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(program.seed)
    size = program.rows * COLUMNS
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    drawn = []
    for _ in range(2):
        even = torch.rand(size, generator=generator, dtype=torch.float64) * 44 - 20
        special = logits[torch.randint(len(logits), (size,), generator=generator)]
        numbers = torch.where(torch.rand(size, generator=generator) < 0.5, special, even)
        numbers[:2] = torch.tensor([0.25, -0.75])  # that do not saturate
        drawn.append(numbers.to(program.dtype).to(dtype))
    w = torch.randint(-4, 5, (COLUMNS, COLUMNS), generator=generator) / 4
    targets = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.25, 0.5], dtype=torch.float64)
    t = targets[torch.randint(len(targets), (size,), generator=generator)]
    zeros = [torch.zeros(size, dtype=dtype) for _ in range(program.sigmoids)]
    leaves = [tensor.requires_grad_() for tensor in (w.to(dtype), *zeros)]
    return Inputs(*drawn, t.to(dtype), leaves)


def _losses(body: Body, of: Inputs, t: Tensor | None = None) -> list[Tensor]:
    w, *own = of.leaves
    return body(of.x, of.z, w, of.t if t is None else t, own)


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.to(losses[0].dtype) for loss in losses]).sum()


def _gradients(
    losses: Sequence[Tensor] | Tensor, leaves: Sequence[Tensor], **options: bool
) -> list[Tensor]:
    return list(
        torch.autograd.grad(losses, leaves, allow_unused=True, materialize_grads=True, **options)
    )


def run(body: Body, program: Program) -> list[list[Tensor]]:
    """The gradients of every backward pass."""
    of = inputs(program, program.dtype)
    leaves, losses = of.leaves, _losses(body, of)
    if program.mode == "backward":
        torch.autograd.backward(_sum(losses))
        return [[torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]]
    if program.mode == "grad":
        return [_gradients(losses, leaves)]
    if program.mode == "create_graph":
        return [[grad.detach() for grad in _gradients(_sum(losses), leaves, create_graph=True)]]
    if program.mode == "one by one":
        return [_gradients(loss, leaves, retain_graph=True) for loss in losses]
    first = [grad.clone() for grad in _gradients(_sum(losses), leaves, retain_graph=True)]
    return [first, _gradients(_sum(losses), leaves)]


class Truth(NamedTuple):
    gradients: list[Tensor]
    # What each is made of, where that may cancel.
    scales: list[Tensor]
    # The largest numbers that reach each sigmoid, where it does not saturate.
    reaching: list[Tensor]
    # How much of each output is lost where it is subnormal.
    lost: list[Tensor]


def truth(program: Program) -> list[Truth]:
    """Of every backward pass in float64."""
    body = function(program.text, TRUTH, OF_PAIRS)
    of = inputs(program, torch.float64)
    losses = _losses(body, of)
    others = [_losses(body, of, torch.full_like(of.t, target)) for target in (0, 1)]
    with torch.no_grad():
        logits = _logits(program, of)
    each = []
    for at, loss in enumerate(losses):
        alike = [loss, *(other[at] for other in others)]
        gradients = [_gradients(one, of.leaves, retain_graph=True) for one in alike]
        own = [torch.stack(grads).abs().sum(0) for grads in zip(*gradients, strict=True)]
        each.append((gradients[0], own))
    if program.mode == "one by one":
        return [_truth(program, logits, [one]) for one in each]
    return [_truth(program, logits, each)] * (2 if program.mode == "twice" else 1)


def _logits(program: Program, of: Inputs) -> list[Tensor]:
    """What each sigmoid is taken of."""
    taken: list[Tensor] = []

    def take(input: Tensor) -> Pair:
        taken.append(input)
        return _pair(input)

    _losses(function(program.text, dict.fromkeys(SIGMOIDS, take), OF_PAIRS), of)
    return taken


def _truth(
    program: Program, logits: list[Tensor], each: list[tuple[list[Tensor], list[Tensor]]]
) -> Truth:
    gradients = [torch.stack(grads).sum(0) for grads in zip(*(one for one, _ in each), strict=True)]
    scales = [torch.stack(own).sum(0) for own in zip(*(own for _, own in each), strict=True)]
    reaching, lost = [torch.zeros(())], [torch.zeros(())]
    info = torch.finfo(program.dtype)
    for x, scale in zip(logits, scales[1:], strict=True):
        derivative = exact_derivative(x)
        lost.append((info.smallest_normal * info.eps / torch.sigmoid(x)).clamp(max=1))
        reaching.append(torch.where(x.abs() <= 6, scale / derivative, 0).max())
        if program.is_mixing:
            # A layer adds up what it hands to its inputs, where all may cancel.
            scale += derivative * torch.where(x >= -1, scale / derivative, 0).max()
    scales[0] = torch.full_like(scales[0], scales[0].max())
    return Truth(gradients, scales, reaching, lost)


def try_program(program: Program, tally: Counter[str]) -> None:
    """Runs the program with ours; raises Different."""
    torchs = function(program.text, dict.fromkeys(SIGMOIDS, torch.sigmoid), OF_TENSORS)
    try:
        theirs = run(torchs, program)
    except Exception:
        tally["refused by torch"] += 1
        return
    try:
        found = run(function(program.text, SIGMOIDS, OF_TENSORS), program)
    except Exception as error:
        raise Different(f"{type(error).__name__}: {error}") from error
    tally["runs"] += 1
    if program.kind == "exact":
        expected = run(function(program.text, BITS, OF_TENSORS), program)
        for ours, bits in zip(found, expected, strict=True):
            for at, (our, exact) in enumerate(zip(ours, bits, strict=True)):
                if not oracle.same_bits(our, exact):
                    raise Different(f"gradient {at} is not exact")
                tally["compared"] += 1
        return
    product = dict.fromkeys(SIGMOIDS, Product.apply)
    also = run(function(program.text, product, OF_TENSORS), program)
    for ours, *both, true in zip(found, theirs, also, truth(program), strict=True):
        for at, our in enumerate(ours):
            _compare(program, at, our, [torchs[at] for torchs in both], true)
            tally["compared"] += 1


def _compare(program: Program, at: int, our: Tensor, torchs: list[Tensor], true: Truth) -> None:
    exact, scale = true.gradients[at], true.scales[at]
    if our.dtype != program.dtype:
        raise Different(f"gradient {at} has dtype {our.dtype}")
    allowed = TOLERANCE[our.dtype] * torch.finfo(our.dtype).eps * scale + LEAST[our.dtype]
    allowed = allowed + true.lost[at] * scale
    error = (our.double() - exact).abs()
    if program.kind == "right":
        wrong, said = ~(error <= allowed), "is not right"
    else:
        # Where the mean of y and 1 - y is all that a loss gets, roundings are all its gradient.
        wrong, said = scale > 0, "is worse than nn.Sigmoid's"
        for their in torchs:
            their_error = (their.double() - exact).abs()
            is_number = their_error.isfinite()
            if at == 0:
                # Of a layer's weights each is a sum over many.
                is_number = is_number.all().expand_as(is_number)
                their_error = their_error.max().expand_as(their_error)
            rounded = 4 * torch.finfo(our.dtype).eps * their.double().abs()
            limit = their_error + allowed + rounded + FLOOR * true.reaching[at]
            wrong &= is_number & ~(error <= limit)
    if wrong.any():
        first = int(wrong.flatten().nonzero()[0])
        numbers = [float(tensor.flatten()[first]) for tensor in (our, exact, torchs[0])]
        where = "of the weights"
        if at > 0:
            of = inputs(program, torch.float64)
            where = f"x = {_logits(program, of)[at - 1][first]:g}, target {of.t[first]:g}"
        raise Different(
            f"gradient {at} {said} in {int(wrong.sum())} places, {where}: {numbers[0]:g}, true is "
            f"{numbers[1]:g}, nn.Sigmoid gives {numbers[2]:g}"
        )
