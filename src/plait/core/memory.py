"""What is learned beside a model's weights and stands before what it reads: keys and values, or entries."""

import torch
from torch import Tensor, nn

from plait.core import init
from plait.core.stream import EVERYONE, Call, Places, Scattered, Stream, ahead


class Memory(nn.Module):
    """`n` learned keys and values a head, set before the sequence's own: prefix tuning (Li & Liang 2021), attention sinks.

    Their slots are -n .. -1, which causal masks let everyone see, in packed documents too; windows do not.
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
        joined = call.once(("memory", self.n, places), lambda: self.before(places))
        own_k, own_v = (part.to(k.dtype).expand(k.shape[0], -1, -1, -1) for part in self.learned())
        return torch.cat([own_k, k], 2), torch.cat([own_v, v], 2), joined

    def learned(self) -> tuple[Tensor, Tensor]:
        """[G, n, K] twice."""
        return self.k, self.v

    def before(self, places: Places) -> Places:
        real, segment = ahead(places.real, self.n, True), ahead(places.segment, self.n, EVERYONE)
        slots = torch.cat([torch.arange(-self.n, 0, device=places.device), places.slots])  # with a cache these may begin later
        return Scattered(self.n + places.length, -self.n, real, segment, places.device, at=slots, behind=places.stop)


class Prompt(nn.Module):
    """`n` learned entries before a stream's own (prompt tuning, Lester et al. 2021, section 2).

    Their slots and positions are -n .. -1, so the others stand where they stood. A cache has them from its first entries on.
    """

    def __init__(self, n: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, s: Stream) -> Stream:
        return s if s.start else s.behind(self.weight.to(s.x.dtype).expand(len(s.x), -1, -1))
