"""What `plait train translation` does: read, clean, split, size, encode, train, keep the best."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait import __version__, models
from plait.core.model import Model, parameters
from plait.data import builtin
from plait.data.batches import Batch, BatchOrder
from plait.data.cleaning import clean
from plait.data.corpus import Corpus
from plait.data.pairs import Pair, read_pairs
from plait.data.split import check_disjoint, split_by_source
from plait.errors import InputError, choices
from plait.hub import runs
from plait.tasks.memory import SEPARATOR, TranslationMemory
from plait.tasks.translation import TeacherForcing
from plait.text.tokenizer import Tokenizer
from plait.text.training import KINDS, train_tokenizer
from plait.train import sizing
from plait.train.allocator import keep_freed_memory
from plait.train.checkpoints import read_tensors, write_json, write_tensors
from plait.train.log import MetricsFile, Reporter
from plait.train.loop import Budget, Interrupted, Settings, State, Trainer
from plait.train.recipes import recipe_for
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


def read(verb: Train, say: Any) -> Data:
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


def tokenizers_for(verb: Train, data: Data, say: Any) -> tuple[Tokenizer, Tokenizer]:
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


def with_neighbours(data: Data, out: Path, keep: bool, say: Any) -> Data:
    """Each source followed by the target of its nearest other training source; the memory is kept in the run for answering."""
    memory = TranslationMemory([p.source for p in data.train], [p.target for p in data.train])
    if keep:
        memory.save(out / runs.MEMORY)
    train = [replace(p, source=memory.extended(p.source, leave_out=p.source)) for p in data.train]
    valid = [replace(p, source=memory.extended(p.source)) for p in data.valid]
    say(f"neighbours: {sum(SEPARATOR in p.source for p in train):,} of {len(train):,} sources go with a similar one's target")
    return Data(train, valid)


@dataclass(frozen=True)
class Choice:
    """What a run trains: saved, so that a resumed run does not choose anew."""

    arch: str
    config: dict[str, Any]
    batch_tokens: int
    smoothing: float


def choose(verb: Train, source: Tokenizer, target: Tokenizer, tokens: int, say: Any) -> Choice:
    """The preset asked for, or the largest modern one that data and budget can train; dropout and smoothing by the expected epochs."""
    tie = "all" if source is target else "target"
    presets = {f"{arch}-{size}": (arch, config) for arch, page in models.PAGES.items() for size, config in page.PRESETS.items()}
    presets = {name: (arch, config) for name, (arch, config) in presets.items() if models.of_pairs(arch)}
    if verb.preset is not None and verb.preset not in presets:
        raise InputError(f"--preset {verb.preset}: there is no such preset; choose {choices(presets)}")
    counts = {}
    for name, (arch, config) in presets.items():
        vocab = models.vocabulary(arch, source.vocab_size, target.vocab_size, tie if arch == "vaswani" else None)
        presets[name] = arch, {**config, **vocab}
        if name == verb.preset or (verb.preset is None and arch == "modern"):
            with torch.device("meta"):
                counts[name] = parameters(models.build(*presets[name]))
    flops = sizing.product_rate()
    seconds = verb.minutes and verb.minutes * 60
    name = verb.preset or sizing.pick(counts, tokens, seconds=seconds, flops=flops)
    if seconds:
        epochs = sizing.epochs_for(counts[name], tokens, seconds, flops)
    else:
        epochs = verb.epochs or (verb.steps or 0) * (verb.batch_tokens or sizing.STEP_TOKENS) / tokens
    batch_tokens = verb.batch_tokens or (sizing.STEP_TOKENS if verb.steps else sizing.batch_tokens(tokens, epochs))
    arch, config = presets[name]
    dropout, smoothing = sizing.regularisation(epochs) if arch == "modern" else (config.get("dropout", 0.1), 0.1)
    dropout = dropout if verb.dropout is None else verb.dropout
    smoothing = smoothing if verb.smoothing is None else verb.smoothing
    speed = f" at {flops / 1e9:.0f} GFLOP/s" if seconds else ""
    say(f"preset {name} ({counts[name] / 1e6:.2f} M parameters): {tokens:,} training tokens, about {epochs:.1f} epochs{speed}")
    say(f"dropout {dropout:g}, label smoothing {smoothing:g}, {batch_tokens:,} tokens a batch")
    return Choice(arch, {**config, "dropout": dropout}, batch_tokens, smoothing)


def train_translation(verb: Train, age: float) -> dict[str, Any]:
    """`age`: seconds the process had already lived, for `--minutes`."""
    started = time.perf_counter() - age
    if verb.threads:
        torch.set_num_threads(verb.threads)
    keep_freed_memory()
    reporter = Reporter(verb.quiet)
    say = reporter.say
    data = read(verb, say)
    out = verb.out
    saved = runs.read_config(out) if verb.resume else None
    if saved:
        source = Tokenizer.load(out / runs.TOKENIZER)
        target = Tokenizer.load(out / runs.TARGET_TOKENIZER) if (out / runs.TARGET_TOKENIZER).exists() else source
    else:
        source, target = tokenizers_for(verb, data, say)
    if verb.neighbours:
        data = with_neighbours(data, out, saved is None, say)
    corpus, valid = (Corpus.encode(part, source, target, verb.context, verb.context) for part in (data.train, data.valid))
    say(str(corpus.report))
    tokens = int(corpus.lengths.sum())
    if saved:
        choice = Choice(saved["arch"], saved["config"], saved["batch_tokens"], saved["smoothing"])
    else:
        choice = choose(verb, source, target, tokens, say)
    order = BatchOrder(corpus.lengths, choice.batch_tokens, verb.seed)
    fingerprint = fingerprint_of(order, corpus, valid)
    if saved and saved["data_fingerprint"] != fingerprint:
        raise InputError(
            f"{', '.join(verb.data)}: the data changed since this run began; put the old files back, or start a new run with another --out"
        )
    torch.manual_seed(verb.seed)
    net = models.build(choice.arch, choice.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    say(f"{len(corpus):,} pairs to learn from, {len(valid):,} to validate")
    recipe = recipe_for(verb, choice.arch, choice.config)
    if not saved:
        out.mkdir(parents=True, exist_ok=True)
        source.save(out / runs.TOKENIZER)
        if target is not source:
            target.save(out / runs.TARGET_TOKENIZER)
        described = {"format": runs.FORMAT, "plait": __version__, "task": "translation", **asdict(choice)}
        answers = min(verb.context, int(1.25 * corpus.targets.lengths.max()) + 4)  # no answer is expected to be much longer than any seen
        widest = {"max_source": verb.context, "max_target": answers, "neighbours": verb.neighbours, "data_fingerprint": fingerprint}
        write_json(out / runs.CONFIG, {**described, **widest, "recipe": recipe.described(), "train": verb.saved()})
    trainer = Trainer(
        net,
        TeacherForcing(choice.smoothing),
        recipe.optimizer(net),
        recipe.schedule(),
        lambda epoch, position: stream(corpus, order, epoch, position),
        cache(lambda epoch: len(order.batches(epoch))),  # asked for before every step
        list(batches(valid)),
        Budget(verb.minutes, verb.steps, verb.epochs, started),
        Settings(verb.clip or None, verb.accumulate, verb.evaluations, verb.patience, verb.average, verb.save_seconds),
        out,
        reporter,
    )
    if saved:
        trainer.resume()
        say(f"going on at step {trainer.state.step:,}")
        if trainer.state.finished and not (out / runs.WEIGHTS).exists():  # stopped between its last step and this
            return finish(out, net, trainer, trainer.state, say)
        if trainer.state.finished:
            raise InputError(
                f"{out}: this run is finished (step {trainer.state.step:,}): start a new one with another --out for a longer budget"
            )
    try:
        with reporter:
            state = trainer.fit()
    except Interrupted:
        raise KeyboardInterrupt(
            f"stopped at step {trainer.state.step:,}, everything is saved; go on with: plait train translation --out {out} --resume"
        ) from None
    return finish(out, net, trainer, state, say)


def finish(out: Path, net: Model, trainer: Trainer, state: State, say: Any) -> dict[str, Any]:
    """The best of what was evaluated, or the average of the last weights where that is better, becomes the model."""
    best, note = read_tensors(trainer.folder / "best.safetensors")
    chosen, valid_loss = f"step {note['step']}", state.best
    if (mean := trainer.averaged()) is not None:
        net.load_state_dict(mean)
        if (averaged := trainer.valid_loss()) < valid_loss:
            best, chosen, valid_loss = mean, f"the average of the last {trainer.settings.average} evaluations", averaged
    net.load_state_dict(best)
    write_tensors(out / runs.WEIGHTS, best, {"chosen": chosen})
    from plait.train.curves import draw_curves

    if not draw_curves(MetricsFile(out / "metrics.jsonl").rows(), out / "curves.png"):
        say("no curves.png: matplotlib is not installed (pip install 'plait[plot]')")
    say(f"kept the weights of {chosen}: validation loss {valid_loss:.4f} nats a token; {state.step:,} steps in {state.seconds:,.0f} s")
    epochs = state.epoch + state.position / trainer.batches_an_epoch(state.epoch)
    result = {"run": str(out), "steps": state.step, "epochs": round(epochs, 2), "seconds": round(state.seconds, 1)}
    return {**result, "tokens": state.tokens, "valid_loss": round(valid_loss, 5), "parameters": parameters(net)}


def fingerprint_of(order: BatchOrder, *parts: Corpus) -> str:
    """Differs when the same (epoch, position) would mean another batch, or validation other pairs."""
    digest = hashlib.sha256(order.fingerprint.encode())
    for flat in (side for part in parts for side in (part.sources, part.targets)):
        digest.update(flat.offsets.tobytes())
        digest.update(flat.ids.tobytes())
    return digest.hexdigest()[:16]


def stream(corpus: Corpus, order: BatchOrder, epoch: int, position: int) -> Iterator[tuple[int, int, Batch]]:
    for epoch, position, rows in order.stream(epoch, position):
        yield epoch, position + 1, corpus.batch(rows)


def batches(corpus: Corpus, tokens: int = 8192) -> Iterator[Batch]:
    """All rows once, by length."""
    for rows in BatchOrder(corpus.lengths, tokens).batches(0):
        yield corpus.batch(np.sort(rows))
