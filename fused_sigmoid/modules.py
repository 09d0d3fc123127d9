"""The modules users put in place of ``torch.nn.Sigmoid`` and ``torch.nn.BCEWithLogitsLoss``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.jit import is_scripting  # type: ignore[attr-defined]

from ._extension import extension
from .binary_cross_entropy import binary_cross_entropy_with_logits, refuse_legacy
from .functions.sigmoid import sigmoid
from .routes import check_saved


class FusedSigmoid(nn.Sigmoid):
    """``torch.nn.Sigmoid`` with a gradient that is exact on both tails.

    .. math:: σ(x) = 1 / (1 + e^{-x})

    Args:
        saved: what to keep for the backward pass: ``"auto"``, ``"derivative"``, ``"input"`` or
            ``"output"``; see :func:`fused_sigmoid.sigmoid`.

    Shape:
        - Input: any shape, of any dtype and layout that ``torch.nn.Sigmoid`` takes.
        - Output: the same shape as the input.

    Raises:
        ValueError: ``saved`` is none of the four.

    Before ``nn.BCELoss`` the gradient is that of ``nn.BCEWithLogitsLoss``: that loss divides by its
    own rounded ``y * (1 - y)``, and the sigmoid, which finds it in the graph of the backward pass,
    multiplies by the same number. With ``nn.Sigmoid`` the gradient of a case that is saturated on
    the wrong side comes out 0. docs/company.md has the rule, and what is not seen.

    Exported by ``torch.export`` or traced by ``torch.jit.trace`` it is a plain ``aten.sigmoid``,
    whose own gradient is torch's.

    >>> import torch, fused_sigmoid
    >>> module = fused_sigmoid.FusedSigmoid()
    >>> module(torch.tensor([0.0, 2.0]))
    tensor([0.5000, 0.8808])
    """

    # The class has it too, for an nn.Sigmoid that becomes a FusedSigmoid. TorchScript reads no
    # annotation of a class that stands in quotes, as all do here.
    saved = "auto"

    def __init__(self, saved: str = "auto") -> None:
        super().__init__()
        check_saved(saved)
        self.saved = saved

    def forward(self, input: Tensor) -> Tensor:
        """σ of every element of ``input``."""
        if not is_scripting():
            # What sigmoid() does first; calling it for that costs 5 % of a call of one element.
            if not is_dynamo_compiling():
                value = extension.sigmoid(input, self.saved)
                if value is not None:
                    return value
            return sigmoid(input, saved=self.saved)
        # TorchScript skips the block above. Not by __prepare_scriptable__, with which
        # torch.jit.script exchanges the module in the caller's model, too, and drops its hooks.
        if self.saved != "output" and input.is_floating_point():
            return torch.ops.fused_sigmoid.sigmoid(input)
        return torch.sigmoid(input)

    def extra_repr(self) -> str:
        return "" if self.saved == "auto" else f"saved={self.saved!r}"


# TorchScript takes no comment for type checkers inside of a method.
_loss: Callable[..., Tensor] = binary_cross_entropy_with_logits


class FusedBCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss``, exact on both tails and in one pass over the logits.

    .. math:: l = w ((1 - t) \\log(1 + e^x) + p t \\log(1 + e^{-x}))

    Args:
        weight: w, of a shape that broadcasts to that of the logits; a buffer.
        size_average, reduce: torch's names for ``reduction`` before there was that; not accepted.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: p, of a shape that broadcasts to that of the logits; a buffer.
        return_probability: whether to return a tuple of the loss and σ(x), of the same pass.

    Shape:
        - Input and target: any shape, the same for both, of floating dtypes.
        - Output: a number, or with ``reduction="none"`` the shape of the input.

    Raises:
        TypeError: ``size_average`` or ``reduce`` is given.

    See :func:`fused_sigmoid.binary_cross_entropy_with_logits`. A module that was turned from a
    ``torch.nn.BCEWithLogitsLoss`` keeps its buffers and its reduction. TorchScript runs torch's.

    >>> import torch, fused_sigmoid
    >>> criterion = fused_sigmoid.FusedBCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    >>> criterion(torch.tensor([-20.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.0397)
    """

    # The class has it too, for an nn.BCEWithLogitsLoss that becomes one of these.
    return_probability = False

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        reduce: None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        return_probability: bool = False,
    ) -> None:
        refuse_legacy(size_average, reduce)
        super().__init__(weight, reduction=reduction, pos_weight=pos_weight)
        self.return_probability = return_probability

    # Annotated as torch's, for programs in which one takes the place of the other.
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss, or with ``return_probability`` a tuple of it and σ of every logit."""
        if not is_scripting():
            return _loss(
                input,
                target,
                self.weight,
                pos_weight=self.pos_weight,
                reduction=self.reduction,
                return_probability=self.return_probability,
            )
        return nn.functional.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return "return_probability=True" if self.return_probability else ""
