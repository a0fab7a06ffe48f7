"""Models of one causal tower that are ready: they continue a text, answer in a conversation, and say how likely a text is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from plait.errors import InputError
from plait.generate.constraints import AtLeast
from plait.generate.greedy import continued
from plait.hub.decoding import ends_of, settings_of
from plait.hub.ready import Parts, Ready, Row
from plait.tasks.likelihood import Likelihood, likelihood
from plait.text.chat import render_chat

Message = Mapping[str, Any]


class LanguageModel(Ready):
    """Continues a text, greedily: whatever the checkpoint says of sampling, the likeliest token each time."""

    task = "generate"
    few_rows = 1

    def __init__(self, parts: Parts):
        super().__init__(parts)
        settings = settings_of(parts)
        self.ends = ends_of(settings) or ([self.tokenizer.eos_id] if parts.tokenizers else [])
        self.start = settings.get("bos_token_id")
        if self.start is None and parts.tokenizers:
            self.start = self.tokenizer.ids.get("bos")

    def __call__(self, text: str | Sequence[str], max_new_tokens: int = 50, **options: Any) -> Any:
        return self.generate(text, max_new_tokens, **options)

    def generate(
        self,
        text: str | Sequence[Any],
        max_new_tokens: int = 50,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        stream: bool = False,
        first: int = 1,
    ) -> Any:
        """The continuation of a text (a list of texts: of each); ids for ids. An empty one begins with the token that begins texts.

        With `stream`, of one text an iterator over pieces of its continuation, of ids over ids. InputError names every prompt that
        leaves no room for `max_new_tokens`, by its number; `first` is that of the first one.
        """
        if isinstance(text, str):
            found = self._answered([self.encode(text)], max_new_tokens, min_new_tokens, temperature, self.ends, first)[0]
            return texts_of(found, self.decode) if stream else self.decode(list(found))
        if len(text) and isinstance(text[0], int):
            found = self._answered([list(text)], max_new_tokens, min_new_tokens, temperature, self.ends, first)[0]
            return found if stream else list(found)
        if stream:
            raise InputError("stream=True goes with one prompt, not with a list of them")
        words = [isinstance(one, str) for one in text]
        prompts = [self.encode(one) if word else list(one) for one, word in zip(text, words, strict=True)]
        answers = self._answered(prompts, max_new_tokens, min_new_tokens, temperature, self.ends, first)
        return [self.decode(list(found)) if word else list(found) for found, word in zip(answers, words, strict=True)]

    def chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 512,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        stream: bool = False,
        **more: Any,
    ) -> Any:
        """The assistant's next message after `messages`, mappings with role and content; `more` are the chat template's own variables.

        With `stream` an iterator over its pieces.
        """
        return self._said([self.chat_ids(messages, **more)], max_new_tokens, min_new_tokens, temperature, stream, 1)[0]

    def chat_ids(self, messages: Sequence[Message], **more: Any) -> list[int]:
        """The prompt of a conversation, by the checkpoint's own template, up to where the assistant begins."""
        tokenizer = self.tokenizer
        return tokenizer.encode_marked(render_chat(tokenizer.chat_template, messages, roles=tokenizer.special.roles, **more))

    def score(self, text: str, window: int | None = None, stride: int | None = None) -> Likelihood:
        """How likely the text is: nats a token and perplexity, each token scored once.

        A text longer than `window` ids (the model's limit, or 2048) goes by windows that begin `stride` (half a window) apart, so
        that all but the first window's tokens have at least `window - stride` before them.
        """
        ids = self.encode(text)
        window = window or min(self.max_length or 2048, 2048)
        stride = stride or max(window // 2, 1)
        faults = [f"window={window}: this model takes {self.max_length}"] * bool(self.max_length and window > self.max_length)
        faults += [f"window={window}: at least 2"] * (window < 2)
        faults += [f"stride={stride}: expected 1 to {window - 1}, one less than the window"] * (not 0 < stride < window)
        faults += [f"the text has {len(ids)} tokens: at least 2 are needed, since the first has nothing before it"] * (len(ids) < 2)
        if faults:
            raise InputError("this text cannot be scored", faults)
        return likelihood(self.net, ids, window, stride)

    def perplexity(self, text: str, window: int | None = None, stride: int | None = None) -> float:
        """e to the nats a token of `score`."""
        return self.score(text, window, stride).perplexity

    def rows(
        self, texts: Sequence[str], first: int = 1, max_new_tokens: int | None = None, chat: bool = False, system: str | None = None
    ) -> list[Row]:
        """(line, JSON) of each text, for the command line: its continuation, or with `chat` the answer to it as a user's message."""
        if not chat:
            if system is not None:
                raise InputError("--system goes with --chat: give both")
            answers = self.generate(list(texts), 50 if max_new_tokens is None else max_new_tokens, first=first)
            return [(text + more, {"answer": more}) for text, more in zip(texts, answers, strict=True)]
        prompts = [self.chat_ids([*opening(system), {"role": "user", "content": text}]) for text in texts]
        answers = self._said(prompts, 512 if max_new_tokens is None else max_new_tokens, 0, 0.0, False, first)
        return [(answer, {"answer": answer}) for answer in answers]

    def _said(self, prompts: list[list[int]], most: int, least: int, temperature: float, stream: bool, first: int) -> list[Any]:
        """What the assistant says after each prompt; the tokenizer's own end is one too, whatever a base model's config said."""
        ends = sorted({*self.ends, self.tokenizer.eos_id})
        answers = self._answered(prompts, most, least, temperature, ends, first)
        return [texts_of(found, self.decode) if stream else self.decode(list(found)) for found in answers]

    def _answered(
        self, prompts: list[list[int]], most: int, least: int, temperature: float, ends: Sequence[int], first: int
    ) -> list[Iterator[int]]:
        """The ids after each prompt, found as they are asked for; every fault of every prompt before any is."""
        faults = [f"max_new_tokens={most}: expected a number from 0"] * (most < 0)
        faults += [f"min_new_tokens={least}: expected 0 to max_new_tokens, which is {most}"] * (not 0 <= least <= max(most, 0))
        faults += [f"temperature={temperature}: sampling is not built yet; 0 takes the likeliest"] * bool(temperature)
        prompts = [ids or ([self.start] if self.start is not None else []) for ids in prompts]
        for number, ids in enumerate(prompts, first):
            if not ids:
                faults.append(f"input {number}: is empty, and this model has no token that begins a text")
            elif self.max_length and len(ids) + most > self.max_length:
                faults.append(f"input {number}: is {len(ids)} tokens long and {most} more were asked for: room for {self.max_length}")
        if faults:
            raise InputError("nothing can be written so", faults)
        return [continued(self.net, ids, most, set(ends), [AtLeast(len(ids) + least, ends)] if least and ends else ()) for ids in prompts]


def opening(system: str | None) -> list[dict[str, str]]:
    """The messages that a conversation begins with."""
    return [] if system is None else [{"role": "system", "content": system}]


def texts_of(ids: Iterable[int], decode: Any) -> Iterator[str]:
    """Pieces of the text of ids, as soon as each is sure; joined they are the whole's. A character of several ids comes whole."""
    seen: list[int] = []
    shown = ""
    for id in ids:
        seen.append(id)
        text = decode(seen)
        if text.endswith("\ufffd") or not text.startswith(shown):  # amid a character
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        shown = text
    if len(text := decode(seen)) > len(shown):
        yield text[len(shown) :]
