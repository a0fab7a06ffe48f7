"""Marian's tokenizers: a SentencePiece model that splits, and a vocabulary that both sides share."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer
from plait.text.special import SpecialTokens


class MarianTokenizer(LoadedTokenizer):
    """One side of a Marian pair: a SentencePiece model splits, and vocab.json, shared by both sides, gives the pieces' ids.

    A text may begin with the target language (`>>fra<<`). It cannot be saved as one tokenizer.json.
    """

    def __init__(self, backend: tokenizers.Tokenizer, splitter: tokenizers.Tokenizer, special: SpecialTokens):
        splitter.encode_special_tokens = True
        self.splitter = splitter
        self.vocab = backend.get_vocab(with_added_tokens=False)
        super().__init__(backend, special=special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [self._pieces(text) for text in texts]
        except (UnicodeEncodeError, TypeError):
            super().encode_batch(texts)  # says what is wrong with them
            raise

    def _pieces(self, text: str) -> list[int]:
        code = re.match(r">>.*?<<", text, re.DOTALL)
        rest = text[code.end() :] if code else text
        tokens = [*([code[0]] if code else []), *self.splitter.encode(rest, add_special_tokens=False).tokens]
        return self._plain([self.vocab.get(token, self.unk_id) for token in tokens])  # type: ignore[misc]

    def encode_marked(self, text: str) -> list[int]:
        return self.encode(text)

    def save(self, path: str | Path) -> None:
        raise InputError(f"{path}: a Marian tokenizer is two SentencePiece models and a vocabulary: copy its files instead")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "splitter": self.splitter.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend, splitter = (tokenizers.Tokenizer.from_str(state[name]) for name in ("json", "splitter"))
        self.__init__(backend, splitter, SpecialTokens(state["roles"]))
