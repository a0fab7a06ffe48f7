"""What all models of an encoder and a decoder have in common when they are put to use, whoever trained them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plait.core.model import Model
from plait.errors import InputError
from plait.generate.beams import Penalty
from plait.generate.search import mean
from plait.generate.text import texts_of
from plait.hub.decoding import BEAMS, OPTIONS, Decoding
from plait.hub.grammars import grammar_of
from plait.hub.ready import Row, row_faults, texts_given, vocabulary
from plait.hub.settings import SETTINGS, filters_of, search_options
from plait.tasks.sequences import Answer, Rewriter
from plait.text.tokenizer import Tokenizer

WORDS = ("target_prefix", "required")  # options that are words of the answer


class Sequences:
    """One text in, another out, as the caller says, and where he does not as the model's own settings do.

    A model says in `prepared` how its texts are read and what its settings are.
    """

    net: Model
    task: str
    where: str  # what errors call the model
    max_length: int | None  # ids that a tower may be given
    penalty: Callable[[float], Penalty] = staticmethod(mean)  # what a length_penalty means
    row_options: Sequence[str] = (*OPTIONS, *WORDS)

    def prepared(self, chosen: Mapping[str, Any], **own: Any) -> tuple[Rewriter, dict[str, Any]]:
        """How texts are read, and all settings in Hugging Face's words, the `chosen` ones among them; `own` options are the model's."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    @property
    def target_tokenizer(self) -> Tokenizer:
        """Of what the model writes; InputError where it has none."""
        raise NotImplementedError

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """A string for a string, a list for a list. Options as of `answers`."""
        texts, one = texts_given(text)
        found = [answer.text for answer in self.answers(texts, **options)]
        return found[0] if one else found

    def answers(self, texts: Sequence[str], *, first: int = 1, n_best: int = 1, **options: Any) -> list[Answer]:
        """As `__call__`, with scores and runners-up: `n_best` answers a text, or `n`.

        `target_prefix` is what each answer begins with, `required` a word or several that it holds: neither goes with a text that is
        too long and goes in pieces. Every other option is one of `Decoding`, or a setting of the search in Hugging Face's words
        (num_beams, length_penalty, max_new_tokens, no_repeat_ngram_size ...), instead of the model's. With a temperature the `n`
        samples of a text, each with its log-probability, are its answers. `first` is what errors call the first text.
        """
        reader, how = self.reading(n_best, options)
        return reader(texts, first=first, **how)

    def reading(self, n_best: int, options: dict[str, Any]) -> tuple[Rewriter, dict[str, Any]]:
        """How texts are read, and what `Rewriter` is to be told of their answers; InputError has everything that cannot be."""
        given = {name: value for name, value in options.items() if value is not None}
        asked = Decoding(**{name: given.pop(name) for name in OPTIONS if name in given})
        words = {name: given.pop(name) for name in WORDS if name in given}
        own = {name: given.pop(name) for name in self.row_options if name in given}
        faults = [f"{name}={value!r}: there is no such setting" for name, value in given.items() if name not in SETTINGS]
        chosen = given | asked.settings()
        reader, said = self.prepared(chosen, **own)
        if asked.temperature and "num_beams" not in chosen:  # beams are how the model searches by itself, and here it draws
            said |= {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
        beams = {name: said[word] for name, word in {**BEAMS, "diversity_penalty": "diversity_penalty"}.items() if word in said}
        asked = replace(asked, n=max(n_best, asked.n), **beams)
        faults += asked.faults(vocabulary(self.net, "decoder"))
        draft = getattr(asked.speculate, "net", asked.speculate)
        if isinstance(draft, Model) and draft.towers != self.net.towers:
            faults.append("speculate: expected a model of an encoder and a decoder, as this one is")
        ids, more = self.ids_of(words)
        try:
            how = search_options(said | ids, self.where, self.max_length, self.penalty)
        except InputError as error:
            how, more = {}, more + error.faults
        if faults := faults + more:
            raise InputError(f"{self.where}: nothing can be answered so", faults)
        if asked.json_schema is not None or asked.regex is not None:
            grammar = grammar_of(asked.json_schema, asked.regex, self.target_tokenizer, [how["end"]])
            assert grammar is not None
            how["constraints"] = [grammar.at(1), *how["constraints"]]  # what is forced goes on as if the grammar allowed it
        how |= {"seed": asked.seed if asked.temperature else None, "filters": filters_of(said), "stops": asked.stops, "draft": draft}
        return reader, {**how, "n_best": asked.n, "whole": bool(ids)}

    def ids_of(self, words: Mapping[str, str | Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
        """The settings that words of the answer mean, and what is wrong with them."""
        found, faults = {}, []
        for name, said in words.items():
            texts = [said] if isinstance(said, str) else list(said)
            if not all(isinstance(text, str) and text.strip() for text in texts) or (name == "target_prefix" and len(texts) != 1):
                faults.append(f"{name}={said!r}: expected {'a text' if name == 'target_prefix' else 'texts'} with something in it")
                continue
            rows = [self.target_tokenizer.encode(text) for text in texts]
            odd = [text for text, row in zip(texts, rows, strict=True) if self.target_tokenizer.unk_id in row]
            faults += [f"{name}={text!r}: holds what the model cannot write" for text in odd]
            found |= {"forced_prefix_ids": rows[0]} if name == "target_prefix" else {"force_words_ids": rows}
        return found, faults

    def generate(
        self,
        text: str | Sequence[Any],
        max_new_tokens: int | None = 50,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Text for text, ids (of a source, as `encode` gives them) for ids; lists of either for lists. Options as of `answers`.

        With `n` above 1 there is a list of answers for each. With `stream`, of one text an iterator over pieces of its answer, of ids
        over ids.
        """
        options |= {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "temperature": temperature}
        if stream:
            return self._streamed(text, options)
        n = options.get("n", 1)
        if isinstance(text, str) or (len(text) and isinstance(text[0], str)):
            answers = self.answers([text] if isinstance(text, str) else text, **options)
            found: list[Any] = [[answer.text, *(other for other, _ in answer.alternatives)] if n > 1 else answer.text for answer in answers]
            return found[0] if isinstance(text, str) else found
        one = bool(len(text) and isinstance(text[0], int))
        rows = self._rows([list(text)] if one else [list(row) for row in text])
        reader, how = self.reading(1, options)
        how.pop("whole")
        found = [[h.ids for h in some] if n > 1 else some[0].ids for some in reader.search(rows, **how)] if rows else []
        return found[0] if one else found

    def _rows(self, rows: list[list[int]]) -> list[list[int]]:
        if faults := [f"row {i}: {fault}" for i, row in enumerate(rows) for fault in row_faults(self.net, [row], self.max_length)]:
            raise InputError("these rows cannot be read", faults)
        return rows

    def _streamed(self, text: str | Sequence[Any], options: dict[str, Any]) -> Iterator[Any]:
        reader, how = self.reading(1, options)
        if how["beams"] > 1 or how["n_best"] > 1:
            raise InputError("stream=True goes with one answer of one beam: give beams=1 and n=1")
        if isinstance(text, str):
            pieces = reader.pieces(text)
        elif len(text) and isinstance(text[0], int):
            pieces = self._rows([list(text)])
        else:
            raise InputError("stream=True goes with one text, not with a list of them")
        if len(pieces) > 1:
            raise InputError(f"stream=True: this text goes in {len(pieces)} pieces, since it is longer than {reader.max_source} tokens")
        ids = (token for _, token in reader.written(pieces, reader.texts(pieces, **how), how["draft"]) if token is not None)
        return texts_of(ids, self.decode, how["stops"]) if isinstance(text, str) else ids

    def rows(self, texts: Sequence[str], first: int = 1, n_best: int = 1, **options: Any) -> list[Row]:
        """(line, JSON) of each text, for the command line; options as of `answers`."""
        rows = []
        for answer in self.answers(texts, first=first, n_best=n_best, **options):
            others = [{"answer": text, "score": score} for text, score in answer.alternatives]
            rows.append((answer.text, {"answer": answer.text, "score": answer.score, "alternatives": others}))
        return rows
