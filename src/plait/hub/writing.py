"""Models written again: one that was opened, and so proved, as a folder of Hugging Face's layout, as a GGUF, as ONNX; any in fewer bits."""

import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from plait import models
from plait.core.quantised import Quantised
from plait.errors import InputError, choices
from plait.hub.checkpoints import SMALL, gguf_of, is_checkpoint, open_net, tensors_of
from plait.hub.onnx_export import export_onnx
from plait.hub.runs import MEMORY, WEIGHTS, open_run, read_config
from plait.hub.tuned import write_as_peft
from plait.text.gguf_keys import gguf_keys
from plait.text.gguf_tokens import gguf_tokenizer
from plait.text.loaded import LoadedTokenizer
from plait.text.loading import load_tokenizer
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.certificate import Certificate
from plait.weights.entries import Computed
from plait.weights.gguf import GgufFile
from plait.weights.gguf_blocks import packed
from plait.weights.gguf_writer import Stored, write_gguf
from plait.weights.opening import open_source
from plait.weights.safetensors_writer import write_model, write_safetensors
from plait.weights.source import Source

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"hf": tuple(PLAIN), "gguf": (*PLAIN, "q8_0"), "onnx": ("f32",), "plait": ("f32",), "peft": ("f32",)}  # what --dtype may ask for
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama_ftype of llama.cpp: what most of the matrices are
# Files of a checkpoint's folder that say something beside its weights: the tokenizer's, generation's, those of sentence-transformers.
BESIDE = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "[0-9]_*/config.json", "LICENSE*", "README.md", MEMORY)


class Opened:
    """A checkpoint with all that writing it again needs."""

    def __init__(self, place: Path, bits: int | None = None):
        if not is_checkpoint(place):
            arch = read_config(place)["arch"]
            raise InputError(
                f"{place}: is a run of the model {arch!r}, which was designed here: no released format has names for its tensors; "
                "`plait.load` opens the run itself, and --to onnx writes its graphs"
            )
        if not gguf_of(place) and not (place / "config.json").is_file():
            raise InputError(f"{place}: is a checkpoint of neither layout that is written again: give a folder with config.json, or a GGUF")
        self.place = place
        self.net, self.certificate, self.settings, self.raw = open_net(place, bits)
        self.page: ModuleType = next(page for page in models.PAGES.values() if type(self.settings) is page.Config)

    def describe(self, folder: Path, dtype: str | None) -> None:
        """What a folder of Hugging Face's layout holds beside the weights: config.json, the tokenizer's files and others' like them."""
        config = keys.write(self.page.KEYS, asdict(self.settings), None if self.from_gguf else self.raw)
        if self.from_gguf or dtype is not None:
            config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(PLAIN[dtype or "f32"]).removeprefix("torch.")
        if self.from_gguf:
            tokenizer = gguf_tokenizer(self.raw)
            config |= {f"{role}_token_id": id for role, id in tokenizer.ids.items() if role in ("bos", "eos", "pad")}
            write_tokenizer(tokenizer, folder)
        else:
            copy_beside(self.place, folder)
        _write_json(folder / "config.json", config)

    @property
    def from_gguf(self) -> bool:
        return gguf_of(self.place) is not None

    @cached_property
    def source(self) -> Source:
        return open_source(gguf_of(self.place) or self.place)

    def rules(self) -> Any:
        return self.page.rules(self.settings) if hasattr(self.page, "rules") else self.page.RULES

    def tensors(self, rules: Any, like: Certificate | None) -> dict[str, Tensor]:
        """The model's tensors under the names of a table; with `like`, the file's others too, which the model leaves out or computes."""
        out = table.export(self.net, rules, like)
        if like is None:
            return out | {entry.theirs: entry.make().float() for entry in rules if isinstance(entry, Computed)}
        others = [*like.dropped, *(name for name, made in like.computed.items() if not made.exact)]
        out |= {name: self.source.read(name) for name in others}
        return {name: out[name] for name in like.order}


class Run:
    """A run of our own: its graphs can be written, its tensors have names in no other format."""

    def __init__(self, place: Path, bits: int | None = None):
        self.place, self.net = place, open_run(place, bits=bits).net

    def describe(self, folder: Path, dtype: str | None) -> None:
        copy_beside(self.place, folder)


