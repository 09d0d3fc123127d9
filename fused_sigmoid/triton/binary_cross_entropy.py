"""The binary cross entropy of logits on GPUs: its arithmetic in Triton, which is that of
csrc/losses/binary_cross_entropy.h and csrc/numerics/logistic_loss.h with the same roundings, the
kernels, and their launches by Triton. Depends on torch, Triton and the files beside this one.
"""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .coefficients import LOSS_CONSTANTS, LOSS_EXP, LOSS_LOG1P, LOSS_POWERS, LOSS_SCALARS
from .elementwise import LAUNCH_OPTIONS, blocks_for
from .exponential import constant, divide, minus, power_of_two
from .sigmoid import value as _sigmoid

if TYPE_CHECKING:
    from torch import Tensor

_LIMIT, _LOG2_E, _ROUND_SHIFT, _LN2_HIGH, _LN2_LOW, _INVERSE_SCALE, _SUMMAND = map(
    tl.constexpr, range(len(LOSS_SCALARS))
)


def _by_dtype(constants: dict[str, Any]) -> Any:
    """As a Triton kernel sees it; both halves have the same constants."""
    halves = dict.fromkeys((tl.float16, tl.bfloat16), constants["half"])
    wide = {getattr(tl, dtype): constants[dtype] for dtype in ("float64", "float32")}
    return tl.constexpr(halves | wide)


_CONSTANTS = _by_dtype(LOSS_CONSTANTS)
_POWERS = _by_dtype(LOSS_POWERS)
_EXP = _by_dtype(LOSS_EXP)
_LOG1P = _by_dtype(LOSS_LOG1P)


# The arithmetic, in float32 for halves. `dtype` is that of the tensors.


@triton.jit
def _horner(x, coefficients: tl.constexpr):
    terms: tl.constexpr = len(coefficients)
    p = constant(x, coefficients[terms - 1])
    for i in tl.static_range(terms - 1):
        p = tl.fma(p, x, constant(x, coefficients[terms - 2 - i]))
    return p


@triton.jit
def _logistic_loss(magnitude, dtype: tl.constexpr):
    """1 / (1 + exp(|x|)) and log(1 + exp(-|x|)) of one exponential."""
    constants: tl.constexpr = _CONSTANTS[dtype]
    powers: tl.constexpr = _POWERS[dtype]
    of_exp: tl.constexpr = _EXP[dtype]
    of_log1p: tl.constexpr = _LOG1P[dtype]
    limit = constant(magnitude, constants[_LIMIT])
    round_shift = constant(magnitude, constants[_ROUND_SHIFT])
    a = tl.minimum(magnitude, limit, propagate_nan=tl.PropagateNan.ALL)
    shifted = tl.fma(a, minus(constant(a, constants[_LOG2_E])), round_shift)
    m = shifted - round_shift
    r = tl.fma(m, constant(a, constants[_LN2_HIGH]), a)
    r = tl.fma(m, constant(a, constants[_LN2_LOW]), r)
    power = power_of_two(shifted, powers)
    scaled = tl.fma(power, _horner(r, of_exp), power)
    e = scaled * constant(a, constants[_INVERSE_SCALE])
    log1p = tl.fma(e * _horner(e, of_log1p), e, e)
    # The halves' reciprocal is corrected as well: their operands are other than the sigmoid's.
    corrected: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    smaller = divide(scaled, scaled + constant(a, constants[_SUMMAND]), corrected)
    return smaller, log1p


@triton.jit
def _if_negative(x, negative, other):
    """`negative` where the sign bit of x is set, as of -0."""
    bits: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    return tl.where(x.to(bits, bitcast=True) < 0, negative, other)


@triton.jit
def _linear(side, magnitude, rest):
    """A target of 0 or 1 on the right side of an infinite logit costs nothing."""
    return tl.where(side == 0, rest, tl.fma(side, magnitude, rest))


@triton.jit
def _gradient(x, negative, positive, smaller):
    larger = 1 - smaller
    rest = negative * _if_negative(x, smaller, larger)
    return tl.fma(minus(positive), _if_negative(x, larger, smaller), rest)


@triton.jit
def _binary_cross_entropy(x, t, dtype: tl.constexpr):
    """The loss and its gradient."""
    magnitude = tl.abs(x)
    smaller, log1p = _logistic_loss(magnitude, dtype)
    u = 1 - t
    loss = _linear(_if_negative(x, t, u), magnitude, log1p)
    return loss, _gradient(x, u, t, smaller)


@triton.jit
def _weighted_binary_cross_entropy(x, t, weight, pos_weight, dtype: tl.constexpr):
    magnitude = tl.abs(x)
    smaller, log1p = _logistic_loss(magnitude, dtype)
    u = 1 - t
    positive = pos_weight * t
    loss = _linear(_if_negative(x, positive, u), magnitude, (u + positive) * log1p)
    return weight * loss, weight * _gradient(x, u, positive, smaller)


