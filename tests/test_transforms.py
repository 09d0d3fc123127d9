"""The sigmoid and all its derivatives stay exact under every transform of torch: torch.func,
forward-mode AD, batched gradients, torch.compile, torch.export, tracing, dispatch modes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, sigmoid_with_derivative

EXACT = ("auto", "derivative", "input")
SAVED = (*EXACT, "output")

# Both tails, far beyond where 1 - y is 0, and the middle.
POINTS = torch.tensor([-100, -40, -20, -3, -1, 0, 1, 3, 20, 40, 100], dtype=torch.float64)
X = oracle.exact(POINTS)
VALUE, FIRST = oracle.value(X), oracle.derivative(X)
SECOND, THIRD = oracle.second_derivative(X), oracle.third_derivative(X)

Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=EXACT)
def sigmoid(request: pytest.FixtureRequest) -> Function:
    return lambda x: fused_sigmoid.sigmoid(x, saved=request.param)


def check(result: Tensor, expected: oracle.LongDouble, ulps: float = 12) -> None:
    """A dozen roundings at most; a lost tail is off by 1e15."""
    assert oracle.largest_error_in_ulp(result, expected) <= ulps


def leaf(dtype: torch.dtype = torch.float64) -> Tensor:
    return POINTS.clone().to(dtype).detach().requires_grad_()


def ones() -> Tensor:
    return torch.ones_like(POINTS)


# torch.func


def test_grad(sigmoid: Function) -> None:
    check(grad(lambda x: sigmoid(x).sum())(POINTS), FIRST)
    check(vmap(grad(sigmoid))(POINTS), FIRST)
    check(vmap(grad(grad(sigmoid)))(POINTS), SECOND)
    check(vmap(grad(grad(grad(sigmoid))))(POINTS), THIRD)


def test_second_derivative_near_zero(sigmoid: Function) -> None:
    """1 - 2σ(x) would have no digit left there."""
    x = torch.tensor([-1e-3, -1e-12, 1e-17, 1e-6], dtype=torch.float64)
    check(vmap(grad(grad(sigmoid)))(x), oracle.second_derivative(oracle.exact(x)))


def test_vmap(sigmoid: Function) -> None:
    check(vmap(sigmoid)(POINTS), VALUE)
    table = torch.stack([POINTS, -POINTS])
    check(vmap(vmap(sigmoid), in_dims=1, out_dims=1)(table), oracle.value(oracle.exact(table)))
    check(vmap(sigmoid, in_dims=1, out_dims=1)(table), oracle.value(oracle.exact(table)))


def test_jvp_and_vjp(sigmoid: Function) -> None:
    value, tangent = jvp(sigmoid, (POINTS,), (3 * ones(),))
    check(value, VALUE)
    check(tangent, 3 * FIRST)
    value, pull = vjp(sigmoid, POINTS)
    check(value, VALUE)
    check(pull(3 * ones())[0], 3 * FIRST)
    check(jvp(lambda x: jvp(sigmoid, (x,), (ones(),))[1], (POINTS,), (ones(),))[1], SECOND)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobian(sigmoid: Function, jacobian: Callable[..., Any]) -> None:
    matrix = jacobian(sigmoid)(POINTS)
    check(matrix.diagonal(), FIRST)
    assert torch.count_nonzero(matrix) == len(POINTS)


@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_second_order_compositions(
    sigmoid: Function, outer: Callable[..., Any], inner: Callable[..., Any]
) -> None:
    second = outer(inner(lambda x: sigmoid(x).sum()))(POINTS)
    check(second.diagonal(), SECOND, 20)


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "jvp": lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "grad": lambda f: grad(lambda x: f(x).sum()),
    "jacfwd": lambda f: lambda x: jacfwd(f)(x).sum(-1),
    "jacrev": lambda f: lambda x: jacrev(f)(x).sum(-1),
}


@pytest.mark.parametrize("outer", TRANSFORMS)
@pytest.mark.parametrize("middle", TRANSFORMS)
@pytest.mark.parametrize("inner", TRANSFORMS)
def test_third_order_compositions(inner: str, middle: str, outer: str) -> None:
    """torch gives the tangents of an autograd Function's jvp no tangents of their own."""

    def third(function: Function) -> Function:
        return TRANSFORMS[outer](TRANSFORMS[middle](TRANSFORMS[inner](function)))

    check(third(fused_sigmoid.sigmoid)(POINTS), THIRD, 20)
    second_of_pair = TRANSFORMS[outer](TRANSFORMS[middle](lambda x: sigmoid_with_derivative(x)[1]))
    check(second_of_pair(POINTS), THIRD, 20)


