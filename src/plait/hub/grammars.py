"""Grammars that a caller asks for, over the text that a tokenizer writes."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from plait.errors import InputError
from plait.generate.grammar import Grammar, Spelling, json_schema, regex
from plait.text.spelling import spelled
from plait.text.tokenizer import Tokenizer


def schema_of(given: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """A JSON schema, from its JSON text too."""
    try:
        schema = json.loads(given if isinstance(given, str) else json.dumps(given))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"json_schema: is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InputError(f'json_schema={str(given)[:60]}: expected an object such as {{"type": "object"}}')
    return schema


def grammar_of(schema: Mapping[str, Any] | str | None, pattern: str | None, tokenizer: Tokenizer, ends: Sequence[int]) -> Grammar | None:
    """What an answer's text must follow, from its first id on (`at`); None where nothing is asked."""
    if schema is None and pattern is None:
        return None
    spelling, space = spelling_of(tokenizer, tuple(ends))
    return Grammar(json_schema(schema_of(schema), space) if schema is not None else regex(pattern or "", space), spelling)


@lru_cache(maxsize=4)
def spelling_of(tokenizer: Tokenizer, ends: tuple[int, ...]) -> tuple[Spelling, bool]:
    """What its ids write, and whether a space before the first word is left out when it decodes; made once, since it takes 0.4 s."""
    tokens = spelled(tokenizer)
    word = next((id for id, token in enumerate(tokens) if token and token.startswith(b" ") and token.strip().isalpha()), None)
    return Spelling(tokens, ends), word is not None and not tokenizer.decode([word]).startswith(" ")
