"""Runs of a model other than a translator, ready: the same models as released ones, from what `plait train` left behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from plait import models
from plait.compress import limited
from plait.core.model import Model
from plait.errors import InputError
from plait.generate.layout import for_few_rows
from plait.hub.checkpoints import kind_of, preparation_of, tensors_of
from plait.hub.ready import Parts, Ready, vocabulary
from plait.text.saving import kept_tokenizer
from plait.weights.certificate import Certificate


def opened(folder: Path, config: dict[str, Any], net: Model, device: str, bits: int | None) -> Ready:
    """`config` is the run's config.json: what it says under `answers` is what a released checkpoint's config.json would."""
    kind = kind_of(net)
    if kind is None:
        raise InputError(f"{folder}: what a model of its kind does is not built")
    pictures = net.takes(net.towers[0]) != "ids"
    tokenizer = None if pictures else kept_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocab_size > (rows := vocabulary(net, net.towers[0])):
        raise InputError(f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding {rows} rows: a file was exchanged")
    net.to(device).eval()
    if bits is not None:
        limited(net, bits)
    if kind.few_rows is not None:
        for_few_rows(net, kind.few_rows)
    held = tensors_of(net)
    dtypes = {dtype: sum(one == dtype for one, _ in held.values()) for dtype, _ in held.values()}
    certificate = Certificate(str(folder), {name: (name,) for name in held}, order=tuple(held), dtypes=dtypes)
    certificate = replace(certificate, numbers=sum(count for _, count in held.values()))
    settings = models.PAGES[config["arch"]].Config(**{name: value for name, value in config["config"].items() if name != "shape"})
    said, generation = config.get("answers", {}), config.get("generation", {})
    tokenizers, preparation = None if tokenizer is None else (tokenizer, tokenizer), preparation_of(folder, net) if pictures else None
    return kind(Parts(folder, net, tokenizers, certificate, config["max_length"], said, generation, settings, preparation))
