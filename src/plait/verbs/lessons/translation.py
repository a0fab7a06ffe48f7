"""Translation: pairs read, cleaned, split and encoded, and an encoder-decoder for them."""

import hashlib
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from plait import models
from plait.core.model import Model
from plait.data import builtin
from plait.data.cleaning import clean
from plait.data.corpus import Corpus
from plait.data.feed import RowFeed
from plait.data.pairs import Pair, read_pairs
from plait.data.split import check_disjoint, split_by_source
from plait.errors import InputError, choices
from plait.hub import load, runs
from plait.hub.transfer import Transfer, transfer
from plait.tasks.memory import SEPARATOR, TranslationMemory
from plait.tasks.translation import TeacherForcing
from plait.text.tokenizer import Tokenizer
from plait.text.training import KINDS, train_tokenizer
from plait.train import sizing
from plait.verbs.lessons.lesson import Choice, Lesson, Say, choose, presets_of, usual_recipe
from plait.verbs.train import Train


@dataclass
class Data:
    """Pairs ready to be encoded."""

    train: list[Pair]
    valid: list[Pair]


def pairs_of(names: list[str], part: builtin.Part = "train") -> tuple[list[Pair], str]:
    """Pairs of files, or of a built-in set by its name, and what was found on the way."""
    families = {line.name.split(":")[0] for line in builtin.sets()}
    strangers = [name for name in names if not Path(name).exists()]
    if len(names) == 1 and strangers and names[0].split(":")[0] in families:
        return builtin.load(names[0], part), f"built-in set {names[0]}, its {part} part"
    try:
        pairs, report = read_pairs(names)
    except InputError as error:
        raise InputError(error.message, [*error.faults, *(_not_built_in(name, families) for name in strangers)]) from None
    return pairs, str(report)


def _not_built_in(name: str, families: set[str]) -> str:
    """What the name of a file that is not there might have meant."""
    if name.split(":")[0] in families:
        return f"{name}: is a built-in set, which cannot be joined with files: write it to one first (plait data {name} --out FILE)"
    known = list(dict.fromkeys([*families, *(line.name for line in builtin.sets())]))
    near = get_close_matches(name, known, n=2)
    return f"{name}: nor is it a built-in set; " + (f"did you mean {choices(near)}?" if near else "plait data lists them")


def read(verb: Train, say: Say) -> Data:
    pairs, found = pairs_of(verb.data)
    say(found)
    pairs, report = clean(pairs)
    say(str(report))
    if not pairs:
        raise InputError(f"{', '.join(verb.data)}: no usable pair is left after cleaning", [str(report)])
    if not verb.valid:
        train, valid = split_by_source(pairs, seed=verb.seed)
        return Data(train, valid[:5000])
    valid, found = pairs_of(verb.valid)
    valid, report = clean(valid, max_ratio=None)
    if not valid:
        raise InputError(f"{', '.join(verb.valid)}: no usable pair is left to validate on after cleaning", [str(report)])
    if shared := check_disjoint(pairs, valid):
        say(f"warning: {shared} sources of --valid stand in --data too: the validation loss will flatter")
    return Data(pairs, valid)


def tokenizers_for(verb: Train, data: Data, say: Say) -> tuple[Tokenizer, Tokenizer]:
    """Trained on the training part only. One joint tokenizer where both sides are subwords, else one a side."""
    sources, targets = [p.source for p in data.train], [p.target for p in data.train]
    kind = verb.tokenizer or sizing.text_kind(sources)
    target_kind = verb.target_tokenizer or verb.tokenizer or sizing.text_kind(targets)
    subwords = ("bpe", "unigram")
    size = verb.vocab_size or sizing.vocabulary(sum(len(text.split()) for text in (*sources, *targets)))
    if kind == target_kind and (kind in subwords or kind not in KINDS):
        both = train_tokenizer(kind, [*sources, *targets], size)
        say(f"tokenizer: {kind}, joint, {both.vocab_size:,} tokens {both.note and '(' + both.note + ')'}".rstrip())
        return both, both
    made = [train_tokenizer(k, texts, size if k in subwords else None) for k, texts in ((kind, sources), (target_kind, targets))]
    say(f"tokenizers: {kind} with {made[0].vocab_size:,} tokens for sources, {target_kind} with {made[1].vocab_size:,} for targets")
    return made[0], made[1]


