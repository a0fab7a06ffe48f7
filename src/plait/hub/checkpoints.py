"""Released checkpoints: a folder of Hugging Face's layout or a GGUF, opened exactly or refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from plait import models
from plait.compress import Quantising, limited, restore
from plait.core.model import Model
from plait.core.quantised import Quantised
from plait.errors import InputError, choices
from plait.generate.layout import for_few_rows
from plait.hub.ctranslate2_folder import FILE as CTRANSLATE2
from plait.hub.ctranslate2_folder import ctranslate2_parts
from plait.hub.encoders import ENCODERS
from plait.hub.languages import LanguageModel
from plait.hub.pairs import SequenceModel
from plait.hub.ready import Parts, Ready, vocabulary
from plait.text.gguf_tokens import gguf_tokenizer
from plait.text.loaded import LoadedTokenizer
from plait.text.loading import load_pair
from plait.text.special import read_object
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.certificate import Certificate
from plait.weights.opening import open_source
from plait.weights.source import Source

EXPECTED = "a checkpoint, which is a folder with config.json, weights and a tokenizer"
# What the tensors of `plait.compress` are kept in: a name of its own, since others take any model.safetensors for theirs, and draw what
# they do not find there.
SMALL = "quantised.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.spm")


def is_checkpoint(place: Path) -> bool:
    """Whether it is a GGUF, or a folder whose config.json is another's: it names a `model_type`, which ours do not have."""
    if gguf_of(place) is not None or (place / CTRANSLATE2).is_file():
        return True
    try:
        raw = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "model_type" in raw and "arch" not in raw


