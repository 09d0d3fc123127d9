"""The module users put in place of ``torch.nn.Sigmoid``."""

from __future__ import annotations

from torch import Tensor, nn

from ._extension import extension
from .functional import sigmoid


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

    >>> import torch, fused_sigmoid
    >>> module = fused_sigmoid.FusedSigmoid()
    >>> module(torch.tensor([0.0, 2.0]))
    tensor([0.5000, 0.8808])
    """

    # Of the class too, so that an nn.Sigmoid that becomes a FusedSigmoid has it.
    saved: str = "auto"

    def __init__(self, saved: str = "auto") -> None:
        super().__init__()
        extension.check_saved(saved)
        self.saved = saved

    def forward(self, input: Tensor) -> Tensor:
        """σ of every element of ``input``."""
        return sigmoid(input, saved=self.saved)

    def extra_repr(self) -> str:
        return "" if self.saved == "auto" else f"saved={self.saved!r}"
