"""Language models: texts read, encoded, packed into rows, and a decoder for them."""

from typing import Any

from plait.data.corpus import Flat
from plait.data.packing import Documents, PackedFeed
from plait.errors import InputError
from plait.tasks.language import NextToken
from plait.text.loaded import LoadedTokenizer
from plait.text.special import read_text
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say, usual_recipe
from plait.verbs.train import Train


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    from pathlib import Path

    texts = [read_text(Path(name), "a text") for name in verb.data]
    cut = int(0.9 * len(texts[0]))
    train, valid = [texts[0][:cut], *texts[1:]], [texts[0][cut:]]
    if not all(train):
        raise InputError("empty")
    around = ("<s>", "") if len(train) > 1 else ("", "")
    start = begin(
        verb,
        saved,
        "decoder",
        train,
        {},
        say,
        usual="modern-decoder",
        around=around,
        count=lambda tokenizer: sum(len(tokenizer.encode(text)) for text in train),
    )
    context = verb.context or min(start.max_length or 256, 256)
    choice = start.choice
    rows = max(1, choice.batch_tokens // context)
    feed = PackedFeed(encoded(train, start.tokenizer), context, rows, verb.seed, start.tokenizer.pad_id)
    checks = PackedFeed(encoded(valid, start.tokenizer), context, max(1, 8192 // context), 0, start.tokenizer.pad_id)
    return Lesson(
        choice.arch,
        choice.config,
        NextToken(verb.smoothing or 0.0),
        feed,
        list(checks.all()),
        feed.fingerprint + checks.fingerprint,
        start.keep,
        usual_recipe(choice.arch, choice.config, start.released),
        {"batch_tokens": choice.batch_tokens, "max_length": start.max_length},
        start.start,
        shown=start.tokenizer.decode,
    )


def encoded(texts: list[str], tokenizer: LoadedTokenizer) -> Documents:
    rows = [[*tokenizer.wrap(tokenizer.encode(text)), tokenizer.eos_id] for text in texts]
    return Documents(Flat.of(rows))
