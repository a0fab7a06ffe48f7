"""Operations that a job needs at least: the multiply-adds of its matrix products, two operations each. Everything else is overhead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """An encoder-decoder of 2017's kind, the same for every contestant; with `joint` one matrix serves as both embeddings and as output."""

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    source_vocab: int
    target_vocab: int
    joint: bool = True
    n_decoder_layers: int | None = None  # None: as many as the encoder has

    @property
    def decoder_layers(self) -> int:
        return self.n_layers if self.n_decoder_layers is None else self.n_decoder_layers

    def __str__(self) -> str:
        size = f"{self.n_layers}+{self.decoder_layers} x {self.d_model}, d_ff {self.d_ff}, {self.n_heads} heads"
        vocabulary = f"{self.source_vocab:,}" if self.joint else f"{self.source_vocab:,} and {self.target_vocab:,}"
        return f"{size}, vocabulary {vocabulary}"


def attention(d: int, queries: int, keys: int) -> int:
    """Scores and weighted sum of `queries` rows over `keys` columns each, all heads together."""
    return 2 * 2 * queries * keys * d


def encoder(s: Shape, rows: int, source: int) -> int:
    """One forward pass of the encoder over `rows` sequences of `source` entries."""
    weights = 4 * s.d_model**2 + 2 * s.d_model * s.d_ff
    return s.n_layers * rows * (2 * source * weights + attention(s.d_model, source, source))


def cross_memory(s: Shape, rows: int, source: int) -> int:
    """Keys and values that the decoder's cross-attentions make of the encoder's output, once a source."""
    return s.decoder_layers * rows * source * 2 * 2 * s.d_model**2


def decoder(s: Shape, entries: int, seen: float, source: int) -> int:
    """`entries` positions through the decoder and the output matrix, each seeing `seen` earlier ones and `source` of the source."""
    weights = 6 * s.d_model**2 + 2 * s.d_model * s.d_ff  # q k v o, cross q o, feed-forward
    block = 2 * weights + 2 * 2 * s.d_model * (seen + source)
    return round(entries * (s.decoder_layers * block + 2 * s.d_model * s.target_vocab))


def training(s: Shape, rows: int, source: int, target: int) -> int:
    """One step on `rows` pairs of padded lengths: forward, and twice as much backward (gradients of inputs and of weights).

    A causal row sees (target + 1) / 2 entries on average; that kernels compute the whole square is their overhead.
    """
    forward = encoder(s, rows, source) + cross_memory(s, rows, source) + decoder(s, rows * target, (target + 1) / 2, source)
    return 3 * forward


def decoding(s: Shape, rows: int, source: int, target: int, beams: int) -> int:
    """Beam search with a cache, `target` steps: every source is encoded once, the first step needs one beam a source, the others all."""
    entries = rows + rows * beams * (target - 1)
    seen = (rows + rows * beams * sum(range(2, target + 1))) / entries
    return encoder(s, rows, source) + cross_memory(s, rows, source) + decoder(s, entries, seen, source)


def continuing(body: int, head: int, width: int, rows: int, prompt: int, new: int) -> int:
    """Greedy continuation by a causal model with a cache: `body` weights of its blocks, `head` of its output, `width` of all attentions.

    The output is needed for the last id of each prompt and for all new ids but the last, which are also all that pass the blocks.
    """
    entries = prompt + new - 1
    return rows * (2 * body * entries + attention(width, 1, entries * (entries + 1) // 2) + 2 * head * new)
