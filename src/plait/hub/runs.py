"""A run folder: what training leaves behind, and how it is opened again."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait import models
from plait.compress import is_quantised, limited, restore
from plait.core.model import Model
from plait.errors import InputError, choices
from plait.generate.layout import for_few_rows
from plait.generate.search import gnmt
from plait.hub.sequences import Sequences
from plait.hub.tuned import open_tuned
from plait.tasks.memory import TranslationMemory
from plait.tasks.translation import Translator
from plait.text.tokenizer import Tokenizer

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, TARGET_TOKENIZER = "config.json", "model.safetensors", "tokenizer.json", "target_tokenizer.json"
MEMORY = "memory.json.gz"
TASKS = ("translation", "language-model", "masked-lm", "classify", "tag", "answer", "embed", "detect")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run, its format checked."""
    path = folder / CONFIG
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; give a run made by `plait train ... --out {folder}`")
    if not path.exists():
        raise InputError(f"{folder}: has no {CONFIG}, so it is not a run (`plait train` makes one) nor a released checkpoint")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise InputError(
            f"{path}: is a run of format {found}, this version of Plait reads format {FORMAT}: open it with the version that made it"
        )
    if config.get("task", TASKS[0]) not in TASKS:
        raise InputError(f"{path}: is a run of the task {config['task']!r}; this version of Plait knows {choices(TASKS)}")
    wanted = ("task", "arch", "config", *(("max_source", "max_target") if config.get("task") == "translation" else ("max_length",)))
    if missing := [key for key in wanted if key not in config]:
        raise InputError(f"{path}: lacks {', '.join(missing)}: the file was changed or written by another program")
    return config


def load_weights(net: Model, path: Path) -> None:
    """Every tensor of the file in its place, or one error that lists what is missing, surplus or of another shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error}); copy it anew, or take checkpoints/best.safetensors") from None
    if is_quantised(tensors):
        try:
            restore(net, tensors)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", error.faults) from None
        return
    own = net.state_dict()
    faults = [f"{name}: not in the file" for name in own if name not in tensors]
    faults += [f"{name}: in the file, not in the model" for name in tensors if name not in own]
    faults += [
        f"{name}: {list(tensors[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if faults:
        raise InputError(f"{path}: does not fit {path.parent / CONFIG}", faults)
    net.load_state_dict(tensors)


def open_net(folder: Path, config: dict[str, Any]) -> Model:
    """The model of a finished (or stopped) run with its weights."""
    weights = folder / WEIGHTS
    if not weights.exists():
        best = folder / "checkpoints" / "best.safetensors"
        if not best.exists():
            raise InputError(
                f"{folder}: has no {WEIGHTS} yet: training stopped before its first evaluation; go on with `plait train ... --resume`"
            )
        weights = best
    try:
        net = models.build(config["arch"], config["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    if "tuned" in config:
        open_tuned(net, config["tuned"], weights, finished=weights.name == WEIGHTS)
    else:
        load_weights(net, weights)
    return net


def open_run(folder: Path, device: str = "cpu", bits: int | None = None) -> Any:
    """A finished (or stopped) run, ready to answer; `bits` as of `plait.load`."""
    config = read_config(folder)
    net = open_net(folder, config)
    if config["task"] != "translation":
        from plait.hub.trained import opened

        return opened(folder, config, net, device, bits)
    source = Tokenizer.load(folder / TOKENIZER)
    target = Tokenizer.load(folder / TARGET_TOKENIZER) if (folder / TARGET_TOKENIZER).exists() else source
    c = config["config"]
    if (source.vocab_size, target.vocab_size) != (c["source_vocab"], c["target_vocab"]):
        raise InputError(
            f"{folder}: the tokenizers have {source.vocab_size} and {target.vocab_size} tokens,"
            f" the model {c['source_vocab']} and {c['target_vocab']}: a tokenizer file was exchanged"
        )
    memory = None
    if config.get("neighbours"):
        try:
            memory = TranslationMemory.load(folder / MEMORY)
        except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
            raise InputError(
                f"{folder / MEMORY}: the run needs the neighbours it was trained with, and cannot read them: {error}"
            ) from None
    net.to(device).eval()
    if bits is not None:
        limited(net, bits)
    return TranslationRun(for_few_rows(net), source, target, config, memory, str(folder))


class TranslationRun(Sequences):
    """A trained translator: called with a text (or a list) it translates, by four beams and the penalty of the paper it follows."""

    task = "translation"
    penalty = staticmethod(gnmt)

    def __init__(
        self,
        net: Model,
        source: Tokenizer,
        target: Tokenizer,
        config: dict[str, Any],
        memory: TranslationMemory | None = None,
        where: str = "this run",
    ):
        self.net, self.source_tokenizer, self._target, self.config, self.memory, self.where = net, source, target, config, memory, where
        self.max_length = None  # `max_source` is the translator's own, which cuts a text in pieces
        extend = memory.extended if memory is not None else None
        self.translator = Translator(net, source, target, config["max_source"], config["max_target"], extend)

    @property
    def target_tokenizer(self) -> Tokenizer:
        return self._target

    def prepared(self, chosen: Mapping[str, Any], **own: Any) -> tuple[Translator, dict[str, Any]]:
        own = {"decoder_start_token_id": self._target.bos_id, "eos_token_id": self._target.eos_id, "num_beams": 4, "length_penalty": 0.6}
        own |= {"max_new_tokens": self.translator.max_target, "early_stopping": "never", **chosen}
        return self.translator, own | {"suppress_tokens": [*own.get("suppress_tokens", ()), *self.translator.forbidden]}

    def generate(self, text: str | Sequence[Any], max_new_tokens: int | None = None, *more: Any, **options: Any) -> Any:
        """As of released models, greedy and as long as in training unless told otherwise."""
        return super().generate(text, max_new_tokens, *more, **{"beams": 1, **options})

    def encode(self, text: str) -> list[int]:
        return self.source_tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._target.decode(ids)

    @torch.inference_mode()
    def logits(self, source_ids: Any, target_ids: Any) -> Any:
        """Raw scores [B, L, V] of token-id lists, target_ids starting with bos; ragged lists give one array a row."""
        rows = list(zip(_rows(source_ids), _rows(target_ids), strict=True))
        found = []
        for source, target in rows:
            hidden = self.net(encoder=torch.tensor([source]), decoder=torch.tensor([target]))["decoder"].x
            found.append(self.net.heads["lm"](hidden)[0])
        same = len({len(x) for x in found}) == 1
        return torch.stack(found).numpy() if same else [x.numpy() for x in found]


def _rows(ids: Any) -> list[list[int]]:
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return ids if ids and isinstance(ids[0], (list, tuple)) else [ids]
