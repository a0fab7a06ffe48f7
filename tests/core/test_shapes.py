"""The shapes written in core's signatures are really checked while the tests run."""

import pytest
import torch

from plait.core.feedforward import FFN
from plait.core.kernels import Lowered, weights
from plait.core.linear import Linear


def test_a_wrong_shape_or_dtype_is_caught():
    with pytest.raises(TypeError, match="x"):
        Linear(3, 4)(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="B L D"):
        FFN(3, 4)(torch.zeros(2, 3))
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(TypeError, match="B H L S"):
        weights(q, q, Lowered(None), torch.zeros(2, 1, 1, 1, 1), 1.0)  # a bias of the wrong rank
