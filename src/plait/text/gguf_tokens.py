"""The tokenizer inside a GGUF file's metadata, given as a plain dictionary of its keys."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from plait.errors import InputError, choices
from plait.text.loaded import LoadedTokenizer
from plait.text.sentencepiece_file import (
    BPE,
    BYTE,
    CONTROL,
    UNIGRAM,
    UNKNOWN,
    USER,
    Pieces,
    build_sentencepiece,
    charsmap_faults,
    piece_faults,
)
from plait.text.special import SpecialTokens, wrapping

PREFIX = "tokenizer.ggml."
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# How Qwen2 splits words, from its tokenizer.json; Llama 3 does it with up to three digits.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# How a text falls into words, one expression after another on what the one before left: llama-vocab.cpp of llama.cpp, by `pre`.
SPLITS: dict[str, list[str]] = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "phi-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "refact": [r"\p{N}", GPT2],
    "command-r": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "llama3": [LLAMA3],
    "llama-v3": [LLAMA3],
    "qwen2": [QWEN],
    "deepseek-r1-qwen": [QWEN],
}
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}  # a word that is a token is that token, whatever the merges say
COMPOSED = {"qwen2"}  # its own tokenizer.json composes accents (NFC); llama.cpp does not
IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask"}  # spelled so


def gguf_tokenizer(metadata: Mapping[str, Any]) -> LoadedTokenizer:
    """The tokenizer that `tokenizer.ggml.model`, `tokens`, `merges`, `scores`, `token_type` and `pre` describe.

    Models gpt2 (byte pairs; `pre` says how words are split), llama (SentencePiece byte pairs) and t5 (SentencePiece unigram).
    `tokenizer.chat_template` comes along.
    """
    read = _Keys(metadata)
    kind = read("model", str)
    tokens = read.many("tokens", str)
    types = read.many("token_type", int, default=[1] * len(tokens))
    read.same("token_type", types, tokens)
    roles = {role: tokens[id] for role, name in IDS.items() if (id := read.id(name, len(tokens))) is not None}
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        read.faults.append(f"tokenizer.chat_template is {type(template).__name__}; expected a string")
    if kind and kind not in ("gpt2", "llama", "t5"):
        read.faults.append(f"{PREFIX}model is {kind!r}; expected gpt2, llama or t5")
    build = {"gpt2": _byte_pairs, "llama": _pieces, "t5": _pieces}.get(kind or "")
    backend = build(read, tokens, types) if build else None
    adds = {name: read(f"add_{name}_token", bool, default=kind == of) for name, of in (("bos", "llama"), ("eos", "t5"))}
    read.finish()
    assert backend is not None
    before, after = ([roles[name]] if adds[name] and name in roles else [] for name in ("bos", "eos"))
    wrapping(backend, [*before, "$A", *after])
    return LoadedTokenizer(backend, special=SpecialTokens(roles), chat_template=template)


class _Keys:
    """Reading the keys, collecting what is wrong with each."""

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata, self.faults = metadata, list[str]()

    def __call__(self, name: str, kind: type, *, default: Any = None) -> Any:
        value = self.metadata.get(PREFIX + name)
        if value is None:
            if default is None:
                self.faults.append(f"{PREFIX}{name} is missing")
            return default
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            self.faults.append(f"{PREFIX}{name} is {value!r:.40}; expected a {kind.__name__}")
            return default
        return value

    def many(self, name: str, kind: type | tuple[type, ...], *, default: Any = None) -> list[Any]:
        value = self.metadata.get(PREFIX + name)
        if value is None:
            if default is None:
                self.faults.append(f"{PREFIX}{name} is missing")
            return default or []
        if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
            self.faults.append(f"{PREFIX}{name} is {value!r:.40}; expected a list")
            return default or []
        value = value.tolist() if hasattr(value, "tolist") else list(value)  # numpy's, from a reader
        wrong = [i for i, item in enumerate(value) if not isinstance(item, kind) or isinstance(item, bool)]
        self.faults += [f"{PREFIX}{name}[{i}] is {value[i]!r:.40}, of the wrong type" for i in wrong]
        return value if not wrong else default or []

    def same(self, name: str, values: list[Any], tokens: list[str]) -> None:
        if len(values) != len(tokens):
            self.faults.append(f"{PREFIX}{name} has {len(values)} entries for {len(tokens)} tokens")

    def id(self, name: str, size: int) -> int | None:
        if self.metadata.get(f"{PREFIX}{name}_token_id") is None:
            return None
        id = self(f"{name}_token_id", int)
        if id is not None and not 0 <= id < size:
            self.faults.append(f"{PREFIX}{name}_token_id is {id}, but there are {size} tokens")
            return None
        return id

    def finish(self) -> None:
        if self.faults:
            raise InputError("the tokenizer in this GGUF file cannot be used", self.faults)


def _byte_pairs(read: _Keys, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer | None:
    vocab: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if vocab.setdefault(token, id) != id:
            read.faults.append(f"{PREFIX}tokens[{id}] is {token!r}, as is [{vocab[token]}]")
    pre = read("pre", str, default="default")
    if pre not in SPLITS:
        read.faults.append(f"{PREFIX}pre is {pre!r}; known are {choices(SPLITS)}")
    lines = ((f"{PREFIX}merges[{number}]", line) for number, line in enumerate(read.many("merges", str)))
    try:
        merges = check_merges(lines, vocab, PREFIX + "merges")
    except InputError as error:
        read.faults += error.faults
    if read.faults:
        return None
    backend = tokenizers.Tokenizer(byte_pair_model(vocab, merges, whole_words=pre in WHOLE_WORDS))
    splits: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[pre]]
    space = read("add_space_prefix", bool, default=False)
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    steps: list[Any] = [normalizers.NFC()] * (pre in COMPOSED) + [normalizers.Prepend(" ")] * space
    if steps:
        backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    _mark(backend, tokens, types)
    return backend


def _mark(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control tokens as special ones, the user's own as strings found in any text."""
    backend.add_tokens(
        [AddedToken(t, special=kind != USER, normalized=False) for t, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN, USER) and t]
    )


