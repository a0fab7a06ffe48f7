"""Multi-head attention, for self and cross alike (Vaswani et al. 2017, section 3.2), with a slot for what later papers added."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from plait.core import kernels
from plait.core.linear import Linear, project
from plait.core.masks import Mask
from plait.core.stream import Call, Places, Stream
from plait.core.trunks import Group


class Attention(nn.Module):
    """Self-attention: queries, keys and values of one stream. Every slot is an object or absent; what is absent is not computed.

    rotary      turns queries and keys by their positions              score_bias  added to the scores (T5 buckets, ALiBi, Shaw)
    q_norm      normalise each head's queries or keys (also k_norm)    mask        which keys a query may see
    memory      learned keys and values that everyone sees             add_pos     the stream's own position vectors join q and k
    bias        which of the projections "qkvo" have one               scale       of the scores; default d_head ** -0.5
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        d_source: int | None = None,
        bias: str = "qkvo",
        scale: float | None = None,
        mask: Mask | None = None,
        rotary: Any = None,
        score_bias: Any = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        memory: nn.Module | None = None,
        add_pos: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        n_kv = n_kv_heads or n_heads
        if odd := set(bias) - set("qkvo"):
            raise ValueError(f"bias={bias!r}: {', '.join(sorted(odd))} is no projection; name those with a bias among q, k, v, o")
        if d_head is None and d_model % n_heads:
            fits = ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0 and d_model // n >= 8)
            raise ValueError(f"d_model={d_model} does not divide into n_heads={n_heads}: give d_head, or choose n_heads among {fits}")
        if n_heads % n_kv:
            raise ValueError(
                f"n_heads={n_heads} does not divide into n_kv_heads={n_kv}: each key head serves a whole number of query heads"
            )
        self.d_head = d_head or d_model // n_heads
        self.scale = self.d_head**-0.5 if scale is None else scale
        self.mask, self.rotary, self.add_pos, self.dropout = mask, rotary, add_pos, dropout
        self.score_bias: Any = score_bias
        self.q_proj = Linear(d_model, n_heads * self.d_head, bias="q" in bias)
        self.k_proj = Linear(d_source or d_model, n_kv * self.d_head, bias="k" in bias)
        self.v_proj = Linear(d_source or d_model, n_kv * self.d_head, bias="v" in bias)
        self.o_proj = Linear(n_heads * self.d_head, d_model, bias="o" in bias)
        self.q_norm, self.k_norm, self.memory = q_norm, k_norm, memory

    def forward(self, x: Float[Tensor, "B L D"], call: Call, path: tuple) -> Float[Tensor, "B L D"]:
        q, k, v, places = self.queries_keys_values(x, call, path)  # [B, H, L, K], twice [B, G, S, K]
        if (memory := self.memory) is not None:
            k, v, places = memory(k, v, places, call)
        shared, own = self.biases()
        mask = call.once((self.mask, id(shared), places), lambda: self.lowered(shared, call, places))
        bias = own(q, call.stream.places, places) if own is not None else None
        if call.watch is not None and call.watch.wants(path):
            call.watch.see(path, kernels.weights(q, k, mask, bias, self.scale))
        if groups := self.trunks(call):
            out = self.over_trunks(kernels.partial(q, k, v, mask, bias, self.scale), q, groups, call, path)
        else:
            out = call.kernel.attend(q, k, v, mask, bias, self.scale, self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))  # [B, L, H * K] -> [B, L, D]

    def biases(self) -> tuple[Any, Any]:
        """(the score bias if it is the same for all queries of a forward, the score bias if it looks at this layer's queries)"""
        if self.score_bias is None:
            return None, None
        return (self.score_bias, None) if self.score_bias.fixed else (None, self.score_bias)

    def lowered(self, shared: Any, call: Call, places: Places, queries: Places | None = None) -> kernels.Lowered:
        """For keys at `places`; the queries are the new entries' unless given."""
        queries = call.stream.places if queries is None else queries
        assert queries is not None
        bias = None if shared is None else shared(None, queries, places)
        mask = None if self.mask is None else self.mask.within(queries, places)
        return call.kernel.lower(mask, queries, places, bias)

    def trunks(self, call: Call) -> list[Group]:
        """What comes before the rows' own keys, kept once for all rows that begin with it."""
        return [] if call.cache is None else call.cache.groups(call)

    def over_trunks(self, found: tuple[Tensor, Tensor], q: Tensor, groups: list[Group], call: Call, path: tuple) -> Tensor:
        """The attention [B, H, L, K] over the rows' own keys, and that over the trunks: the rows of one become further queries of it."""
        assert call.cache is not None
        shared, own = self.biases()
        reach = None if self.mask is None else self.mask.reach
        for group in groups:
            k, v = call.cache.trunk(group.trunk, path)
            places = call.once(("trunk", group, k.shape[2]), lambda: group.places(k.shape[2], k.device))  # noqa: B023
            if reach is not None and group.queries.start - (places.stop - 1) > reach:
                continue
            mask = call.once((self.mask, id(shared), places), lambda: self.lowered(shared, call, places, group.queries))  # noqa: B023
            asked = group.folded(q)
            bias = own(asked, group.queries, places) if own is not None else None
            out, log = kernels.partial(asked, k, v, mask, bias, self.scale)
            found = group.merged(found, (out, log))
        return found[0]

    def heads(self, x: Float[Tensor, "B L HK"]) -> Float[Tensor, "B H L K"]:
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def turned(self, x: Tensor, norm: nn.Module | None, stream: Stream, call: Call) -> Tensor:
        x = x if norm is None else norm(x)
        return x if self.rotary is None else self.rotary(x, stream, call)

    def placed(self, x: Tensor, stream: Stream) -> Tensor:
        return x + stream.pos if self.add_pos and stream.pos is not None else x

    def queries_keys_values(self, x: Tensor, call: Call, path: tuple) -> tuple[Tensor, Tensor, Tensor, Places]:
        at = self.placed(x, call.stream)
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj) if at is x else (*project(at, self.q_proj, self.k_proj), self.v_proj(x))
        q = self.turned(self.heads(q), self.q_norm, call.stream, call)
        k = self.turned(self.heads(k), self.k_norm, call.stream, call)
        if call.cache is None:
            return q, k, self.heads(v), call.stream.places
        return q, *call.cache.extend(path, k, self.heads(v), call, None if self.mask is None else self.mask.reach)