def test_hessian(sigmoid: Function) -> None:
    check(hessian(lambda x: sigmoid(x).sum())(POINTS).diagonal(), SECOND)


def test_per_sample_gradients_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), FusedSigmoid()).double()
    weight = {"0.weight": torch.ones(1, 1, dtype=torch.float64)}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).sum()

    gradients = vmap(grad(loss), (None, 0))(weight, POINTS[:, None])["0.weight"]
    check(gradients.flatten(), X * FIRST)


def test_in_place_under_transforms() -> None:
    def in_place(x: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid_(x * 1)

    check(vmap(fused_sigmoid.sigmoid_)(POINTS.clone()), VALUE)
    check(vmap(grad(in_place))(POINTS), FIRST)
    check(jvp(in_place, (POINTS,), (ones(),))[1], FIRST)
    check(hessian(lambda x: in_place(x).sum())(POINTS).diagonal(), SECOND)


def test_pair_under_transforms() -> None:
    value, derivative = vmap(sigmoid_with_derivative)(POINTS)
    check(value, VALUE)
    check(derivative, FIRST)
    for jacobian in (jacrev, jacfwd):
        of_value, of_derivative = jacobian(sigmoid_with_derivative)(POINTS)
        check(of_value.diagonal(), FIRST)
        check(of_derivative.diagonal(), SECOND)
    check(hessian(lambda x: sigmoid_with_derivative(x)[0].sum())(POINTS).diagonal(), SECOND)
    check(hessian(lambda x: sigmoid_with_derivative(x)[1].sum())(POINTS).diagonal(), THIRD)


def test_saved_output_is_torchs_gradient_under_transforms() -> None:
    def function(x: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid(x, saved="output")

    expected = torch.ops.aten.sigmoid_backward(ones(), fused_sigmoid.sigmoid(POINTS))
    for transform in (lambda f: vmap(grad(f)), lambda f: jacfwd(lambda x: f(x).sum())):
        assert torch.equal(transform(function)(POINTS), expected)


# Forward-mode AD


def test_dual_numbers(sigmoid: Function) -> None:
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(sigmoid(forward_ad.make_dual(POINTS, 3 * ones())))
        pair = sigmoid_with_derivative(forward_ad.make_dual(POINTS, 3 * ones()))
        value_of_pair, derivative = map(forward_ad.unpack_dual, pair)
        in_place = forward_ad.make_dual(POINTS.clone(), 3 * ones()) * 1
        in_place = forward_ad.unpack_dual(fused_sigmoid.sigmoid_(in_place))
    check(value, VALUE)
    check(tangent, 3 * FIRST)
    check(value_of_pair.tangent, 3 * FIRST)
    check(derivative.primal, FIRST)
    check(derivative.tangent, 3 * SECOND)
    check(in_place.primal, VALUE)
    check(in_place.tangent, 3 * FIRST)


def test_dual_numbers_of_halves() -> None:
    x = POINTS.bfloat16()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(
            fused_sigmoid.sigmoid(forward_ad.make_dual(x, torch.ones_like(x)))
        ).tangent
    assert tangent.dtype == torch.bfloat16
    check(tangent, FIRST, 1)


def test_reverse_over_forward_and_forward_over_reverse(sigmoid: Function) -> None:
    x = leaf()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(sigmoid(forward_ad.make_dual(x, ones()))).tangent
        check(torch.autograd.grad(tangent.sum(), x)[0], SECOND)
        dual = forward_ad.make_dual(leaf(), ones())
        (gradient,) = torch.autograd.grad(sigmoid(dual).sum(), dual)
        check(forward_ad.unpack_dual(gradient).primal, FIRST)
        check(forward_ad.unpack_dual(gradient).tangent, SECOND)


def test_dual_gradient_of_a_plain_forward(sigmoid: Function) -> None:
    x = leaf()
    y = sigmoid(x)
    with forward_ad.dual_level():
        outer = forward_ad.make_dual(ones(), 3 * ones())
        gradient = forward_ad.unpack_dual(torch.autograd.grad(y, x, outer)[0])
    check(gradient.primal, FIRST)
    check(gradient.tangent, 3 * FIRST)


# Batched gradients


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients(sigmoid: Function, create_graph: bool) -> None:
    x = leaf()
    (matrix,) = torch.autograd.grad(
        sigmoid(x), x, torch.diag(ones()), is_grads_batched=True, create_graph=create_graph
    )
    check(matrix.diagonal(), FIRST)
    assert torch.count_nonzero(matrix) == len(POINTS)
    if create_graph:
        check(torch.autograd.grad(matrix.sum(), x)[0], SECOND)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_functionals(sigmoid: Function, strategy: str) -> None:
    jacobian = torch.autograd.functional.jacobian(
        sigmoid, POINTS, vectorize=True, strategy=strategy
    )
    check(jacobian.diagonal(), FIRST)
    second = torch.autograd.functional.hessian(
        lambda x: sigmoid(x).sum(), POINTS, vectorize=True, outer_jacobian_strategy=strategy
    )
    check(second.diagonal(), SECOND)


def test_batched_gradients_of_the_pair() -> None:
    for output, first, second in ((0, FIRST, SECOND), (1, SECOND, THIRD)):
        x = leaf()
        (matrix,) = torch.autograd.grad(
            sigmoid_with_derivative(x)[output],
            x,
            torch.diag(ones()),
            is_grads_batched=True,
            create_graph=True,
        )
        check(matrix.diagonal(), first)
        check(torch.autograd.grad(matrix.sum(), x)[0], second)


def test_batched_gradients_in_place() -> None:
    x = leaf()
    y = fused_sigmoid.sigmoid_(x * 1)
    (matrix,) = torch.autograd.grad(y, x, torch.diag(ones()), is_grads_batched=True)
    check(matrix.diagonal(), FIRST)


# torch.compile

# Where torch's own float32 sigmoid, which compiled graphs call, does not flush to zero.
COMPILED_POINTS = torch.tensor([-80.0, -20, -1, 0, 1, 20, 40, 80])
COMPILED_X = oracle.exact(COMPILED_POINTS)


def train(function: Function, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = COMPILED_POINTS.to(dtype, copy=True).requires_grad_()
    y = function(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == dtype
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str, saved: str, dtype: torch.dtype) -> None:
    @torch.compile(backend=backend, fullgraph=True)
    def function(x: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid(x * 1, saved=saved)

    value, gradient = train(function, dtype)
    check(value, oracle.value(COMPILED_X), 4)
    if saved == "output":
        assert torch.equal(gradient, torch.ops.aten.sigmoid_backward(torch.ones_like(value), value))
    else:
        check(gradient, oracle.derivative(COMPILED_X), 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_with_inductor(dtype: torch.dtype) -> None:
    module = torch.compile(nn.Sequential(FusedSigmoid()), fullgraph=True)
    value, gradient = train(module, dtype)
    check(value, oracle.value(COMPILED_X), 4)
    check(gradient, oracle.derivative(COMPILED_X), 8)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_of_the_pair(backend: str) -> None:
    pair = torch.compile(sigmoid_with_derivative, backend=backend, fullgraph=True)
    value, gradient = train(lambda x: pair(x)[0], torch.float32)
    check(value, oracle.value(COMPILED_X), 4)
    check(gradient, oracle.derivative(COMPILED_X), 8)
    derivative, gradient = train(lambda x: pair(x)[1], torch.float32)
    check(derivative, oracle.derivative(COMPILED_X), 8)
    check(gradient, oracle.second_derivative(COMPILED_X), 16)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_of_in_place_and_out(backend: str) -> None:
    in_place = torch.compile(fused_sigmoid.sigmoid_, backend=backend, fullgraph=True)
    x = COMPILED_POINTS.clone()
    assert in_place(x) is x
    check(x, oracle.value(COMPILED_X), 4)

    _, gradient = train(
        torch.compile(lambda x: fused_sigmoid.sigmoid_(x * 1), backend=backend, fullgraph=True),
        torch.float32,
    )
    check(gradient, oracle.derivative(COMPILED_X), 8)

    def write(x: Tensor, out: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid(x, out=out)

    out = torch.empty_like(COMPILED_POINTS)
    torch.compile(write, backend=backend, fullgraph=True)(COMPILED_POINTS, out)
    check(out, oracle.value(COMPILED_X), 4)


TRANSFORMED: dict[str, Function] = {
    "grad": grad(lambda x: fused_sigmoid.sigmoid(x).sum()),
    "grad of the pair": grad(lambda x: sigmoid_with_derivative(x)[0].sum()),
    "jvp": lambda x: jvp(fused_sigmoid.sigmoid, (x,), (torch.ones_like(x),))[1],
    "vmap": vmap(grad(fused_sigmoid.sigmoid)),
    "vmap of the pair": vmap(grad(lambda x: sigmoid_with_derivative(x)[0])),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_compile_of_transforms(name: str) -> None:
    compiled = torch.compile(TRANSFORMED[name], backend="aot_eager", fullgraph=True)
    check(compiled(POINTS), FIRST)


def test_a_second_size_is_not_a_second_compilation() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(fused_sigmoid.sigmoid, backend=counter, fullgraph=True, dynamic=True)
    for rows in (5, 7, 1025):
        x = torch.randn(rows, 3, requires_grad=True)
        function(x).sum().backward()
        assert x.grad is not None
        check(x.grad, oracle.derivative(oracle.exact(x)), 8)
    assert counter.frame_count == 1


def test_sizes_become_dynamic_by_themselves() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(fused_sigmoid.sigmoid, backend=counter, fullgraph=True)
    for rows in (5, 7, 1025, 3333):
        function(torch.randn(rows, 3, requires_grad=True)).sum().backward()
    assert counter.frame_count == 2


@pytest.mark.parametrize("saved", SAVED)
def test_compiled_autograd(saved: str) -> None:
    @torch.compile(backend="aot_eager")
    def step(x: Tensor) -> None:
        fused_sigmoid.sigmoid(x * 1, saved=saved).sum().backward()

    x = COMPILED_POINTS.clone().requires_grad_()
    with torch._dynamo.config.patch(compiled_autograd=True):
        step(x)
    assert x.grad is not None
    _check_compiled_gradient(x.grad, torch.sigmoid(x.detach()), saved)


@pytest.mark.parametrize("saved", SAVED)
def test_compiled_autograd_of_an_eager_forward(saved: str) -> None:
    x = COMPILED_POINTS.clone().requires_grad_()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        fused_sigmoid.sigmoid(x, saved=saved).sum().backward()
    assert x.grad is not None
    _check_compiled_gradient(x.grad, fused_sigmoid.sigmoid(x.detach()), saved)


def _check_compiled_gradient(gradient: Tensor, output: Tensor, saved: str) -> None:
    if saved == "output":
        expected = torch.ops.aten.sigmoid_backward(torch.ones_like(output), output)
        assert torch.equal(gradient, expected)
    else:
        check(gradient, oracle.derivative(COMPILED_X), 8)


def test_compiled_autograd_of_an_eager_in_place_forward() -> None:
    x = COMPILED_POINTS.clone().requires_grad_()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        fused_sigmoid.sigmoid_(x * 1).sum().backward()
    assert x.grad is not None
    _check_compiled_gradient(x.grad, fused_sigmoid.sigmoid(x.detach()), "derivative")


# Graphs for other tools


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.activation = FusedSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [True, False])
def test_export_holds_a_plain_sigmoid(strict: bool) -> None:
    model, x = Model(), torch.randn(4, 3)
    exported = torch.export.export(model, (x,), strict=strict)
    assert operators(exported.graph) == ["aten.linear.default", "aten.sigmoid.default"]
    decomposed = operators(exported.run_decompositions().graph)
    assert decomposed.count("aten.sigmoid.default") == 1
    assert not any("fused_sigmoid" in name for name in decomposed)
    torch.testing.assert_close(exported.module()(x), torch.sigmoid(model.linear(x)))


@pytest.mark.parametrize("strict", [True, False])
def test_export_in_place_holds_a_plain_sigmoid(strict: bool) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fused_sigmoid.sigmoid_(x + 1)

    exported = torch.export.export(InPlace(), (POINTS,), strict=strict)
    assert operators(exported.graph) == ["aten.add.Tensor", "aten.sigmoid_.default"]
    check(exported.module()(POINTS - 1), VALUE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_holds_a_plain_sigmoid() -> None:
    model, x = Model(), torch.randn(4, 3)
    traced = torch.jit.trace(model, x)
    assert "aten::sigmoid" in str(traced.inlined_graph)
    assert "PythonOp" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), torch.sigmoid(model.linear(x)))


def test_make_fx_of_the_value() -> None:
    graph = make_fx(lambda x: fused_sigmoid.sigmoid(x))(torch.zeros(3, dtype=torch.float64))
    assert operators(graph.graph) == ["aten.sigmoid.default"]
    check(graph(POINTS), VALUE)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_of_the_gradient(sigmoid: Function, mode: str) -> None:
    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(sigmoid(x).sum(), x)[0]

    example = torch.zeros(len(POINTS), dtype=torch.float64, requires_grad=True)
    graph = make_fx(gradient, tracing_mode=mode)(example)
    assert not any("fused_sigmoid" in name for name in operators(graph.graph))
    check(graph(leaf()), FIRST)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_of_the_pair(mode: str) -> None:
    graph = make_fx(lambda x: sigmoid_with_derivative(x), tracing_mode=mode)(POINTS[:3])
    value, derivative = graph(POINTS[:3])
    check(value, VALUE[:3])
    check(derivative, FIRST[:3])


def test_symbolic_trace() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation = FusedSigmoid("derivative")

        def forward(self, x: Tensor) -> Tensor:
            value, derivative = sigmoid_with_derivative(x)
            return self.activation(x) + value + derivative

    graph = torch.fx.symbolic_trace(Both())
    check(graph(POINTS), 2 * VALUE + FIRST)


def test_symbolic_trace_keeps_the_gradient(sigmoid: Function) -> None:
    graph = torch.fx.symbolic_trace(lambda x: sigmoid(x * 1))
    for traced in (graph, pickle.loads(pickle.dumps(graph))):
        x = leaf()
        traced(x).sum().backward()
        check(x.grad, FIRST)


# Modes


def test_fake_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 4, dtype=torch.bfloat16).t().requires_grad_()
        y = fused_sigmoid.sigmoid(x)
        value, derivative = sigmoid_with_derivative(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        for result in (y, value, derivative):
            assert type(result).__name__ == "FakeTensor"
            assert (result.shape, result.stride(), result.dtype) == ((4, 3), (1, 4), x.dtype)
        assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def test_dispatch_mode_sees_the_operations(sigmoid: Function) -> None:
    x = leaf()
    with Log() as log:
        y = sigmoid(x)
    assert log.operators[0] == "aten.sigmoid.default"
    assert not any("fused_sigmoid" in name for name in log.operators)
    with Log() as backward:
        y.sum().backward()
    assert "aten.exp.default" in log.operators + backward.operators
    check(y, VALUE)
    check(x.grad, FIRST)


def test_dispatch_mode_over_an_eager_forward(sigmoid: Function) -> None:
    x = leaf()
    y = sigmoid(x)
    with Log() as log:
        y.sum().backward()
    assert any("mul" in name or "fused_sigmoid" in name for name in log.operators)
    check(x.grad, FIRST)


def test_dispatch_mode_sees_torch_ops() -> None:
    with Log() as log:
        torch.ops.fused_sigmoid.sigmoid(POINTS)
    assert log.operators == ["fused_sigmoid.sigmoid.default"]


def test_saved_tensor_hooks(sigmoid: Function) -> None:
    """What offloading and compressing of activations is built on."""
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    x = leaf()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sigmoid(x).sum().backward()
    assert packed
    check(x.grad, FIRST)


def test_checkpoint(sigmoid: Function) -> None:
    from torch.utils.checkpoint import checkpoint

    for use_reentrant in (False, True):
        x = leaf()
        checkpoint(sigmoid, x * 1, use_reentrant=use_reentrant).sum().backward()
        check(x.grad, FIRST)


def test_anomaly_detection(sigmoid: Function) -> None:
    x = leaf()
    with torch.autograd.detect_anomaly(check_nan=True):
        sigmoid(x).sum().backward()
    check(x.grad, FIRST)


def test_numpy_agrees_that_the_tails_are_there() -> None:
    """Guards the guard: the points do reach where y * (1 - y) fails."""
    assert (numpy.asarray(torch.sigmoid(leaf()).detach())[-1:] == 1).all()
    assert FIRST[-1] > 0
