"""What the output of a sigmoid is given to, up to the loss: a table of connections, each with the
same loss in float64 as a function of the logits, written so that nothing cancels, and with what is
promised of the gradient. Depends on torch alone; run by test_company.py and
test_company_compiled.py.

The logits of every connection are one-dimensional and a multiple of 24 long, and so are the
targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

Activation = Callable[[Tensor], Tensor]

# That of BCEWithLogitsLoss, also where nn.Sigmoid gives 0.
RIGHT = "right"
# Nowhere worse than nn.Sigmoid's.
AS_TORCH = "as nn.Sigmoid"
# What reaches the output times the exact derivative, bit for bit.
EXACT = "exact"

WIDE = (torch.float64, torch.float32)
EVERY = (*WIDE, torch.bfloat16, torch.float16)


class Connection(NamedTuple):
    """``use`` is the loss with a sigmoid of one's choice, ``truth`` the loss in float64."""

    use: Callable[[Activation, Tensor, Tensor], Tensor]
    truth: Callable[[Tensor, Tensor], Tensor]
    promise: str
    # Of a right gradient, in units of eps.
    roundings: int = 8
    dtypes: tuple[torch.dtype, ...] = EVERY
    # A dtype on the way to the loss, whose roundings are the connection's own.
    rounds_to: torch.dtype = torch.float64
    # Beside BCELoss: the largest number that another loss hands to the output. BCELoss divides by
    # no less than 1e-12, so that what is multiplied for its sake is no less, and another loss gets
    # as much where its own factor is smaller still.
    beside: float = 0.0
    # Of an exact connection with several sigmoids, those that are; None is all.
    exact_calls: tuple[int, ...] | None = None


# The same numbers in float64.


class _BothSides(torch.autograd.Function):
    """σ(x) and 1 - σ(x) = σ(-x), neither of which is formed from the other, nor the derivative from
    a difference."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        value, complement = torch.sigmoid(x), torch.sigmoid(-x)
        ctx.save_for_backward(value, complement)
        return value, complement

    @staticmethod
    def backward(ctx: Any, value_grad: Tensor, complement_grad: Tensor) -> Tensor:
        value, complement = ctx.saved_tensors
        return (value_grad - complement_grad) * (value * complement)


def both_sides(x: Tensor) -> tuple[Tensor, Tensor]:
    value, complement = _BothSides.apply(x)
    return value, complement


def exact_sigmoid(x: Tensor) -> Tensor:
    return both_sides(x)[0]


def logarithms(x: Tensor) -> tuple[Tensor, Tensor]:
    """log σ(x) and log(1 - σ(x))."""
    return F.logsigmoid(x), F.logsigmoid(-x)


def likelihood(value: Tensor, complement: Tensor, t: Tensor) -> Tensor:
    """The binary cross entropy of a probability known from both sides, of every element."""
    return -(t * value.log() + (1 - t) * complement.log())


def with_logits(x: Tensor, t: Tensor, reduction: str = "sum") -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t, reduction=reduction)


def bce(y: Tensor, t: Tensor, reduction: str = "sum") -> Tensor:
    return F.binary_cross_entropy(y, t, reduction=reduction)


# Parts of the connections.


def _clamp_hands_on_at_its_bound() -> bool:
    """As it does up to torch 2.13; an output of 1 has no gradient from it since."""
    bound = torch.ones(1, requires_grad=True)
    (grad,) = torch.autograd.grad(bound.clamp(0, 1), bound)
    return bool(grad)


def hard(t: Tensor) -> Tensor:
    return (t > 0.5).to(t.dtype)


def weights(like: Tensor) -> Tensor:
    """Of the elements, 1/2 to 5/4, exact in every dtype."""
    return (
        (torch.arange(like.numel(), device=like.device) % 4 * 0.25 + 0.5)
        .view(like.shape)
        .to(like.dtype)
    )


def matrix(rows: int, columns: int, like: Tensor) -> Tensor:
    """Of a layer; of both signs."""
    numbers = torch.arange(1, rows * columns + 1, dtype=torch.float64, device=like.device).sin()
    return numbers.view(rows, columns).to(like.dtype)


def _every_third(z: Tensor) -> Tensor:
    return torch.arange(z.numel(), device=z.device).view(z.shape) % 3 == 0


def _order(z: Tensor) -> Tensor:
    """Of the elements, with some twice and some left out."""
    return (torch.arange(z.numel(), device=z.device) * 7 + 3) % (z.numel() - 1)


def _copied(z: Tensor, fill: float) -> Tensor:
    buffer = z.new_full((z.numel() + 4,), fill)
    buffer[2:-2].copy_(z)
    return buffer


def _assigned(z: Tensor, fill: float) -> Tensor:
    buffer = z.new_full((z.numel(), 2), fill)
    buffer[:, 1] = z
    return buffer


def _put(z: Tensor, fill: float) -> Tensor:
    places = torch.arange(z.numel(), device=z.device).flip(0) + 1
    return z.new_full((z.numel() + 2,), fill).index_put((places,), z)


def _put_in_place(z: Tensor, fill: float) -> Tensor:
    buffer = z.new_full((z.numel() + 2,), fill)
    return buffer.index_put_((torch.arange(z.numel(), device=z.device).flip(0) + 1,), z)


def _scattered(z: Tensor, fill: float) -> Tensor:
    return z.new_full((z.numel() + 1,), fill).scatter(
        0, torch.arange(z.numel(), device=z.device).flip(0), z
    )


def _index_copied(z: Tensor, fill: float) -> Tensor:
    return z.new_full((z.numel() + 1,), fill).index_copy(
        0, torch.arange(z.numel(), device=z.device).flip(0), z
    )


def _slice_scattered(z: Tensor, fill: float) -> Tensor:
    return z.new_full((z.numel() + 3,), fill).slice_scatter(z, 0, 1, z.numel() + 1)


def _select_scattered(z: Tensor, fill: float) -> Tensor:
    return z.new_full((2, z.numel()), fill).select_scatter(z, 0, 1)


def _masked_scattered(z: Tensor, fill: float) -> Tensor:
    mask = torch.arange(2 * z.numel(), device=z.device) % 2 == 1
    return z.new_full((2 * z.numel(),), fill).masked_scatter(mask, z)


def _filled_through_a_view(z: Tensor, fill: float) -> Tensor:
    copy = z.clone()
    copy.view(-1, 12)[0].fill_(fill)
    return copy


def _filled_under_a_mask(z: Tensor, fill: float) -> Tensor:
    copy = z.clone()
    copy[_every_third(z)] = fill
    return copy


def _written_over_itself(z: Tensor, fill: float) -> Tensor:
    copy = z.clone()
    copy[:12] = copy[12:24]
    return copy


# Ways on which the numbers stay what they are, so that they may be gone with the logits as well.
# `fill` is what else is on the way: 1/2 among probabilities and targets, 0 among logits.
Way = Callable[[Tensor, float], Tensor]
WAYS: dict[str, Way] = {
    "as it is": lambda z, fill: z,
    "view": lambda z, fill: z.view(-1, 12),
    "reshape": lambda z, fill: z.view(-1, 12).t().reshape(4, -1),
    "squeeze": lambda z, fill: z[:, None].squeeze(1),
    "unsqueeze": lambda z, fill: z.unsqueeze(-1),
    "flatten": lambda z, fill: z.view(-1, 6, 4).flatten(1),
    "unflatten": lambda z, fill: z.unflatten(0, (-1, 4)),
    "select": lambda z, fill: z.view(-1, 12)[1],
    "slice": lambda z, fill: z[2:-1],
    "strided slice": lambda z, fill: z[::2],
    "index": lambda z, fill: z[_order(z)],
    "boolean index": lambda z, fill: z[~_every_third(z)],
    "masked_select": lambda z, fill: z.masked_select(~_every_third(z)),
    "gather": lambda z, fill: z.gather(0, _order(z)),
    "index_select": lambda z, fill: z.index_select(0, _order(z)),
    "take": lambda z, fill: z.take(_order(z)),
    "take_along_dim": lambda z, fill: z.take_along_dim(_order(z), 0),
    "narrow": lambda z, fill: z.narrow(0, 5, 16),
    "cat": lambda z, fill: torch.cat([z, z.flip(0)]),
    "cat with constants": lambda z, fill: torch.cat([z, z.new_full((3,), fill)]),
    "stack": lambda z, fill: torch.stack([z, z[_order(z)]], 1),
    "hstack": lambda z, fill: torch.hstack([z[:7], z[7:]]),
    "transpose": lambda z, fill: z.view(-1, 12).transpose(0, 1),
    "permute": lambda z, fill: z.view(-1, 4, 3).permute(2, 0, 1),
    "movedim": lambda z, fill: z.view(-1, 4, 3).movedim(0, 2),
    "expand": lambda z, fill: z.expand(3, -1),
    "broadcast_to": lambda z, fill: z.broadcast_to(2, z.numel()),
    "repeat": lambda z, fill: z.repeat(2),
    "tile": lambda z, fill: z.tile(2),
    "repeat_interleave": lambda z, fill: z.repeat_interleave(2),
    "clone": lambda z, fill: z.clone(),
    "contiguous": lambda z, fill: z.view(-1, 12).t().contiguous(),
    "chunk": lambda z, fill: z.chunk(3)[1],
    "split": lambda z, fill: z.split([8, z.numel() - 8])[1],
    "tensor_split": lambda z, fill: z.tensor_split(3)[2],
    "unbind": lambda z, fill: z.view(-1, 12).unbind(0)[1],
    "unbind and stack": lambda z, fill: torch.stack(z.view(-1, 12).unbind(0)[::-1]),
    "diagonal": lambda z, fill: z.view(-1, 12).diagonal(),
    "flip": lambda z, fill: z.flip(0),
    "roll": lambda z, fill: z.roll(3),
    "rot90": lambda z, fill: z.view(-1, 12).rot90(),
    "unfold": lambda z, fill: z.unfold(0, 4, 2),
    "as_strided": lambda z, fill: z.as_strided((6, 4), (4, 1)),
    "nan_to_num": lambda z, fill: z.nan_to_num(fill),
    "where": lambda z, fill: torch.where(_every_third(z), z, fill),
    "masked_fill": lambda z, fill: z.masked_fill(_every_third(z), fill),
    "pad": lambda z, fill: F.pad(z, (2, 3), value=fill),
    "replication": lambda z, fill: F.pad(z.view(1, -1, 12), (1, 1), mode="replicate"),
    "copy_ into a buffer": _copied,
    "assigned to a buffer": _assigned,
    "index_put": _put,
    "index_put_": _put_in_place,
    "scatter": _scattered,
    "index_copy": _index_copied,
    "slice_scatter": _slice_scattered,
    "select_scatter": _select_scattered,
    "masked_scatter": _masked_scattered,
    "filled through a view": _filled_through_a_view,
    "filled under a mask": _filled_under_a_mask,
    "written over itself": _written_over_itself,
    "dropout of nothing": lambda z, fill: F.dropout(z, 0.0, True),
    "identity module": lambda z, fill: nn.Identity()(z),
    "pixel_shuffle": lambda z, fill: F.pixel_shuffle(z.view(-1, 4, 3, 2), 2),
    "channel_shuffle": lambda z, fill: F.channel_shuffle(z.view(1, 4, -1, 3), 2),
    "meshgrid": lambda z, fill: torch.meshgrid(z[:12], z[12:24], indexing="ij")[0],
    "embedding": lambda z, fill: F.embedding(_order(z), z.unsqueeze(1)),
    "alias": lambda z, fill: torch.ops.aten.alias(z),
}


def _handed_on(way: Way) -> Connection:
    return Connection(
        lambda sigmoid, x, t: bce(way(sigmoid(x), 0.5), way(t, 0.5)),
        lambda x, t: with_logits(way(x, 0.0), way(t, 0.5)),
        RIGHT,
    )


# Ways that the numbers go unchanged, though logits cannot go them.


def _in_clamp(x: Tensor, least: float) -> Tensor:
    value, complement = torch.sigmoid(x), torch.sigmoid(-x)
    return (value >= least) & (complement >= least)


def _clamped_truth(x: Tensor, t: Tensor, least: float) -> Tensor:
    inside = torch.where(_in_clamp(x, least), x, x.detach())
    return with_logits(inside, t)


def _sorted(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    y, order = sigmoid(x).sort(descending=True)
    return bce(y, t[order])


def _top(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    y, order = sigmoid(x).topk(x.numel())
    return bce(y, t[order])


# Equal numbers of a group have one logit, so that it does not matter which of them is taken.
def _instances(x: Tensor) -> Tensor:
    return torch.stack([x - 6, x, x - 3], 1)


def _largest(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return bce(sigmoid(_instances(x)).max(1).values, t)


def _pooled(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return bce(F.max_pool1d(sigmoid(_instances(x)).unsqueeze(1), 3).flatten(), t)


def _pooled_adaptively(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return bce(F.adaptive_max_pool1d(sigmoid(_instances(x)).unsqueeze(1), 1).flatten(), t)


def _hooked(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    y = sigmoid(x)
    if y.requires_grad:
        y.register_hook(lambda grad: grad)
        y.register_hook(lambda grad: grad * 1)
    return bce(y, t)


class HandsOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Triples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input * 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class CrossEntropy(torch.autograd.Function):
    """A loss that somebody wrote down with its gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(y, t)
        return F.binary_cross_entropy(y, t, reduction="mean")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, t = ctx.saved_tensors
        return grad * (y - t) / (y * (1 - y)).clamp(min=1e-12) / y.numel(), None


