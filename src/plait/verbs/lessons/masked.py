"""Masked language models: texts read, encoded, cut into rows with hidden tokens, and an encoder for them."""

from typing import Any

import numpy as np
import torch

from plait.core.model import Model
from plait.data.ahead import ahead
from plait.data.corpus import Flat
from plait.data.examples import IGNORED
from plait.data.masking import MaskedRows, Masking
from plait.data.packing import Documents
from plait.data.store import stored
from plait.errors import InputError
from plait.tasks.masked import MaskedTokens
from plait.tasks.ngrams import NGrams
from plait.text.loaded import LoadedTokenizer
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say, usual_recipe
from plait.verbs.lessons.reading import context_of, read, rounded, to_score
from plait.verbs.train import Train

AT_ONCE = 8192  # tokens of a batch that is only validated on


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    found = read(verb, saved, say, ends=False)
    made: list[tuple[Documents, Documents]] = []

    def count(tokenizer: LoadedTokenizer) -> int:
        made.append(found.encoded(tokenizer))
        return len(made[0][0].texts.ids)

    start = begin(verb, saved, "encoder", found.sample(), {"head": "mlm"}, say, usual="modern-encoder", mask=True, count=count)
    tokenizer, choice = start.tokenizer, start.choice
    train, valid = made[0] if made else found.encoded(tokenizer)
    context = verb.context or min(start.max_length or 256, 256)
    if start.max_length and context > start.max_length:
        raise InputError(f"--context {context}: this model takes at most {start.max_length} tokens")
    feed = rows_of(train, tokenizer, context, verb.whole_words, verb.seed).feed(choice.batch_tokens)
    checks = rows_of(valid, tokenizer, context, verb.whole_words).feed(AT_ONCE)
    say(
        f"{len(feed.order):,} rows of at most {context} tokens to learn from, {feed.tokens:,} tokens;"
        f" {len(checks.order):,} rows to validate on, {checks.tokens:,} tokens"
    )
    objective, batches = MaskedTokens(verb.smoothing or 0.0), list(checks.all())

    def measure(net: Model) -> dict[str, float]:
        return {"accuracy": objective.accuracy(net, batches)}

    return Lesson(
        choice.arch,
        choice.config,
        objective,
        ahead(feed, verb.workers),
        batches,
        feed.fingerprint + checks.fingerprint,
        start.keep,
        usual_recipe(choice.arch, choice.config, verb.model is not None),
        {"batch_tokens": choice.batch_tokens, "max_length": start.max_length, "files": found.files, "context": context},
        start.start,
        measure,
        tokenizer.decode,
    )


def rows_of(documents: Documents, tokenizer: LoadedTokenizer, context: int, whole_words: bool, seed: int = 0) -> MaskedRows:
    before, after = tokenizer.added()
    return MaskedRows(documents, Masking.of(tokenizer, whole_words), context, (before, after), tokenizer.pad_id, seed)


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a masked language model: loss and accuracy at hidden places, always the same; beside the frequencies of tokens."""
    reporter = Reporter()
    asked, known, trained = to_score(verb, ready, reporter.say)
    tokenizer, objective = ready.tokenizer, MaskedTokens()
    whole_words = trained is not None and trained.whole_words
    documents = stored(asked, tokenizer, None, ends=False)
    feed = rows_of(documents, tokenizer, context_of(ready, trained), whole_words).feed(AT_ONCE)
    total, hidden = 0.0, list[int]()
    with torch.no_grad():
        for batch in feed.all():
            total += float(objective.loss(ready.net, batch).plain)
            hidden += batch.answers[batch.answers != IGNORED].tolist()
    accuracy = objective.accuracy(ready.net, feed.all())
    result: dict[str, Any] = {"task": "masked-lm", "n": len(documents.texts), "hidden": len(hidden)}
    result["metrics"] = rounded({"nats_per_token": total / len(hidden), "accuracy": accuracy})
    if verb.baselines and known:
        ids = stored(known, tokenizer, None, ends=False).texts
        nats = NGrams(ids, 1, tokenizer.vocab_size).nats(Flat.of([hidden]))
        usual = np.bincount(ids.ids).argmax()
        result["baselines"] = {"unigram": rounded({"nats_per_token": nats.mean(), "accuracy": (np.array(hidden) == usual).mean()})}
    return result
