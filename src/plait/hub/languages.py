"""Models of one causal tower that are ready: they continue a text, answer in a conversation, and say how likely a text is."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from plait.errors import InputError
from plait.generate.constraints import NEVER, NoSequence
from plait.generate.running import Continuation, Running, continuing
from plait.generate.sampling import Draws
from plait.generate.search import Hypothesis, mean, search
from plait.generate.speculative import Draft, Lookup, Reader, Smaller, speculating
from plait.generate.text import before, texts_of
from plait.hub.decoding import OPTIONS, Decoding
from plait.hub.grammars import grammar_of
from plait.hub.ready import Parts, Ready, Row, vocabulary
from plait.hub.settings import ends_of, filters_of, forbidden, language_settings, rules_of, settings_of
from plait.tasks.likelihood import Likelihood, likelihood
from plait.tasks.sequences import Answer
from plait.text.chat import render_chat

Message = Mapping[str, Any]


class LanguageModel(Ready):
    """Continues a text: by the likeliest token each time, or as `Decoding` says.

    Of the checkpoint's own settings those of sampling count only where a temperature is given, lengths and beams never, others always.
    """

    task = "generate"
    few_rows = 1
    row_options = OPTIONS

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.settings = settings = settings_of(parts)
        ends = ends_of(settings) or ([self.tokenizer.eos_id] if parts.tokenizers else [])
        size = vocabulary(self.net, "decoder")
        self.ends = [end for end in ends if end < size]  # a config's default may name an id that the model lacks
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
        **options: Any,
    ) -> Any:
        """The continuation of a text (a list of texts: of each); ids for ids. An empty one begins with the token that begins texts.

        Further options are those of `Decoding`. With `n` above 1 there is a list of continuations for each text. Ids end with the one
        that completed a stop string. With `stream`, of one text an iterator over pieces of its continuation, of ids over ids; closing
        it ends the text. InputError names every prompt that is empty or leaves no room for `max_new_tokens`, by its number, before
        anything is computed, and every one after which nothing can be chosen; `first` is the number of the first one.
        """
        how = Decoding(max_new_tokens, min_new_tokens, temperature, **options)
        one = isinstance(text, str) or bool(len(text) and isinstance(text[0], int))
        given = [text] if one else list(text)
        prompts = [self.encode(some) if isinstance(some, str) else list(some) for some in given]
        if stream:
            if not one:
                raise InputError("stream=True goes with one prompt, not with a list of them")
            ids = self._streamed(prompts[0], how, self.ends, first)
            return texts_of(ids, self.decode, how.stops) if isinstance(text, str) else ids
        answers = []
        for some, found in zip(given, self._found(prompts, how, self.ends, first), strict=True):
            said = [before(self.decode(h.ids), how.stops) if isinstance(some, str) else h.ids for h in found]
            answers.append(said if how.n > 1 else said[0])
        return answers[0] if one else answers

    def answers(self, texts: Sequence[str], first: int = 1, **options: Any) -> list[Answer]:
        """As `generate` of a list, with scores and with the other `n - 1` continuations of each text.

        The score of beams is penalised by length; otherwise it is the text's log-probability, in nats.
        """
        how = Decoding(**{"max_new_tokens": 50, **options})
        return self._read(self._found([self.encode(text) for text in texts], how, self.ends, first), how)

    def chat(self, messages: Sequence[Message], max_new_tokens: int = 512, stream: bool = False, **more: Any) -> Any:
        """The assistant's next message after `messages`, mappings with role and content; with `stream` an iterator over its pieces.

        `more` are options of `Decoding`, and the chat template's own variables.
        """
        how = Decoding(max_new_tokens, **{name: more.pop(name) for name in OPTIONS if name in more})
        prompt = self.chat_ids(messages, **more)
        if stream:
            return texts_of(self._streamed(prompt, how, self.chat_ends, 1), self.decode, how.stops)
        (answer,) = self._read(self._found([prompt], how, self.chat_ends, 1), how)
        return [answer.text, *(text for text, _ in answer.alternatives)] if how.n > 1 else answer.text

    @property
    def chat_ends(self) -> list[int]:
        """The tokenizer's own end is one of a message, whatever a base model's config said."""
        return sorted({*self.ends, self.tokenizer.eos_id})

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
        self,
        texts: Sequence[str],
        first: int = 1,
        max_new_tokens: int | None = None,
        chat: bool = False,
        system: str | None = None,
        **options: Any,
    ) -> list[Row]:
        """(line, JSON) of each text, for the command line: its continuation, or with `chat` the answer to it as a user's message.

        "ended" is false where `max_new_tokens` cut the answer, so that it may break off amid what a grammar asks.
        """
        if system is not None and not chat:
            raise InputError("--system goes with --chat: give both")
        most = (512 if chat else 50) if max_new_tokens is None else max_new_tokens
        how = Decoding(most, **options)
        if chat:
            prompts = [self.chat_ids([*opening(system), {"role": "user", "content": text}]) for text in texts]
        else:
            prompts = [self.encode(text) for text in texts]
        found, rows = self._found(prompts, how, self.chat_ends if chat else self.ends, first), []
        for text, some, answer in zip(texts, found, self._read(found, how), strict=True):
            others = [{"answer": other, "score": score} for other, score in answer.alternatives]
            more = {"score": answer.score, "alternatives": others} if how.n > 1 else {}
            rows.append((answer.text if chat else text + answer.text, {"answer": answer.text, "ended": some[0].ended, **more}))
        return rows

    def _read(self, found: list[list[Hypothesis]], how: Decoding) -> list[Answer]:
        texts = [[(before(self.decode(h.ids), how.stops), h.score) for h in some] for some in found]
        return [Answer(*some[0], tuple(some[1:])) for some in texts]

    def _streamed(self, prompt: list[int], how: Decoding, ends: Sequence[int], first: int) -> Iterator[int]:
        if how.n > 1 or (how.beams or 1) > 1:
            raise InputError(f"stream=True goes with one answer of one beam, not with n={how.n}, beams={how.beams or 1}")
        (texts,) = self._continuations([prompt], how, ends, first)
        return (token for _, token in self._written([texts], how) if token is not None)

    def _written(self, texts: list[list[Continuation]], how: Decoding) -> Iterator[tuple[Continuation, int | None]]:
        """Ids as they come: of all texts in one running batch, or with guesses of one text after the other."""
        if how.speculate is None:
            yield from continuing(Running(self.net), [(some, None) for some in texts])
            return

        def turn(text: Continuation) -> tuple[Reader, Continuation, Draft]:
            room = len(text.prompt) + text.max_new_tokens
            draft = Lookup() if how.speculate == "lookup" else Smaller(Reader(how.speculate.net, room=room))
            return Reader(self.net, room=room), text, draft

        yield from speculating(turn(text) for some in texts for text in some)

    def _found(self, prompts: list[list[int]], how: Decoding, ends: Sequence[int], first: int) -> list[list[Hypothesis]]:
        """The `n` answers to each prompt; by beams, prompts of one length together."""
        texts = self._continuations(prompts, how, ends, first)
        if (how.beams or 1) > 1:
            return self._searched(texts, how)
        for _ in self._written(texts, how):
            pass
        return [[Hypothesis(text.ids, text.log_prob, text.log_prob, text.ended) for text in some] for some in texts]

    def _searched(self, texts: list[list[Continuation]], how: Decoding) -> list[list[Hypothesis]]:
        found: dict[int, list[Hypothesis]] = {}
        alike: dict[int, list[int]] = defaultdict(list)
        for i, some in enumerate(texts):
            alike[len(some[0].prompt)].append(i)
        penalty = mean(1.0 if how.length_penalty is None else how.length_penalty)
        sizes: dict[str, Any] = dict(
            max_length=how.max_new_tokens, beams=how.beams or 1, n_best=how.n, penalty=penalty, early_stopping=False
        )
        sizes |= dict(groups=how.beam_groups or 1, diversity=how.diversity_penalty or 0.0)
        for rows in alike.values():
            one = texts[rows[0]][0]
            start = torch.tensor([list(texts[i][0].prompt) for i in rows], device=next(self.net.parameters()).device)
            answers = search(self.net, None, start=start, end=list(one.ends), constraints=one.rules, **sizes)
            found.update(zip(rows, answers, strict=True))
        if faults := [f"{some[0].name}: every continuation is forbidden" for i, some in enumerate(texts) if found[i][0].score == NEVER]:
            raise InputError("no further token can be chosen", faults)
        return [found[i] for i in range(len(texts))]

    def _continuations(self, prompts: list[list[int]], how: Decoding, ends: Sequence[int], first: int) -> list[list[Continuation]]:
        """What is to run: `n` for each prompt. InputError has every fault of every prompt."""
        faults, grammar = how.faults(vocabulary(self.net, "decoder")), None
        names = [name for name in ("stop", "json_schema", "regex") if getattr(how, name)]
        if self.parts.tokenizers is None:
            faults += [f"{name}={getattr(how, name)!r}: this model has no tokenizer, so its ids are no text" for name in names]
        elif not faults:
            try:
                grammar = grammar_of(how.json_schema, how.regex, self.tokenizer, ends)
            except InputError as error:
                faults += [f"{error.message}: {fault}" for fault in error.faults] or [error.message]
        limits, draft = [self.max_length], how.speculate
        if draft is not None and draft != "lookup" and not faults:
            limits.append(draft.max_length)
            if not isinstance(draft, LanguageModel) or vocabulary(draft.net, "decoder") != vocabulary(self.net, "decoder"):
                faults.append(
                    f"speculate={draft.parts.folder}: expected a language model with the {vocabulary(self.net, 'decoder')} ids of this one"
                )
        limit = min((limit for limit in limits if limit), default=None)
        prompts = [ids or ([self.start] if self.start is not None else []) for ids in prompts]
        most = max(how.max_new_tokens or 0, 0)
        for number, ids in enumerate(prompts, first):
            if not ids:
                faults.append(f"input {number}: is empty, and this model has no token that begins a text")
            elif limit and len(ids) + most > limit:
                faults.append(f"input {number}: is {len(ids)} tokens long and {most} more were asked for: room for {limit}")
            else:
                faults += [f"input {number}: {fault}" for fault in self._row_faults([ids])]
        if faults:
            raise InputError("nothing can be written so", faults)
        settings = {**language_settings(self.settings, str(self.parts.folder)), **how.settings()}
        banned = [NoSequence([[id] for id in some])] if (some := forbidden(settings, list(ends))) else []
        filters = filters_of(settings)
        # A grammar comes first: what is forced later goes on as if the grammar allowed it, and filters see only what is left.
        rules = {
            size: (*([grammar.at(size)] if grammar else []), *rules_of(settings, list(ends), size, size + most), *banned, *filters)
            for size in set(map(len, prompts))
        }
        stopped = (lambda ids: before(text := self.decode(ids), how.stops) != text) if how.stops else None
        return [
            [
                Continuation(
                    ids, most, ends, rules[len(ids)], Draws.of(how.seed, k, ids) if how.temperature else None, stopped, f"input {number}"
                )
                for k in range(how.n if how.temperature else 1)
            ]
            for number, ids in enumerate(prompts, first)
        ]


def opening(system: str | None) -> list[dict[str, str]]:
    """The messages that a conversation begins with."""
    return [] if system is None else [{"role": "system", "content": system}]
