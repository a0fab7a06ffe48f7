"""Released encoder-decoders put to use: the answers and scores of the reference implementation's `generate` on the same files."""

import json

import pytest
import sentencepiece
import tokenizers
import torch
from tokenizers import pre_tokenizers, trainers

import plait as library
from plait import cli
from plait.errors import InputError
from plait.hub.pairs import Reading

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

WORDS = ["the door is open.", "a cat sat on the mat, and then it left!", "open the window", "12 dogs", "who is there? nobody."]
TEXTS = ["the door is open.", "a", "a cat sat on the mat, and then it left the window open!", "who is there?"]
SIZES = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
SIZES |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40)


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def pieces(folder, name, **how):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20), model_prefix=str(folder / name), vocab_size=60, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **how,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))


def random_weights(peer, seed, end, table=0.3, rest=0.7, bias=0.3):
    """Scores that lie apart, and answers of several lengths."""
    torch.manual_seed(seed)
    for name, p in peer.named_parameters():
        if not p.requires_grad:  # Marian's sinusoids are what they are
            continue
        std = table if "embed" in name or "shared" in name else rest
        torch.nn.init.normal_(p, mean=float(p.ndim == 1 and "norm" in name), std=std)
    if hasattr(peer, "final_logits_bias"):
        peer.final_logits_bias.normal_(std=bias)
        peer.final_logits_bias[0, end] += 1.0
    return peer.eval()


def t5(folder):
    pieces(folder, "spiece", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 2}))
    config = transformers.T5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    config.task_specific_params = {"summarization": {"prefix": "sum: ", "num_beams": 2, "length_penalty": 2.0, "max_length": 9}}
    return random_weights(transformers.T5ForConditionalGeneration(config), 0, 1, 0.15, 0.4)


def bart(folder):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    names = ["<s>", "<pad>", "</s>", "<unk>", *model["vocab"], "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
    return random_weights(transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=len(names), **SIZES)), 0, 2)


def marian(folder):
    names = ["</s>", "<unk>", ">>fra<<"]
    for side in ("source", "target"):
        reader = pieces(folder, side)
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        names += [piece for id in range(3, reader.get_piece_size()) if (piece := reader.id_to_piece(id)) not in names]
    (folder / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate([*names, "<pad>"])}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    pad = len(names)
    ids = dict(vocab_size=pad + 1, pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, bos_token_id=0, forced_eos_token_id=0)
    return random_weights(
        transformers.MarianMTModel(transformers.MarianConfig(**ids, **SIZES, activation_function="swish")), 5, 0, 0.1, 0.5, 1.0
    )


