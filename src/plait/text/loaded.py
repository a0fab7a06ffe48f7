"""The tokenizer of a released checkpoint: special tokens by their roles, and what stands around a text."""

from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from plait.errors import InputError
from plait.text.special import FLAGS, SpecialTokens
from plait.text.tokenizer import NAMES, Tokenizer

PROBES = ("a", "C", "0", "the", "中")  # texts for finding what post-processing puts around one


class LoadedTokenizer(Tokenizer):
    """A tokenizer of a released checkpoint: ids as the checkpoint's authors' own code gives them.

    `special` names the token of each role (`ids` the ids), `chat_template` is its Jinja source or None. bos and eos fall back to
    BERT's cls and sep. `encode` treats text as text throughout; `encode_marked` lets the strings of special tokens in it stand for
    those tokens (prompts from a chat template); `wrap` adds what the model wants around one text or a pair.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, note: str = "", special: SpecialTokens | None = None, chat_template: str | None = None
    ):
        self.special, self.chat_template = special or SpecialTokens(), chat_template
        _add(backend, self.special)
        super().__init__(backend, note)
        self.ids = {role: id for role, name in self.special.roles.items() if (id := backend.token_to_id(name)) is not None}
        self._marked: tokenizers.Tokenizer | None = None
        self._fuses = isinstance(backend.model, models.Unigram)
        self._top = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def _find(self, names: Iterable[str]) -> int | None:
        # The base class looks the roles up by usual names; what the files declare is better.
        role = next(role for role, usual in NAMES.items() if usual is names)
        stand_in = {"bos": "cls", "eos": "sep"}.get(role, role)
        declared = self.special.roles.get(role) or self.special.roles.get(stand_in)
        found = self.backend.token_to_id(declared) if declared else None
        return found if found is not None else super()._find(names)

    def _plain(self, ids: list[int]) -> list[int]:
        ids = super()._plain(ids)
        if self._fuses and self.unk_id in ids:  # SentencePiece has no two unknowns in a row; the guards of its pieces may part one
            return [id for id, before in zip(ids, [None, *ids]) if id != self.unk_id or before != id]
        return ids

    @property
    def vocab_size(self) -> int:
        return self._top

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which "<s>" and the like stand for the special tokens of that name."""
        if self._marked is None:  # a copy: switching the backend's own setting to and fro would not be safe among threads
            self._marked = tokenizers.Tokenizer.from_str(self.backend.to_str())
            self._marked.encode_special_tokens = False
        try:
            return self._marked.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            self.encode(text)  # says what is wrong with it
            raise

    def wrap(self, ids: Iterable[int], pair: Iterable[int] | None = None) -> list[int]:
        """The ids with what post-processing adds: [CLS] a [SEP] b [SEP] for BERT, `a </s>` for T5, bos for Llama."""
        parts = [list(map(int, ids)), *([list(map(int, pair))] if pair is not None else [])]
        around = self.added(len(parts))
        return [*around[0], *(id for part, after in zip(parts, around[1:]) for id in (*part, *after))]

    def added(self, texts: int = 1) -> list[list[int]]:
        """What post-processing puts before, between and after one text or two: `texts` + 1 lists of ids."""
        for probe in PROBES:
            encoding = self.backend.encode(probe, probe if texts == 2 else None, add_special_tokens=True)
            places = list(zip(encoding.ids, encoding.sequence_ids, encoding.special_tokens_mask))
            if {sequence for _, sequence, _ in places if sequence is not None} == set(range(texts)):
                around: list[list[int]] = [[] for _ in range(texts + 1)]
                at = 0
                for id, sequence, mask in places:
                    if mask or sequence is None:
                        around[at].append(id)
                    else:
                        at = sequence + 1
                return around
        return [[] for _ in range(texts + 1)]

    def __getstate__(self) -> dict[str, Any]:
        added = [(t.content, {flag: getattr(t, flag) for flag in FLAGS}, id) for t, id in self.special.added.items()]
        return {**super().__getstate__(), "roles": dict(self.special.roles), "added": added, "chat_template": self.chat_template}

    def __setstate__(self, state: dict[str, Any]) -> None:
        added = {AddedToken(content, **flags): id for content, flags, id in state["added"]}
        backend = tokenizers.Tokenizer.from_str(state["json"])
        self.__init__(backend, state["note"], SpecialTokens(state["roles"], added), state["chat_template"])


def _add(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Puts the declared tokens into the backend, in the order of their ids; InputError where an id comes out as another."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted(special.added.items(), key=lambda item: (item[1] is None, item[1] or 0))
    contents = {token.content for token in special.added}
    roles = [AddedToken(name, special=True, normalized=False) for name in special.roles.values() if name not in contents]
    # A role that no vocabulary holds gets no id of its own: a checkpoint has no embedding for it (GPT-2 asked for a pad).
    roles = [token for token in roles if backend.token_to_id(token.content) is not None]
    fresh = [token for token in (*roles, *(token for token, _ in listed)) if token.content not in known]
    backend.add_tokens(fresh)
    faults = [
        f"token {token.content!r} should have the id {id} but gets {got}"
        for token, id in listed
        if id is not None and (got := backend.token_to_id(token.content)) != id
    ]
    if faults:
        raise InputError("the added tokens do not fit the vocabulary", faults)