# The kernels. An operand or a result that is None is one that a call does not have: the kernel is
# compiled without it. Tensors have no gaps and lie in one order. Triton compiles apart what begins
# at a multiple of 16 bytes, and reads and writes that 16 bytes at a time. Blocks are as large as
# the elementwise kernels', which move about as much memory for each thread.


@triton.jit
def _load(tensor, places, mask):
    block = tl.load(tensor + places, mask=mask)
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@triton.jit
def _load_weight(tensor, is_number: tl.constexpr, places, mask):
    if tensor is None:
        weight = 1.0
    elif is_number:
        weight = tl.load(tensor)
    else:
        weight = tl.load(tensor + places, mask=mask)
    return weight


@triton.jit
def _store(tensor, block, places, mask):
    tl.store(tensor + places, block.to(tensor.dtype.element_ty), mask=mask)


@triton.jit
def _run_block(operands, results, scale, places, mask, are_numbers: tl.constexpr):
    """Writes those results of a block that are asked for."""
    logits, targets, weights, pos_weights = operands
    losses, sums, gradients, probabilities = results
    dtype: tl.constexpr = logits.dtype.element_ty
    x = _load(logits, places, mask)
    t = _load(targets, places, mask)
    if weights is None and pos_weights is None:
        loss, gradient = _binary_cross_entropy(x, t, dtype)
    else:
        weight = _load_weight(weights, are_numbers & 1, places, mask)
        pos_weight = _load_weight(pos_weights, are_numbers & 2, places, mask)
        loss, gradient = _weighted_binary_cross_entropy(x, t, weight, pos_weight, dtype)
    if losses is not None:
        _store(losses, loss, places, mask)
    if sums is not None:
        if mask is not None:
            loss = tl.where(mask, loss, 0)
        tl.store(sums + tl.program_id(0), tl.sum(loss.to(tl.float64)))
    if gradients is not None:
        _store(gradients, gradient * tl.full((), scale, x.dtype), places, mask)
    if probabilities is not None:
        # By an exponential of its own, so that it is sigmoid(x) to the bit.
        _store(probabilities, _sigmoid(x, dtype), places, mask)


@triton.jit(do_not_specialize=["count"])
def fused_binary_cross_entropy(
    logits,
    targets,
    weights,
    pos_weights,
    losses,
    sums,
    gradients,
    probabilities,
    factor,
    scale: tl.float64,
    count: tl.int64,
    are_numbers: tl.constexpr,
    block_size: tl.constexpr,
):
    """Of each block the results, and the sum of its losses, in float64.

    Gradients are multiplied by `scale` and, where there is one, by the number `factor`. Bit 0 of
    `are_numbers` says that the weights are one number, bit 1 that the positive weights are.
    """
    operands = logits, targets, weights, pos_weights
    results = losses, sums, gradients, probabilities
    if factor is not None:
        scale = tl.load(factor).to(tl.float64) * scale
    start = tl.program_id(0).to(tl.int64) * block_size  # tensors reach past 2**31 elements
    places = start + tl.arange(0, block_size)
    # Only the end of the tensor has a mask, which makes every access one element wide.
    if count - start >= block_size:
        _run_block(operands, results, scale, places, None, are_numbers)
    else:
        _run_block(operands, results, scale, places, places < count, are_numbers)


@triton.jit(do_not_specialize=["count"])
def fused_binary_cross_entropy_total(
    sums, loss, divisor: tl.float64, count: tl.int64, block_size: tl.constexpr
):
    """The loss from the sums of the blocks: one program, which adds them in a fixed order."""
    total = tl.full((block_size,), 0, tl.float64)
    for start in range(0, count, block_size):
        places = start + tl.arange(0, block_size)
        total += tl.load(sums + places, mask=places < count, other=0)
    mean = tl.sum(total) / tl.full((), divisor, tl.float64)
    dtype: tl.constexpr = loss.dtype.element_ty
    # Halves are rounded from float32, as torch rounds a number.
    tl.store(loss, mean if dtype == tl.float64 else mean.to(tl.float32).to(dtype))


@triton.jit(do_not_specialize=["count"])
def fused_multiply_by_number(tensor, number, count: tl.int64, block_size: tl.constexpr):
    """In place. Nothing is read or written if the number is 1."""
    factor = tl.load(number)
    if factor != 1:
        start = tl.program_id(0).to(tl.int64) * block_size
        places = start + tl.arange(0, block_size)
        if count - start >= block_size:
            _multiply_block(tensor, factor, places, None)
        else:
            _multiply_block(tensor, factor, places, places < count)


@triton.jit
def _multiply_block(tensor, factor, places, mask):
    block = _load(tensor, places, mask)
    _store(tensor, block * factor.to(block.dtype), places, mask)