def gguf_of(place: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without config.json."""
    if place.suffix == ".gguf":
        return place
    found = sorted(place.glob("*.gguf")) if place.is_dir() and not (place / "config.json").exists() else []
    return found[0] if len(found) == 1 else None


def open_parts(place: Path, bits: int | None = None) -> Parts:
    """A checkpoint with everything that was made of its files; InputError says what is wrong with them. `bits` as of `open_net`."""
    if (place / CTRANSLATE2).is_file():
        parts = ctranslate2_parts(place)
        return parts if bits is None else replace(parts, net=limited(parts.net.float(), bits))
    net, certificate, settings, raw = open_net(place, bits)
    limit = getattr(settings, "max_length", None)
    if gguf_of(place) is not None:
        one = gguf_tokenizer(raw)
        tokenizers, generation = (one, one), {}
    else:
        has = any(True for pattern in TOKENIZER_FILES for _ in place.glob(pattern))
        tokenizers = load_pair(place) if has else None
        path = place / "generation_config.json"
        generation = read_object(path, "the object of a generation_config.json") if path.exists() else {}
    if tokenizers is not None:
        _check_vocabulary(place, net, tokenizers)
    preparation = preparation_of(place, net) if net.takes(net.towers[0]) != "ids" else None
    return Parts(place, net, tokenizers, certificate, limit, raw, generation, settings, preparation)


def preparation_of(folder: Path, net: Model) -> Any:
    from plait.hub.pictures import PROCESSORS, preparation_in

    return preparation_in(folder, PROCESSORS.get(next(iter(net.heads), "none"), "ViTImageProcessor"))


def open_checkpoint(place: Path, device: str = "cpu", bits: int | None = None) -> Ready:
    """A checkpoint, ready for its task; `bits` as of `plait.load`."""
    parts = open_parts(place, bits)
    kind = kind_of(parts.net)
    if kind is None:
        raise InputError(f"{place}: loads, but what a model of its kind does is not built yet; `plait check` shows it")
    try:
        parts.net.to(device)
    except (AssertionError, RuntimeError) as error:  # no such device, or a torch that was built without it
        raise InputError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from None
    if kind.few_rows is not None:
        for_few_rows(parts.net, kind.few_rows)
    return kind(parts)


def kind_of(net: Model) -> type[Ready] | None:
    """What a model does, seen from its towers, what they take, and its head."""
    if net.takes(net.towers[0]) != "ids":
        from plait.hub.pictures import PICTURES

        return PICTURES.get(next(iter(net.heads), "none"))
    if net.towers == ("decoder",):
        return LanguageModel
    if net.towers == ("encoder", "decoder"):
        return SequenceModel
    return ENCODERS.get(next(iter(net.heads), "none")) if net.towers == ("encoder",) else None


def open_net(place: Path, bits: int | None = None) -> tuple[Model, Certificate, Any, dict[str, Any]]:
    """(the model with the checkpoint's weights, what the load proved, its page's settings, config.json or a GGUF's metadata)

    With `bits` each matrix is quantised as it is read; a GGUF's blocks that have no more bits are used as they are.
    """
    file = gguf_of(place)
    where = place / "config.json" if file is None else file
    if file is None and not where.exists():
        raise InputError(f"{where}: is not there; expected {EXPECTED}")
    raw = read_object(where, EXPECTED) if file is None else {}
    page = _page_of(raw, where) if file is None else None
    small = (place / SMALL).is_file()
    source = open_source(place / SMALL if small else file or place)
    if page is None:
        raw = dict(source.metadata)
        page = _page_of_gguf(raw, where)
    try:
        if small:
            settings, rules, dtype = page.Config(**raw["quantization_config"]["settings"]), (), None
        elif file is None:
            settings = page.Config(**keys.read(page.KEYS, raw))
            if hasattr(page, "fitted"):
                settings = page.fitted(settings, source.shapes())
            rules, dtype = page.rules(settings) if hasattr(page, "rules") else page.RULES, None
        else:
            settings = page.gguf_config(raw, source)
            rules, dtype = page.gguf_rules(settings, raw["general.architecture"]), torch.float32
        with torch.device("meta"):
            net = page.build(settings)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", error.faults) from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:  # a size of 0, or one that no tensor can have
        raise InputError(f"{where}: no model can be built of these settings: {str(error).splitlines()[0]}") from None
    if small:
        certificate = restored(net, source)
        return net.eval() if bits is None else limited(net.eval(), bits), certificate, settings, raw
    taker = None if bits is None else Quantising(net, bits)
    certificate = table.load(net, source, rules, dtype=dtype if bits is None else torch.float32, taker=taker)
    if taker is not None:
        taker.placed()
    return net.eval(), certificate, settings, raw


def restored(net: Model, source: Source) -> Certificate:
    """Fills a model with the tensors of a quantised one."""
    try:
        restore(net, {name: source.read(name) for name in source.shapes()})
    except InputError as error:
        raise InputError(f"{source.path}: {error.message}", error.faults) from None
    held = tensors_of(net)
    dtypes = Counter(kind for kind, _ in held.values())
    numbers = sum(count for _, count in held.values())
    return Certificate(str(source.path), {name: (name,) for name in held}, order=tuple(held), dtypes=dtypes, numbers=numbers)


def tensors_of(net: Model) -> dict[str, tuple[str, int]]:
    """Name -> (type, how many numbers) of everything that is stored; a quantised matrix is one tensor of type int8 or int4."""
    matrices = {name: part for name, part in net.named_modules() if isinstance(part, Quantised)}
    plain = {name: t for name, t in table.stored(net).items() if name.rpartition(".")[0] not in matrices}
    found = {name: (f"int{part.bits}", part.d_out * part.d_in) for name, part in matrices.items()}
    return found | {name: (str(t.dtype).removeprefix("torch."), t.numel()) for name, t in plain.items()}


def _page_of(raw: dict[str, Any], path: Path) -> ModuleType:
    kinds = {one.model_type: page for page in models.PAGES.values() for one in getattr(page, "KEYS", ())}
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: model_type={kind!r} has no page here; there is {choices(sorted(kinds))}")
    return kinds[kind]


def _page_of_gguf(metadata: dict[str, Any], path: Path) -> ModuleType:
    kinds = {kind: page for page in models.PAGES.values() for kind in getattr(page, "GGUF", ())}
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: general.architecture={kind!r} has no page here that reads GGUF; there is {choices(sorted(kinds))}")
    return kinds[kind]


def _check_vocabulary(place: Path, net: Model, tokenizers: tuple[LoadedTokenizer, LoadedTokenizer]) -> None:
    for tower, tokenizer in zip((net.towers[0], net.towers[-1]), tokenizers, strict=True):
        rows = vocabulary(net, tower)
        if tokenizer.vocab_size > rows:
            raise InputError(
                f"{place}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding {rows} rows: one of the files was exchanged"
            )
