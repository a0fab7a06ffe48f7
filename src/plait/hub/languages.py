"""Models of one causal tower that are ready: they continue a text."""

from collections.abc import Sequence
from typing import Any

from plait.errors import InputError
from plait.generate.greedy import continued
from plait.hub.ready import Ready, Row


class LanguageModel(Ready):
    """Continues a text, greedily."""

    task = "generate"

    def __call__(self, text: str | Sequence[str], max_new_tokens: int = 50) -> Any:
        return self.generate(text, max_new_tokens)

    def generate(self, text: str | Sequence[Any], max_new_tokens: int = 50) -> Any:
        """The continuation of a text (of each of a list of texts); ids for ids."""
        if isinstance(text, str):
            return self.tokenizer.decode(self.ids_after(self.encode(text), max_new_tokens))
        if len(text) and isinstance(text[0], int):
            return self.ids_after(list(text), max_new_tokens)
        return [self.generate(one, max_new_tokens) for one in text]

    def ids_after(self, ids: list[int], max_new_tokens: int) -> list[int]:
        ids = ids or [self.tokenizer.bos_id]
        if self.max_length and len(ids) + max_new_tokens > self.max_length:
            raise InputError(
                f"the prompt is {len(ids)} tokens long and {max_new_tokens} more were asked for: this model has room for {self.max_length}"
            )
        return list(continued(self.net, ids, max_new_tokens, {self.tokenizer.eos_id}))

    def rows(self, texts: Sequence[str], first: int = 1, max_new_tokens: int = 50) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        return [(text + more, {"answer": more}) for text in texts for more in [self.generate(text, max_new_tokens)]]
