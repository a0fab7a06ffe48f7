"""RoBERTa and DistilBERT against Hugging Face's on random weights in their own files: every head and option that changes the numbers."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.errors import InputError
from plait.models import distilbert, roberta
from plait.weights import config as configs
from plait.weights.opening import open_source
from plait.weights.rules import export, load

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

WIDE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=31, max_position_embeddings=16)
SLIM = dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40, vocab_size=31, max_position_embeddings=16)
ROBERTA = {"mlm": "ForMaskedLM", "classify": "ForSequenceClassification", "tag": "ForTokenClassification", "answer": "ForQuestionAnswering"}
DISTIL = {**ROBERTA, "none": "Model"}
ROBERTA = {**ROBERTA, "pool": "Model"}
OPTIONS = {
    "Roberta": [
        {},
        dict(hidden_act="relu"),
        dict(hidden_act="gelu_new"),
        dict(hidden_act="silu"),
        dict(layer_norm_eps=1e-3),
        dict(type_vocab_size=5),
        dict(pad_token_id=0),
        dict(pad_token_id=4),
        dict(tie_word_embeddings=False),
        dict(num_labels=4),
    ],
    "XLMRoberta": [{}],
    "Camembert": [{}],
    "DistilBert": [
        {},
        dict(activation="relu"),
        dict(activation="gelu_new"),
        dict(sinusoidal_pos_embds=True),
        dict(tie_word_embeddings=False),
        dict(num_labels=4),
    ],
}
CASES = [
    pytest.param(family, head, options, id="-".join((family, head, *(f"{name}={value}" for name, value in options.items()))))
    for family, several in OPTIONS.items()
    for head in (DISTIL if family == "DistilBert" else ROBERTA)
    for options in several
    if not (head == "answer" and "num_labels" in options)  # a span has a start and an end
]


def peer(family: str, head: str, std: float = 0.2, **options):
    """A reference model with nothing left at zero or one."""
    torch.manual_seed(0)
    sizes, heads = (SLIM, DISTIL) if family == "DistilBert" else (WIDE, ROBERTA)
    config = getattr(transformers, family + "Config")(**sizes, **options, attn_implementation="eager")
    net = getattr(transformers, family + heads[head])(config).eval()
    for name, p in net.named_parameters():
        if not (options.get("sinusoidal_pos_embds") and "position" in name):
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=std)
    return net


def page_of(family: str) -> ModuleType:
    return distilbert if family == "DistilBert" else roberta


def ours(family: str, folder: Path):
    """(the model of a folder as Hugging Face saves it, its certificate, its settings)"""
    page = page_of(family)
    settings = configs.read(page.KEYS, json.loads((folder / "config.json").read_text("utf-8")))
    config = page.Config(**settings)
    with torch.device("meta"):
        net = page.build(config)
    certificate = load(net, open_source(folder), page.rules(config))
    return net.eval(), certificate, settings


def batch(padding: int):
    """(ids [3, L], which are real, second ids): rows of several lengths; what is not real is the padding's id, and nothing else is."""
    draw = torch.Generator().manual_seed(1)
    ids, types = torch.randint(5, 31, (3, 9), generator=draw), torch.randint(2, (3, 9), generator=draw)
    real = torch.arange(9) < torch.tensor([[9], [4], [7]])
    return torch.where(real, ids, padding), real, types


def answers(net, head: str, stream: Stream) -> torch.Tensor:
    hidden = net(encoder=stream)["encoder"].x
    return hidden if head == "none" else net.heads[head](hidden[:, 0] if head in ("classify", "pool") else hidden)


def theirs_of(out, head: str) -> torch.Tensor:
    if head == "answer":
        return torch.stack([out.start_logits, out.end_logits], -1)
    return {"pool": lambda: out.pooler_output, "none": lambda: out.last_hidden_state}.get(head, lambda: out.logits)()


@pytest.mark.parametrize(("family", "head", "options"), CASES)
@torch.no_grad()
def test_float64_is_theirs_there_and_back(family, head, options, tmp_path):
    theirs = peer(family, head, **options).double()
    theirs.save_pretrained(tmp_path)
    net, certificate, settings = ours(family, tmp_path)
    assert certificate.dtypes == {"float64": len(certificate.claimed)}
    padding = theirs.config.pad_token_id
    ids, real, types = batch(padding)
    second = settings["types"] > 1
    for kinds in (None, types) if second else (None,):
        more = {} if kinds is None else {"token_type_ids": kinds}
        for seen in (None, real):
            row = ids[:1] if seen is None else ids  # without padding: the row that has none
            some = {name: t[: len(row)] for name, t in more.items()}
            out = theirs(input_ids=row, attention_mask=None if seen is None else seen.long(), **some)
            found = answers(net, head, Stream(row, real=seen, types=None if kinds is None else kinds[: len(row)]))
            wanted = theirs_of(out, head)
            if wanted.ndim == 3 and seen is not None:
                found, wanted = found[seen], wanted[seen]
            assert_close(found, wanted, rtol=0, atol=1e-9)

    page = page_of(family)
    written = configs.write(page.KEYS, settings)
    assert configs.read(page.KEYS, written) == settings
    first, again = load_file(tmp_path / "model.safetensors"), export(net, page.rules(page.Config(**settings)), certificate)
    kept = set(first) - set(certificate.dropped)
    assert set(again) == kept and all(torch.equal(again[name], first[name]) for name in kept)
    out = tmp_path / "ours"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(written), "utf-8")
    save_file({**first, **again}, out / "model.safetensors", metadata={"format": "pt"})
    kind = type(theirs) if family == "DistilBert" else getattr(transformers, written["architectures"][0])
    twin, report = kind.from_pretrained(out, output_loading_info=True, dtype=torch.float64, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(theirs_of(twin.eval()(ids[:1]), head), theirs_of(theirs(ids[:1]), head), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])
