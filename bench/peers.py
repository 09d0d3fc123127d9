"""Who is timed: fused_sigmoid, the copy that is its limit, and the peers it is compared with.

To add a peer, write the function that gives its calls, and a row of PEERS that says what it can do.
Torch and a peer's package are imported only when it is asked for.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from bench.results import COPY, OURS, STREAMED_COPY, Cell
from bench.works import DTYPES, LOSS_WORKS, WORKS, bytes_moved

if TYPE_CHECKING:
    from torch import Tensor

    from bench.buffers import Buffers

Call = Callable[[], Any]
Bind = Callable[["Buffers"], Call]
# By work: a peer names all that it can do, and one of them is called.
Calls = dict[str, Call]


class CannotRunError(Exception):
    """Why a peer cannot do a cell, in words for the list of skipped rows."""


@dataclass(frozen=True)
class Peer:
    """``prepare(cell)`` gives what binds its work to buffers, or raises CannotRunError."""

    name: str
    bind: Callable[[Cell], Bind]
    package: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    works: tuple[str, ...] = tuple(WORKS)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    layouts: tuple[str, ...] = ()  # all
    on_one_thread: bool = False
    compiles: bool = False
    is_default: bool = True
    # Settings that are read when a process starts: torch and ours are then measured in one of their
    # own that has them.
    environment: dict[str, str] = field(default_factory=dict)
    # Entered around each sample, outside its time.
    active: Callable[[], AbstractContextManager[Any]] = nullcontext
    other_refusal: Callable[[Cell], str | None] = lambda cell: None

    def prepare(self, cell: Cell) -> Bind:
        if reason := self.refusal(cell):
            raise CannotRunError(reason)
        return self.bind(cell)

    def refusal(self, cell: Cell) -> str | None:
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"package {self.package} is not installed"
        if cell.device not in self.devices:
            return f"runs on {', '.join(self.devices)} only"
        if cell.work not in self.works:
            return "has no such work"
        if cell.dtype not in self.dtypes:
            return "has no such dtype"
        if self.layouts and cell.layout not in self.layouts:
            return f"is compared on {', '.join(self.layouts)} inputs alone"
        if self.on_one_thread and cell.threads > 1:
            return "runs on one thread"
        return self.other_refusal(cell)


# What the works are made of: a module, and the function of a loss of logits.


def _before_bce(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    import torch.nn.functional as F

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy(module(x), labels, reduction="sum")

    return loss


def _module_calls(
    module: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor], of: Buffers
) -> Calls:
    def train(x: Tensor, grad: Tensor) -> Any:
        module(x).backward(grad)
        return _taken_gradient(x)

    def train_by_bce(x: Tensor, labels: Tensor) -> Any:
        loss(x, labels).backward()
        return _taken_gradient(x)

    return {
        "forward-fresh": partial(module, of.input),
        "training": partial(train, of.input, of.grad_output),
        "bce": partial(train_by_bce, of.input, of.labels),
    }


def _loss_calls(loss: Callable[..., Tensor], of: Buffers) -> Calls:
    """``loss`` takes ``reduction`` as torch's own, and without it gives the mean."""

    def train_by_mean(x: Tensor, labels: Tensor) -> Any:
        mean = loss(x, labels)
        mean.backward()
        return mean, _taken_gradient(x)

    def train_by_each(x: Tensor, labels: Tensor, grad: Tensor) -> Any:
        losses = loss(x, labels, reduction="none")
        losses.backward(grad)
        return losses, _taken_gradient(x)

    return {
        "loss": partial(train_by_mean, of.input, of.labels),
        "loss-forward": partial(loss, of.input, of.labels),
        "loss-none": partial(train_by_each, of.input, of.labels, of.grad_output),
    }


def _taken_gradient(x: Tensor) -> Tensor | None:
    gradient = x.grad
    x.grad = None  # else the next backward would add to it, and the sum be timed
    return gradient


# The calls of each.


