"""The promises of test_company.py with a compiler between: around the model and the loss, the
model alone, the loss alone, or the backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_with_derivative
from tests import oracle, parameters
from tests.company_connections import (
    EXACT,
    RIGHT,
    TABLE,
    Activation,
    Connection,
    bce,
    both_sides,
    likelihood,
    matrix,
    numbers,
)
from tests.company_verdicts import (
    Case,
    Product,
    RoundedProduct,
    Worse,
    case,
    gradient,
    judge,
    never_worse,
    right,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh(one_thread: None) -> None:
    torch._dynamo.reset()


# Of numbers that decide how many there are, or which way a program goes, torch compiles no whole.
BROKEN = (
    *("BCE, boolean index", "BCE, masked_select", "Gaussian NLL with variance 1 - y"),
    "ContinuousBernoulli",
)
# The torch from which on they are right when compiled: before, a hook is a custom Function, which
# gets nn.Sigmoid's gradient, and the gradient of cumprod is NaN beside a 0.
RIGHT_FROM = {"BCE, hooks on the output": (2, 13), "survival, cumprod": (2, 12)}
LOST = [name for name, release in RIGHT_FROM.items() if torch.__version__ < release]
WHOLE = [name for name in TABLE if name not in (*BROKEN, *LOST)]
# That are compiled as one function.
TOGETHER = 25
PARTS = [WHOLE[at : at + TOGETHER] for at in range(0, len(WHOLE), TOGETHER)]
every_part = pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part[0]} ...")


# Where an output is its target, or all but, it decides on which side of a kink the loss is.
KINKED = ("l1", "hinge")


def _cases(names: Sequence[str], dtype: torch.dtype) -> dict[str, Case]:
    cases = {}
    for name in names:
        of = case(name, dtype)
        if of is not None:
            rounded = gradient(TABLE[name], RoundedProduct.apply, of.x, of.t).double()
            cases[name] = of._replace(torchs=(*of.torchs, rounded))
    return cases


def _leaves(cases: dict[str, Case]) -> list[Tensor]:
    return [of.x.clone().requires_grad_() for of in cases.values()]


def _check(cases: dict[str, Case], gradients: Sequence[Tensor], sees_loss: bool = True) -> None:
    wrong = []
    for (name, of), found in zip(cases.items(), gradients, strict=True):
        verdicts = [judge] if sees_loss else [never_worse]
        if sees_loss and TABLE[name].promise == EXACT and name not in KINKED:
            # Of another value, so not bit for bit; but the tail is there.
            verdicts.append(right)
        for verdict in verdicts:
            try:
                verdict(name, found, of)
            except Worse as error:
                wrong.append(f"{name}, {error}")
    if wrong:
        pytest.fail("\n\n".join(wrong), pytrace=False)


def _losses(cases: dict[str, Case], act: Activation) -> Callable[[list[Tensor]], list[Tensor]]:
    def losses(leaves: list[Tensor]) -> list[Tensor]:
        return [
            TABLE[name].use(act, leaf, of.t)
            for (name, of), leaf in zip(cases.items(), leaves, strict=True)
        ]

    return losses


ACTIVATIONS: dict[str, Activation] = {
    "function": sigmoid,
    "module": FusedSigmoid(),
    "operator": torch.ops.fused_sigmoid.sigmoid,
    "derivative": lambda x: sigmoid(x, saved="derivative"),
    "value of the pair": lambda x: sigmoid_with_derivative(x)[0],
}


@every_part
def test_model_and_loss(part: list[str]) -> None:
    cases = _cases(part, torch.float32)
    leaves = _leaves(cases)
    compiled = torch.compile(_losses(cases, sigmoid), backend="aot_eager", fullgraph=True)
    sum(compiled(leaves)).backward()
    _check(cases, [leaf.grad for leaf in leaves])


SOME = (
    *("BCELoss", "BCE, max over instances", "BCE, copy_ into a buffer", "BCE, none"),
    *("BCE beside MSE", "BCE of noisy or", "by hand", "log(1 - y)", "odds", "logit"),
    *("focal", "Bernoulli", "mse", "log", "gate, linear, MSE", "gate, sigmoid, BCE", "LSTM cell"),
)


@pytest.mark.parametrize(
    ("dtype", "act"),
    parameters.chosen(
        [(torch.float64, "function"), *((torch.bfloat16, act) for act in ACTIVATIONS)],
        lambda dtype, act: dtype == torch.bfloat16 and act == "function",
    ),
    ids=str,
)
def test_model_and_loss_in_other_dtypes(dtype: torch.dtype, act: str) -> None:
    cases = _cases(SOME, dtype)
    leaves = _leaves(cases)
    compiled = torch.compile(_losses(cases, ACTIVATIONS[act]), backend="aot_eager", fullgraph=True)
    sum(compiled(leaves)).backward()
    _check(cases, [leaf.grad for leaf in leaves])


@pytest.mark.parametrize("name", BROKEN)
def test_model_and_loss_in_pieces(name: str) -> None:
    """The sigmoid is in one of them and the loss in another, or outside."""
    cases = _cases([name], torch.float32)
    leaves = _leaves(cases)
    of = cases[name]
    torch.compile(lambda leaf: TABLE[name].use(sigmoid, leaf, of.t), backend="aot_eager")(
        *leaves
    ).backward()
    _check(cases, [leaf.grad for leaf in leaves], sees_loss=False)


@pytest.mark.parametrize(
    "part",
    # A third of all connections is in the suite; with the loss inside, all are.
    parameters.chosen([(part,) for part in PARTS], lambda part: PARTS.index(part) % 3 == 0),
    ids=lambda part: f"{part[0]} ...",
)
def test_loss_alone(part: list[str]) -> None:
    """From eager outputs. What is compiled into one node may be a loss or a layer."""
    cases = _cases(part, torch.float32)
    leaves = _leaves(cases)
    counts: dict[str, int] = {}

    def losses(leaves: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        return [
            TABLE[name].use(lambda _, output=output: output, leaf, of.t)
            for (name, of), leaf, output in zip(cases.items(), leaves, outputs, strict=True)
        ]

    # Those that take one sigmoid, of the logits themselves.
    for name, of in cases.items():
        counts[name] = 0

        def counted(x: Tensor, name: str = name, of: Case = of) -> Tensor:
            counts[name] += 1 if oracle.same_bits(x, of.x) else 2
            return torch.sigmoid(x)

        TABLE[name].use(counted, of.x, of.t)
    cases = {name: of for name, of in cases.items() if counts[name] == 1}
    if not cases:
        pytest.skip("all have several sigmoids, or one of something else")
    leaves = _leaves(cases)
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True)
    sum(compiled(leaves, [sigmoid(leaf) for leaf in leaves])).backward()
    _check(cases, [leaf.grad for leaf in leaves], sees_loss=False)


@pytest.mark.parametrize(
    ("dtype", "act"),
    parameters.chosen(
        itertools.product(
            [torch.float32, torch.bfloat16],
            ["function", "module", "derivative", "value of the pair"],
        ),
        lambda dtype, act: dtype == torch.float32 or act == "function",
    ),
    ids=str,
)
def test_sigmoid_alone(dtype: torch.dtype, act: str) -> None:
    """The losses are outside. Behind a gate another sigmoid is compiled, which may be a loss as
    far as is seen: their gates have no worse tail than with nn.Sigmoid."""
    cases = _cases([name for name in TABLE if TABLE[name].exact_calls is None], dtype)
    compiled = torch.compile(ACTIVATIONS[act], backend="aot_eager", dynamic=True)
    gradients = [gradient(TABLE[name], compiled, of.x, of.t) for name, of in cases.items()]
    _check(cases, gradients)
    cases = _cases([name for name in TABLE if TABLE[name].exact_calls is not None], dtype)
    gradients = [gradient(TABLE[name], compiled, of.x, of.t) for name, of in cases.items()]
    _check(cases, gradients, sees_loss=False)


@pytest.mark.parametrize("act", ["function", "module", "value of the pair"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sigmoid_alone_in_a_reentrant_checkpoint(dtype: torch.dtype, act: str) -> None:
    """Within the checkpoint's pass nothing tells of the loss. The numbers are such that torch's
    sigmoid, by which the compiled function computes without a gradient, rounds to the same side
    of 1."""
    x = torch.tensor([-20.0, -2.0, 5.0, 18.0, 30.0], dtype=dtype)
    compiled = torch.compile(ACTIVATIONS[act], backend="aot_eager")
    for name in ("BCELoss", "by hand", "log(1 - y)", "mse"):
        results = []
        for sigmoid_ in (compiled, torch.sigmoid):
            leaf = x.clone().requires_grad_()
            y = checkpoint(sigmoid_, leaf, use_reentrant=True)
            TABLE[name].use(lambda _, y=y: y, leaf, torch.zeros_like(y)).backward()
            assert leaf.grad is not None
            results.append(leaf.grad.double())
        torch.testing.assert_close(*results, rtol=0.05, atol=1e-6, equal_nan=True)


# Models that hand on something else than the output, and losses outside of what is compiled. Each
# model beside the probability and its complement.


class Model(NamedTuple):
    make: Callable[[Tensor], Tensor]
    sides: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    # Whether the output leaves as it is.
    hands_on: bool = True


MODELS = {
    "as it is": Model(lambda y: y, lambda s, c: (s, c)),
    "view": Model(lambda y: y.view(-1, 12), lambda s, c: (s.view(-1, 12), c.view(-1, 12))),
    "flip": Model(lambda y: y.flip(0), lambda s, c: (s.flip(0), c.flip(0))),
    "cat": Model(
        lambda y: torch.cat([y, y.flip(0)]),
        lambda s, c: (torch.cat([s, s.flip(0)]), torch.cat([c, c.flip(0)])),
    ),
    "clone": Model(lambda y: y.clone(), lambda s, c: (s, c)),
    "1 - y": Model(lambda y: 1 - y, lambda s, c: (c, s), False),
    "y / 2": Model(lambda y: y / 2, lambda s, c: (s / 2, (1 + c) / 2), False),
    "mean with 1/2": Model(
        lambda y: (y + 0.5) / 2, lambda s, c: ((s + 0.5) / 2, (c + 0.5) / 2), False
    ),
    "square": Model(lambda y: y * y, lambda s, c: (s * s, c * (1 + s)), False),
    "noisy or": Model(
        lambda y: 1 - (1 - y).view(-1, 3).prod(1),
        lambda s, c: (-torch.expm1(c.log().view(-1, 3).sum(1)), c.view(-1, 3).prod(1)),
        False,
    ),
}


class Loss(NamedTuple):
    use: Callable[[Tensor, Tensor], Tensor]
    truth: Callable[[Tensor, Tensor, Tensor], Tensor]
    is_bce: bool = False


def _targets(z: Tensor) -> Tensor:
    return (torch.arange(z.numel()) % 3 * 0.5).view(z.shape).to(z.dtype)


LOSSES = {
    "BCE": Loss(lambda z, t: bce(z, t), lambda s, c, t: likelihood(s, c, t).sum(), True),
    "by hand": Loss(
        lambda z, t: -(t * z.log() + (1 - t) * (1 - z).log()).sum(),
        lambda s, c, t: likelihood(s, c, t).sum(),
    ),
    "log(1 - z)": Loss(lambda z, t: (1 - z).log().sum(), lambda s, c, t: c.log().sum()),
    "log": Loss(lambda z, t: z.log().sum(), lambda s, c, t: s.log().sum()),
    "reciprocal": Loss(lambda z, t: (1 / (1 - z)).sum(), lambda s, c, t: (1 / c).sum()),
    "layer": Loss(
        lambda z, t: (z.view(-1, 12) @ matrix(12, 3, z)).square().sum(),
        lambda s, c, t: (s.view(-1, 12) @ matrix(12, 3, s)).square().sum(),
    ),
}


def _composed(model: Model, loss: Loss) -> Connection:
    def use(act: Activation, x: Tensor, t: Tensor) -> Tensor:
        z = act(x)
        return loss.use(z, _targets(z))

    def truth(x: Tensor, t: Tensor) -> Tensor:
        value, complement = model.sides(*both_sides(x))
        return loss.truth(value, complement, _targets(value))

    promise = RIGHT if model.hands_on and loss.is_bce else "as nn.Sigmoid"
    return Connection(use, truth, promise)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("act", ["function", "value of the pair"])
def test_a_model_whose_losses_are_outside(act: str, model: str) -> None:
    wrong = []
    piece = MODELS[model]

    def ours(x: Tensor) -> Tensor:
        return piece.make(ACTIVATIONS[act](x))

    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for loss in LOSSES:
        if model == "noisy or" and loss in ("log", "layer"):
            continue
        connection = _composed(piece, LOSSES[loss])
        x, t = numbers(torch.float32)
        leaf = x.double().requires_grad_()
        (truth,) = torch.autograd.grad(connection.truth(leaf, t), leaf)
        theirs = [
            gradient(connection, lambda x, act=act: piece.make(act(x)), x, t).double()
            for act in (torch.sigmoid, Product.apply, RoundedProduct.apply)
        ]
        found = gradient(connection, compiled, x, t).double()
        eps = torch.finfo(torch.float32).eps
        allowed = 16 * eps * (truth.abs() + connection_scale(loss, x)) + 2e-26
        error = (found - truth).abs()
        bad = torch.ones(x.shape, dtype=torch.bool)
        for their in theirs:
            their_error = (their - truth).abs()
            bad &= their_error.isfinite() & ~(error <= their_error + allowed)
        if connection.promise == RIGHT:
            bad |= ~(error <= allowed)
        wrong += [
            f"{loss}, x = {x[at]:g}: {found[at]:g}, true is {truth[at]:g}, nn.Sigmoid gives "
            f"{theirs[0][at]:g}"
            for at in bad.nonzero().flatten().tolist()
        ]
    if wrong:
        pytest.fail("\n".join(wrong[:12]), pytrace=False)


def connection_scale(loss: str, x: Tensor) -> Tensor:
    wide = x.double()
    derivative = torch.sigmoid(wide) * torch.sigmoid(-wide)
    return torch.ones_like(wide) if loss == "BCE" else 100 * derivative


# The backward pass compiled.


def _compiled_autograd(backend: str = "aot_eager") -> Any:
    return torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend))


@pytest.mark.parametrize(
    ("dtype", "act"),
    parameters.chosen(
        [
            (torch.float32, "function"),
            (torch.float32, "value of the pair"),
            (torch.bfloat16, "derivative"),
        ],
        lambda dtype, _: dtype == torch.bfloat16,
    ),
    ids=str,
)
def test_compiled_autograd(dtype: torch.dtype, act: str) -> None:
    cases = _cases(SOME, dtype)
    leaves = _leaves(cases)
    with _compiled_autograd():
        sum(_losses(cases, ACTIVATIONS[act])(leaves)).backward()
    _check(cases, [leaf.grad for leaf in leaves])


@pytest.mark.parametrize("position", [0, 1])
def test_an_output_of_a_compiled_model_that_two_losses_get(position: int) -> None:
    """One divides by the complement, the other by the output, which is small: neither may meet the
    floor of nn.BCELoss, wherever among the model's outputs the sigmoid's is."""

    def model(x: Tensor) -> list[Tensor]:
        outputs = [x * 2]
        outputs.insert(position, sigmoid(x))
        return outputs

    x = torch.tensor([-60.0, -40.0, 0.0, 2.0], requires_grad=True)
    y = torch.compile(model, backend="aot_eager")(x)[position]
    loss = torch.nn.functional.binary_cross_entropy(y, torch.ones(4), reduction="sum")
    (loss + y.log().sum()).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_compiled_autograd_of_a_compiled_model() -> None:
    cases = _cases(SOME, torch.float32)
    leaves = _leaves(cases)
    compiled = torch.compile(_losses(cases, sigmoid), backend="aot_eager")
    with _compiled_autograd():
        sum(compiled(leaves)).backward()
    _check(cases, [leaf.grad for leaf in leaves])


def test_compiled_autograd_of_other_losses_of_the_same_shape() -> None:
    """A pass that was compiled is run again for another one alone if both have the same losses."""
    x, t = numbers(torch.float32)
    losses = [
        lambda y, t: bce(y, t),
        lambda y, t: (y * t).sum(),
        lambda y, t: -(1 - y).log().sum(),
    ]

    def one(at: int) -> Tensor:
        leaf = x.clone().requires_grad_()
        losses[at](sigmoid(leaf), t).backward()
        assert leaf.grad is not None
        return leaf.grad

    alone = [one(at) for at in range(len(losses))]
    with _compiled_autograd():
        for at in itertools.chain(range(3), reversed(range(3)), range(3)):
            torch.testing.assert_close(one(at), alone[at], rtol=1e-6, atol=0, equal_nan=True)


# By Inductor.

INDUCTOR = (
    *("BCELoss", "BCE, max over instances", "BCE beside MSE", "BCE of noisy or", "by hand"),
    *("log(1 - y)", "odds", "logit", "mse", "log", "gate, linear, MSE", "gate, sigmoid, BCE"),
)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
    ids=str,
)
def test_inductor(dtype: torch.dtype) -> None:
    cases = _cases(INDUCTOR, dtype)
    leaves = _leaves(cases)
    theirs = _leaves(cases)
    sum(torch.compile(_losses(cases, torch.sigmoid), fullgraph=True)(theirs)).backward()
    sum(torch.compile(_losses(cases, sigmoid), fullgraph=True)(leaves)).backward()
    # Inductor's nn.Sigmoid has values of its own.
    cases = {
        name: of._replace(torchs=(*of.torchs, leaf.grad.double()))
        for (name, of), leaf in zip(cases.items(), theirs, strict=True)
    }
    _check(cases, [leaf.grad for leaf in leaves])
