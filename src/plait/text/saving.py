"""Tokenizers as a run keeps them: with their special tokens by role, and what the model wants around a text."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, processors

from plait.text.loaded import LoadedTokenizer
from plait.text.loading import load_tokenizer
from plait.text.special import SpecialTokens
from plait.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

MASK, SENTINEL = "<mask>", "<extra_id_{}>"
ROLES = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK}


def with_roles(tokenizer: Tokenizer, before: str = "", after: str = "", mask: bool = False, sentinels: int = 0) -> LoadedTokenizer:
    """A tokenizer that `train_tokenizer` made, for a model that reads `before` text `after`; with `mask`, one token more.

    `sentinels` are tokens that stand for hidden spans, named as T5's; the first one has the highest id, as there.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    roles = dict(ROLES)
    if mask:
        backend.add_special_tokens([AddedToken(MASK, special=True, normalized=False)])
        roles["mask"] = MASK
    names = [SENTINEL.format(i) for i in reversed(range(sentinels))]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    around = " ".join(filter(None, [before, "$A", after]))
    pair = " ".join(filter(None, [before, "$A", after, "$B:1", f"{after}:1" if after else ""]))
    ids = {token: backend.token_to_id(token) for token in {before, after} - {""}}
    if ids:
        backend.post_processor = processors.TemplateProcessing(around, pair, special_tokens=list(ids.items()))  # type: ignore[assignment]
    return LoadedTokenizer(backend, tokenizer.note, SpecialTokens(roles, {}))


def sentinels_of(tokenizer: LoadedTokenizer) -> list[int]:
    """Ids of the tokens that stand for hidden spans, the first one first; none where the tokenizer has none."""
    front, back = SENTINEL.split("{}")
    names = {token.removeprefix(front).removesuffix(back): id for token, id in tokenizer.backend.get_vocab().items() if front in token}
    return [names[number] for number in sorted((name for name in names if name.isdecimal()), key=int)]


def keep_tokenizer(folder: Path, tokenizer: LoadedTokenizer) -> None:
    """As tokenizer.json and tokenizer_config.json, from which `load_tokenizer` makes the same again."""
    tokenizer.save(folder / "tokenizer.json")
    config = {f"{role}_token": token for role, token in tokenizer.special.roles.items()}
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def kept_tokenizer(folder: Path) -> LoadedTokenizer:
    return load_tokenizer(folder)
