"""Special tokens: which ones a checkpoint's files declare, and what stands around a text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from plait.errors import InputError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SpecialTokens:
    """What the files beside a vocabulary say: the token of each of `ROLES`, and the added tokens with the ids they must have.

    `added` maps a token to its id, None where the file gives none: it then has its id in the vocabulary, or the next free one.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[AddedToken, int | None] = field(default_factory=dict)

    def with_defaults(self, **roles: str) -> "SpecialTokens":
        """The same with these tokens for the roles that no file names."""
        return SpecialTokens({**roles, **self.roles}, self.added)


def read_text(path: Path, expected: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # line ends as they are: a carriage return may be a token
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; expected {expected}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 (byte {error.start}); expected {expected}") from None


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a file; a key that occurs twice is a fault, not the last one's win."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice.extend(f"{path}: {key!r} occurs twice" for key, _ in pairs if key in seen or seen.add(key))
        return found

    text = read_text(path, expected)
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not valid JSON: {error.msg} (column {error.colno}); expected {expected}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: is not valid JSON: {error}; expected {expected}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}; expected {expected}")
    if twice:
        raise InputError(f"{path}: the same key stands twice", twice)
    return value


def read_special(folder: str | Path) -> tuple[SpecialTokens, dict[str, Any]]:
    """Special tokens of a checkpoint's folder, and its tokenizer_config.json; files that are absent say nothing.

    special_tokens_map.json wins over tokenizer_config.json, whose added_tokens_decoder wins over added_tokens.json. A role given
    as null has no token.
    """
    folder, faults = Path(folder), list[str]()

    def optional(name: str) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            return {}
        try:
            return read_object(path, f"the object of a {name}")
        except InputError as error:
            faults.extend(error.faults or [error.message])
            return {}

    config, declared, plain = map(optional, ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"))
    roles: dict[str, str] = {}
    added: dict[str, tuple[AddedToken, int | None]] = {}

    def add(token: AddedToken, id: int | None = None) -> None:
        added.setdefault(token.content, (token, id))

    decoder = config.get("added_tokens_decoder") or {}
    where = folder / "tokenizer_config.json"
    for id, given in decoder.items() if isinstance(decoder, dict) else ():
        token = _token(given, f"{where}: added_tokens_decoder[{id!r}]", faults)
        if not id.isdecimal():
            faults.append(f"{where}: added_tokens_decoder has the key {id!r}; expected an id")
        elif token:
            add(token, int(id))
    if not isinstance(decoder, dict):
        faults.append(f"{where}: added_tokens_decoder is {_shown(decoder)}; expected an object of ids")
    for content, id in plain.items():
        if type(id) is not int or id < 0:
            faults.append(f"{folder / 'added_tokens.json'}: {content!r} has the id {_shown(id)}; expected a whole number from 0")
        else:
            add(AddedToken(content, special=False, normalized=True), id)
    for name, source in (("tokenizer_config.json", config), ("special_tokens_map.json", declared)):
        for role in ROLES:
            given = source.get(f"{role}_token")
            if given is not None and (token := _token(given, f"{folder / name}: {role}_token", faults)):
                roles[role] = token.content
                if not isinstance(given, str):
                    add(token)
        extra = source.get("additional_special_tokens") or []
        if not isinstance(extra, list):
            faults.append(f"{folder / name}: additional_special_tokens is {_shown(extra)}; expected a list")
            continue
        for position, given in enumerate(extra):
            if token := _token(given, f"{folder / name}: additional_special_tokens[{position}]", faults):
                add(token)
    if faults:
        raise InputError(f"{folder}: the special tokens cannot be read", faults)
    return SpecialTokens(roles, dict(added.values())), config


def _token(given: object, where: str, faults: list[str]) -> AddedToken | None:
    """A string, or an object with a content and flags, as a special token; wrong ones become faults."""
    if isinstance(given, str):
        given = {"content": given}
    if not isinstance(given, dict) or not isinstance(content := given.get("content"), str):
        faults.append(f"{where} is {_shown(given)}; expected a string, or an object with a string content")
        return None
    if not content:
        faults.append(f"{where} is the empty string; expected a token")
        return None
    flags = {name: given[name] for name in FLAGS if given.get(name) is not None}
    if wrong := [name for name, value in flags.items() if not isinstance(value, bool)]:
        faults.append(f"{where}: {', '.join(wrong)} must be true or false")
        return None
    return AddedToken(content, **{"special": True, "normalized": False, **flags})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def wrapping(backend: tokenizers.Tokenizer, single: Sequence[str], pair: Sequence[str] | None = None) -> None:
    """Sets what stands around one text ($A) and two ($A and $B); tokens that the vocabulary lacks are left out."""
    pair = pair or [*single, *(part.replace("$A", "$B") for part in single)]
    ids = {part: backend.token_to_id(part) for part in (*single, *pair) if not part.startswith("$")}
    held = [(name, id) for name, id in ids.items() if id is not None]
    names = {name for name, _ in held}
    one, two = ([part for part in parts if part[0] == "$" or part in names] for parts in (single, pair))
    if held:
        backend.post_processor = processors.TemplateProcessing(one, two, held)  # type: ignore[assignment]


def flag(config: Mapping[str, Any], name: str, default: bool | None) -> Any:
    """A switch of tokenizer_config.json; null and absence mean the default."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"tokenizer_config.json: {name} is {value!r}; expected true, false or null")
    return default if value is None else value


def ends(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: SpecialTokens, bos: bool) -> None:
    """Sets what add_bos_token and add_eos_token of tokenizer_config.json ask for; `bos` is the default of the first."""
    before = [special.roles["bos"]] if "bos" in special.roles and flag(config, "add_bos_token", bos) else []
    after = [special.roles["eos"]] if "eos" in special.roles and flag(config, "add_eos_token", False) else []
    wrapping(backend, [*before, "$A", *after])