def _pieces(read: _Keys, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer | None:
    unigram = read.metadata.get(PREFIX + "model") == "t5"
    scores = [float(score) for score in read.many("scores", (int, float))]
    read.same("scores", scores, tokens)
    charsmap = read.metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None and not isinstance(charsmap, bytes | str):
        try:
            charsmap = bytes(int(byte) & 0xFF for byte in charsmap)  # signed ones occur
        except (TypeError, ValueError):
            read.faults.append(f"{PREFIX}precompiled_charsmap is not made of bytes")
            charsmap = None
    if not isinstance(charsmap, bytes):
        read.faults += [f"{PREFIX}precompiled_charsmap is a string"] * (charsmap is not None)
        charsmap = b""
    read.faults += charsmap_faults(charsmap)
    prefix = read("add_space_prefix", bool, default=True)
    squeeze = read("remove_extra_whitespaces", bool, default=unigram)
    if read.faults:
        return None
    pieces = list(zip(tokens, scores, types))
    if not any(type == UNKNOWN for type in types) and (id := read.id("unknown", len(tokens))) is not None:
        pieces[id] = (tokens[id], scores[id], UNKNOWN)
    read.faults += piece_faults(pieces)
    if read.faults:
        return None
    return build_sentencepiece(Pieces(pieces, UNIGRAM if unigram else BPE, charsmap, prefix, squeeze, BYTE in types))


def byte_pair_model(vocab: dict[str, int], merges: list[tuple[str, str]], *, whole_words: bool = False) -> models.BPE:
    return models.BPE(
        vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False, ignore_merges=whole_words
    )


def check_merges(lines: Any, vocab: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """Pairs of (place, "left right"), as tuples; InputError with every one that the vocabulary does not bear out."""
    merges, faults = [], []
    for place, line in lines:
        parts = line.split(" ") if isinstance(line, str) else ()
        if len(parts) != 2 or not all(parts):
            faults.append(f"{place}: {line!r} is no merge; expected two tokens with one space between")
        elif unknown := [token for token in (*parts, "".join(parts)) if token not in vocab]:
            faults.append(f"{place}: merges {parts[0]!r} and {parts[1]!r}, but the vocabulary has no {' and no '.join(map(repr, unknown))}")
        else:
            merges.append((parts[0], parts[1]))
    if faults:
        raise InputError(f"{where}: these merges do not fit the vocabulary", faults)
    return merges
