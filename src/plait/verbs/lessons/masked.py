"""Masked language models: texts read, encoded, cut into rows with hidden tokens and an encoder for them, or hidden spans and two towers."""

from typing import Any

import numpy as np
import torch

from plait.core.model import Model
from plait.data.corpus import Flat
from plait.data.masking import MaskedRows, Masking
from plait.data.packing import Documents
from plait.data.spans import Corruption, SpanFeed
from plait.data.store import stored
from plait.data.windows import WindowFeed
from plait.errors import InputError
from plait.tasks.masked import MaskedTokens
from plait.tasks.ngrams import NGrams
from plait.tasks.translation import TeacherForcing
from plait.text.loaded import LoadedTokenizer
from plait.text.tokenizer import EOS
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say, usual_recipe
from plait.verbs.lessons.reading import context_of, read, rounded, to_score
from plait.verbs.train import Train

AT_ONCE = 8192  # tokens of a batch that is only validated on
SENTINELS = 100  # of a new tokenizer, as T5's


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    found = read(verb, saved, say, ends=False)
    made: list[tuple[Documents, Documents]] = []

    def count(tokenizer: LoadedTokenizer) -> int:
        made.append(found.encoded(tokenizer))
        return len(made[0][0].texts.ids)

    if spans := verb.objective == "span":
        kind: dict[str, Any] = {"usual": "t5", "around": ("", EOS), "sentinels": SENTINELS}
        start = begin(verb, saved, ("encoder", "decoder"), found.sample(), {}, say, count=count, **kind)
    else:
        start = begin(verb, saved, ("encoder",), found.sample(), {"head": "mlm"}, say, usual="modern-encoder", mask=True, count=count)
    tokenizer, choice = start.tokenizer, start.choice
    train, valid = made[0] if made else found.encoded(tokenizer)
    context = verb.context or min(start.max_length or 256, 256)
    if start.max_length and context > start.max_length:
        raise InputError(f"--context {context}: this model takes at most {start.max_length} tokens")
    # What T5 writes begins with its padding; a released model says so itself.
    usual = {"decoder_start_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    answers = {**usual, **(saved or start.notes).get("answers", {})} if spans else {}
    feed, checks = (
        feed_of(part, tokenizer, context, size, answers.get("decoder_start_token_id"), verb.whole_words, seed)
        for part, size, seed in ((train, choice.batch_tokens, verb.seed), (valid, AT_ONCE, 0))
    )
    say(
        f"{len(feed.order):,} rows of at most {context} tokens to learn from, {feed.tokens:,} tokens;"
        f" {len(checks.order):,} rows to validate on, {checks.tokens:,} tokens"
    )
    smoothing = verb.smoothing or 0.0
    objective, batches = TeacherForcing(smoothing) if spans else MaskedTokens(smoothing), list(checks.all())

    def measure(net: Model) -> dict[str, float]:
        return {"accuracy": objective.accuracy(net, batches)}

    notes = {"batch_tokens": choice.batch_tokens, "max_length": start.max_length, "files": found.files, "context": context}
    if spans:
        longest = int(max(side.order.lengths[:, 1].max() for side in (feed, checks)))
        notes = {"generation": {"max_length": longest + 1}, **start.notes, **notes, "answers": answers}
    return Lesson(
        choice.arch,
        choice.config,
        objective,
        feed,
        batches,
        feed.fingerprint + checks.fingerprint,
        start.keep,
        usual_recipe(choice.arch, choice.config, start.released),
        notes,
        start.start,
        measure,
        tokenizer.decode,
    )


def feed_of(
    documents: Documents, tokenizer: LoadedTokenizer, context: int, size: int, start: int | None, whole_words: bool, seed: int = 0
) -> WindowFeed:
    """Rows with hidden spans for a decoder that begins with `start`, or with hidden tokens where there is none."""
    if start is not None:
        ids = {"start": start, "end": tokenizer.eos_id, "pad": tokenizer.pad_id}
        return SpanFeed(documents, Corruption.of(tokenizer), context, size, **ids, seed=seed)
    before, after = tokenizer.added()
    return MaskedRows(documents, Masking.of(tokenizer, whole_words), context, (before, after), tokenizer.pad_id, seed).feed(size)


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a masked language model: loss and accuracy of what is hidden, always the same; beside the frequencies of tokens."""
    reporter = Reporter()
    asked, known, trained = to_score(verb, ready, reporter.say)
    spans = len(ready.net.towers) > 1
    tokenizer, objective = ready.tokenizer, TeacherForcing(0.0) if spans else MaskedTokens()
    whole_words = trained is not None and trained.whole_words
    documents = stored(asked, tokenizer, None, ends=False)
    start = ready.config["decoder_start_token_id"] if spans else None
    feed = feed_of(documents, tokenizer, context_of(ready, trained), AT_ONCE, start, whole_words)
    total, hidden = 0.0, list[int]()
    with torch.no_grad():
        for batch in feed.all():
            found = objective.vectors(ready.net, batch)
            total += float(objective.judged(ready.net, found).plain)
            hidden += found.answers.tolist()
    accuracy = objective.accuracy(ready.net, feed.all())
    result: dict[str, Any] = {"task": "masked-lm", "n": len(documents.texts), "hidden": len(hidden)}
    result["metrics"] = rounded({"nats_per_token": total / len(hidden), "accuracy": accuracy})
    if verb.baselines and known:
        ids = stored(known, tokenizer, None, ends=False).texts
        nats = NGrams(ids, 1, tokenizer.vocab_size).nats(Flat.of([hidden]))
        usual = np.bincount(ids.ids).argmax()
        result["baselines"] = {"unigram": rounded({"nats_per_token": nats.mean(), "accuracy": (np.array(hidden) == usual).mean()})}
    return result
