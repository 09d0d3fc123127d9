"""The functions by the path that they had first, which pickles of them name."""

from .functions.sigmoid import sigmoid as sigmoid
from .functions.sigmoid import sigmoid_ as sigmoid_
from .functions.sigmoid import sigmoid_with_derivative as sigmoid_with_derivative
