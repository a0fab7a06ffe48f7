"""Released checkpoints: a folder of Hugging Face's layout, opened exactly or refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from plait import models
from plait.core.model import Model
from plait.errors import InputError, choices
from plait.generate.greedy import continued
from plait.generate.layout import for_few_rows
from plait.models import llama
from plait.tasks.encoding import Embedder, Encoder, MaskFiller, Pooling
from plait.text.gguf_tokens import gguf_tokenizer
from plait.text.loading import load_tokenizer
from plait.text.special import LoadedTokenizer
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.certificate import Certificate
from plait.weights.opening import open_source


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a GGUF, or a folder whose config.json is another's: it names a `model_type`, which ours do not have."""
    if gguf_of(folder) is not None:
        return True
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "model_type" in raw and "arch" not in raw


def page_of(raw: dict[str, Any], path: Path) -> ModuleType:
    kinds = {one.model_type: page for page in models.PAGES.values() for one in getattr(page, "KEYS", ())}
    if raw.get("model_type") not in kinds:
        raise InputError(f"{path}: model_type={raw.get('model_type')!r} has no page here; there is {choices(sorted(kinds))}")
    return kinds[raw["model_type"]]


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is not there; a checkpoint is a folder with config.json, weights and a tokenizer") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds {type(found).__name__}, expected an object")
    return found