@torch.no_grad()
def test_float32_is_near_theirs(family, tmp_path):
    theirs = peer(family, "mlm")
    theirs.save_pretrained(tmp_path)
    ids, real, _ = batch(theirs.config.pad_token_id)
    net, _, _ = ours(family, tmp_path)
    wanted = theirs(input_ids=ids, attention_mask=real.long()).logits[real]
    assert_close(answers(net, "mlm", Stream(ids, real=real))[real], wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])
@pytest.mark.parametrize("head", ["mlm", "classify", "tag"])
def test_loss_and_gradients_are_theirs(family, head, tmp_path):
    theirs = peer(family, head, num_labels=4).double()
    theirs.save_pretrained(tmp_path)
    net, _, _ = ours(family, tmp_path)
    ids, real, _ = batch(theirs.config.pad_token_id)
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (3,), generator=draw)
    if head != "classify":
        labels = torch.where(torch.rand(3, 9, generator=draw) < 0.5, torch.randint(4, (3, 9), generator=draw), -100).masked_fill(
            ~real, -100
        )
    out = theirs(input_ids=ids, attention_mask=real.long(), labels=labels)
    scores = answers(net, head, Stream(ids, real=real))
    loss = cross_entropy(scores.flatten(0, -2), labels.flatten())
    assert_close(loss, out.loss, rtol=0, atol=1e-9)
    out.loss.backward()
    loss.backward()
    name = "distilbert.embeddings" if family == "DistilBert" else "roberta.embeddings"
    for table, ours_of in (("word_embeddings", "tokens"), ("position_embeddings", "positions")):
        wanted = theirs.get_parameter(f"{name}.{table}.weight").grad.clone()
        found = net.get_parameter(f"encoder.embed.{ours_of}.weight").grad
        if (padding := theirs.config.pad_token_id) is not None:  # the reference leaves that row out of training, where its table has one
            wanted[padding], found[padding] = 0, 0
        assert_close(found, wanted, rtol=0, atol=1e-9)


def test_a_pooler_that_is_not_read_is_left_out(tmp_path):
    """xlm-roberta-base's file has a pooler beside its masked language model; RoBERTa's classifier has a layer of its own."""
    for head in ("mlm", "classify", "tag", "answer"):
        theirs = peer("XLMRoberta", head)
        theirs.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors") | {"roberta.pooler.dense.weight": torch.ones(24, 24)}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        _, certificate, _ = ours("XLMRoberta", tmp_path)
        assert list(certificate.dropped) == ["roberta.pooler.dense.weight"]


def test_the_options_matter(tmp_path):
    """Were an option without effect on these inputs, its parity would prove nothing."""
    for family, changes in (("Roberta", ("first_position", "norm_eps", "activation")), ("DistilBert", ("norm_eps", "activation"))):
        peer(family, "mlm").double().save_pretrained(tmp_path)
        net, _, settings = ours(family, tmp_path)
        ids, _, _ = batch(1)
        for change in changes:
            other = {**settings, **dict(first_position=3, max_length=13, norm_eps=1e-3, activation="relu", head=settings["head"])}
            mixed = {**settings, change: other[change], **(dict(max_length=13) if change == "first_position" else {})}
            twin = page_of(family).build(page_of(family).Config(**mixed)).double().eval()
            twin.load_state_dict(net.state_dict())
            with torch.no_grad():
                assert (answers(twin, "mlm", Stream(ids)) - answers(net, "mlm", Stream(ids))).abs().max() > 1e-6, change


REFUSED = {
    "activation": (dict(model_type="roberta", hidden_act="mish"), "hidden_act='mish' is not known here: there is 'gelu'"),
    "left to right": (dict(model_type="roberta", is_decoder=True), "is_decoder=True is not understood"),
    "relative": (dict(model_type="xlm-roberta", position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
    "head": (dict(model_type="roberta", architectures=["RobertaForMultipleChoice"]), "'RobertaForMultipleChoice'] is not known here"),
    "another's head": (dict(model_type="camembert", architectures=["RobertaModel"]), "'RobertaModel'] is not known here"),
    "padding": (dict(model_type="roberta", pad_token_id=None), "pad_token_id=None: positions count from the second"),
    "room": (dict(model_type="roberta", pad_token_id=511), "max_position_embeddings=512 and pad_token_id=511"),
    "unknown": (dict(model_type="roberta", alibi=True), "alibi=True is not understood"),
    "distil": (dict(model_type="distilbert", activation="mish"), "activation='mish' is not known here"),
    "distil's head": (dict(model_type="distilbert", architectures=["DistilBertForMultipleChoice"]), "is not known here"),
    "types": (dict(model_type="distilbert", type_vocab_size=2), "type_vocab_size=2 is not understood"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case):
    raw, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        configs.read((*roberta.KEYS, *distilbert.KEYS), raw)
    assert message in str(refused.value)


@pytest.mark.parametrize("family", OPTIONS)
def test_missing_keys_have_their_defaults(family):
    whole = json.loads(getattr(transformers, family + "Config")().to_json_string(use_diff=False))
    tables = page_of(family).KEYS
    assert configs.read(tables, whole) == configs.read(tables, {"model_type": whole["model_type"]})
