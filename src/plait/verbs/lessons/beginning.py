"""What a run of a task with one tower begins from: nothing but its data, or the weights of another model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from plait import models
from plait.core.model import Model
from plait.errors import InputError
from plait.hub import load
from plait.hub.settings import IDS
from plait.hub.transfer import Transfer, transfer
from plait.text.loaded import LoadedTokenizer
from plait.text.saving import keep_tokenizer, kept_tokenizer, with_roles
from plait.text.tokenizer import BOS, EOS
from plait.text.training import train_tokenizer
from plait.train import sizing
from plait.verbs.lessons.lesson import Choice, Say, choose, has_towers, presets_of
from plait.verbs.train import Train


@dataclass
class Beginning:
    """The tokenizer, the model's description, and what fills in its first weights (None: they are drawn)."""

    tokenizer: LoadedTokenizer
    choice: Choice
    max_length: int | None  # tokens that the model can be given
    released: bool = False  # whether training goes on from the weights of a finished model
    start: Callable[[Model], Transfer] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # what the run's config.json keeps of that model's settings of answers

    def keep(self, folder: Path) -> None:
        keep_tokenizer(folder, self.tokenizer)


def resumed(verb: Train, saved: Mapping[str, Any]) -> Beginning:
    """As the run in `verb.out` began; its weights come from its checkpoint."""
    return Beginning(kept_tokenizer(verb.out), Choice.of(saved), saved["max_length"], verb.model is not None)


def begin(
    verb: Train,
    saved: Mapping[str, Any] | None,
    towers: tuple[str, ...],
    texts: Iterable[str],
    settings: Mapping[str, Any],
    say: Say,
    *,
    usual: str,
    around: tuple[str, str] = (BOS, EOS),
    mask: bool = False,
    sentinels: int = 0,
    count: Callable[[LoadedTokenizer], int],
) -> Beginning:
    """Of a resumed run, from `--model`, or from scratch.

    `settings` are what the task wants of the page's config (head, labels); `around`, `mask` and `sentinels` make the tokenizer of a new
    model; `count` says how many tokens there are to train on.
    """
    if saved is not None:
        return resumed(verb, saved)
    if verb.model is not None:
        return of_model(verb, towers, settings, count, say)
    if verb.teacher is not None and verb.tokenizer is None:
        kind, tokenizer = f"that of {verb.teacher}", load(verb.teacher).tokenizer
    else:
        kind, texts = verb.tokenizer or "bpe", list(texts)
        size = verb.vocab_size or sizing.vocabulary(sum(len(text.split()) for text in texts))
        plain = train_tokenizer(kind, texts, size if kind not in ("words", "characters") else verb.vocab_size)
        tokenizer = with_roles(plain, *around, mask=mask, sentinels=sentinels)
    say(f"tokenizer: {kind}, {tokenizer.vocab_size:,} tokens {tokenizer.note and '(' + tokenizer.note + ')'}".rstrip())

    def told(arch: str) -> dict[str, Any]:
        known = {f.name for f in fields(models.PAGES[arch].Config)}
        sized = {"max_length": max(verb.context or 256, 8)} if "max_length" in known else {}
        return {**models.vocabulary(arch, 0, tokenizer.vocab_size), **sized, **{k: v for k, v in settings.items() if k in known}}

    choice = choose(verb, presets_of(has_towers(towers)), usual, told, count(tokenizer), say)
    return Beginning(tokenizer, choice, choice.config.get("max_length"))


def of_model(
    verb: Train, towers: tuple[str, ...], settings: Mapping[str, Any], count: Callable[[LoadedTokenizer], int], say: Say
) -> Beginning:
    """From a released checkpoint or a run: its page, its settings but for the head, its weights where names and shapes agree."""
    assert verb.model is not None
    if verb.preset or verb.tokenizer or verb.vocab_size:
        raise InputError("--model brings its own size and tokenizer: leave out --preset, --tokenizer and --vocab-size")
    ready = load(verb.model)
    net = ready.net
    if net.towers != towers:
        wanted = " and ".join(f"one {tower}" for tower in towers)
        raise InputError(f"--model {verb.model}: has {' and '.join(net.towers)}, {verb.task} trains a model of {wanted}")
    arch, config = described(ready)
    known = {f.name for f in fields(models.PAGES[arch].Config)}
    if missing := sorted(set(settings) - known):
        raise InputError(f"--model {verb.model}: the page {arch} has no {', '.join(missing)}, which {verb.task} needs")
    wanted = {**config, **settings}
    if verb.dropout is not None and "dropout" in known:
        wanted["dropout"] = verb.dropout

    def start(made: Model) -> Transfer:
        found = transfer(net, made)
        say(f"started from {verb.model}: {found}")
        return found

    tokens = count(ready.tokenizer)
    batch_tokens = verb.batch_tokens or 2048
    say(f"{verb.model}: page {arch}, {tokens:,} training tokens, {batch_tokens:,} a batch")
    choice = Choice(arch, wanted, batch_tokens, verb.smoothing or 0.0)
    ids = {name: ready.config[name] for name in IDS if ready.config.get(name) is not None}
    return Beginning(ready.tokenizer, choice, ready.max_length, True, start, {"answers": ids, "generation": ready.parts.generation})


def described(ready: Any) -> tuple[str, dict[str, Any]]:
    """(page, settings) of a model that was loaded."""
    settings = ready.parts.settings
    arch = next(name for name, page in models.PAGES.items() if type(settings) is page.Config)
    return arch, asdict(settings) | ({"shape": list(ready.net.shape)} if ready.net.shape else {})  # as `models.build` takes it