BCE: dict[str, Connection] = {f"BCE, {name}": _handed_on(way) for name, way in WAYS.items()}
BCE |= {
    "BCELoss": Connection(
        lambda sigmoid, x, t: nn.BCELoss()(sigmoid(x), t),
        lambda x, t: with_logits(x, t, "mean"),
        RIGHT,
    ),
    "BCE, none": Connection(
        lambda sigmoid, x, t: (bce(sigmoid(x), t, "none") * weights(x)).sum(),
        lambda x, t: (with_logits(x, t, "none") * weights(x)).sum(),
        RIGHT,
    ),
    "BCE, weight": Connection(
        lambda sigmoid, x, t: F.binary_cross_entropy(sigmoid(x), t, weights(x)),
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, weights(x)),
        RIGHT,
    ),
    "BCELoss, weight, sum": Connection(
        lambda sigmoid, x, t: nn.BCELoss(weights(x), reduction="sum")(sigmoid(x), t),
        lambda x, t: (with_logits(x, t, "none") * weights(x)).sum(),
        RIGHT,
    ),
    "BCE, label smoothing": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x), t * 0.875 + 0.0625, "mean"),
        lambda x, t: with_logits(x, t * 0.875 + 0.0625, "mean"),
        RIGHT,
    ),
    "BCE of two sigmoids, cat": Connection(
        lambda sigmoid, x, t: bce(torch.cat([sigmoid(x), sigmoid(-x)]), torch.cat([t, t])),
        lambda x, t: with_logits(torch.cat([x, -x]), torch.cat([t, t])),
        RIGHT,
    ),
    "BCE of two sigmoids, stack": Connection(
        lambda sigmoid, x, t: bce(torch.stack([sigmoid(x), sigmoid(x / 2)]), t.expand(2, -1)),
        lambda x, t: with_logits(torch.stack([x, x / 2]), t.expand(2, -1)),
        RIGHT,
    ),
    "two BCE": Connection(
        lambda sigmoid, x, t: sum(bce(y, t) + 2 * bce(y, 1 - t) for y in [sigmoid(x)]),
        lambda x, t: with_logits(x, t) + 2 * with_logits(x, 1 - t),
        RIGHT,
        roundings=12,
    ),
    "BCE and BCE of the flipped": Connection(
        lambda sigmoid, x, t: sum(bce(z, t) for y in [sigmoid(x)] for z in (y, y.flip(0))),
        lambda x, t: with_logits(x, t) + with_logits(x.flip(0), t),
        RIGHT,
    ),
    "BCE of chunks": Connection(
        lambda sigmoid, x, t: sum(
            bce(y, target) * (at + 1)
            for at, (y, target) in enumerate(zip(sigmoid(x).chunk(3), t.chunk(3), strict=True))
        ),
        lambda x, t: sum(
            with_logits(z, target) * (at + 1)
            for at, (z, target) in enumerate(zip(x.chunk(3), t.chunk(3), strict=True))
        ),
        RIGHT,
    ),
    "BCE, small": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x), t) * 2.0**-10,
        lambda x, t: with_logits(x, t) * 2.0**-10,
        RIGHT,
    ),
    "BCE, negated": Connection(
        lambda sigmoid, x, t: -bce(sigmoid(x), t, "mean"),
        lambda x, t: -with_logits(x, t, "mean"),
        RIGHT,
    ),
    "BCE, divided": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x), t) / 7,
        lambda x, t: with_logits(x, t) / 7,
        RIGHT,
    ),
    "BCE, three times with a regulariser": Connection(
        lambda sigmoid, x, t: 3 * bce(sigmoid(x), t) + 2.0**-10 * (x * x).sum(),
        lambda x, t: 3 * with_logits(x, t) + 2.0**-10 * (x * x).sum(),
        RIGHT,
    ),
    "BCE, weighted by its own output": Connection(
        lambda sigmoid, x, t: sum((bce(y, t, "none") * y.detach()).sum() for y in [sigmoid(x)]),
        lambda x, t: (
            (with_logits(x, t, "none") * torch.sigmoid(x)).detach().sum() * 0
            + (with_logits(x, t, "none") * torch.sigmoid(x).detach()).sum()
        ),
        RIGHT,
    ),
    "BCE, times its output": Connection(
        lambda sigmoid, x, t: sum((bce(y, t, "none") * y).sum() for y in [sigmoid(x)]),
        lambda x, t: (with_logits(x, t, "none") * exact_sigmoid(x)).sum(),
        RIGHT,
        # The logarithm, of which BCELoss takes -100 for the least.
        beside=100,
        roundings=24,
        dtypes=WIDE,
    ),
    "BCE, largest row": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x), t, "none").view(-1, 12).mean(1)[:1].max(),
        lambda x, t: with_logits(x, t, "none").view(-1, 12).mean(1)[:1].max(),
        RIGHT,
    ),
    "BCE, sum of row means": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).view(-1, 12), t.view(-1, 12), "none").mean(1).sum(),
        lambda x, t: with_logits(x.view(-1, 12), t.view(-1, 12), "none").mean(1).sum(),
        RIGHT,
    ),
    "BCE, clamp to the unit interval": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).clamp(0, 1), t),
        lambda x, t: with_logits(x, t),
        RIGHT if _clamp_hands_on_at_its_bound() else AS_TORCH,
    ),
    "BCE, clamp": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).clamp(1e-6, 1 - 1e-6), t),
        lambda x, t: _clamped_truth(x, t, 1e-6),
        RIGHT,
        dtypes=WIDE,
    ),
    "BCE, hardtanh": Connection(
        lambda sigmoid, x, t: bce(F.hardtanh(sigmoid(x), 1e-6, 1 - 1e-6), t),
        lambda x, t: _clamped_truth(x, t, 1e-6),
        RIGHT,
        dtypes=WIDE,
    ),
    "BCE, sort": Connection(_sorted, with_logits, RIGHT),
    "BCE, topk": Connection(_top, with_logits, RIGHT),
    "BCE, max over instances": Connection(_largest, with_logits, RIGHT),
    "BCE, amax over instances": Connection(
        lambda sigmoid, x, t: bce(sigmoid(_instances(x)).amax(1), t), with_logits, RIGHT
    ),
    "BCE, max_pool1d": Connection(_pooled, with_logits, RIGHT),
    "BCE, adaptive_max_pool1d": Connection(_pooled_adaptively, with_logits, RIGHT),
    "BCE, cast to float32": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).float(), t.float()),
        with_logits,
        RIGHT,
        dtypes=EVERY[1:],
    ),
    "BCE, cast to float64": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).double(), t.double()), with_logits, RIGHT
    ),
    "BCE, hooks on the output": Connection(_hooked, with_logits, RIGHT),
    "BCE, cast to float32 after float64": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x.double()).float(), t.float()),
        with_logits,
        RIGHT,
        rounds_to=torch.float32,
    ),
    "BCE, through float16": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).half().float(), t.float()),
        with_logits,
        RIGHT,
        rounds_to=torch.float16,
    ),
    "BCE, through bfloat16": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x).bfloat16().float(), t.float()),
        with_logits,
        RIGHT,
        rounds_to=torch.bfloat16,
    ),
    "BCE, a function of somebody's that hands on": Connection(
        lambda sigmoid, x, t: bce(HandsOn.apply(sigmoid(x)), t), with_logits, AS_TORCH
    ),
    "BCE, times one": Connection(
        lambda sigmoid, x, t: bce(sigmoid(x) * 1, t), with_logits, AS_TORCH
    ),
    "BCE, abs": Connection(lambda sigmoid, x, t: bce(sigmoid(x).abs(), t), with_logits, AS_TORCH),
    "BCE, relu": Connection(
        lambda sigmoid, x, t: bce(F.relu(sigmoid(x)), t), with_logits, AS_TORCH
    ),
}