# The launches, on tensors of one device.

# How many sums the one program of the second kernel reads at a time, all on their way at once. A
# program may have 1024 threads, and AMD's warps have 64 of them.
TOTAL_BLOCK_SIZE = 8192
TOTAL_OPTIONS = {"num_warps": 16, "enable_fp_fusion": False}
# Most gradients are multiplied by 1: blocks are large, so that few programs find that out.
MULTIPLY_BLOCK_SIZE = 4096


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    with_gradient: bool,
    with_probability: bool,
) -> list[Tensor]:
    """The loss and, if wanted, its gradient by the input and the probability."""
    dtype, like = torch.promote_types(input.dtype, target.dtype), _layout(input)
    count = input.numel()
    divisor = count if reduction == "mean" else 1
    gradient = _fresh(like, input, dtype) if with_gradient else None
    probability = _fresh(like, input, dtype) if with_probability else None
    losses = sums = None
    if reduction == "none":
        losses = _fresh(like, input, dtype)
    else:
        blocks = triton.cdiv(count, blocks_for(dtype, count).size)
        sums = torch.empty(blocks, dtype=torch.float64, device=input.device)
    operands = (input, target, weight, pos_weight)
    results = (losses, sums, gradient, probability)
    _launch_losses(operands, results, dtype, like, None, divisor)
    if losses is not None:
        loss = _laid_out(losses, _layout(target), target.dtype)
    else:
        loss = torch.empty((), dtype=target.dtype, device=input.device)
        _launch(
            fused_binary_cross_entropy_total,
            1,
            *(sums, loss, float(divisor), blocks),
            block_size=TOTAL_BLOCK_SIZE,
            options=TOTAL_OPTIONS,
        )
    return [loss, *(each.to(input.dtype) for each in (gradient, probability) if each is not None)]


def backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The gradient by the input, times that of a sum or a mean, which is one number."""
    dtype, like = torch.promote_types(input.dtype, target.dtype), _layout(input)
    gradient = _fresh(like, input, dtype)
    divisor = input.numel() if reduction == "mean" else 1
    operands, results = (input, target, weight, pos_weight), (None, None, gradient, None)
    _launch_losses(operands, results, dtype, like, grad, divisor)
    return gradient.to(input.dtype)


def multiply_by_number(tensor: Tensor, number: Tensor) -> None:
    """In place."""
    if tensor.stride() != _layout(tensor).stride():
        tensor.mul_(number)
        return
    count = tensor.numel()
    _launch(
        fused_multiply_by_number,
        triton.cdiv(count, MULTIPLY_BLOCK_SIZE),
        *(tensor, number, count),
        block_size=MULTIPLY_BLOCK_SIZE,
    )


def _layout(tensor: Tensor) -> Tensor:
    """A tensor without memory that lies as this one does or, where it has gaps, as torch closes
    them up."""
    return torch.empty_like(tensor, device="meta")


def _fresh(like: Tensor, beside: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(like, dtype=dtype, device=beside.device)


def _laid_out(tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Broadcast, converted and copied, unless it is as it is to be."""
    wanted = like.shape, like.stride(), dtype
    if (tensor.shape, tensor.stride(), tensor.dtype) == wanted:
        return tensor
    return _fresh(like, tensor, dtype).copy_(tensor)


def _is_number(weight: Tensor | None) -> bool:
    return weight is not None and weight.numel() == 1


def _laid_out_weight(weight: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor | None:
    """In the dtype that losses are computed in; what is one number stays that."""
    dtype = torch.promote_types(dtype, torch.float32)
    if weight is None or _is_number(weight):
        return None if weight is None else weight.to(dtype)
    return _laid_out(weight, like, dtype)


def _launch_losses(
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    results: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    like: Tensor,
    factor: Tensor | None,
    divisor: int,
) -> None:
    count = like.numel()
    input, target, *weights = operands
    are_numbers = sum(1 << i for i, each in enumerate(weights) if _is_number(each))
    block_size = blocks_for(dtype, count).size
    _launch(
        fused_binary_cross_entropy,
        triton.cdiv(count, block_size),
        *(_laid_out(each, like, dtype) for each in (input, target)),
        *(_laid_out_weight(each, like, dtype) for each in weights),
        *(*results, factor, 1 / max(divisor, 1), count),
        are_numbers=are_numbers,
        block_size=block_size,
    )


def _launch(
    kernel: Any,
    programs: int,
    *arguments: Any,
    options: dict[str, Any] = LAUNCH_OPTIONS,
    **constants: Any,
) -> None:
    """On the device of the first tensor and its current stream."""
    if programs == 0:
        return
    device = arguments[0].get_device()
    elsewhere = device >= 0 and device != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, **options)
