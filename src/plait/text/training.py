"""Training tokenizers: byte-pair, unigram, whole words, single characters; the same texts give the same file."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from plait.errors import InputError, choices
from plait.text.tokenizer import EACH, SPECIAL, UNK, Tokenizer

KINDS = ("bpe", "unigram", "words", "characters")
SMALLEST = len(SPECIAL) + 256  # special tokens and one for each byte

# Both subword kinds work on bytes (GPT-2's alphabet), not on "▁"-marked characters with byte fallback: nothing is ever
# unencodable, no space is invented before the first word, a literal "▁" survives, and decoding is the exact inverse.


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int | None = 8000, *, min_frequency: int = 2) -> Tokenizer:
    """A tokenizer of one of `KINDS` trained on the texts, or the one in the file that `kind` names (texts are not read then).

    `bpe` and `unigram` split on bytes within words and encode any text. `words` takes what whitespace separates as symbols
    (phonemes) and joins them with one space; `characters` takes each code point. In these two, what training did not show
    becomes `unk_id`, and `vocab_size` only limits them to the most frequent (None: all). `min_frequency` is how often a
    byte pair must occur to be merged. When the data allow fewer tokens than asked for, `Tokenizer.note` says so.
    """
    if kind not in KINDS:
        if not Path(kind).exists():
            raise InputError(f"tokenizer {kind!r} is neither a kind ({choices(KINDS)}) nor an existing tokenizer.json")
        return Tokenizer.load(kind)
    least = SMALLEST if kind in ("bpe", "unigram") else len(SPECIAL) + 1
    if vocab_size is not None and vocab_size < least:
        parts = "4 special and 256 bytes" if least == SMALLEST else "4 special and one of your own"
        raise InputError(f"vocab_size={vocab_size} is too small for a {kind} tokenizer: it needs at least {least} ({parts})")
    counted = _Counted(texts, kind)
    if kind == "bpe":
        backend = _bpe(counted, vocab_size or 8000, min_frequency)
    elif kind == "unigram":
        backend = _unigram(counted, vocab_size or 8000)
    else:
        backend = _symbols(counted, kind, vocab_size)
    tokenizer = Tokenizer(backend)
    if vocab_size and tokenizer.vocab_size < vocab_size:
        tokenizer.note = f"{vocab_size:,} were asked for, the data allow no more"
    return tokenizer


class _Counted:
    """Texts as they pass by, checked; InputError when they end without one that is not blank."""

    def __init__(self, texts: Iterable[str], kind: str):
        self.texts, self.kind = [texts] if isinstance(texts, str) else texts, kind

    def __iter__(self) -> Iterator[str]:
        seen = 0
        for text in self.texts:
            if text and not text.isspace():
                seen += 1
                yield text
        if not seen:
            raise InputError(f"no text to train a {self.kind} tokenizer on: every text given was empty, or there was none")


def _bpe(texts: Iterable[str], vocab_size: int, min_frequency: int) -> tokenizers.Tokenizer:
    backend = _byte_level(models.BPE())
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return backend


def _unigram(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        unk_token=UNK,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"][len(SPECIAL) :]]
    backend.model = models.Unigram([*((name, 0.0) for name in SPECIAL), *_canonical(pieces)], unk_id=3)  # type: ignore[assignment]
    backend.add_special_tokens(list(SPECIAL))
    return backend


def _canonical(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trained pieces, free of what differs from one process to the next.

    The trainer sums floats in the order of a randomly seeded hash table (noise in the last digits), and gives the bytes
    that it did not find worth learning the lowest score plus 0, 0.0001, 0.0002 ... in such an order too.
    """
    lowest = min(score for _, score in pieces)
    window = lowest + 1e-4 * 256
    level = [(piece, round(lowest if len(piece) == 1 and score < window else score, 8)) for piece, score in pieces]
    return sorted(level, key=lambda item: (-item[1], item[0]))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _symbols(texts: Iterable[str], kind: str, vocab_size: int | None) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split() if kind == "words" else text)
    ranked = sorted((symbol for symbol in counts if symbol not in SPECIAL), key=lambda symbol: (-counts[symbol], symbol))
    names = [*SPECIAL, *ranked][:vocab_size]
    backend = tokenizers.Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=UNK))
    backend.add_special_tokens(list(SPECIAL))
    if kind == "words":  # no decoder: tokens are joined with one space
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    else:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")  # type: ignore[assignment]
        backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    return backend
