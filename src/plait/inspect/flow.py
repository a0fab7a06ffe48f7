"""Attention flow: how much of an entry can come from each input, if layers were pipes as wide as their weights (Abnar & Zuidema 2020)."""

from itertools import pairwise

import numpy as np

EPS = 1e-12  # what is left of a pipe counts as nothing


def flow(weights: np.ndarray, query: int, layer: int = -1) -> np.ndarray:
    """Weights [layers, heads, L, L] of self-attention -> float64 [L]: the maximum flow from entry `query` behind `layer` to each input.

    Section 3: heads are averaged, the residual connection counts as much as the attention, and the entries behind each layer are nodes.
    The largest flows are exact (augmenting paths, the shortest first: Edmonds & Karp 1972); of one input to another they may share pipes,
    so they do not sum to 1. Time grows fast with L and layers: meant for a sentence.
    """
    pipes = weights[: layer + 1 if layer >= 0 else None].mean(1, dtype=np.float64)
    pipes = (pipes + np.eye(pipes.shape[-1])) / 2
    return np.array([maximum(pipes, query, key) for key in range(pipes.shape[-1])])


def maximum(pipes: np.ndarray, query: int, key: int) -> float:
    """The largest flow through pipes [layers, L, L] (layer, upper entry, lower entry) from the top's `query` to the bottom's `key`."""
    down, up, total = pipes.copy(), np.zeros_like(pipes), 0.0
    while (path := shortest(down, up, query, key)) is not None:
        edges = [(down, up, a[0] - 1, a[1], b[1]) if a[0] > b[0] else (up, down, b[0] - 1, b[1], a[1]) for a, b in pairwise(path)]
        most = min(one[layer, upper, lower] for one, _, layer, upper, lower in edges)
        for one, back, layer, upper, lower in edges:
            one[layer, upper, lower] -= most
            back[layer, upper, lower] += most
        total += most
    return float(total)


def shortest(down: np.ndarray, up: np.ndarray, query: int, key: int) -> list[tuple[int, int]] | None:
    """(level, entry) from the top to the bottom's `key`, by what is left of the pipes and of the way back; None where nothing is left."""
    layers, n, _ = down.shape
    before = np.full((layers + 1, n, 2), -1)
    before[layers, query] = layers, query
    reached = [np.zeros(n, bool) for _ in range(layers + 1)]
    reached[layers][query] = True
    while any(level.any() for level in reached) and before[0, key, 0] < 0:
        found = [np.zeros(n, bool) for _ in range(layers + 1)]
        for level in range(layers + 1):
            if not (here := np.flatnonzero(reached[level])).size:
                continue
            ways = [(level - 1, down[level - 1, here] > EPS)] if level else []
            ways += [(level + 1, up[level][:, here].T > EPS)] if level < layers else []
            for to, open_ in ways:
                fresh = open_.any(0) & (before[to, :, 0] < 0)
                before[to, fresh, 0], before[to, fresh, 1] = level, here[open_[:, fresh].argmax(0)]
                found[to] |= fresh
        reached = found
    if before[0, key, 0] < 0:
        return None
    path = [(0, key)]
    while path[-1] != (layers, query):
        level, entry = before[path[-1]]
        path.append((int(level), int(entry)))
    return path[::-1]
