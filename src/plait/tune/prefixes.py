"""Learned keys and values that a small network makes while they are trained, which training finds easier (Li & Liang 2021, section 4.3)."""

import torch
from torch import Tensor, nn

from plait.core import init
from plait.core.linear import Linear
from plait.core.memory import Memory
from plait.core.stream import Lent


class Network(nn.Module):
    """What all attentions of a model share: a vector for each place of the prefix, and a layer of hidden units."""

    def __init__(self, length: int, d: int, hidden: int):
        super().__init__()
        self.start = nn.Parameter(torch.empty(length, d))
        self.inner = Linear(d, hidden)
        init.normal_(self.start)

    def forward(self) -> Tensor:  # [n, hidden]
        return torch.tanh(self.inner(self.start))


class Made(Memory):
    """A `Memory` whose keys and values the network makes anew each time; it has the last layer for itself."""

    def __init__(self, network: Network, n_kv_heads: int, d_head: int):
        nn.Module.__init__(self)
        self.n, hidden = len(network.start), network.inner.weight.shape[0]
        self.network, self.shape = Lent(network), (2, n_kv_heads, d_head)
        self.outer = Linear(hidden, 2 * n_kv_heads * d_head)

    def learned(self) -> tuple[Tensor, Tensor]:
        made = self.outer(self.network()).unflatten(-1, self.shape)  # [n, 2, G, K]
        k, v = made.permute(1, 2, 0, 3).unbind(0)
        return k, v