# BCE beside another loss of the same output.


def _beside(other: Callable[[Tensor, Tensor], Tensor], largest: float) -> Connection:
    def use(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
        y = sigmoid(x)
        return bce(y, t) + other(y, t)

    def truth(x: Tensor, t: Tensor) -> Tensor:
        return with_logits(x, t) + other(exact_sigmoid(x), t)

    return Connection(use, truth, AS_TORCH, roundings=16, beside=largest)


def dice(y: Tensor, t: Tensor) -> Tensor:
    return 1 - (2 * (y * t).sum() + 1) / (y.sum() + t.sum() + 1)


def _parts(sigmoid: Activation, x: Tensor, t: Tensor, other: Callable[..., Tensor]) -> Tensor:
    """The cross entropy of every other element, and another loss of the rest."""
    y = sigmoid(x)
    return bce(y[::2], t[::2]) + other(y[1::2], t[1::2])


def _beside_entropy(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    y = sigmoid(x)
    return bce(y, t) - (y * (y + 1e-7).log() + (1 - y) * (1 - y + 1e-7).log()).sum()


def _beside_entropy_truth(x: Tensor, t: Tensor) -> Tensor:
    value, complement = both_sides(x)
    entropy = value * (value + 1e-7).log() + complement * (complement + 1e-7).log()
    return with_logits(x, t) - entropy.sum()


def _beside_dividing(other: Callable[[Tensor, Tensor], Tensor], largest: float = 1.0) -> Connection:
    """Another loss, of both sides, that divides as well."""

    def use(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
        y = sigmoid(x)
        return bce(y, t) + other(y, 1 - y).sum()

    def truth(x: Tensor, t: Tensor) -> Tensor:
        return with_logits(x, t) + other(*both_sides(x)).sum()

    return Connection(use, truth, AS_TORCH, beside=largest)


BESIDE: dict[str, Connection] = {
    "BCE beside MSE": _beside(lambda y, t: F.mse_loss(y, t, reduction="sum"), 2),
    "BCE beside L1": _beside(lambda y, t: F.l1_loss(y, t, reduction="sum"), 1),
    "BCE beside dice": _beside(dice, 1),
    "BCE beside the mean": _beside(lambda y, t: y.mean(), 1),
    "BCE beside a layer": _beside(
        lambda y, t: (y.view(-1, 12) @ matrix(12, 3, y)).tanh().square().mean(), 1
    ),
    "BCE beside log y": _beside_dividing(lambda s, c: s.log()),
    "BCE beside log y, minus": _beside_dividing(lambda s, c: -s.log()),
    "BCE beside y log y": _beside_dividing(lambda s, c: s * s.log(), 100),
    "BCE beside the root": _beside_dividing(lambda s, c: s.sqrt()),
    "BCE beside a root of a view": _beside_dividing(lambda s, c: s.view(-1, 12).t().sqrt()),
    "BCE beside a power": _beside_dividing(lambda s, c: s**0.25),
    "BCE beside 1 / y": _beside_dividing(lambda s, c: 2.0**-10 / s),
    "BCE beside log(1 - y)": _beside_dividing(lambda s, c: -c.log()),
    "BCE beside 1 / (1 - y)": _beside_dividing(lambda s, c: 2.0**-10 / c),
    "BCE beside the root of 1 - y": _beside_dividing(lambda s, c: c.sqrt()),
    "BCE beside the odds": _beside_dividing(lambda s, c: 2.0**-10 * s / c),
    "BCE beside the divergence from 0.05": _beside_dividing(
        lambda s, c: 0.05 * (0.05 / s).log() + 0.95 * (0.95 / c).log()
    ),
    "BCE beside the divergence of rows": _beside_dividing(
        lambda s, c: (
            0.05 * (0.05 / s.view(-1, 12).mean(1)).log()
            + 0.95 * (0.95 / c.view(-1, 12).mean(1)).log()
        )
    ),
    "BCE beside log(y + 1e-7)": _beside_dividing(lambda s, c: (s + 1e-7).log()),
    "BCE beside the entropy": Connection(_beside_entropy, _beside_entropy_truth, AS_TORCH),
    "BCE of one half, MSE of the other": Connection(
        lambda sigmoid, x, t: _parts(sigmoid, x, t, F.mse_loss),
        lambda x, t: with_logits(x[::2], t[::2]) + F.mse_loss(exact_sigmoid(x[1::2]), t[1::2]),
        AS_TORCH,
        beside=2,
    ),
    "BCE of one half, the sum of the other": Connection(
        lambda sigmoid, x, t: _parts(sigmoid, x, t, lambda y, t: y.sum()),
        lambda x, t: with_logits(x[::2], t[::2]) + exact_sigmoid(x[1::2]).sum(),
        AS_TORCH,
        beside=1,
    ),
    "BCE of one half, log(1 - y) of the other": Connection(
        lambda sigmoid, x, t: _parts(sigmoid, x, t, lambda y, t: -(1 - y).log().sum()),
        lambda x, t: with_logits(x[::2], t[::2]) - logarithms(x[1::2])[1].sum(),
        AS_TORCH,
    ),
    "BCE under a mask of weights, and the sum": Connection(
        lambda sigmoid, x, t: sum(
            F.binary_cross_entropy(y, t, _every_third(x).to(x.dtype)) + y.sum()
            for y in [sigmoid(x)]
        ),
        lambda x, t: (
            F.binary_cross_entropy_with_logits(x, t, _every_third(x).to(x.dtype))
            + exact_sigmoid(x).sum()
        ),
        AS_TORCH,
        beside=1,
    ),
}

# BCE of what was made of the probabilities.


def _made_of_one(
    make: Callable[[Tensor], Tensor], pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Connection:
    return Connection(
        lambda sigmoid, x, t: bce(make(sigmoid(x)), t),
        lambda x, t: likelihood(*pair(*both_sides(x)), t).sum(),
        AS_TORCH,
    )


def _made_of_two(
    make: Callable[[Tensor, Tensor], Tensor],
    pair: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    second: Callable[[Tensor], Tensor] = lambda x: x.flip(0),
) -> Connection:
    return Connection(
        lambda sigmoid, x, t: bce(make(sigmoid(x), sigmoid(second(x))), t),
        lambda x, t: likelihood(*pair(*both_sides(x), *both_sides(second(x))), t).sum(),
        AS_TORCH,
    )


def _noisy_or(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return bce(1 - (1 - sigmoid(x)).view(-1, 3).prod(1), t[::3])


def _noisy_or_truth(x: Tensor, t: Tensor) -> Tensor:
    none = logarithms(x)[1].view(-1, 3).sum(1)
    return -(t[::3] * (-torch.expm1(none)).log() + (1 - t[::3]) * none).sum()


def _mean_of_instances(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return bce(sigmoid(x).view(-1, 3).mean(1), t[::3])


def _mean_of_instances_truth(x: Tensor, t: Tensor) -> Tensor:
    value, complement = (side.view(-1, 3).mean(1) for side in both_sides(x))
    return likelihood(value, complement, t[::3]).sum()


def _pooled_alike(
    pool: Callable[[Tensor], Tensor],
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Connection:
    """The cross entropy of one number for each three instances of about the same logit, from the
    probabilities and, for the truth, from both sides of them."""

    def instances(x: Tensor) -> Tensor:
        return torch.stack([x, x + 0.25, x - 0.25], 1)

    return Connection(
        lambda sigmoid, x, t: bce(pool(sigmoid(instances(x))).clamp(0, 1), t),
        lambda x, t: likelihood(*pair(*both_sides(instances(x))), t).sum(),
        AS_TORCH,
    )


def _root_mean_square(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    root = s.square().mean(1).sqrt()
    return root, (c * (1 + s)).mean(1) / (1 + root)


def _log_mean_exp(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return s.exp().mean(1).log(), -torch.log1p(torch.expm1(-c).mean(1))


MADE: dict[str, Connection] = {
    "BCE of the mean of instances alike": _pooled_alike(
        lambda y: y.mean(1), lambda s, c: (s.mean(1), c.mean(1))
    ),
    "BCE of the root mean square": _pooled_alike(
        lambda y: y.square().mean(1).sqrt(), _root_mean_square
    ),
    "BCE of the norm of instances": _pooled_alike(
        lambda y: y.norm(dim=1) / 3**0.5, _root_mean_square
    ),
    "BCE of lp_pool1d": _pooled_alike(
        lambda y: (F.lp_pool1d(y.unsqueeze(1), 2.0, 3) / 3**0.5).flatten(), _root_mean_square
    ),
    "BCE of the logarithm of the mean exponential": _pooled_alike(
        lambda y: y.exp().mean(1).log(), _log_mean_exp
    ),
    "BCE of logsumexp": _pooled_alike(lambda y: y.logsumexp(1) - math.log(3), _log_mean_exp),
    "BCE of logsumexp of logarithms": _pooled_alike(
        lambda y: (y.log().logsumexp(1) - math.log(3)).exp(), lambda s, c: (s.mean(1), c.mean(1))
    ),
    "BCE of the mean weighted by softmax": _pooled_alike(
        lambda y: (y.detach().softmax(1) * y).sum(1),
        lambda s, c: ((s.detach().softmax(1) * s).sum(1), (s.detach().softmax(1) * c).sum(1)),
    ),
    "BCE of 0.9 y + 0.05": _made_of_one(
        lambda y: y * 0.9 + 0.05, lambda s, c: (0.9 * s + 0.05, 0.9 * c + 0.05)
    ),
    "BCE of 1 - y": _made_of_one(lambda y: 1 - y, lambda s, c: (c, s)),
    "BCE of (1 - y).flip": Connection(
        lambda sigmoid, x, t: bce((1 - sigmoid(x)).flip(0), t),
        lambda x, t: with_logits(-x.flip(0), t),
        AS_TORCH,
    ),
    "BCE of 1 - (1 - y)": _made_of_one(lambda y: 1 - (1 - y), lambda s, c: (s, c)),
    "BCE of y / 2": _made_of_one(lambda y: y / 2, lambda s, c: (s / 2, (1 + c) / 2)),
    "BCE of y squared": _made_of_one(lambda y: y**2, lambda s, c: (s * s, c * (1 + s))),
    "BCE of y y": _made_of_one(lambda y: y * y, lambda s, c: (s * s, c * (1 + s))),
    "BCE of the root": _made_of_one(
        lambda y: y.sqrt(), lambda s, c: (s.sqrt(), c / (1 + s.sqrt()))
    ),
    "BCE of y to the 3/2": _made_of_one(
        lambda y: y**1.5,
        lambda s, c: (s**1.5, c * (1 + s + s * s) / (1 + s**1.5)),
    ),
    "BCE of exp(log y)": _made_of_one(lambda y: y.log().exp(), lambda s, c: (s, c)),
    "BCE of the mean of two": _made_of_two(
        lambda y, z: (y + z) / 2, lambda s, c, u, d: ((s + u) / 2, (c + d) / 2)
    ),
    "BCE of the mean of two, torch.mean": _made_of_two(
        lambda y, z: torch.stack([y, z]).mean(0), lambda s, c, u, d: ((s + u) / 2, (c + d) / 2)
    ),
    "BCE of the mean of alike two": _made_of_two(
        lambda y, z: (y + z) / 2,
        lambda s, c, u, d: ((s + u) / 2, (c + d) / 2),
        lambda x: x + 0.5,
    ),
    "BCE of a weighted mean": _made_of_two(
        lambda y, z: 0.25 * y + 0.75 * z,
        lambda s, c, u, d: (0.25 * s + 0.75 * u, 0.25 * c + 0.75 * d),
    ),
    "BCE of lerp": _made_of_two(
        lambda y, z: torch.lerp(y, z, 0.25),
        lambda s, c, u, d: (0.75 * s + 0.25 * u, 0.75 * c + 0.25 * d),
    ),
    "BCE of the product of two": _made_of_two(
        lambda y, z: y * z, lambda s, c, u, d: (s * u, c + s * d)
    ),
    "BCE of the product with one that is sure": _made_of_two(
        lambda y, z: y * z, lambda s, c, u, d: (s * u, c + s * d), lambda x: x + 4
    ),
    "BCE of the geometric mean": _made_of_two(
        lambda y, z: (y * z).sqrt(),
        lambda s, c, u, d: ((s * u).sqrt(), (c + s * d) / (1 + (s * u).sqrt())),
    ),
    "BCE of y + z - y z": _made_of_two(
        lambda y, z: y + z - y * z, lambda s, c, u, d: (s + u * c, c * d)
    ),
    "BCE of a mixture": _made_of_two(
        lambda y, z: y * z + (1 - y) * 0.25,
        lambda s, c, u, d: (s * u + c * 0.25, s * d + c * 0.75),
    ),
    "BCE of the larger of two": Connection(
        lambda sigmoid, x, t: bce(torch.maximum(sigmoid(x), sigmoid(x - 3)), t),
        with_logits,
        AS_TORCH,
    ),
    "BCE of the smaller of two": Connection(
        lambda sigmoid, x, t: bce(torch.minimum(sigmoid(x), sigmoid(x + 3)), t),
        with_logits,
        AS_TORCH,
    ),
    "BCE of noisy or": Connection(_noisy_or, _noisy_or_truth, AS_TORCH),
    "BCE of the mean over instances": Connection(
        _mean_of_instances, _mean_of_instances_truth, AS_TORCH
    ),
    "BCE of the average pool": Connection(
        lambda sigmoid, x, t: bce(F.avg_pool1d(sigmoid(x).view(1, 1, -1), 3).flatten(), t[::3]),
        _mean_of_instances_truth,
        AS_TORCH,
    ),
}

# The cross entropy written by hand, and other losses that divide by 1 - y.


def _by_hand(y: Tensor, t: Tensor, least: float = 0) -> Tensor:
    if least == 0:
        return -(t * torch.log(y) + (1 - t) * torch.log(1 - y)).sum()
    return -(t * torch.log(y + least) + (1 - t) * torch.log(1 - y + least)).sum()


def _by_hand_truth(x: Tensor, t: Tensor, least: float) -> Tensor:
    value, complement = both_sides(x)
    return likelihood(value + least, complement + least, t).sum()


def of_output(
    loss: Callable[[Tensor, Tensor], Tensor],
    truth: Callable[[Tensor, Tensor], Tensor],
    promise: str = AS_TORCH,
    **options: Any,
) -> Connection:
    """A loss of the output of one sigmoid of the logits."""
    return Connection(lambda sigmoid, x, t: loss(sigmoid(x), t), truth, promise, **options)


def _of_the_logarithm(make: Callable[[Tensor], Tensor], factor: float = 1.0) -> Connection:
    """A loss that is a multiple of log(1 - y)."""
    return of_output(
        lambda y, t: (make(y) * weights(y)).sum(),
        lambda x, t: factor * (logarithms(x)[1] * weights(x)).sum(),
    )


def _of_sides(
    make: Callable[[Tensor], Tensor], truth: Callable[[Tensor, Tensor], Tensor], **options: Any
) -> Connection:
    """A loss summed over elements, of y and, for the truth, of σ and 1 - σ."""
    return of_output(
        lambda y, t: make(y).sum(), lambda x, t: truth(*both_sides(x)).sum(), **options
    )


def _attention_to_itself(z: Tensor) -> Tensor:
    """Of every element to itself alone, by torch's attention."""
    rows = z.view(-1, 1, 12, 1).expand(-1, 1, 12, 12).contiguous()
    one_hot = (50 * torch.eye(12, dtype=z.dtype, device=z.device)).expand_as(rows).contiguous()
    return F.scaled_dot_product_attention(one_hot, one_hot, rows)[..., 0].flatten()


def _classes(y: Tensor) -> Tensor:
    return torch.stack([1 - y, y], 1)


def _kl_truth(x: Tensor, t: Tensor) -> Tensor:
    log_value, log_complement = logarithms(x)
    return (
        -(t * log_value + (1 - t) * log_complement).sum()
        + (torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t)).sum()
    )


def _hard_truth(x: Tensor, t: Tensor) -> Tensor:
    return with_logits(x, hard(t))


def _focal(y: Tensor, t: Tensor) -> Tensor:
    hit = hard(t) * y + (1 - hard(t)) * (1 - y)
    return -((1 - hit) ** 2 * hit.log()).sum()


def _focal_truth(x: Tensor, t: Tensor) -> Tensor:
    signed = torch.where(t > 0.5, x, -x)
    _, miss = both_sides(signed)
    return -(miss**2 * F.logsigmoid(signed)).sum()


def _focal_of_two_terms(y: Tensor, t: Tensor) -> Tensor:
    return -(
        0.25 * t * (1 - y) ** 2 * (y + 1e-8).log() + 0.75 * (1 - t) * y**2 * (1 - y + 1e-8).log()
    ).sum()


def _focal_of_two_terms_truth(x: Tensor, t: Tensor) -> Tensor:
    value, complement = both_sides(x)
    positive = 0.25 * t * complement**2 * (value + 1e-8).log()
    return -(positive + 0.75 * (1 - t) * value**2 * (complement + 1e-8).log()).sum()


def _focal_of_bce(y: Tensor, t: Tensor) -> Tensor:
    loss = bce(y, hard(t), "none")
    return ((1 - (-loss).exp()) ** 2 * loss).sum()


def _normal_quantile_truth(x: Tensor, factor: float) -> Tensor:
    # Of the smaller side, whose quantile is never infinite.
    sign = torch.where(x > 0, 1.0, -1.0)
    return factor * (-sign * torch.special.ndtri(exact_sigmoid(-sign * x))).sum()


def _ordinal(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    return -(sigmoid(x) - sigmoid(x - 2)).log().sum()


def _ordinal_truth(x: Tensor, t: Tensor) -> Tensor:
    # σ(a) - σ(b) = σ(a) σ(-b) (1 - exp(b - a)).
    return -(F.logsigmoid(x) + F.logsigmoid(2 - x) + math.log1p(-math.exp(-2))).sum()


def _tversky(y: Tensor, t: Tensor) -> Tensor:
    hits = (y * t).sum()
    misses = (t * (1 - y)).sum()
    false = ((1 - t) * y).sum()
    return 1 - (hits + 1) / (hits + 0.3 * false + 0.7 * misses + 1)


def _jaccard(y: Tensor, t: Tensor) -> Tensor:
    both = (y * t).sum()
    return 1 - (both + 1) / (y.sum() + t.sum() - both + 1)


def _continuous_bernoulli_truth(x: Tensor, t: Tensor) -> Tensor:
    # The norm 2 artanh(1 - 2σ) / (1 - 2σ) is x / tanh(x / 2), and 2 + x²/6 around 0.
    away = torch.where(x.abs() < 1e-3, 1.0, x)
    norm = torch.where(x.abs() < 1e-3, math.log(2) + x * x / 12, (away / (away / 2).tanh()).log())
    return (with_logits(x, t, "none") - norm).sum()


def _entropy_truth(x: Tensor, t: Tensor) -> Tensor:
    value, complement = both_sides(x)
    log_value, log_complement = logarithms(x)
    return -(value * log_value + complement * log_complement).sum()


def _divergence_truth(x: Tensor, t: Tensor) -> Tensor:
    value, complement = both_sides(x)
    log_value, log_complement = logarithms(x)
    return (
        value * (log_value - math.log(0.25)) + complement * (log_complement - math.log(0.75))
    ).sum()


def _survival_truth(x: Tensor, t: Tensor) -> Tensor:
    return -(logarithms(x)[1].view(-1, 3).cumsum(1)).sum()


def _bernoulli(y: Tensor) -> distributions.Bernoulli:
    return distributions.Bernoulli(probs=y, validate_args=False)


DIVIDING: dict[str, Connection] = {
    "by hand": of_output(_by_hand, with_logits),
    "by hand, mean": of_output(
        lambda y, t: -(t * y.log() + (1 - t) * (1 - y).log()).mean(),
        lambda x, t: with_logits(x, t, "mean"),
    ),
    "by hand, epsilon 1e-7": of_output(
        lambda y, t: _by_hand(y, t, 1e-7), lambda x, t: _by_hand_truth(x, t, 1e-7)
    ),
    "by hand, epsilon 1e-8": of_output(
        lambda y, t: _by_hand(y, t, 1e-8), lambda x, t: _by_hand_truth(x, t, 1e-8)
    ),
    "by hand, epsilon 1e-12": of_output(
        lambda y, t: _by_hand(y, t, 1e-12), lambda x, t: _by_hand_truth(x, t, 1e-12)
    ),
    "by hand, clamp": of_output(
        lambda y, t: _by_hand(y.clamp(1e-6, 1 - 1e-6), t),
        lambda x, t: _clamped_truth(x, t, 1e-6),
        dtypes=WIDE,
    ),
    "by hand, clamped logarithms": of_output(
        lambda y, t: -(t * y.log().clamp(min=-100) + (1 - t) * (1 - y).log().clamp(min=-100)).sum(),
        with_logits,
    ),
    "by hand, log1p": of_output(
        lambda y, t: -(t * y.log() + (1 - t) * torch.log1p(-y)).sum(), with_logits
    ),
    "by hand, xlogy": of_output(
        lambda y, t: -(torch.xlogy(t, y) + torch.xlogy(1 - t, 1 - y)).sum(), with_logits
    ),
    "by hand, xlog1py": of_output(
        lambda y, t: -(torch.xlogy(t, y) + torch.special.xlog1py(1 - t, -y)).sum(), with_logits
    ),
    "by hand, log2": of_output(
        lambda y, t: -(t * y.log2() + (1 - t) * (1 - y).log2()).sum(),
        lambda x, t: with_logits(x, t) / math.log(2),
    ),
    "by hand, log10": of_output(
        lambda y, t: -(t * y.log10() + (1 - t) * (1 - y).log10()).sum(),
        lambda x, t: with_logits(x, t) / math.log(10),
    ),
    "by hand, where": of_output(
        lambda y, t: -torch.where(t > 0.5, y, 1 - y).log().sum(), _hard_truth
    ),
    "by hand, the probability of the target": of_output(
        lambda y, t: -(hard(t) * y + (1 - hard(t)) * (1 - y)).log().sum(), _hard_truth
    ),
    "by hand, the distance to the target": of_output(
        lambda y, t: -(1 - (y - hard(t)).abs()).log().sum(), _hard_truth
    ),
    "by hand, the power of the probabilities": of_output(
        lambda y, t: -(y ** hard(t) * (1 - y) ** (1 - hard(t))).log().sum(), _hard_truth
    ),
    "by hand, of the odds": of_output(
        lambda y, t: ((1 + (y / (1 - y))).log() - t * (y / (1 - y)).log()).sum(), with_logits
    ),
    "by hand, through a view": of_output(
        lambda y, t: _by_hand(y.view(-1, 12).t()[1:], t.view(-1, 12).t()[1:]),
        lambda x, t: with_logits(x.view(-1, 12)[:, 1:], t.view(-1, 12)[:, 1:]),
    ),
    "by hand, cast to float32": of_output(
        lambda y, t: _by_hand(y.float(), t.float()), with_logits, dtypes=EVERY[1:]
    ),
    "log(1 - y)": _of_the_logarithm(lambda y: (1 - y).log()),
    "log1p(-y)": _of_the_logarithm(lambda y: (-y).log1p()),
    "log(-(y - 1))": _of_the_logarithm(lambda y: (-(y - 1)).log()),
    "log of rsub": _of_the_logarithm(lambda y: torch.rsub(y, 1).log()),
    "log of |y - 1|": _of_the_logarithm(lambda y: (y - 1).abs().log()),
    "log of the sum with -y": _of_the_logarithm(lambda y: (torch.ones_like(y) + -1 * y).log()),
    "log of 1 - clone": _of_the_logarithm(lambda y: (1 - y.clone().flip(0)).flip(0).log()),
    "log of add, alpha": _of_the_logarithm(
        lambda y: torch.add(torch.ones_like(y), y, alpha=-1).log()
    ),
    "log of addcmul": _of_the_logarithm(
        lambda y: torch.addcmul(torch.ones_like(y), y, torch.full_like(y, -1)).log()
    ),
    "log of neg_ and add_": _of_the_logarithm(lambda y: (y * 1).neg_().add_(1).log_()),
    "log of 2 (1 - y)": _of_the_logarithm(lambda y: (2 - 2 * y).log()),
    "log of (1 - y) / 3": _of_the_logarithm(lambda y: ((1 - y) / 3).log()),
    "log of (1 - y) ** 2": _of_the_logarithm(lambda y: ((1 - y) ** 2).log(), 2.0),
    "log of square(1 - y)": _of_the_logarithm(lambda y: (1 - y).square().log(), 2.0),
    "log of sqrt(1 - y)": _of_the_logarithm(lambda y: (1 - y).sqrt().log(), 0.5),
    "logsumexp of logarithms": _of_the_logarithm(
        lambda y: torch.logaddexp((1 - y).log(), (1 - y).log()), 1.0
    ),
    "log of 1 - y ** 2": _of_sides(
        lambda y: (1 - y**2).log(), lambda s, c: c.log() + (1 + s).log()
    ),
    "log of (1 - y) y": _of_sides(lambda y: (y * (1 - y)).log(), lambda s, c: c.log() + s.log()),
    "log of 1 - y z": Connection(
        lambda sigmoid, x, t: (1 - sigmoid(x) * sigmoid(x / 2)).log().sum(),
        lambda x, t: sum(
            (c + s * d).log().sum() for (s, c), (_, d) in [(both_sides(x), both_sides(x / 2))]
        ),
        AS_TORCH,
    ),
    "log of a mixture": Connection(
        lambda sigmoid, x, t: (sigmoid(x) * 0.25 + (1 - sigmoid(x)) * sigmoid(-x / 2)).log().sum(),
        lambda x, t: sum(
            (s * 0.25 + c * d).log().sum()
            for (s, c), (_, d) in [(both_sides(x), both_sides(x / 2))]
        ),
        AS_TORCH,
    ),
    "log of 1 - y / 2": _of_sides(lambda y: (1 - y / 2).log(), lambda s, c: ((1 + c) / 2).log()),
    "log of 0.9 y + 0.05": _of_sides(
        lambda y: (y * 0.9 + 0.05).log(), lambda s, c: (0.9 * s + 0.05).log()
    ),
    "log of 1 - y, rows": Connection(
        lambda sigmoid, x, t: (1 - sigmoid(x)).view(-1, 3).mean(1).log().sum(),
        lambda x, t: both_sides(x)[1].view(-1, 3).mean(1).log().sum(),
        AS_TORCH,
    ),
    "log of prod(1 - y)": Connection(
        lambda sigmoid, x, t: (1 - sigmoid(x)).view(-1, 3).prod(1).log().sum(),
        lambda x, t: logarithms(x)[1].sum(),
        AS_TORCH,
    ),
    "survival, cumprod": of_output(
        lambda y, t: -(1 - y).view(-1, 3).cumprod(1).log().sum(), _survival_truth
    ),
    "survival, cumsum": of_output(
        lambda y, t: -(1 - y).log().view(-1, 3).cumsum(1).sum(), _survival_truth
    ),
    "reciprocal": _of_sides(lambda y: 1 / (1 - y), lambda s, c: 1 / c),
    "reciprocal()": _of_sides(lambda y: (1 - y).reciprocal(), lambda s, c: 1 / c),
    "power -1": _of_sides(lambda y: (1 - y) ** -1, lambda s, c: 1 / c),
    "power -1/2": _of_sides(lambda y: (1 - y) ** -0.5, lambda s, c: c**-0.5),
    "power 1/2": _of_sides(lambda y: (1 - y) ** 0.5, lambda s, c: c.sqrt()),
    "power of a tensor": _of_sides(
        lambda y: (1 - y) ** torch.full_like(y, -0.5), lambda s, c: c**-0.5
    ),
    "cube": _of_sides(lambda y: (1 - y) ** 3, lambda s, c: c**3),
    "odds": _of_sides(lambda y: y / (1 - y), lambda s, c: s / c),
    "odds, div_": _of_sides(lambda y: (y * 1).div_(1 - y), lambda s, c: s / c),
    "addcdiv": _of_sides(
        lambda y: torch.addcdiv(torch.zeros_like(y), torch.ones_like(y), 1 - y), lambda s, c: 1 / c
    ),
    "1 / (1 - y + 1e-6)": _of_sides(lambda y: 1 / (1 - y + 1e-6), lambda s, c: 1 / (c + 1e-6)),
    "a sum over 1 - y": Connection(
        lambda sigmoid, x, t: (
            (x.detach().view(-1, 3).sum(1) / (1 - sigmoid(x)).view(-1, 3).sum(1)).tanh().sum()
        ),
        lambda x, t: (
            (x.detach().view(-1, 3).sum(1) / both_sides(x)[1].view(-1, 3).sum(1)).tanh().sum()
        ),
        AS_TORCH,
    ),
    "logit": of_output(
        lambda y, t: (torch.logit(y) * weights(y)).sum(), lambda x, t: (x * weights(x)).sum()
    ),
    "logit, eps": of_output(
        lambda y, t: (torch.logit(y, 1e-6) * weights(y)).sum(),
        lambda x, t: (torch.where(_in_clamp(x, 1e-6), x, x.detach()) * weights(x)).sum(),
        dtypes=WIDE,
    ),
    "log(y / (1 - y))": of_output(lambda y, t: (y / (1 - y)).log().sum(), lambda x, t: x.sum()),
    "log y - log(1 - y)": of_output(
        lambda y, t: (y.log() - (1 - y).log()).sum(), lambda x, t: x.sum()
    ),
    "logit and BCE with logits": of_output(
        lambda y, t: F.binary_cross_entropy_with_logits(torch.logit(y), t, reduction="sum"),
        with_logits,
    ),
    "atanh": _of_sides(torch.atanh, lambda s, c: ((1 + s).log() - c.log()) / 2),
    "atanh of 2 y - 1": of_output(
        lambda y, t: torch.atanh(2 * y - 1).sum(), lambda x, t: (x / 2).sum()
    ),
    "asin": _of_sides(torch.asin, lambda s, c: torch.atan2(s, (c * (1 + s)).sqrt())),
    "acos": _of_sides(torch.acos, lambda s, c: torch.atan2((c * (1 + s)).sqrt(), s)),
    "acosh of 2 - y": _of_sides(
        lambda y: torch.acosh(2 - y),
        lambda s, c: torch.log1p(c + (c * (2 + c)).sqrt()),
    ),
    **{
        f"log of {function.__name__}(1 - y)": _of_sides(
            lambda y, function=function: (function(1 - y) + 1e-8).log(),
            lambda s, c, function=function: (function(c) + 1e-8).log(),
        )
        for function in (torch.sin, torch.sinh, torch.tan, torch.asinh, torch.erf, torch.expm1)
    },
    "tan": _of_sides(
        lambda y: torch.tan(math.pi / 2 * y), lambda s, c: 1 / torch.tan(math.pi / 2 * c)
    ),
    "log of an attention to 1 - y": _of_sides(
        lambda y: (_attention_to_itself(1 - y) + 1e-8).log(), lambda s, c: (c + 1e-8).log()
    ),
    "rsqrt": _of_sides(lambda y: torch.rsqrt(1 - y), lambda s, c: c.rsqrt()),
    "sqrt": _of_sides(lambda y: torch.sqrt(1 - y), lambda s, c: c.sqrt()),
    "sqrt of 1 - y ** 2": _of_sides(
        lambda y: torch.sqrt(1 - y**2), lambda s, c: (c * (1 + s)).sqrt()
    ),
    "sqrt of y (1 - y)": _of_sides(lambda y: (y * (1 - y)).sqrt(), lambda s, c: (s * c).sqrt()),
    "normalize(1 - y)": Connection(
        lambda sigmoid, x, t: (
            F.normalize(1 - sigmoid(torch.stack([x, x + 0.25], 1)), dim=1)[:, 0] * weights(x)
        ).sum(),
        lambda x, t: sum(
            (F.normalize(c, dim=1, eps=0)[:, 0] * weights(x)).sum()
            for _, c in [both_sides(torch.stack([x, x + 0.25], 1))]
        ),
        AS_TORCH,
    ),
    "log of a blur of 1 - y": Connection(
        lambda sigmoid, x, t: (
            F.conv1d(
                1 - sigmoid(torch.stack([x, x + 0.25, x - 0.25], 1)).unsqueeze(1),
                x.new_tensor([[[0.25, 0.5, 0.25]]]),
            )
            .log()
            .sum()
        ),
        lambda x, t: (
            (
                both_sides(torch.stack([x, x + 0.25, x - 0.25], 1))[1]
                @ x.new_tensor([0.25, 0.5, 0.25])
            )
            .log()
            .sum()
        ),
        AS_TORCH,
    ),
    "log of a linear layer of 1 - y": Connection(
        lambda sigmoid, x, t: (
            F.linear(
                1 - sigmoid(torch.stack([x, x + 0.25, x - 0.25], 1)),
                x.new_ones(2, 3) / 4,
                x.new_zeros(2),
            )
            .log()
            .sum()
        ),
        lambda x, t: (
            2 * (both_sides(torch.stack([x, x + 0.25, x - 0.25], 1))[1].sum(1) / 4).log().sum()
        ),
        AS_TORCH,
    ),
    # As a loss does that corrects for noise in the labels, where there is none.
    "log of classes times a matrix": of_output(
        lambda y, t: F.nll_loss(
            (_classes(y) @ torch.eye(2, dtype=y.dtype, device=y.device)).log(),
            (t > 0.5).long(),
            reduction="sum",
        ),
        _hard_truth,
    ),
    "norm of 1 - y": Connection(
        lambda sigmoid, x, t: (1 - sigmoid(x)).view(-1, 3).norm(dim=1).sum(),
        lambda x, t: both_sides(x)[1].view(-1, 3).norm(dim=1).sum(),
        AS_TORCH,
    ),
    "erfinv of 2 y - 1": of_output(
        lambda y, t: torch.erfinv(2 * y - 1).sum(),
        lambda x, t: _normal_quantile_truth(x, 1 / math.sqrt(2)),
    ),
    "ndtri": of_output(
        lambda y, t: torch.special.ndtri(y).sum(), lambda x, t: _normal_quantile_truth(x, 1.0)
    ),
    "lgamma": _of_sides(lambda y: torch.lgamma(1 - y), lambda s, c: torch.lgamma(c)),
    "digamma": _of_sides(lambda y: torch.digamma(1 - y), lambda s, c: torch.digamma(c)),
    "entr": _of_sides(
        lambda y: torch.special.entr(y) + torch.special.entr(1 - y),
        lambda s, c: torch.special.entr(s) + torch.special.entr(c),
    ),
    "ordinal": Connection(_ordinal, _ordinal_truth, AS_TORCH),
    "kl_div": of_output(
        lambda y, t: F.kl_div(_classes(y).log(), _classes(t), reduction="sum"), _kl_truth
    ),
    "nll_loss": of_output(
        lambda y, t: F.nll_loss(_classes(y).log(), (t > 0.5).long(), reduction="sum"), _hard_truth
    ),
    "cross_entropy of logarithms": of_output(
        lambda y, t: F.cross_entropy(_classes(y).log(), (t > 0.5).long(), reduction="sum"),
        _hard_truth,
    ),
    "gather of logarithms": of_output(
        lambda y, t: -_classes(y).log().gather(1, (t > 0.5).long().unsqueeze(1)).sum(), _hard_truth
    ),
    "log of gathered": of_output(
        lambda y, t: -_classes(y).gather(1, (t > 0.5).long().unsqueeze(1)).log().sum(), _hard_truth
    ),
    "Gaussian NLL with variance 1 - y": of_output(
        lambda y, t: F.gaussian_nll_loss(torch.zeros_like(y), t, 1 - y, reduction="sum"),
        lambda x, t: F.gaussian_nll_loss(torch.zeros_like(x), t, both_sides(x)[1], reduction="sum"),
    ),
    "focal": of_output(_focal, _focal_truth),
    "focal, two terms": of_output(_focal_of_two_terms, _focal_of_two_terms_truth),
    "focal of BCE": of_output(_focal_of_bce, _focal_truth),
    "Tversky": of_output(_tversky, lambda x, t: _tversky(exact_sigmoid(x), t)),
    "Jaccard": of_output(_jaccard, lambda x, t: _jaccard(exact_sigmoid(x), t)),
    "Bernoulli": of_output(lambda y, t: -_bernoulli(y).log_prob(t).sum(), with_logits),
    "Bernoulli, entropy": of_output(lambda y, t: _bernoulli(y).entropy().sum(), _entropy_truth),
    "Bernoulli, divergence": of_output(
        lambda y, t: distributions.kl_divergence(
            _bernoulli(y), _bernoulli(torch.full_like(y, 0.25))
        ).sum(),
        _divergence_truth,
    ),
    "Binomial": of_output(
        lambda y, t: -distributions.Binomial(3, probs=y).log_prob(3 * hard(t)).sum(),
        lambda x, t: 3 * _hard_truth(x, t),
    ),
    "Geometric": of_output(
        lambda y, t: (
            -distributions.Geometric(probs=y, validate_args=False).log_prob(2 * hard(t)).sum()
        ),
        lambda x, t: -(2 * hard(t) * logarithms(x)[1] + logarithms(x)[0]).sum(),
    ),
    "NegativeBinomial": of_output(
        lambda y, t: (
            -distributions.NegativeBinomial(2.0, probs=y, validate_args=False)
            .log_prob(3 * hard(t))
            .sum()
        ),
        lambda x, t: -(2 * logarithms(x)[1] + 3 * hard(t) * logarithms(x)[0]).sum(),
    ),
    "ContinuousBernoulli": of_output(
        lambda y, t: (
            -distributions.ContinuousBernoulli(probs=y, validate_args=False).log_prob(t).sum()
        ),
        _continuous_bernoulli_truth,
    ),
    "Categorical": of_output(
        lambda y, t: (
            -distributions.Categorical(probs=_classes(y), validate_args=False)
            .log_prob(hard(t))
            .sum()
        ),
        _hard_truth,
    ),
    "a loss of somebody's": Connection(
        lambda sigmoid, x, t: CrossEntropy.apply(sigmoid(x), t),
        lambda x, t: with_logits(x, t, "mean"),
        AS_TORCH,
    ),
    "a loss of somebody's, scaled and regularised": Connection(
        lambda sigmoid, x, t: 3 * CrossEntropy.apply(sigmoid(x), t) + 2.0**-10 * (x * x).sum(),
        lambda x, t: 3 * with_logits(x, t, "mean") + 2.0**-10 * (x * x).sum(),
        AS_TORCH,
    ),
    "a loss of somebody's, of what a function hands on": Connection(
        lambda sigmoid, x, t: CrossEntropy.apply(HandsOn.apply(sigmoid(x)).flip(0), t),
        lambda x, t: with_logits(x.flip(0), t, "mean"),
        AS_TORCH,
    ),
}

# Ordinary consumers, and gates in models. The truth is the same text in float64.


def _ordinary(use: Callable[[Activation, Tensor, Tensor], Tensor], **options: Any) -> Connection:
    return Connection(use, lambda x, t: use(exact_sigmoid, x, t), EXACT, **options)


def _loss(loss: Callable[[Tensor, Tensor], Tensor], **options: Any) -> Connection:
    return _ordinary(lambda sigmoid, x, t: loss(sigmoid(x), t), **options)


def _rows(z: Tensor) -> Tensor:
    return z.view(-1, 12)


def _features(like: Tensor) -> Tensor:
    """What a gate is put to."""
    return _rows((torch.arange(like.numel(), device=like.device) % 5 * 0.5 - 0.75).to(like.dtype))


def _gated(sigmoid: Activation, x: Tensor) -> Tensor:
    return _rows(sigmoid(x)) * _features(x)


def _gate(tail: Callable[[Tensor, Tensor], Tensor], **options: Any) -> Connection:
    """A gate in rows of 12, and what comes after it, given the targets in rows."""
    return _ordinary(lambda sigmoid, x, t: tail(_gated(sigmoid, x), _rows(t)), **options)


def _lstm(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    rows = x.view(-1, 4, 6)
    cell = torch.zeros_like(rows[0, 0])
    total = x.new_zeros(())
    for step in rows:
        forget, into, out = (sigmoid(gate) for gate in step[:3])
        cell = forget * (cell + 0.5) + into * step[3].tanh()
        total = total + ((out * cell.tanh()) @ matrix(6, 2, x) - 0.25).square().mean()
    return total


def _gru(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    state = x.new_full((6,), 0.25)
    total = x.new_zeros(())
    for step in x.view(-1, 2, 6):
        reset, update = sigmoid(step)
        new = (matrix(6, 6, x) @ (reset * state)).tanh()
        state = (1 - update) * new + update * state
        total = total + (state - 0.5).square().mean()
    return total


def _squeeze_and_excite(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    channels = _features(x).unsqueeze(2) * x.new_tensor([0.5, 1.0, -0.75])
    scaled = channels * sigmoid(_rows(x)).unsqueeze(2)
    return F.mse_loss(scaled.mean(2) @ matrix(12, 3, x), _rows(t)[:, :3])


def _attention(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    values = _gated(sigmoid, x)
    scores = (values @ matrix(12, 12, x) @ values.t() / 12**0.5).softmax(1)
    return F.mse_loss(scores @ values, _rows(t))


def _sigmoid_attention(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    """Of scores that are not normalised."""
    return F.mse_loss(sigmoid(_rows(x)) @ matrix(12, 3, x), _rows(t)[:, :3])


def _layer_norm(z: Tensor) -> Tensor:
    centred = z - z.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def _rms_norm(z: Tensor) -> Tensor:
    return z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-5)


def _highway(sigmoid: Activation, x: Tensor, t: Tensor) -> Tensor:
    y = _rows(sigmoid(x))
    return F.mse_loss(
        (y * _features(x).tanh() + (1 - y) * _features(x)) @ matrix(12, 2, x), _rows(t)[:, :2]
    )


# A gate before a second sigmoid: the logits of that, of the output of the first.


def _row_logits(sigmoid: Activation, x: Tensor) -> Tensor:
    return (_gated(sigmoid, x) @ matrix(12, 1, x)).squeeze(1)


def _large_logits(sigmoid: Activation, x: Tensor) -> Tensor:
    return _row_logits(sigmoid, x) * 24


def _logits_of_layers(sigmoid: Activation, x: Tensor) -> Tensor:
    hidden = F.relu(_gated(sigmoid, x) @ matrix(12, 8, x) + 0.125)
    return (F.layer_norm(hidden, (8,)) @ matrix(8, 1, x)).squeeze(1)


def _logits_of_silu(sigmoid: Activation, x: Tensor) -> Tensor:
    return (_rows(x * sigmoid(x) * 2.0**-6) @ matrix(12, 1, x)).squeeze(1)


def _before_sigmoid(
    logits: Callable[[Activation, Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor] = bce
) -> Connection:
    """The gate keeps its tail, whatever is promised to the second sigmoid."""
    return Connection(
        lambda sigmoid, x, t: loss(sigmoid(logits(sigmoid, x)), _rows(t)[:, 0]),
        lambda x, t: with_logits(logits(exact_sigmoid, x), _rows(t)[:, 0]),
        EXACT,
        exact_calls=(0,),
    )


ORDINARY: dict[str, Connection] = {
    "sum": _loss(lambda y, t: y.sum()),
    "mean": _loss(lambda y, t: y.mean()),
    "weighted sum": _loss(lambda y, t: (y * weights(y)).sum()),
    "sum of 1 - y": _loss(lambda y, t: (1 - y).sum()),
    "sum of a view": _loss(lambda y, t: y.view(-1, 12)[1:].t().sum()),
    "mse": _loss(F.mse_loss),
    "mse of a part": _loss(lambda y, t: F.mse_loss(y[3:-2], t[3:-2])),
    "mse of 1 - y": _loss(lambda y, t: F.mse_loss(1 - y, t)),
    "mse by hand": _loss(lambda y, t: ((y - t) ** 2).mean()),
    "l1": _loss(F.l1_loss),
    "huber": _loss(lambda y, t: F.huber_loss(y, t, delta=0.25)),
    "smooth l1": _loss(lambda y, t: F.smooth_l1_loss(y, t, beta=0.5)),
    "hinge": _loss(lambda y, t: F.relu(1 - (2 * t - 1) * (2 * y - 1)).mean()),
    "soft margin": _loss(lambda y, t: F.soft_margin_loss(y, 2 * hard(t) - 1)),
    "margin ranking": _loss(
        lambda y, t: F.margin_ranking_loss(y, y.flip(0), 2 * hard(t) - 1, margin=0.3)
    ),
    "dice": _loss(dice),
    "log": _loss(lambda y, t: y.log().sum()),
    "log of 1 + y": _loss(lambda y, t: (1 + y).log().sum()),
    "minus the log": _loss(lambda y, t: -(y.log() * weights(y)).mean()),
    "y log y": _loss(lambda y, t: (y * y.log()).sum()),
    "Poisson": _loss(lambda y, t: F.poisson_nll_loss(y, t, log_input=False)),
    "BCE with logits": _loss(F.binary_cross_entropy_with_logits),
    "target of a divergence": _loss(
        lambda y, t: F.kl_div((t + 0.5).log(), y, reduction="sum"), dtypes=WIDE
    ),
    "square": _loss(lambda y, t: (y * y).sum()),
    "power 3": _loss(lambda y, t: (y**3).sum()),
    "exp": _loss(lambda y, t: y.exp().sum()),
    "tanh": _loss(lambda y, t: y.tanh().sum()),
    "softplus": _loss(lambda y, t: F.softplus(y).sum()),
    "gelu": _loss(lambda y, t: F.gelu(y).sum()),
    "variance": _loss(lambda y, t: y.view(-1, 12).var(1).sum()),
    "product with 1 - y": _loss(lambda y, t: (y * (1 - y)).sum()),
    "product of two": _ordinary(lambda sigmoid, x, t: (sigmoid(x) * sigmoid(x / 2)).sum()),
    "scaled into MSE": _loss(lambda y, t: F.mse_loss(y * 8 - 4, t)),
    "softmax cross entropy of outputs": _loss(
        lambda y, t: F.cross_entropy(_rows(y), _rows(t).argmax(1))
    ),
    "gate, linear, MSE": _gate(lambda z, t: F.mse_loss(z @ matrix(12, 4, z), t[:, :4])),
    "gate, linear, L1": _gate(lambda z, t: F.l1_loss(z @ matrix(12, 4, z), t[:, :4])),
    "gate, linear, ReLU, linear, MSE": _gate(
        lambda z, t: F.mse_loss(F.relu(z @ matrix(12, 8, z)) @ matrix(8, 2, z), t[:, :2])
    ),
    "gate, convolution, MSE": _gate(
        lambda z, t: F.conv1d(z.unsqueeze(1), matrix(3, 3, z).unsqueeze(1)).square().mean()
    ),
    "gate, layer norm by hand": _gate(
        lambda z, t: F.mse_loss(_layer_norm(z) @ matrix(12, 3, z), t[:, :3])
    ),
    "gate, RMS norm by hand": _gate(
        lambda z, t: F.mse_loss(_rms_norm(z) @ matrix(12, 3, z), t[:, :3])
    ),
    "gate, layer_norm": _gate(
        lambda z, t: F.mse_loss(F.layer_norm(z, (12,)) @ matrix(12, 3, z), t[:, :3])
    ),
    "gate, batch_norm": _gate(
        lambda z, t: F.mse_loss(F.batch_norm(z, None, None, training=True), t)
    ),
    "gate, normalize": _gate(lambda z, t: F.mse_loss(F.normalize(z, dim=1), t)),
    "gate, cosine similarity": _gate(
        lambda z, t: 1 - F.cosine_similarity(z, t + 0.5, dim=1).mean()
    ),
    "gate, softmax cross entropy": _gate(
        lambda z, t: F.cross_entropy(
            z @ matrix(12, 5, z), torch.arange(len(z), device=z.device) % 5
        )
    ),
    "gate, log_softmax, nll": _gate(
        lambda z, t: F.nll_loss(
            (z @ matrix(12, 5, z)).log_softmax(1), torch.arange(len(z), device=z.device) % 5
        )
    ),
    "gate, softmax, log": _gate(lambda z, t: -(z @ matrix(12, 5, z)).softmax(1)[:, 0].log().sum()),
    "gate, BCE with logits": _gate(
        lambda z, t: F.binary_cross_entropy_with_logits(z @ matrix(12, 1, z), t[:, :1])
    ),
    "gate, cumulative sum, MSE": _gate(lambda z, t: F.mse_loss(z.cumsum(1), t)),
    "gate, a function of somebody's, layers": _gate(
        lambda z, t: F.mse_loss((Triples.apply(z) @ matrix(12, 4, z)).tanh(), t[:, :4])
    ),
    "a function of somebody's, layers": _loss(
        lambda y, t: F.mse_loss(F.relu(Triples.apply(_rows(y)) @ matrix(12, 4, y)), _rows(t)[:, :4])
    ),
    "SiLU, MSE": _ordinary(
        lambda sigmoid, x, t: F.mse_loss(_rows(x * sigmoid(x)) @ matrix(12, 2, x), _rows(t)[:, :2])
    ),
    "GLU, MSE": _ordinary(
        lambda sigmoid, x, t: F.mse_loss(
            (_features(x)[:, :6] * sigmoid(_rows(x)[:, 6:])) @ matrix(6, 2, x), _rows(t)[:, :2]
        )
    ),
    "LSTM cell": _ordinary(_lstm),
    "GRU cell": _ordinary(_gru),
    "squeeze and excite": _ordinary(_squeeze_and_excite),
    "attention of gated values": _ordinary(_attention),
    "sigmoid attention": _ordinary(_sigmoid_attention),
    "highway": _ordinary(_highway),
    "gate, sigmoid, BCE": _before_sigmoid(_row_logits),
    "gate, saturated sigmoid, BCE": _before_sigmoid(_large_logits),
    "gate, sigmoid, by hand": _before_sigmoid(_row_logits, _by_hand),
    "gate, layers, sigmoid, BCE": _before_sigmoid(_logits_of_layers),
    "SiLU, sigmoid, BCE": _before_sigmoid(_logits_of_silu),
    "gate, sigmoid, MSE": _ordinary(
        lambda sigmoid, x, t: F.mse_loss(sigmoid(_row_logits(sigmoid, x)), _rows(t)[:, 0])
    ),
}

TABLE: dict[str, Connection] = {**BCE, **BESIDE, **MADE, **DIVIDING, **ORDINARY}


# The numbers.

LOGITS = (
    *(-100.0, -30.0, -17.0, -16.6, -5.0, -1.0, 0.0, 1.0, 2.5, 5.0, 6.5, 8.5),
    *(12.0, 15.0, 16.0, 16.3, 16.6, 17.0, 17.4, 20.0, 30.0, 37.0, 40.0, 100.0),
)
TARGETS = (0.0, 1.0, 0.3)


def numbers(dtype: torch.dtype, times: int = 1) -> tuple[Tensor, Tensor]:
    """Every logit with every target, ``times`` over."""
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    targets = torch.tensor(TARGETS, dtype=torch.float64)
    x = logits.repeat(len(targets)).repeat(times)
    t = targets.repeat_interleave(len(logits)).repeat(times)
    return x.to(dtype), t.to(dtype)
