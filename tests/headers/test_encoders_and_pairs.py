"""The encoders and the models of pairs at their released sizes: every name and shape of the reference's own model, on `meta`."""

import pytest
import torch

from plait.core.model import parameters
from plait.models import albert, bart, bert, distilbert, roberta, t5
from plait.weights import config as keys
from plait.weights.rules import Computed, Drop, Prefix, Tie, export

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

# What each released config.json says beside its class's defaults.
V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, vocab_size=32128)
OPUS = dict(d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048)
OPUS |= dict(decoder_ffn_dim=2048, vocab_size=58101, decoder_vocab_size=58101, pad_token_id=58100, max_position_embeddings=512)
OPUS |= dict(activation_function="swish", scale_embedding=True, decoder_start_token_id=58100)
BASE = dict(d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12)
BASE |= dict(encoder_ffn_dim=3072, decoder_ffn_dim=3072)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
ROBERTA = dict(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
ALBERT = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
RELEASED = [
    (bert, "base", "BertForMaskedLM", {}),
    (bert, "large", "BertForMaskedLM", LARGE),
    (bert, "base", "BertModel", {}),
    (bert, "base", "BertForQuestionAnswering", {}),
    (roberta, "base", "RobertaForMaskedLM", ROBERTA),
    (roberta, "large", "RobertaForMaskedLM", {**ROBERTA, **LARGE}),
    (roberta, "base", "XLMRobertaForMaskedLM", dict(ROBERTA, vocab_size=250002)),
    (roberta, "large", "XLMRobertaModel", {**ROBERTA, **LARGE, "vocab_size": 250002}),
    (roberta, "base", "CamembertForMaskedLM", dict(ROBERTA, vocab_size=32005)),
    (distilbert, "base", "DistilBertForMaskedLM", {}),
    (distilbert, "base", "DistilBertForSequenceClassification", {}),
    (albert, "base", "AlbertForMaskedLM", ALBERT),
    (albert, "xxlarge", "AlbertForMaskedLM", {}),
    (t5, "small", "T5ForConditionalGeneration", {}),
    (t5, "large", "T5ForConditionalGeneration", dict(d_model=1024, num_heads=16, num_layers=24, d_ff=4096)),
    (t5, "v1.1-small", "T5ForConditionalGeneration", dict(**V1_1, num_heads=6, num_layers=8, d_ff=1024)),
    (t5, "v1.1-base", "T5ForConditionalGeneration", dict(**V1_1, d_model=768, num_heads=12, num_layers=12)),
    (bart, "base", "BartForConditionalGeneration", BASE),
    (bart, "large", "BartForConditionalGeneration", {}),
    (bart, "opus-mt", "MarianMTModel", OPUS),
]


@pytest.mark.parametrize(("page", "preset", "name", "said"), RELEASED, ids=lambda x: x if isinstance(x, str) else "")
def test_every_name_and_shape_of_the_reference_is_claimed(page, preset, name, said):
    kind = getattr(transformers, name)
    settings = kind.config_class(**said)
    with torch.device("meta"):
        peer = kind(settings)
    theirs = {key: tuple(t.shape) for key, t in peer.state_dict().items()}
    raw = {**settings.to_dict(), **said, "architectures": [name]}
    if page in (bert, roberta, distilbert, albert):
        raw["id2label"] = {"0": "a", "1": "b"}
    config = page.Config(**keys.read(page.KEYS, raw))
    with torch.device("meta"):
        net = page.build(config)
    rules = page.rules(config)
    ours = {key: tuple(t.shape) for key, t in export(net, rules).items()}
    (*_, front) = ["", *(entry.text for entry in rules if isinstance(entry, Prefix))]
    bare = front if front and not any(key.startswith(front) for key in theirs) else ""
    left = {key: shape for key, shape in theirs.items() if ours.get(bare + key) != shape}
    ties = {entry.copy for entry in rules if isinstance(entry, Tie)}
    drops = [entry.pattern for entry in rules if isinstance(entry, Drop)]
    dropped = {key for key in theirs if any(pattern.match(bare + key) is not None for pattern in drops)}
    computed = {entry.theirs.removeprefix(bare) for entry in rules if isinstance(entry, Computed)}
    assert not {key for key in left if bare + key not in ties} - dropped - computed
    assert not {key for key in ours if key.removeprefix(bare) not in theirs}
    # The reference's parameters, shared ones once, and its stored bias of the output, which is no parameter there.
    own = sum(p.numel() for key, p in peer.named_parameters() if key not in dropped | computed)
    own += theirs.get("final_logits_bias", (0, 0))[1]
    untied = config.vocab_size * config.d_model if page is t5 and not config.tie else 0  # the reference ties what the file does not
    assert parameters(net) == own + untied
    assert {field: getattr(config, field) for field in page.PRESETS[preset]} == page.PRESETS[preset]


def test_totals_that_the_papers_and_model_cards_give():
    """BERT: 110M and 340M (section 3); RoBERTa: 125M and 355M, DistilBERT: 66M (model cards); XLM-R: 270M and 550M (section 5).

    ALBERT: 12M, 18M, 60M, 235M (table 1); T5: 60M, 220M, 770M (section 3.7).
    """
    given = [
        (bert, "base", dict(head="pool"), 110e6),
        (bert, "large", dict(head="pool"), 340e6),
        (roberta, "base", {}, 125e6),
        (roberta, "large", {}, 355e6),
        (roberta, "base", dict(vocab_size=250002), 270e6),
        (roberta, "large", dict(vocab_size=250002), 550e6),
        (distilbert, "base", dict(head="none"), 66e6),
        (albert, "base", dict(head="pool"), 12e6),
        (albert, "large", dict(head="pool"), 18e6),
        (albert, "xlarge", dict(head="pool"), 60e6),
        (albert, "xxlarge", dict(head="pool"), 235e6),
        (t5, "small", {}, 60e6),
        (t5, "base", {}, 220e6),
        (t5, "large", {}, 770e6),
    ]
    for page, preset, more, wanted in given:
        with torch.device("meta"):
            total = parameters(page.build(page.Config(**{**page.PRESETS[preset], **more})))
        assert total == pytest.approx(wanted, rel=0.08), (page.__name__, preset, total)