MAKERS = {"t5": t5, "bart": bart, "marian": marian}
ENDS = {"t5": 1, "bart": 2, "marian": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(kind) -> the folder of a tiny checkpoint, and the reference implementation's model of it."""
    done = {}

    def make(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            MAKERS[kind](folder).save_pretrained(folder)
            done[kind] = folder, getattr(transformers, type_of(folder)).from_pretrained(folder).eval()
        return done[kind]

    return make


def type_of(folder):
    return json.loads((folder / "config.json").read_text())["architectures"][0]


def say(folder, **settings):
    """generation_config.json of a folder, besides its special ids."""
    raw = json.loads((folder / "config.json").read_text())
    ids = {
        name: raw[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id") if raw.get(name) is not None
    }
    (folder / "generation_config.json").write_text(json.dumps({**ids, **settings}))


def theirs(peer, folder, rows, beams, **more):
    """For each row of ids its answers (ids without start and end, score), best first."""
    width, pad = max(map(len, rows)), peer.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    peer.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    out = peer.generate(ids, attention_mask=real, num_return_sequences=beams, return_dict_in_generate=True, output_scores=True, **more)
    end = peer.generation_config.eos_token_id
    answers = [row[: row.index(end)] if end in row else row for row in out.sequences[:, 1:].tolist()]
    scores = out.sequences_scores.tolist() if beams > 1 else [None] * len(answers)
    found = list(zip(answers, scores, strict=True))
    return [found[i : i + beams] for i in range(0, len(found), beams)]


SETTINGS = {
    "greedy": dict(num_beams=1, max_length=14),
    "greedy, held back": dict(num_beams=1, max_length=14, min_length=5, no_repeat_ngram_size=1),
    "beams": dict(num_beams=4, max_length=14, forced=True),
    "a summary": dict(num_beams=4, max_length=14, min_length=6, length_penalty=2.0, early_stopping=True,
                      no_repeat_ngram_size=2, forced=True),
    "to the end": dict(num_beams=4, max_length=14, length_penalty=0.6, early_stopping="never", forced=True),
    "forbidden": dict(num_beams=3, max_length=12, bad_words_ids=[[7], [8, 9], [3, 3]], suppress_tokens=[5, 10],
                      begin_suppress_tokens=[4, 6], renormalize_logits=True, forced=True),
    "penalised": dict(num_beams=1, max_length=14, repetition_penalty=1.7),
    "penalised beams": dict(num_beams=4, max_length=14, repetition_penalty=1.4, no_repeat_ngram_size=2, forced=True),
    "first token": dict(num_beams=4, max_new_tokens=9, min_new_tokens=3, forced_bos_token_id=11, forced=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_the_reference_with_the_checkpoints_own_settings(made, kind, name):
    folder, peer = made(kind)
    settings = dict(SETTINGS[name])
    if settings.pop("forced", False):  # then no beam is cut off at the limit, where our rule is another than theirs
        settings["forced_eos_token_id"] = ENDS[kind]
    say(folder, **settings)
    model, beams = library.load(folder), settings["num_beams"]
    rows = [model.encode(text) for text in TEXTS]
    wanted = theirs(peer, folder, rows, beams)
    found = model.answers(TEXTS, n_best=beams)
    for answer, others in zip(found, wanted, strict=True):
        assert [answer.text, *(text for text, _ in answer.alternatives)] == [model.decode(ids) for ids, _ in others]
        if beams > 1:
            scores = [answer.score, *(score for _, score in answer.alternatives)]
            assert scores == pytest.approx([score for _, score in others], abs=2e-4)
    assert any(others[0][0] for others in wanted)  # else this shows nothing
    if "max_new_tokens" not in settings:
        assert model.generate(rows, settings["max_length"] - 1) == [others[0][0] for others in wanted]


def test_config_json_speaks_where_there_is_no_generation_config(made):
    folder, _ = made("marian")
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = library.load(folder)
    assert model.settings()["forced_eos_token_id"] == 0 and model.task == "translate"
    assert model("open the window", num_beams=2, max_new_tokens=5) and model("") == "" and model(["", " \n"]) == ["", ""]


def test_a_task_of_config_json_gives_prefix_and_settings(made, capsys):
    folder, peer = made("t5")
    say(folder, max_length=12)
    model = library.load(folder)
    (wanted,) = theirs(peer, folder, [model.encode("sum: the door")], 2, num_beams=2, length_penalty=2.0, max_length=9)
    (answer,) = model.answers(["the door"], task="summarization", n_best=2)
    assert [answer.text, answer.alternatives[0][0]] == [model.decode(ids) for ids, _ in wanted]
    assert model("the door", prefix="sum: ", num_beams=2, length_penalty=2.0, max_length=9) == answer.text
    assert cli.main(["run", str(folder), "the door", "--task", "summarization"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == answer.text
    assert cli.main(["run", str(folder), "the door", "--task", "sing", "--json"]) == 2
    assert "'sing'; there is summarization" in capsys.readouterr().err


def test_what_is_too_long_is_translated_in_pieces_and_refused_otherwise(made):
    folder, _ = made("marian")
    say(folder, num_beams=1, max_length=20, forced_eos_token_id=0)
    model = library.load(folder)
    long = " ".join(["the door is open."] * 9)
    assert len(model.encode(long)) > model.max_length == 40
    for code in ("", ">>fra<< "):
        parts = Reading(model, "").pieces(code + long)
        assert len(parts) > 1 and all(len(ids) <= 40 and ids[-1] == 0 for ids in parts)
        body = [id for ids in parts for id in (ids[1:] if code else ids)[:-1]]
        assert body == model.encode(long)[:-1] and (not code or all(ids[0] == 2 for ids in parts))
    assert model(long) == " ".join(model.decode(ids) for ids in model.generate(Reading(model, "").pieces(long), 19))
    folder, _ = made("bart")
    say(folder, num_beams=1, max_length=20)
    model = library.load(folder)
    with pytest.raises(InputError, match=r"input 7: is .* tokens long, this model takes 40") as error:
        model.answers(["a", long, "b", long], first=6)
    assert "input 9:" in str(error.value) and "input 8" not in str(error.value)
    folder, _ = made("t5")
    say(folder, max_length=8)
    assert len(library.load(folder)([long * 4, "a"])) == 2  # nothing limits a T5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(guidance_scale=2.0, num_beam_groups=2), ["guidance_scale=2.0 is not built yet", "beam_groups=2: groups have"]),
        (dict(eos_token_id=[1, 2]), ["eos_token_id=[1, 2]"]),
        (
            dict(max_length="long", early_stopping="often", length_penalty=None, bad_words_ids=[3]),
            ["'long'", "'often'", "bad_words_ids=[3]"],
        ),
        (dict(max_length=60), ["59 new tokens", "reads 40"]),
        (dict(forced_bos_token_id=[3], suppress_tokens=4), ["forced_bos_token_id=[3]", "suppress_tokens=4"]),
    ],
)
def test_settings_that_cannot_be_followed_are_named(made, settings, says):
    folder, _ = made("bart")
    say(folder, **settings)
    with pytest.raises(InputError) as error:
        library.load(folder)("a")
    assert all(part in str(error.value) for part in says), str(error.value)


def test_a_caller_may_choose_another_search(made):
    folder, _ = made("bart")
    say(folder, do_sample=True, temperature=0.7, max_length=12, min_length=9)
    model = library.load(folder)
    assert model("the door", num_beams=2) and len(model.generate([0, 5, 2], 3)) <= 3
    with pytest.raises(InputError, match="at most as many"):
        model.answers(["a"], n_best=3, num_beams=2)


@pytest.mark.parametrize("kind", MAKERS)
def test_sampled_answers_are_the_same_in_any_batch(made, kind):
    folder, _ = made(kind)
    say(folder, do_sample=True, top_k=40, num_beams=2, max_length=12)
    model = library.load(folder)
    rows = [model.encode(text) for text in TEXTS]
    how = dict(max_new_tokens=9, temperature=1.3, seed=7, n=3)
    together = model.generate(rows, **how)
    assert [model.generate(row, **how) for row in rows] == together == model.generate(rows[::-1], **how)[::-1]
    assert all(len(some) == 3 for some in together) and len({tuple(ids) for some in together for ids in some}) > 6
    assert model.generate(rows, **how | {"seed": 8}) != together
    assert model.generate(rows, 9, temperature=1.3, top_k=1) == model.generate(rows, 9, beams=1)
    one = dict(max_new_tokens=9, temperature=1.3, seed=7)
    for row, some in zip(rows, together, strict=True):
        assert list(model.generate(row, **one, stream=True)) == some[0]
    texts = model.generate(TEXTS, **how)
    if kind != "t5":  # whose texts may have a prefix
        assert texts == [[model.decode(ids) for ids in some] for some in together]
    assert [model.generate(text, **how) for text in TEXTS] == texts
    at, whole = next((i, some[0]) for i, some in enumerate(texts) if len(some[0].strip()) > 3)
    text, word = TEXTS[at], whole.strip()[1:3]
    assert "".join(model.generate(text, **one, stream=True)) == whole
    assert model.generate(text, **one, stop=word) == whole[: whole.index(word)]
    assert "".join(model.generate(text, **one, stop=[word, "never met"], stream=True)) == whole[: whole.index(word)]


def test_sampled_answers_on_the_command_line(made, capsys):
    folder, _ = made("bart")
    say(folder, max_length=12)
    model = library.load(folder)
    wanted = model.generate("the door", 6, temperature=0.8, seed=3, n=2)
    words = ["--temperature", "0.8", "--seed", "3", "--n", "2", "--max-new-tokens", "6", "--json"]
    assert cli.main(["run", str(folder), "the door", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [said["answer"], said["alternatives"][0]["answer"]] == wanted and said["score"] < 0
    assert cli.main(["run", str(folder), "the door", "--top-k", "3"]) == 2 and "temperature above 0" in capsys.readouterr().err
    with pytest.raises(InputError, match="stop strings go with one beam"):
        model("a", stop="b", beams=2)
    with pytest.raises(InputError, match="forbid every one"):
        model("a", suppress_tokens=list(range(model.net.heads["lm"].weight.shape[0])), max_new_tokens=3)
