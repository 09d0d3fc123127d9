"""The sigmoid σ(x) = 1 / (1 + exp(-x)) and its derivative in one pass, exact on both tails.

``FusedSigmoid`` replaces ``torch.nn.Sigmoid``; the functions replace ``torch.sigmoid``.
``FusedBCEWithLogitsLoss`` and ``binary_cross_entropy_with_logits`` compute a classifier's loss from
its logits, without a sigmoid.
"""

from . import loss_operators as loss_operators  # registers the kernels of the loss
from . import operators as operators  # registers the kernels of torch.ops.fused_sigmoid
from .binary_cross_entropy import binary_cross_entropy_with_logits
from .functions import PUBLIC as _PUBLIC
from .functions.sigmoid import sigmoid, sigmoid_, sigmoid_with_derivative
from .modules import FusedBCEWithLogitsLoss, FusedSigmoid
from .replace import override, replace_sigmoid, restore_sigmoid

__version__ = "0.2.0"

__all__ = [
    "FusedBCEWithLogitsLoss",
    "FusedSigmoid",
    "binary_cross_entropy_with_logits",
    "override",
    "replace_sigmoid",
    "restore_sigmoid",
    "sigmoid",
    "sigmoid_",
    "sigmoid_with_derivative",
]

# Those of the sigmoid are imported by name, above, for type checkers.
globals().update(_PUBLIC)
__all__ += [name for name in _PUBLIC if name not in __all__]