class CrossAttention(Attention):
    """Attention whose keys and values come from another tower's stream; with a cache they are computed once a source.

    A source may serve several rows of queries (beams): row b of [B * n] queries then reads row b // n of the memory.
    """

    def __init__(self, d_model: int, n_heads: int, *, source: str = "encoder", **slots: Any):
        super().__init__(d_model, n_heads, **slots)
        self.source = source

    def trunks(self, call: Call) -> list[Group]:
        return []

    def keys_values(self, memory: Stream, call: Call) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, S, K] of the other tower's stream."""
        at = self.placed(memory.x, memory)
        k, v = project(memory.x, self.k_proj, self.v_proj) if at is memory.x else (self.k_proj(at), self.v_proj(memory.x))
        return self.turned(self.heads(k), self.k_norm, memory, call), self.heads(v)

    def read(self, call: Call, path: tuple) -> tuple[Tensor, Tensor, Places]:
        """The other tower's keys and values, and where they stand; computed once where there is a cache."""
        memory = call.memories.get(self.source)
        if memory is None:
            raise ValueError(f"{'.'.join(map(str, path))} reads the tower {self.source!r}, which was not run: its input is missing")
        memory = memory.whole
        k, v = self.keys_values(memory, call) if call.cache is None else call.cache.once(path, lambda: self.keys_values(memory, call))
        return k, v, memory.places

    def queries_keys_values(self, x: Tensor, call: Call, path: tuple) -> tuple[Tensor, Tensor, Tensor, Places]:
        k, v, places = self.read(call, path)
        x = x.reshape(k.shape[0], -1, x.shape[-1])  # the rows that share a source become further queries of it
        q = self.turned(self.heads(self.q_proj(self.placed(x, call.stream))), self.q_norm, call.stream, call)
        return q, k, v, places