def gguf_of(place: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without config.json."""
    if place.suffix == ".gguf":
        return place
    found = sorted(place.glob("*.gguf")) if place.is_dir() and not (place / "config.json").exists() else []
    return found[0] if len(found) == 1 else None


def open_net(folder: Path) -> tuple[Model, Certificate, dict[str, Any]]:
    """(the model with the checkpoint's weights, what the load proved, config.json or a GGUF's metadata)"""
    if (file := gguf_of(folder)) is not None:
        source = open_source(file)
        try:
            settings = llama.gguf_config(source.metadata, source.shapes())
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        with torch.device("meta"):
            net = llama.build(settings)
        rules = llama.gguf_rules(settings, source.metadata["general.architecture"])
        return net.eval(), table.load(net, source, rules, dtype=torch.float32), dict(source.metadata)
    raw = read_json(folder / "config.json")
    page = page_of(raw, folder / "config.json")
    try:
        settings = page.Config(**keys.read(page.KEYS, raw))
        with torch.device("meta"):
            net = page.build(settings)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error.message}", error.faults) from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    rules = page.rules(settings) if hasattr(page, "rules") else page.RULES
    return net.eval(), table.load(net, open_source(folder), rules), raw


def open_checkpoint(folder: Path, device: str = "cpu") -> "Checkpoint":
    net, certificate, raw = open_net(folder)
    tokenizer = load_tokenizer(folder) if gguf_of(folder) is None else gguf_tokenizer(raw)
    rows = next(p.shape[0] for name, p in net.named_parameters() if name.endswith("embed.tokens.weight"))
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding {rows} rows: one of the files was exchanged"
        )
    kind = next((kind for head, kind in KINDS.items() if head in net.heads), None)
    if net.towers == ("decoder",) and "lm" in net.heads:
        kind = LanguageModel
    elif net.towers != ("encoder",):
        kind = None
    if kind is None:
        raise InputError(
            f"{folder}: loads, but what a model with the heads {list(net.heads)} does is not built yet; `plait check` shows it"
        )
    return kind(folder, for_few_rows(net.to(device)), tokenizer, certificate, raw)


class Checkpoint:
    """A released model, ready: called with a text or a list of texts it does its task."""

    task = ""

    def __init__(self, folder: Path, net: Model, tokenizer: LoadedTokenizer, certificate: Certificate, raw: dict[str, Any]):
        self.folder, self.net, self.tokenizer, self.certificate, self.config = folder, net, tokenizer, certificate, raw
        self.max_length = int(raw.get("max_position_embeddings", 512))

    def encode(self, text: str) -> list[int]:
        """Ids as the model reads them, special tokens included."""
        return self.tokenizer.wrap(self.tokenizer.encode_marked(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Any:
        """Raw scores [B, L, V] of token-id lists (hidden vectors where the model has no scores); ragged lists give an array a row."""
        many: list[Any] = list(ids)
        rows: list[list[int]] = [list(row) for row in many] if many and isinstance(many[0], Sequence) else [many]
        faults = [
            f"row {i}: {len(row)} ids, this model takes {self.max_length}" for i, row in enumerate(rows) if len(row) > self.max_length
        ]
        if faults:
            raise InputError("these rows are too long", faults)
        found: list[Any] = [None] * len(rows)
        encoder = Encoder(self.net, self.tokenizer, self.max_length)
        for here, stream in encoder.batches(rows):
            hidden = encoder.hidden(stream)
            scores = self.net.heads["mlm"](hidden) if "mlm" in self.net.heads else hidden
            for i, row in zip(here, scores, strict=True):
                found[i] = row[: len(rows[i])].numpy()
        return torch.stack([torch.from_numpy(x) for x in found]).numpy() if len({len(x) for x in found}) == 1 else found


class EmbeddingModel(Checkpoint):
    """Texts to vectors: a float32 array [N, D]."""

    task = "embed"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.embed = Embedder(self.net, self.tokenizer, self.max_length, pooling_of(self.folder))

    def __call__(self, text: str | Sequence[str]) -> Any:
        return self.embed([text])[0] if isinstance(text, str) else self.embed(text)

    def rows(self, texts: Sequence[str], **_: Any) -> list[tuple[str, dict[str, Any]]]:
        """(line, JSON) of each text, for the command line."""
        vectors = self.embed(texts)
        return [(" ".join(f"{x:.6g}" for x in v), {"embedding": [float(x) for x in v]}) for v in vectors]


class MaskModel(Checkpoint):
    """Fills masks: the likeliest text, or with `n_best` candidates for each mask."""

    task = "fill-mask"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.fill = MaskFiller(self.net, self.tokenizer, self.max_length)

    def __call__(self, text: str | Sequence[str], n_best: int = 1) -> Any:
        found = self.fill([text] if isinstance(text, str) else text, n_best)
        return found[0] if isinstance(text, str) else found

    def rows(self, texts: Sequence[str], n_best: int = 1, first: int = 1, **_: Any) -> list[tuple[str, dict[str, Any]]]:
        """(line, JSON) of each text, for the command line."""
        rows = []
        for found in self.fill(texts, max(n_best, 1), first):
            lines = [f"{f.token}\t{f.probability:.4f}\t{f.text}" for row in found for f in row]
            rows.append(("\n".join(lines), {"masks": [[vars(f) for f in row] for row in found]}))
        return rows


class LanguageModel(Checkpoint):
    """Continues a text, greedily."""

    task = "generate"

    def __init__(self, *args: Any):
        super().__init__(*args)
        said = next((v for k, v in self.config.items() if k.endswith(".context_length") or k == "n_positions"), None)
        self.max_length = int(said or self.config.get("max_position_embeddings", 2048))

    def __call__(self, text: str | Sequence[str], max_new_tokens: int = 50) -> Any:
        return self.generate(text, max_new_tokens)

    def generate(self, text: str | Sequence[Any], max_new_tokens: int = 50) -> Any:
        """The continuation of a text (of each of a list of texts); ids for ids."""
        if isinstance(text, str):
            return self.tokenizer.decode(self.ids_after(self.encode(text), max_new_tokens))
        if len(text) and isinstance(text[0], int):
            return self.ids_after(list(text), max_new_tokens)
        return [self.generate(one, max_new_tokens) for one in text]

    def ids_after(self, ids: list[int], max_new_tokens: int) -> list[int]:
        ids = ids or [self.tokenizer.bos_id]
        if len(ids) + max_new_tokens > self.max_length:
            raise InputError(
                f"the prompt is {len(ids)} tokens long and {max_new_tokens} more were asked for: this model has room for {self.max_length}"
            )
        return list(continued(self.net, ids, max_new_tokens, {self.tokenizer.eos_id}))

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Any:
        many: list[Any] = list(ids)
        rows: list[list[int]] = [list(row) for row in many] if many and isinstance(many[0], Sequence) else [many]
        found = [self.net.heads["lm"](self.net(decoder=torch.tensor([row]))["decoder"].x)[0] for row in rows]
        return torch.stack(found).numpy() if len({len(x) for x in found}) == 1 else [x.numpy() for x in found]

    def rows(self, texts: Sequence[str], max_new_tokens: int = 50, **_: Any) -> list[tuple[str, dict[str, Any]]]:
        """(line, JSON) of each text, for the command line."""
        return [(text + more, {"answer": more}) for text in texts for more in [self.generate(text, max_new_tokens)]]


KINDS: dict[str, type[Checkpoint]] = {"mlm": MaskModel, "pool": EmbeddingModel}


def pooling_of(folder: Path) -> Pooling:
    """As modules.json of a sentence-embedding model says; without one, the mean."""
    if not (folder / "modules.json").exists():
        return Pooling()
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'modules.json'}: is not the list of parts it should be: {error}") from None
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise InputError(f"{folder / 'modules.json'}: {', '.join(unknown)} after the model is not known here")
    said = read_json(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {"pooling_mode_mean_tokens": True}
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [key for key, value in said.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in names:
        raise InputError(f"{folder / kinds.get('Pooling', '')}: pools by {chosen or 'nothing'}; known is one of {choices(names)}")
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length") if path.exists() else None
    return Pooling(names[chosen[0]], "Normalize" in kinds, length)