def convert(place: Path, to: str, out: Path, dtype: str | None = None, bits: int | None = None) -> dict[str, Any]:
    """Write a checkpoint to the new folder `out` (for a GGUF also a file ending in .gguf), whole or not at all.

    `to` is hf, gguf or onnx; the last is also for runs of our own. What is not asked to change is the file's bit for bit: tensors, packed
    blocks, the keys of its config. Or it is plait, with `bits`: for `plait.load` alone, also of runs. Or peft: what a
    run of `plait tune` has learned. Returns what was written. InputError
    says why not.
    """
    single = to == "gguf" and out.suffix == ".gguf"
    if out.exists() and (single or not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: {'exists' if single else 'is not empty'}: choose another place, or remove it first")
    if dtype is not None and dtype not in DTYPES[to]:
        raise InputError(f"--dtype {dtype}: written with --to {to} are {choices(DTYPES[to])}")
    if (to == "plait") != (bits is not None):
        raise InputError(f"--to {to}{f' --bits {bits}' * (bits is not None)}: --bits 8 or 4 goes with --to plait; give both, or neither")
    if to == "peft":
        with beside(out) as made:
            told = {"out": str(out), "format": to, **write_as_peft(place, made)}
            place_in(made, out)
        return told
    opened: Any = (Run if to in ("onnx", "plait") and not is_checkpoint(place) else Opened)(place, bits)
    if to != "plait" and any(isinstance(part, Quantised) for part in opened.net.modules()):
        raise InputError(f"{place}: its matrices are in fewer bits already; --to {to} writes the model that it was made of")
    with beside(out) as made:
        if to == "gguf":
            kinds = to_gguf(opened, made / "model.gguf", dtype)
        else:
            kinds = {"hf": write_hf, "onnx": write_onnx, "plait": write_small}[to](opened, made, dtype)
        place_in(made / "model.gguf" if single else made, out)
    return {"out": str(out), "format": to, "tensors": sum(kinds.values()), "types": dict(sorted(kinds.items()))}


def place_in(made: Path, out: Path) -> None:
    if out.is_dir():
        out.rmdir()  # an empty one: not everywhere may a folder replace it
    os.replace(made, out)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, on the same disk; what is left of it is removed, and a failing disk ends in one message."""
    made = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        made.chmod(0o777 & ~_umask())  # mkdtemp's are for their owner alone
        yield made
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full; free some space" if full else f"cannot be written: {error.strerror or error}; choose another place"
        raise InputError(f"--out {out}: {why}; nothing was left there") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


# ---- Hugging Face's layout ----


def write_hf(opened: Opened, folder: Path, dtype: str | None) -> Counter[str]:
    """config.json, weights and the tokenizer's files. InputError where the page has no names of Hugging Face's."""
    like = None if opened.from_gguf else opened.certificate
    tensors = opened.tensors(opened.rules(), like)
    if dtype is not None:
        tensors = {name: cast(name, t, PLAIN[dtype]) for name, t in tensors.items()}
    opened.describe(folder, dtype)
    write_model(folder, tensors)
    return Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())


def copy_beside(place: Path, folder: Path) -> None:
    for file in {file for pattern in BESIDE for file in place.glob(pattern)}:
        if file.is_file() and not file.name.endswith(".index.json"):
            target = folder / file.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def cast(name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of floating point in another type; InputError where a value is too large for it."""
    if not t.is_floating_point():
        return t
    made = t.to(dtype)
    if not torch.equal(made.isfinite(), t.isfinite()):
        raise InputError(f"{name}: values up to {t.abs().max():.3g} are too large for {str(dtype).removeprefix('torch.')}; try bf16")
    return made


def write_tokenizer(tokenizer: LoadedTokenizer, folder: Path) -> None:
    """tokenizer.json and the file that names its special tokens and holds the chat template."""
    tokenizer.save(folder / "tokenizer.json")
    about = {f"{role}_token": name for role, name in tokenizer.special.roles.items()}
    template = {} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", plain | about | template)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


# ---- fewer bits ----


def write_small(opened: Opened | Run, folder: Path, dtype: str | None) -> Counter[str]:
    """The tensors of a quantised model by our own names, and beside them what there is beside a checkpoint's or a run's weights."""
    opened.describe(folder, "f32")
    if isinstance(opened, Opened):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # The settings themselves, since some are seen from names in a file of others, not from their config.json.
        small = {"quant_method": "plait", "settings": asdict(opened.settings)}
        _write_json(folder / "config.json", {**config, "quantization_config": small})
    write_safetensors(folder / (SMALL if isinstance(opened, Opened) else WEIGHTS), table.stored(opened.net))
    return Counter(kind for kind, _ in tensors_of(opened.net).values())


# ---- ONNX ----


def write_onnx(opened: Opened | Run, folder: Path, dtype: str | None) -> Counter[str]:
    """The graphs with their weights, and beside them what Hugging Face's layout has beside weights."""
    opened.describe(folder, dtype)
    net = opened.net if dtype is None else opened.net.to(PLAIN[dtype])
    export_onnx(net, folder)
    return Counter(str(t.dtype).removeprefix("torch.") for t in table.stored(net).values())


# ---- GGUF ----


def to_gguf(opened: Opened, path: Path, dtype: str | None) -> Counter[str]:
    """One GGUF. A tensor that has the values of the GGUF it came from keeps its blocks, unless `dtype` asks for another type.

    Raises one `InputError` with everything that a GGUF cannot say of this model.
    """
    if not hasattr(opened.page, "gguf_metadata"):
        able = choices(name for name, page in models.PAGES.items() if hasattr(page, "gguf_metadata"))
        raise InputError(f"{opened.place}: GGUF is written for models of the page {able} so far; --to hf writes this one")
    metadata = dict(opened.raw) if opened.from_gguf else described(opened)
    like = opened.certificate if opened.from_gguf else None
    tensors = opened.tensors(opened.page.gguf_rules(opened.settings, metadata["general.architecture"]), like)
    stored, faults = {}, []
    for name, t in tensors.items():
        try:
            stored[name] = as_stored(opened.source, name, t, dtype)
        except ValueError as problem:
            faults.append(f"{name}: {problem}")
    if faults:
        raise InputError(f"{opened.place}: these tensors cannot be stored so; take another --dtype", faults)
    if dtype is not None or not opened.from_gguf:
        matrices = Counter(one.type for one in stored.values() if len(one.shape) > 1)
        metadata["general.file_type"] = FILE_TYPES[dtype.upper() if dtype else matrices.most_common(1)[0][0]]
    write_gguf(path, metadata, stored, opened.source.key_types if isinstance(opened.source, GgufFile) else None)
    return Counter(one.type for one in stored.values())


def as_stored(source: Source, name: str, t: Tensor, dtype: str | None) -> Stored:
    """One tensor as a GGUF has it. Vectors are F32 there, and rows that are no whole blocks F16, as llama.cpp wants and does."""
    shape, names = tuple(t.shape), {torch.float16: "F16", torch.bfloat16: "BF16"}
    if dtype is None and isinstance(source, GgufFile) and source.shapes().get(name) == shape:
        if torch.equal(source.read(name).to(t.dtype), t):
            return Stored(source.types[name], shape, source.raw(name))
    kind = "F32" if len(shape) < 2 else dtype.upper() if dtype else names.get(t.dtype, "F32")
    if kind == "Q8_0" and t.shape[-1] % 32:
        kind = "F16"
    return Stored(kind, shape, packed(t, kind))


def described(opened: Opened) -> dict[str, Any]:
    """The metadata of a GGUF for a checkpoint that is none: settings and tokenizer, all faults of both at once."""
    faults, found = [], {}
    rows = opened.settings.vocab_size
    for part in (
        lambda: opened.page.gguf_metadata(opened.settings),
        lambda: gguf_keys(load_tokenizer(opened.place), opened.place, rows),
    ):
        try:
            found |= part()
        except InputError as error:
            faults += error.faults or [error.message]
    if faults:
        raise InputError(f"{opened.place}: a GGUF cannot say this model", faults)
    name = str(opened.raw.get("_name_or_path") or opened.place.resolve().name)
    general = {"general.architecture": found.pop("general.architecture"), "general.type": "model", "general.name": name}
    return {**general, "general.file_type": 0, **found, "general.quantization_version": 2}
