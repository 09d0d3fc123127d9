"""The promises of test_company.py on a GPU, whose backward passes run in a thread of their own:
eager, compiled, and replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_with_derivative
from tests import oracle, parameters
from tests.company_connections import EVERY, EXACT, TABLE, Activation, bce, numbers
from tests.company_verdicts import case, exact, expected, gradient, judge, never_worse
from tests.parameters import DEVICE
from tests.test_company import FACES, PASSES, ROUTES, Verdicts, on_route
from tests.test_company_compiled import INDUCTOR, SOME

pytestmark = [parameters.of_a_gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _on_gpu() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.device(DEVICE):
        yield


# That of the CPU is kept for other tests.
case_on_gpu = case.__wrapped__


@pytest.mark.parametrize("name", TABLE)
def test_every_connection(name: str) -> None:
    verdicts = Verdicts()
    for dtype in EVERY:
        of = case_on_gpu(name, dtype)
        if of is None:
            continue
        # What the gradient is compared with may be computed from this value.
        torch.testing.assert_close(sigmoid(of.x), torch.sigmoid(of.x))
        with verdicts.of(str(dtype)):
            found = gradient(TABLE[name], sigmoid, of.x, of.t)
            judge(name, found, of)
            if TABLE[name].promise == EXACT:
                exact(found, expected(name, of, "input", sigmoid), of)
    verdicts.give()


@pytest.mark.parametrize("face", FACES)
def test_every_face(face: str) -> None:
    verdicts = Verdicts()
    for name in SOME:
        of = case_on_gpu(name, torch.float32, FACES[face].times)
        with verdicts.of(name):
            found = gradient(TABLE[name], FACES[face].sigmoid, of.x, of.t)
            (never_worse if face == "output" else judge)(name, found, of)
    verdicts.give()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route(route: str) -> None:
    way = ROUTES[route]
    verdicts = Verdicts()
    for name in SOME:
        of = on_route(way.gradient, name, case_on_gpu(name, torch.float32))
        if of is None:
            continue
        with verdicts.of(name):
            found = way.gradient(TABLE[name], sigmoid, of.x, of.t)
            (judge if way.sees_loss else never_worse)(name, found, of)
    verdicts.give()


def test_loss_on_the_cpu() -> None:
    verdicts = Verdicts()
    for name in SOME:
        with torch.device("cpu"), verdicts.of(name):
            of = case_on_gpu(name, torch.float32)
            found = gradient(TABLE[name], lambda x: sigmoid(x.to(DEVICE)).cpu(), of.x, of.t)
            judge(name, found, of)
    verdicts.give()


@pytest.mark.parametrize("saved", ["auto", "derivative", "input", "output"])
def test_the_gradient_that_torch_loses(saved: str) -> None:
    leaf = torch.tensor([17.4], requires_grad=True)
    nn.BCELoss()(FusedSigmoid(saved)(leaf), torch.zeros(1)).backward()
    torch.testing.assert_close(leaf.grad, torch.ones(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inductor(dtype: torch.dtype) -> None:
    cases = {name: case_on_gpu(name, dtype) for name in INDUCTOR}

    def losses(act: Activation) -> Callable[[list[Tensor]], list[Tensor]]:
        return lambda leaves: [
            TABLE[name].use(act, leaf, cases[name].t)
            for name, leaf in zip(cases, leaves, strict=True)
        ]

    def gradients(act: Activation) -> list[Tensor]:
        leaves = [of.x.clone().requires_grad_() for of in cases.values()]
        sum(torch.compile(losses(act), fullgraph=True)(leaves)).backward()
        return [leaf.grad for leaf in leaves]

    verdicts = Verdicts()
    results = zip(cases, gradients(sigmoid), gradients(torch.sigmoid), strict=True)
    for name, found, theirs in results:
        # Inductor's nn.Sigmoid has values of its own.
        of = cases[name]
        of = of._replace(torchs=(*of.torchs, theirs.double()))
        with verdicts.of(name):
            judge(name, found, of)
    verdicts.give()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("pair", [False, True], ids=["value", "value of the pair"])
def test_losses_outside_of_what_is_compiled(pair: bool, mode: str) -> None:
    """One compiled model and, turn about, other losses: a CUDA graph must not replay the gradient
    that another loss asked for."""

    def model(x: Tensor) -> Tensor:
        return (sigmoid_with_derivative(x * 1)[0] if pair else sigmoid(x * 1)).view(-1)

    compiled = torch.compile(model, mode=mode, fullgraph=True)
    x, t = numbers(torch.float32)
    for _ in range(4):
        for loss in PASSES.values():
            results = []
            for act in (compiled, model):
                torch.compiler.cudagraph_mark_step_begin()
                leaf = x.clone().requires_grad_()
                results.append(torch.autograd.grad(loss(act(leaf), t), leaf)[0].clone())
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-12, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step(dtype: torch.dtype) -> None:
    """A whole step with BCELoss as one CUDA graph."""
    x, t = numbers(dtype)
    leaf = x.clone().requires_grad_()
    labels = t.clone()

    def step() -> Tensor:
        return torch.autograd.grad(bce(sigmoid(leaf), labels), leaf)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for scale in (1.0, -0.5):
        with torch.no_grad():
            leaf.copy_(x * scale)
            labels.copy_(t.flip(0))
        graph.replay()
        assert oracle.same_bits(captured, step())
        truth = torch.sigmoid(leaf.detach().double()) - labels.double()
        eps = torch.finfo(dtype).eps
        assert ((captured.double() - truth).abs() <= 4 * eps).all()
