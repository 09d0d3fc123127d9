"""Who is timed: fused_sigmoid, the copy that is its limit, and the peers it is compared with.

One class a peer: whether it can do a cell, and the call that does it. A peer's package is imported
only when it is asked for. Depends on works for the buffers, on results for the cell, on machine
for what runs here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bench import machine
from bench.results import COPY, OURS, STREAMED_COPY, Cell
from bench.timing import Call
from bench.works import DTYPES, LOSS_WORKS, WORKS, Buffers, bytes_moved

Bind = Callable[[Buffers], Call]
# Of logits and labels; takes ``reduction`` as torch's own, and without it gives the mean.
LogitsLoss = Callable[..., torch.Tensor]


class CannotRunError(Exception):
    """Why a peer cannot do a cell, in words for the list of skipped rows."""


class Peer:
    """``prepare(cell)`` gives what binds the work to buffers, or raises CannotRunError."""

    name: str
    package: str | None = None
    compiles = False

    def prepare(self, cell: Cell) -> Bind:
        raise NotImplementedError

    def active(self) -> AbstractContextManager[Any]:
        """Entered around each sample, outside its time."""
        return nullcontext()

    def require(self, cell: Cell, devices: tuple[str, ...], works: tuple[str, ...]) -> None:
        if self.package and importlib.util.find_spec(self.package) is None:
            raise CannotRunError(f"package {self.package} is not installed")
        if cell.device not in devices:
            raise CannotRunError(f"runs on {', '.join(devices)} only")
        if cell.work not in works:
            raise CannotRunError(f"has no {cell.work}")

    def require_contiguous(self, cell: Cell) -> None:
        if cell.layout != "contiguous":
            raise CannotRunError("is compared on contiguous inputs alone")


class FusedSigmoid(Peer):
    name = OURS

    def prepare(self, cell: Cell) -> Bind:
        import fused_sigmoid

        if cell.work == "forward":
            return lambda buffers: partial(fused_sigmoid.sigmoid, buffers.input, out=buffers.value)
        if cell.work == "pair":
            return lambda buffers: partial(fused_sigmoid.sigmoid_with_derivative, buffers.input)
        if cell.work == "backward":
            backward = torch.ops.fused_sigmoid.sigmoid_backward
            return lambda buffers: partial(backward, buffers.grad_output, buffers.input)
        if cell.work in LOSS_WORKS:
            return _bind_logits_loss(fused_sigmoid.binary_cross_entropy_with_logits, cell.work)
        return _bind_module(fused_sigmoid.FusedSigmoid(saved=cell.saved), cell.work)


class FusedSigmoidSaving(Peer):
    """Ours with ``saved`` forced, against ours with "auto": where the crossover lies."""

    def __init__(self, saved: str) -> None:
        self.saved = saved
        self.name = f"saved={saved}"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu", "cuda"), ("training",))
        import fused_sigmoid

        return _bind_module(fused_sigmoid.FusedSigmoid(saved=self.saved), cell.work)


class Copy(Peer):
    """The roofline: a copy of as many bytes as the work moves, into memory already touched."""

    name = COPY

    def prepare(self, cell: Cell) -> Bind:
        return lambda buffers: partial(buffers.copy_target.copy_, buffers.copy_source)


class StreamedCopy(Copy):
    """The same copy, by stores that leave out the caches: on some processors copy_ is not the
    limit."""

    name = STREAMED_COPY
    # What fits in a cache is faster there.
    smallest_bytes = 64 * 1024**2

    def prepare(self, cell: Cell) -> Bind:
        from fused_sigmoid._extension import extension

        self.require(cell, ("cpu",), tuple(WORKS))
        if "avx2" not in extension.instruction_sets():
            raise CannotRunError("this device runs no AVX2")
        if bytes_moved(cell.work, cell.size, cell.dtype) < self.smallest_bytes:
            raise CannotRunError("is for works that move 64 MiB and more")
        copy = extension.copy_streamed
        return lambda buffers: partial(copy, buffers.copy_target, buffers.copy_source)


class TorchEager(Peer):
    name = "torch"

    def prepare(self, cell: Cell) -> Bind:
        if cell.work == "forward":
            return lambda buffers: partial(torch.sigmoid, buffers.input, out=buffers.value)
        if cell.work == "pair":
            return lambda buffers: partial(_composed_pair, buffers.input)
        if cell.work == "backward":
            return lambda buffers: partial(_backward, buffers.grad_output, buffers.value)
        if cell.work in LOSS_WORKS:
            return _bind_logits_loss(F.binary_cross_entropy_with_logits, cell.work)
        return _bind_module(nn.Sigmoid(), cell.work)


class SigmoidThenLoss(Peer):
    """The classifier that has a sigmoid of its own, as one finds it written."""

    name = "sigmoid+bce"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu", "cuda"), LOSS_WORKS)
        return _bind_logits_loss(_sigmoid_then_loss, cell.work)


class TorchCompile(Peer):
    """Compiled anew for every cell: shapes are static, as the peer would like them."""

    name = "torch.compile"
    compiles = True

    def prepare(self, cell: Cell) -> Bind:
        torch._dynamo.reset()
        if cell.work == "forward":
            into = torch.compile(_sigmoid_into, dynamic=False)
            return lambda buffers: partial(into, buffers.input, buffers.value)
        if cell.work == "pair":
            pair = torch.compile(_composed_pair, dynamic=False)
            return lambda buffers: partial(pair, buffers.input)
        if cell.work == "backward":
            backward = torch.compile(_backward, dynamic=False)
            return lambda buffers: partial(backward, buffers.grad_output, buffers.value)
        if cell.work == "bce":
            return _bind_loss(partial(torch.compile(_loss, dynamic=False), nn.Sigmoid()))
        if cell.work in LOSS_WORKS:
            return _bind_logits_loss(torch.compile(_torchs_loss, dynamic=False), cell.work)
        return _bind_module(torch.compile(nn.Sigmoid(), dynamic=False), cell.work)


class FlagGems(Peer):
    """FlagGems takes over ATen's operators while its context is entered, backward included."""

    name = "flag_gems"
    package = "flag_gems"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cuda",), ("forward-fresh", "pair", "training", "backward"))
        return TorchEager().prepare(cell)

    def active(self) -> AbstractContextManager[Any]:
        import flag_gems

        return flag_gems.use_gems()