def _ours(cell: Cell, saved: str | None = None) -> Bind:
    import torch

    import fused_sigmoid as ours

    module = ours.FusedSigmoid(saved=saved or cell.saved)
    bce = _before_bce(module)
    backward = torch.ops.fused_sigmoid.sigmoid_backward
    return lambda of: {
        **_module_calls(module, bce, of),
        **_loss_calls(ours.binary_cross_entropy_with_logits, of),
        "forward": partial(ours.sigmoid, of.input, out=of.value),
        "pair": partial(ours.sigmoid_with_derivative, of.input),
        "backward": partial(backward, of.grad_output, of.input),
    }[cell.work]


def _copy(cell: Cell) -> Bind:
    """As many bytes as the work moves, into memory already touched."""
    return lambda of: partial(of.copy_target.copy_, of.copy_source)


def _streamed_copy(cell: Cell) -> Bind:
    """By stores that leave out the caches: on some processors copy_ is not the limit."""
    from fused_sigmoid._extension import extension

    return lambda of: partial(extension.copy_streamed, of.copy_target, of.copy_source)


def _torch(cell: Cell, made: Callable[..., Any] = lambda function: function) -> Bind:
    """``made`` of each of torch's functions, once for all sets of buffers: itself, or compiled."""
    import torch
    import torch.nn.functional as F

    module = torch.nn.Sigmoid()
    bce = _before_bce(module)

    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        output = torch.sigmoid(x)
        return output, output * (1 - output)

    return lambda of: {
        **_module_calls(made(module), made(bce), of),
        **_loss_calls(made(F.binary_cross_entropy_with_logits), of),
        "forward": partial(made(torch.sigmoid), of.input, out=of.value),
        "pair": partial(made(pair), of.input),
        "backward": partial(made(torch.ops.aten.sigmoid_backward), of.grad_output, of.value),
    }[cell.work]


def _compiled(cell: Cell) -> Bind:
    """Compiled anew for every cell: shapes are static, as the peer would like them."""
    import torch

    torch._dynamo.reset()
    # A function is compiled when it is called, not before.
    return _torch(cell, cache(partial(torch.compile, dynamic=False)))


def _sigmoid_then_loss(cell: Cell) -> Bind:
    """The classifier that has a sigmoid of its own, as one finds it written."""
    import torch.nn.functional as F

    def loss(x: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return F.binary_cross_entropy(x.sigmoid(), labels, reduction=reduction)

    return lambda of: _loss_calls(loss, of)[cell.work]


def _flag_gems() -> AbstractContextManager[Any]:
    """It takes over ATen's operators, backward included."""
    import flag_gems

    return flag_gems.use_gems()


def _onnxruntime(cell: Cell) -> Bind:
    import onnxruntime

    try:
        from onnx import parser
    except ImportError as error:
        raise CannotRunError("package onnx, which writes its model, is not installed") from error
    element = {"float32": "float", "float64": "double"}.get(cell.dtype, cell.dtype)
    # Operator set 13 and IR 8 are old enough for any onnxruntime in use.
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]>'
        f" sigmoid ({element}[N] x) => ({element}[N] y) {{ y = Sigmoid(x) }}"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cell.threads
    # Its threads would otherwise spin on after a run and take the cores from ours.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def bind(of: Buffers) -> Call:
        source = of.input.numpy()
        if cell.work == "forward-fresh":
            return lambda: session.run(None, {"x": source})[0]
        binding = session.io_binding()
        place = ("cpu", 0, source.dtype, source.shape)
        binding.bind_input("x", *place, source.ctypes.data)
        binding.bind_output("y", *place, of.value.data_ptr())

        def run() -> Tensor:
            session.run_with_iobinding(binding)
            return of.value

        return run

    return bind


def _scipy(cell: Cell) -> Bind:
    from scipy.special import expit

    if cell.work == "forward":
        return lambda of: partial(expit, of.input.numpy(), out=of.value.numpy())
    return lambda of: partial(expit, of.input.numpy())


def _numexpr(cell: Cell) -> Bind:
    """In blocks that stay in a cache; exp is libm's, or MKL's where numexpr was built with it."""
    import numexpr

    numexpr.set_num_threads(cell.threads)
    sigmoid = partial(numexpr.evaluate, "1 / (1 + exp(-x))", global_dict={})

    def bind(of: Buffers) -> Call:
        out = {"out": of.value.numpy()} if cell.work == "forward" else {}
        return partial(sigmoid, local_dict={"x": of.input.numpy()}, **out)

    return bind


