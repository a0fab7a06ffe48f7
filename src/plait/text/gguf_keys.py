"""A tokenizer as the keys of a GGUF: the way back of `gguf_tokens`, proved by reading the keys again."""

import json
from pathlib import Path
from typing import Any

from plait.errors import InputError
from plait.text.gguf_tokens import IDS, PREFIX, SPLITS, gguf_tokenizer
from plait.text.loaded import LoadedTokenizer
from plait.text.sentencepiece_file import BPE, CONTROL, NORMAL, UNUSED, USER, read_sentencepiece

# Texts in which every way of splitting words that is known differs from every other.
PROBES = (
    "The door's open: it's 12345 o'clock, I'LL say -- isn't it?",
    "def f(x):\n\n    return x**2  # 3.14\t\r\n  end ",
    "Ünïcödé e\u0301 漢字 ☃ 1000000 a_b$c^d~e|f+g=h<i>j  \n\n\n x",
    " leading, trailing ",
)


def gguf_keys(tokenizer: LoadedTokenizer, folder: Path, size: int) -> dict[str, Any]:
    """The keys `tokenizer.*` for a model of `size` rows; `folder` may hold the SentencePiece file that it was made from.

    Byte pairs of bytes (GPT-2's kind) and SentencePiece's byte pairs can be said. Raises `InputError` where no keys give the same ids.
    """
    made = json.loads(tokenizer.backend.to_str())
    byte_level = "ByteLevel" in json.dumps([made.get("pre_tokenizer"), made.get("decoder")])
    pieces, scores, extra = {}, None, {}
    if made["model"].get("type") == "BPE" and byte_level:
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in made["model"]["merges"]]
        kind, extra, splits = "gpt2", {"merges": merges, "add_space_prefix": False}, [*dict.fromkeys(["gpt-2", *SPLITS])]
    elif (file := folder / "tokenizer.model").is_file() and (model := read_sentencepiece(file)).kind == BPE:
        kind, splits = "llama", ["default"]
        pieces, scores = {id: type for id, (_, _, type) in enumerate(model.pieces)}, [score for _, score, _ in model.pieces]
        extra = {"add_space_prefix": model.prefix}
    else:
        raise InputError(
            f"{folder}: a GGUF has byte pairs as GPT-2's or those of a SentencePiece tokenizer.model; "
            f"this is {made['model'].get('type')}{'' if byte_level else ' with neither'}"
        )
    names = {id: name for name, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    if kind == "llama":
        names |= {id: text for id, (text, _, _) in enumerate(model.pieces)}  # a tokenizer.json may spell them otherwise
    added = {id: CONTROL if token.special else USER for id, token in tokenizer.backend.get_added_tokens_decoder().items()}
    types = {**dict.fromkeys(names, NORMAL), **added, **pieces}
    keys: dict[str, Any] = {
        "model": kind,
        "tokens": [names.get(id, f"[PAD{id}]") for id in range(size)],
        "token_type": [types.get(id, UNUSED) for id in range(size)],
        **extra,
    }
    if scores is not None:
        keys["scores"] = [*scores, *[-1000.0] * (size - len(scores))]  # as llama.cpp has it for what no merge may make
    roles = {role: tokenizer.backend.token_to_id(name) for role, name in tokenizer.special.roles.items()}
    keys |= {f"{IDS[role]}_token_id": id for role, id in roles.items() if id is not None and role in IDS}
    keys.setdefault("eos_token_id", tokenizer.eos_id)
    before, after = tokenizer.added()
    keys |= {"add_bos_token": before == [keys.get("bos_token_id")], "add_eos_token": after == [keys["eos_token_id"]]}
    found = {f"{PREFIX}{name}": value for name, value in keys.items()}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    wanted = [tokenizer.wrap(tokenizer.encode_marked(text)) for text in PROBES]
    for split in splits:
        one = {**found, f"{PREFIX}pre": split}
        back = gguf_tokenizer(one)
        if [back.wrap(back.encode_marked(text)) for text in PROBES] == wanted:
            return one
    raise InputError(f"{folder}: no way of splitting words that a GGUF can name gives this tokenizer's ids")