class OnnxRuntime(Peer):
    name = "onnxruntime"
    package = "onnxruntime"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu",), ("forward", "forward-fresh"))
        self.require_contiguous(cell)
        if DTYPES[cell.dtype] == torch.bfloat16:
            raise CannotRunError("its CPU provider has no bfloat16 Sigmoid, NumPy no bfloat16")
        session = _onnx_session(cell)
        if cell.work == "forward":

            def bind(buffers: Buffers) -> Call:
                source, target = buffers.input.numpy(), buffers.value.numpy()
                binding = session.io_binding()
                place = ("cpu", 0, source.dtype, source.shape)
                binding.bind_input("x", *place, source.ctypes.data)
                binding.bind_output("y", *place, target.ctypes.data)

                def run() -> torch.Tensor:
                    session.run_with_iobinding(binding)
                    return buffers.value

                return run

            return bind

        def bind_fresh(buffers: Buffers) -> Call:
            feed = {"x": buffers.input.numpy()}
            return lambda: session.run(None, feed)[0]

        return bind_fresh


class Scipy(Peer):
    name = "scipy"
    package = "scipy"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu",), ("forward", "forward-fresh"))
        self.require_contiguous(cell)
        if cell.threads > 1:
            raise CannotRunError("scipy.special.expit runs on one thread")
        from scipy.special import expit

        if cell.dtype not in ("float32", "float64"):
            raise CannotRunError(f"scipy.special.expit has no {cell.dtype} loop")
        if cell.work == "forward":
            return lambda buffers: partial(expit, buffers.input.numpy(), out=buffers.value.numpy())
        return lambda buffers: partial(expit, buffers.input.numpy())


class NumExpr(Peer):
    """NumPy expressions in blocks that stay in a cache; exp is libm's, or MKL's where numexpr was
    built with it."""

    name = "numexpr"
    package = "numexpr"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu",), ("forward", "forward-fresh"))
        self.require_contiguous(cell)
        if cell.dtype not in ("float32", "float64"):
            raise CannotRunError(f"numexpr has no {cell.dtype}")
        import numexpr

        numexpr.set_num_threads(cell.threads)
        sigmoid = partial(numexpr.evaluate, "1 / (1 + exp(-x))", global_dict={})

        def bind(buffers: Buffers) -> Call:
            given = {"local_dict": {"x": buffers.input.numpy()}}
            if cell.work == "forward":
                return partial(sigmoid, **given, out=buffers.value.numpy())
            return partial(sigmoid, **given)

        return bind


class Jax(Peer):
    """What XLA compiles for a CPU. Its outputs are always fresh; a call waits for them."""

    name = "jax"
    package = "jax"

    def prepare(self, cell: Cell) -> Bind:
        self.require(cell, ("cpu",), ("forward-fresh", "pair"))
        self.require_contiguous(cell)
        if cell.threads > 1:
            raise CannotRunError("XLA's threads are chosen when its process starts: one here")
        # Both are read once, when JAX first computes.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("NPROC", "1")
        import jax

        jax.config.update("jax_enable_x64", True)

        def pair(values: Any) -> tuple[Any, Any]:
            output = jax.nn.sigmoid(values)
            return output, output * (1 - output)

        compiled = jax.jit(pair if cell.work == "pair" else jax.nn.sigmoid)

        def bind(buffers: Buffers) -> Call:
            values = jax.dlpack.from_dlpack(buffers.input)
            return lambda: jax.block_until_ready(compiled(values))

        return bind