def with_neighbours(data: Data, say: Say) -> tuple[Data, TranslationMemory]:
    """Each source followed by the target of its nearest other training source, and the memory that answering needs again."""
    memory = TranslationMemory([p.source for p in data.train], [p.target for p in data.train])
    train = [replace(p, source=memory.extended(p.source, leave_out=p.source)) for p in data.train]
    valid = [replace(p, source=memory.extended(p.source)) for p in data.valid]
    say(f"neighbours: {sum(SEPARATOR in p.source for p in train):,} of {len(train):,} sources go with a similar one's target")
    return Data(train, valid), memory


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    data, out = read(verb, say), verb.out
    base = None if saved or verb.model is None else run_of(verb)
    if saved:
        source = Tokenizer.load(out / runs.TOKENIZER)
        target = Tokenizer.load(out / runs.TARGET_TOKENIZER) if (out / runs.TARGET_TOKENIZER).exists() else source
    elif base is not None:
        source, target = base.source_tokenizer, base.target_tokenizer
    else:
        source, target = tokenizers_for(verb, data, say)
    memory = None
    if verb.neighbours:
        data, memory = with_neighbours(data, say)
    context = verb.context or (base.config["max_source"] if base else 256)
    corpus, valid = (Corpus.encode(part, source, target, context, context) for part in (data.train, data.valid))
    say(str(corpus.report))
    if base is not None:
        choice = continued(verb, base.config)
    else:
        choice = Choice.of(saved) if saved else chosen(verb, source, target, int(corpus.lengths.sum()), say)
    feed = corpus.feed(choice.batch_tokens, verb.seed, [p.where for p in data.train])
    say(f"label smoothing {choice.smoothing:g}, {choice.batch_tokens:,} tokens a batch")
    say(f"{len(corpus):,} pairs to learn from, {len(valid):,} to validate")

    def keep(out: Path) -> None:
        source.save(out / runs.TOKENIZER)
        if target is not source:
            target.save(out / runs.TARGET_TOKENIZER)
        if memory is not None:
            memory.save(out / runs.MEMORY)

    def start(net: Model) -> Transfer:
        assert base is not None
        found = transfer(base.net, net)
        say(f"started from {verb.model}: {found}")
        return found

    answers = min(context, int(1.25 * corpus.targets.lengths.max()) + 4)  # no answer is expected to be much longer than any seen
    return Lesson(
        choice.arch,
        choice.config,
        TeacherForcing(choice.smoothing),
        feed,
        list(valid.feed(8192).all()),
        fingerprint_of(feed, corpus, valid),
        keep,
        usual_recipe(choice.arch, choice.config, verb.model is not None),
        {
            "batch_tokens": choice.batch_tokens,
            "smoothing": choice.smoothing,
            "max_source": context,
            "max_target": answers,
            "neighbours": verb.neighbours,
        },
        None if base is None else start,
        shown=target.decode,
    )


def run_of(verb: Train) -> runs.TranslationRun:
    """The run that `--model` names, whose weights and tokenizers training goes on with."""
    if verb.preset or verb.tokenizer or verb.target_tokenizer or verb.vocab_size:
        own = "--preset, --tokenizer, --target-tokenizer and --vocab-size"
        raise InputError(f"--model brings its own size and tokenizers: leave out {own}")
    assert verb.model is not None
    ready = load(verb.model)
    if not isinstance(ready, runs.TranslationRun):
        raise InputError(f"--model {verb.model}: its task is {ready.task}; translation goes on from a run of `plait train translation`")
    if ready.memory is not None and not verb.neighbours:
        raise InputError(f"--model {verb.model}: was trained with neighbours: give --neighbours, so that its sources look the same")
    return ready


def continued(verb: Train, config: dict[str, Any]) -> Choice:
    """As the run was, but for what the user says."""
    wanted = dict(config["config"]) | ({} if verb.dropout is None else {"dropout": verb.dropout})
    smoothing = config.get("smoothing", 0.0) if verb.smoothing is None else verb.smoothing
    return Choice(config["arch"], wanted, verb.batch_tokens or config.get("batch_tokens", sizing.STEP_TOKENS), smoothing)


def chosen(verb: Train, source: Tokenizer, target: Tokenizer, tokens: int, say: Say) -> Choice:
    tie = "all" if source is target else "target"

    def told(arch: str) -> dict[str, Any]:
        return models.vocabulary(arch, source.vocab_size, target.vocab_size, tie if arch == "vaswani" else None)

    return choose(verb, presets_of(models.of_pairs), "modern", told, tokens, say)


def fingerprint_of(feed: RowFeed, *parts: Corpus) -> str:
    """Differs when the same (epoch, position) would mean another batch, or validation other pairs."""
    digest = hashlib.sha256(feed.fingerprint.encode())
    for flat in (side for part in parts for side in (part.sources, part.targets)):
        digest.update(flat.offsets.tobytes())
        digest.update(flat.ids.tobytes())
    return digest.hexdigest()[:16]
