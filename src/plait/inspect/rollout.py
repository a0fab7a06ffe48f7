"""Attention rollout: how much of each input a layer's entries are made of, through all layers before it (Abnar & Zuidema 2020)."""

import numpy as np


def rollout(weights: np.ndarray) -> np.ndarray:
    """Weights [layers, heads, L, L] of self-attention -> float32 [layers, L, L]: row q of layer i is what entry q behind it is made of.

    Section 3: heads are averaged, the residual connection counts as much as the attention, and the layers' matrices are multiplied.
    Computed in float64; each row sums to 1.
    """
    eye = np.eye(weights.shape[-1])
    found, so_far = [], eye
    for layer in weights:
        step = layer.mean(0, dtype=np.float64) + eye
        so_far = step / step.sum(-1, keepdims=True) @ so_far
        found.append(so_far)
    return np.stack(found).astype(np.float32)