class OwnProcess(Peer):
    """torch, and ours beside it, in a process with settings that are read at its start: bench.runs
    starts it."""

    environment: ClassVar[dict[str, str]]

    def refusal(self, cell: Cell) -> str | None:
        """Why a process for this cell would be no use."""
        raise NotImplementedError

    def prepare(self, cell: Cell) -> Bind:
        raise CannotRunError("is measured in a process of its own")


class TorchHugePages(OwnProcess):
    name = "torch+thp"
    environment: ClassVar[dict[str, str]] = {"THP_MEM_ALLOC_ENABLE": "1"}
    # Below this size torch's allocator does not ask for huge pages.
    smallest_bytes = 2 * 1024**2

    def refusal(self, cell: Cell) -> str | None:
        fresh = cell.work != "forward"
        output = cell.size * DTYPES[cell.dtype].itemsize
        if cell.device != "cpu" or not fresh or output < self.smallest_bytes:
            return "huge pages are for fresh CPU outputs of 2 MiB and more"
        if machine.huge_pages() in (None, "never"):
            return "transparent huge pages are not to be had on this system"
        return None


class TorchAvx2(OwnProcess):
    """Both without AVX-512: what a CPU that lacks it would run."""

    name = "torch+avx2"
    environment: ClassVar[dict[str, str]] = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "FUSED_SIGMOID_CPU": "avx2",
    }

    def refusal(self, cell: Cell) -> str | None:
        from fused_sigmoid._extension import extension

        if cell.device != "cpu" or "avx2" not in extension.instruction_sets():
            return "this device runs no AVX2"
        return None


# Order of the columns and of measuring; those that compile come last as they take longest.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        StreamedCopy(),
        TorchEager(),
        SigmoidThenLoss(),
        OnnxRuntime(),
        Scipy(),
        NumExpr(),
        Jax(),
        FlagGems(),
        TorchHugePages(),
        TorchAvx2(),
        TorchCompile(),
        FusedSigmoidSaving("derivative"),
        FusedSigmoidSaving("input"),
        FusedSigmoidSaving("output"),
    )
}
DEFAULT_PEERS = tuple(
    name for name in PEERS if not name.startswith("saved=") and name != TorchAvx2.name
)


def _bind_module(module: Callable[[torch.Tensor], torch.Tensor], work: str) -> Bind:
    if work == "training":
        return lambda buffers: partial(_train, module, buffers.input, buffers.grad_output)
    if work == "bce":
        return _bind_loss(partial(_loss, module))
    return lambda buffers: partial(module, buffers.input)


def _bind_loss(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Bind:
    return lambda buffers: partial(_train_by, loss, buffers.input, buffers.labels)


def _bind_logits_loss(loss: LogitsLoss, work: str) -> Bind:
    if work == "loss-forward":
        # These logits ask for no gradient.
        return lambda buffers: partial(loss, buffers.input, buffers.labels)
    if work == "loss":
        return lambda buffers: partial(_train_by_mean, loss, buffers.input, buffers.labels)
    return lambda buffers: partial(
        _train_by_each, loss, buffers.input, buffers.labels, buffers.grad_output
    )


def _train(
    module: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor | None:
    module(values).backward(grad)
    return _taken_gradient(values)


def _loss(
    module: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    return F.binary_cross_entropy(module(values), labels, reduction="sum")


def _train_by(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    values: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor | None:
    loss(values, labels).backward()
    return _taken_gradient(values)


def _train_by_mean(
    loss: LogitsLoss, values: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    mean = loss(values, labels)
    mean.backward()
    return mean, _taken_gradient(values)


def _train_by_each(
    loss: LogitsLoss, values: torch.Tensor, labels: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    losses = loss(values, labels, reduction="none")
    losses.backward(grad)
    return losses, _taken_gradient(values)


def _torchs_loss(
    values: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(values, labels, reduction=reduction)


def _sigmoid_then_loss(
    values: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    return F.binary_cross_entropy(torch.sigmoid(values), labels, reduction=reduction)


def _taken_gradient(values: torch.Tensor) -> torch.Tensor | None:
    gradient = values.grad
    values.grad = None  # else the next backward would add to it, and the sum be timed
    return gradient


def _composed_pair(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = torch.sigmoid(values)
    return output, output * (1 - output)


def _backward(grad: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.sigmoid_backward(grad, output)


def _sigmoid_into(values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(values, out=out)


def _onnx_session(cell: Cell) -> Any:
    import onnxruntime

    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise CannotRunError("package onnx, which writes its model, is not installed") from error
    element = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
    }[cell.dtype]
    ends = [helper.make_tensor_value_info(name, element, [cell.size]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])], "sigmoid", ends[:1], ends[1:]
    )
    # Operator set 13 and IR 8 are old enough for any onnxruntime in use.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cell.threads
    # Its threads would otherwise spin on after a run and take the cores from ours.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
