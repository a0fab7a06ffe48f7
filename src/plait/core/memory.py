"""Learned keys and values that every query sees: prefix tuning (Li & Liang 2021), attention sinks, persistent memory."""

import torch
from torch import Tensor, nn

from plait.core import init
from plait.core.stream import Call, Places, Scattered


class Memory(nn.Module):
    """`n` learned keys and values a head, set before the sequence's own.

    Their slots are -n .. -1, which causal masks let everyone see; windows do not.
    """

    def __init__(self, n: int, n_kv_heads: int, d_head: int):
        super().__init__()
        self.n = n
        self.k = nn.Parameter(torch.empty(n_kv_heads, n, d_head))
        self.v = nn.Parameter(torch.empty(n_kv_heads, n, d_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.k, std=0.02)
        init.normal_(self.v, std=0.02)

    def forward(self, k: Tensor, v: Tensor, places: Places, call: Call) -> tuple[Tensor, Tensor, Places]:
        """[B, G, S, K] twice -> [B, G, n + S, K] twice, and where they stand."""
        rows = k.shape[0]
        joined = call.once(("memory", self.n, places), lambda: self.before(places, rows))
        return torch.cat([self.k.expand(rows, -1, -1, -1), k], 2), torch.cat([self.v.expand(rows, -1, -1, -1), v], 2), joined

    def before(self, places: Places, rows: int) -> Places:
        if places.segment is not None:
            raise ValueError("learned memory does not yet combine with packed documents: give each document its own row")
        real = places.real
        if real is not None:
            real = torch.cat([real.new_ones(real.shape[0], self.n), real], 1)
        slots = torch.cat([torch.arange(-self.n, 0, device=places.device), places.slots])  # with a cache these may begin later
        return Scattered(self.n + places.length, -self.n, real, None, places.device, at=slots, behind=places.stop)