def _jax(cell: Cell) -> Bind:
    """What XLA compiles for a CPU. Its outputs are always fresh; a call waits for them."""
    # Both are read once, when JAX first computes. It takes its threads when its process starts.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("NPROC", "1")
    import jax

    jax.config.update("jax_enable_x64", True)

    def pair(values: Any) -> tuple[Any, Any]:
        output = jax.nn.sigmoid(values)
        return output, output * (1 - output)

    compiled = jax.jit(pair if cell.work == "pair" else jax.nn.sigmoid)

    def bind(of: Buffers) -> Call:
        values = jax.dlpack.from_dlpack(of.input)
        return lambda: jax.block_until_ready(compiled(values))

    return bind


# What they refuse beside the rest of their row.


def _no_avx2(cell: Cell) -> str | None:
    from fused_sigmoid._extension import extension

    return None if "avx2" in extension.instruction_sets() else "this device runs no AVX2"


# What fits in a cache is faster there.
LEAST_STREAMED_BYTES = 64 * 1024**2


def _not_to_be_streamed(cell: Cell) -> str | None:
    if bytes_moved(cell.work, cell.size, cell.dtype) < LEAST_STREAMED_BYTES:
        return "is for works that move 64 MiB and more"
    return _no_avx2(cell)


def _no_huge_pages(cell: Cell) -> str | None:
    from bench import machine

    # Below this size torch's allocator does not ask for huge pages.
    if cell.work == "forward" or cell.size * DTYPES[cell.dtype] < 2 * 1024**2:
        return "huge pages are for fresh CPU outputs of 2 MiB and more"
    never = machine.huge_pages() in (None, "never")
    return "transparent huge pages are not to be had on this system" if never else None


FUSED_SIGMOID, COPY_PEER = Peer(OURS, _ours), Peer(COPY, _copy)
FORWARD = ("forward", "forward-fresh")
EXACT = ("float32", "float64")
CPU: dict[str, Any] = {"devices": ("cpu",)}
ARRAYS: dict[str, Any] = {**CPU, "layouts": ("contiguous",), "works": FORWARD}  # NumPy's, or JAX's

# In the order of measuring; what compiles comes last as it takes longest.
_ROWS = (
    Peer(STREAMED_COPY, _streamed_copy, **CPU, other_refusal=_not_to_be_streamed),
    Peer("torch", _torch),
    Peer("sigmoid+bce", _sigmoid_then_loss, works=LOSS_WORKS),
    Peer("onnxruntime", _onnxruntime, "onnxruntime", dtypes=(*EXACT, "float16"), **ARRAYS),
    Peer("scipy", _scipy, "scipy", dtypes=EXACT, on_one_thread=True, **ARRAYS),
    Peer("numexpr", _numexpr, "numexpr", dtypes=EXACT, **ARRAYS),
    Peer("jax", _jax, "jax", on_one_thread=True, **{**ARRAYS, "works": ("forward-fresh", "pair")}),
    Peer(
        *("flag_gems", _torch, "flag_gems", ("cuda",)),
        works=("forward-fresh", "pair", "training", "backward"),
        active=_flag_gems,
    ),
    Peer(
        *("torch+thp", _torch),
        environment={"THP_MEM_ALLOC_ENABLE": "1"},
        other_refusal=_no_huge_pages,
        **CPU,
    ),
    # Both without AVX-512: what a CPU that lacks it would run.
    Peer(
        *("torch+avx2", _torch),
        environment={"ATEN_CPU_CAPABILITY": "avx2", "FUSED_SIGMOID_CPU": "avx2"},
        is_default=False,
        other_refusal=_no_avx2,
        **CPU,
    ),
    Peer("torch.compile", _compiled, compiles=True),
    # Ours against ours with "auto": where the crossover lies.
    *(
        Peer(f"saved={saved}", partial(_ours, saved=saved), works=("training",), is_default=False)
        for saved in ("derivative", "input", "output")
    ),
)
PEERS = {peer.name: peer for peer in _ROWS}
DEFAULT_PEERS = tuple(peer.name for peer in _ROWS if peer.is_default)
