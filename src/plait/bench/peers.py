"""The contestants that are not ours, made to one shape; and ours with a peer's weights, to show that both compute the same."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait import models
from plait.bench.libraries import need
from plait.bench.operations import Shape
from plait.core.heads import Tied
from plait.core.model import Model
from plait.core.positions import sinusoid

ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
STEPS = {"self_attn": ("self_attn", "self_attn_layer_norm"), "cross_attn": ("encoder_attn", "encoder_attn_layer_norm")}


def marian(s: Shape, *, pad: int, start: int, end: int, dropout: float = 0.1, positions: int = 512) -> Any:
    """`MarianMTModel` of this shape with random weights: post-norm, sinusoids, embeddings times sqrt(d_model), ReLU as in the paper.

    Its dropout falls where the paper's does: on embeddings and on each step's output, not inside attention and feed-forward.
    """
    transformers = need("transformers")
    config = transformers.MarianConfig(
        vocab_size=s.source_vocab,
        decoder_vocab_size=s.target_vocab,
        d_model=s.d_model,
        encoder_layers=s.n_layers,
        decoder_layers=s.decoder_layers,
        encoder_attention_heads=s.n_heads,
        decoder_attention_heads=s.n_heads,
        encoder_ffn_dim=s.d_ff,
        decoder_ffn_dim=s.d_ff,
        activation_function="relu",
        dropout=dropout,
        scale_embedding=True,
        max_position_embeddings=positions,
        share_encoder_decoder_embeddings=s.joint,
        pad_token_id=pad,
        decoder_start_token_id=start,
        eos_token_id=end,
        forced_eos_token_id=None,
    )
    return transformers.MarianMTModel(config)


def ours(s: Shape, arch: str = "vaswani", dropout: float = 0.1) -> Model:
    """The page `arch` at this shape, weights random."""
    size = dict(d_model=s.d_model, n_heads=s.n_heads, n_layers=s.n_layers, n_decoder_layers=s.decoder_layers, d_ff=s.d_ff)
    vocabulary = dict(source_vocab=s.source_vocab, target_vocab=s.target_vocab, tie="all" if s.joint else "target")
    return models.build(arch, {**size, **vocabulary, "dropout": dropout})


def with_weights_of(peer: Any, s: Shape) -> Model:
    """Our 2017 page with a Marian model's weights: the same function, written twice."""
    net = ours(s, dropout=0.0)
    theirs = {name: tensor.detach() for name, tensor in peer.state_dict().items()}
    own: dict[str, Tensor] = {"encoder.embed.tokens.weight": theirs["model.encoder.embed_tokens.weight"]}
    if not s.joint:
        own["decoder.embed.tokens.weight"] = theirs["model.decoder.embed_tokens.weight"]
    for tower, layers in (("encoder", s.n_layers), ("decoder", s.decoder_layers)):
        for i in range(layers):
            here, there = f"{tower}.blocks.{i}", f"model.{tower}.layers.{i}"
            names = {"ffn.up_proj": "fc1", "ffn.down_proj": "fc2", "ffn_norm": "final_layer_norm"}
            for step in ("self_attn", "cross_attn")[: 1 + (tower == "decoder")]:
                attention, norm = STEPS[step]
                names |= {f"{step}.{mine}": f"{attention}.{name}" for mine, name in ATTENTION.items()} | {f"{step}_norm": norm}
            own |= {
                f"{here}.{mine}.{kind}": theirs[f"{there}.{name}.{kind}"] for mine, name in names.items() for kind in ("weight", "bias")
            }
    net.load_state_dict(own)
    for tower in (net.encoder, net.decoder):
        tower.embed.positions.layout = "halves"  # type: ignore[union-attr]
    bias = theirs["final_logits_bias"].squeeze(0)
    if bool(bias.any()):
        head = Tied(net.get_submodule("encoder" if s.joint else "decoder").embed.tokens, bias=True)  # type: ignore[union-attr]
        assert head.bias is not None
        head.bias.data.copy_(bias)
        net.heads["lm"] = head
    return net.eval()


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` between embeddings with sinusoids and a tied output matrix.

    Its dropout inside attention and feed-forward is switched off, where the others have none; its two final norms stay.
    """

    def __init__(self, s: Shape, dropout: float = 0.1, positions: int = 512):
        super().__init__()
        self.source = nn.Embedding(s.source_vocab, s.d_model)
        self.target = self.source if s.joint else nn.Embedding(s.target_vocab, s.d_model)
        self.body = nn.Transformer(s.d_model, s.n_heads, s.n_layers, s.decoder_layers, s.d_ff, dropout, batch_first=True)
        for part in self.body.modules():
            if isinstance(part, nn.MultiheadAttention):
                part.dropout = 0.0
            elif isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                part.dropout.p = 0.0
        self.dropout = nn.Dropout(dropout)
        self.scale = s.d_model**0.5
        self.positions: Tensor
        self.causal: Tensor
        self.register_buffer("positions", sinusoid(torch.arange(positions), s.d_model).float(), persistent=False)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(positions), persistent=False)
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=s.d_model**-0.5)

    def embedded(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        return self.dropout(table(ids) * self.scale + self.positions[: ids.shape[1]])

    def forward(self, source: Tensor, target: Tensor, source_pad: Tensor | None = None) -> Tensor:
        """Scores [B, T, V]; `source_pad` [B, S] is true where the source is padding (the target's is hidden by the causal mask)."""
        n = target.shape[1]
        out = self.body(
            self.embedded(self.source, source),
            self.embedded(self.target, target),
            tgt_mask=self.causal[:n, :n],
            src_key_padding_mask=source_pad,
            memory_key_padding_mask=source_pad,
            tgt_is_causal=True,
        )
        return nn.functional.linear(out, self.target.weight)


class _Words:
    """What the converter asks of a tokenizer: ids as words, the end and the unknown first, the padding last."""

    eos_token, unk_token = "</s>", "<unk>"

    def __init__(self, size: int):
        self.words = [self.eos_token, self.unk_token, *(f"w{i}" for i in range(2, size - 1)), "<pad>"]

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def ctranslate2_folder(peer: Any, folder: Path, quantization: str | None = None) -> list[str]:
    """A Marian model, whose end is id 0 and whose padding is the last id, in CTranslate2's layout; returns the words of the ids."""
    words = _Words(peer.config.vocab_size)
    if not (folder / "model.bin").exists():
        with torch.no_grad():
            spec = need("ctranslate2.converters.transformers").MarianMTLoader()(peer, words)
        spec.validate()
        spec.optimize(quantization=quantization)
        folder.mkdir(parents=True, exist_ok=True)
        spec.save(str(folder))
    return words.words


def ctranslate2(peer: Any, folder: Path, compute_type: str, threads: int) -> tuple[Any, list[str]]:
    """(CTranslate2's translator for such a model, the words of the ids)."""
    words = ctranslate2_folder(peer, folder)
    library = need("ctranslate2")
    return library.Translator(str(folder), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads), words
