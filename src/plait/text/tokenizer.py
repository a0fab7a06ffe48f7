"""Text to token ids and back, around Hugging Face `tokenizers`."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models

from plait.errors import InputError

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

EACH = r"[\s\S]"  # one code point, line ends included: what the kind `characters` splits into

# Names under which files of others hold the same four, best first: T5/Llama/Marian, BERT, GPT-2, Qwen, Gemma.
NAMES = {
    "pad": (PAD, "[PAD]", "<|pad|>", "<|padding|>"),
    "bos": (BOS, "[CLS]", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "[BOS]"),
    "eos": (EOS, "[SEP]", "<eos>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "[EOS]"),
    "unk": (UNK, "[UNK]", "<|unk|>"),
}


class Tokenizer:
    """A trained tokenizer with its four special ids.

    Ours hold `<pad> <s> </s> <unk>` at 0 to 3; in a file of others they are found by name: one without a bos starts with its
    eos (GPT-2) or pad (T5), one without a pad pads with its eos, `unk_id` is None where nothing is ever unknown.
    `encode` adds no special ids and text never yields one: a literal "</s>" in the text is text (for kinds in which it
    would have been the symbol itself it becomes `unk_id`). `note` says what the trainer wants known, such as a size not reached.
    """

    def __init__(self, backend: tokenizers.Tokenizer, note: str = ""):
        backend.no_truncation()  # a file of others may carry both switched on
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend, self.note = backend, note
        found = {role: self._find(names) for role, names in NAMES.items()}
        eos = found["eos"] if found["eos"] is not None else found["bos"]
        if eos is None:
            raise InputError(f"the tokenizer has no token that ends a sequence: expected one of {', '.join(NAMES['eos'])}")
        self.eos_id: int = eos
        self.pad_id: int = found["pad"] if found["pad"] is not None else eos
        starts = (found["bos"], found["pad"], eos)
        self.bos_id: int = next(id for id in starts if id is not None)
        self.unk_id: int | None = found["unk"]
        added = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._silent = frozenset(added | {self.pad_id, self.bos_id, self.eos_id}) - {self.unk_id}
        self._symbols = _symbols(backend, self._silent) if self.unk_id is not None else None
        self._byte_level = isinstance(backend.decoder, decoders.ByteLevel)

    def _find(self, names: Iterable[str]) -> int | None:
        return next((id for id in map(self.backend.token_to_id, names) if id is not None), None)

    def __repr__(self) -> str:
        return f"Tokenizer({type(self.backend.model).__name__}, {self.vocab_size:,} tokens{'; ' + self.note if self.note else ''})"

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: one more than the largest."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; faster than one `encode` after another."""
        try:
            if self._symbols:
                split, ids, unk = *self._symbols, self.unk_id
                return [[ids.get(symbol, unk) for symbol in split(text)] for text in texts]  # type: ignore[misc]
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            faults = [f"text {i} of {len(texts)}: {fault}" for i, text in enumerate(texts, 1) if (fault := _fault(text))]
            if not faults:
                raise
            raise InputError("these texts cannot be encoded", faults) from None
        return [self._plain(encoding.ids) for encoding in encodings]

    def _plain(self, ids: list[int]) -> list[int]:
        # A word "</s>" is in the vocabulary of a word tokenizer; as text it must not end the sequence.
        if self._silent.isdisjoint(ids):
            return ids
        return [self.unk_id if id in self._silent else id for id in ids if id not in self._silent or self.unk_id is not None]  # type: ignore[misc]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids: exactly what was encoded, unknown symbols as `<unk>`; special ids are left out.

        Byte-level ids that end amid a character (a generation cut short) show U+FFFD there.
        """
        return self.backend.decode([id for id in map(int, ids) if id not in self._silent], skip_special_tokens=False)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """One display string an id, for looking at: a leading space as U+2581, bytes amid a character as <0xE4>."""
        return [self._shown(int(id)) for id in ids]

    def _shown(self, id: int) -> str:
        token = self.backend.id_to_token(id)
        if token is None:
            return f"<id {id}?>"
        if not self._byte_level or id in self._silent or id == self.unk_id:
            return token
        data = bytes(BYTES[character] for character in token if character in BYTES)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)
        return "▁" + text[1:] if text.startswith(" ") else text

    def save(self, path: str | Path) -> None:
        """As a Hugging Face `tokenizer.json`; everything is recoverable from that file."""
        Path(path).write_text(self.backend.to_str(pretty=True), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a `tokenizer.json`, or a folder that holds one."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}; expected a tokenizer.json") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 (byte {error.start}); expected a tokenizer.json") from None
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path}: is no tokenizer.json of Hugging Face tokenizers: {error}") from None
        try:
            return cls(backend)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", error.faults) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"json": self.backend.to_str(), "note": self.note}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["json"]), state["note"])


def _symbols(backend: tokenizers.Tokenizer, silent: frozenset[int]) -> tuple[Callable[[str], list[str]], dict[str, int]] | None:
    """How the kinds `words` and `characters` split a text, and the ids of what they find; None for all other tokenizers.

    A look-up in a dictionary is ten times as fast as the library's way, which makes an object of each text.
    """
    if not isinstance(backend.model, models.WordLevel) or backend.normalizer is not None:
        return None
    how = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer is not None else {}
    ids = {token: id for token, id in backend.get_vocab(with_added_tokens=False).items() if id not in silent}
    if how.get("type") == "WhitespaceSplit":
        return str.split, ids
    if how.get("type") == "Split" and how.get("pattern") == {"Regex": EACH} and how.get("behavior") == "Isolated":
        return list, ids
    return None


def _fault(text: object) -> str | None:
    """Why this cannot be encoded; the library itself only names types."""
    if not isinstance(text, str):
        return f"a {type(text).__name__}; expected a string"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        return f"character {error.start} is {code}, half of a surrogate pair standing alone; remove it, or read the text as UTF-8"
    return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte (`bytes_to_unicode` in its encoder.py): printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
