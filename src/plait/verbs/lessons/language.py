"""Language models: texts read, encoded, packed into rows, and a decoder for them."""

from itertools import pairwise
from typing import Any

import numpy as np

from plait.data.packing import Documents, PackedFeed
from plait.data.store import stored
from plait.errors import InputError
from plait.tasks.language import NextToken
from plait.tasks.likelihood import surprisals
from plait.tasks.ngrams import NGrams
from plait.text.loaded import LoadedTokenizer
from plait.text.tokenizer import BOS
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say, usual_recipe
from plait.verbs.lessons.reading import context_of, read, rounded, to_score
from plait.verbs.train import Train

ORDERS = (1, 3, 5)  # of the n-grams to beat
AT_ONCE = 8192  # tokens of a batch that is only validated on


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    found = read(verb, saved, say)
    made: list[tuple[Documents, Documents]] = []

    def count(tokenizer: LoadedTokenizer) -> int:
        made.append(found.encoded(tokenizer))
        return len(made[0][0].texts.ids)

    grown = {} if verb.model else {"window": verb.context or 256}  # what is written may be longer than what was read
    around = ("", "") if found.single else (BOS, "")
    start = begin(verb, saved, ("decoder",), found.sample(), grown, say, usual="modern-decoder", around=around, count=count)
    tokenizer, choice = start.tokenizer, start.choice
    train, valid = made[0] if made else found.encoded(tokenizer)
    context = verb.context or min(start.max_length or 256, 256)
    if start.max_length and context > start.max_length:
        raise InputError(f"--context {context}: this model takes at most {start.max_length} tokens")
    feed = PackedFeed(train, context, max(1, choice.batch_tokens // context), verb.seed, tokenizer.pad_id)
    checks = PackedFeed(valid, context, max(1, AT_ONCE // context), 0, tokenizer.pad_id)
    say(
        f"to learn from: {len(train.texts.ids):,} tokens of {len(train.texts):,} documents{learned(train)};"
        f" to validate on: {len(valid.texts.ids):,} of {len(valid.texts):,}{learned(valid)}"
    )
    say(f"{feed.batches(0):,} batches an epoch, of up to {feed.rows} rows of {context} tokens, {feed.fullness:.1%} of which are filled")
    return Lesson(
        choice.arch,
        choice.config,
        NextToken(verb.smoothing or 0.0),
        feed,
        list(checks.all()),
        feed.fingerprint + checks.fingerprint,
        start.keep,
        usual_recipe(choice.arch, choice.config, start.released),
        {**start.notes, "batch_tokens": choice.batch_tokens, "max_length": start.max_length, "files": found.files, "context": context},
        start.start,
        shown=tokenizer.decode,
    )


def learned(documents: Documents) -> str:
    """How many of the tokens are learned, where some are only read."""
    return "" if documents.scored is None else f", of which {int(documents.scored.sum()):,} are learned and the others only read"


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a language model: each token once, with at least half of what it reads in training before it; beside n-grams."""
    reporter = Reporter()
    asked, known, trained = to_score(verb, ready, reporter.say)
    tokenizer, window = ready.tokenizer, context_of(ready, trained)
    documents = stored(asked, tokenizer, None)
    counted = counted_tokens(documents)
    if not counted.any():
        raise InputError("nothing to score: no document has a token after its first")
    texts = documents.texts
    nats = np.zeros(len(texts.ids))
    for row in range(len(texts)):
        if len(texts[row]) > 1:
            found = surprisals(ready.net, texts[row].tolist(), window, max(window // 2, 1))
            nats[texts.offsets[row] + 1 : texts.offsets[row + 1]] = found.numpy()
    rows = (slice(start, end) for start, end in pairwise(texts.offsets))
    characters = sum(len(tokenizer.decode(texts.ids[row][counted[row]].tolist())) for row in rows)

    def figures(nats: np.ndarray) -> dict[str, float]:
        mean, total = nats[counted].mean(), nats[counted].sum()
        return rounded({"nats_per_token": mean, "perplexity": np.exp(mean), "bits_per_character": total / np.log(2) / max(characters, 1)})

    result: dict[str, Any] = {"task": "language-model", "n": len(texts), "tokens": int(counted.sum()), "characters": characters}
    result |= {"window": window, "stride": max(window // 2, 1), "metrics": figures(nats)}
    if verb.baselines and known:
        grams = NGrams(stored(known, tokenizer, None).texts, max(ORDERS), tokenizer.vocab_size)
        result["baselines"] = {"unigram" if n == 1 else f"{n}-gram": figures(grams.nats(texts, n)) for n in ORDERS}
    return result


def counted_tokens(documents: Documents) -> np.ndarray:
    """Of each id, whether it is scored: not the first of a document, which has nothing before it, and not what is only read."""
    counted = np.ones(len(documents.texts.ids), bool) if documents.scored is None else np.array(documents.scored)
    offsets = documents.texts.offsets
    counted[offsets[:-1][documents.texts.lengths > 0]] = False
    return counted
