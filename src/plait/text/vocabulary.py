"""Vocabularies of bare tokens, one a line or a JSON list: whole symbols, as CTranslate2 models are given them."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer
from plait.text.special import SpecialTokens, read_text, wrapping
from plait.text.tokenizer import EACH

MARKED = ("▁", "￭", "@@", "Ġ")  # how SentencePiece, OpenNMT's Tokenizer and byte-pair encoders mark where words begin or go on


def read_vocabulary(file: Path) -> list[str]:
    """The tokens of a file in the order of their ids; an id is all that a token has."""
    text = read_text(file, "one token a line, or a JSON list of them")
    try:
        tokens = json.loads(text) if file.suffix == ".json" else text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not valid JSON: {error}; expected a list of tokens") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{file}: is not a list of tokens, each a text")
    seen: dict[str, int] = {}
    faults = [f"{token!r} has the ids {seen[token]} and {i}" for i, token in enumerate(tokens) if seen.setdefault(token, i) != i]
    if faults:
        raise InputError(f"{file}: this vocabulary cannot be used", faults)
    return tokens


def symbol_tokenizer(tokens: Sequence[str], roles: dict[str, str], around: Sequence[str] = ("$A",)) -> LoadedTokenizer | None:
    """A tokenizer of whole symbols: each character where no token but the special ones is longer, else what spaces separate.

    `roles` names the tokens for bos, eos and unk, `around` what stands around a text ("$A"). None where the tokens are pieces of words:
    how a text is cut into those, a vocabulary does not say.
    """
    special = {*roles.values(), *(token for token in tokens if token.startswith("<") and token.endswith(">") and len(token) > 2)}
    plain = [token for token in tokens if token not in special]
    if any(mark in token and token != mark for token in plain for mark in MARKED):
        return None
    backend = tokenizers.Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token=roles["unk"]))
    if all(len(token) == 1 for token in plain):
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")  # type: ignore[assignment]
        backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    else:  # no decoder: tokens are joined with one space
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens if token in special])
    wrapping(backend, around)
    return LoadedTokenizer(backend, special=SpecialTokens(roles))
