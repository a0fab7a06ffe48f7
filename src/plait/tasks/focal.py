"""The focal loss: classes that are judged each for itself, where nearly all of them are absent (Lin et al. 2017, section 3)."""

import torch.nn.functional as F
from torch import Tensor

PRESENT = 0.25  # how much a class that is there weighs beside 1 - PRESENT (section 3.2: alpha)
POWER = 2.0  # how fast what is sure already stops counting (section 3.2: gamma)


def focal(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logits of classes, any shape: (the loss of each if it is absent, by how much more it is if it is there)."""
    p = scores.sigmoid()
    absent = (1 - PRESENT) * p**POWER * F.softplus(scores)
    return absent, PRESENT * (1 - p) ** POWER * F.softplus(-scores) - absent
