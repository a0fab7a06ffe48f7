"""A `config.json` of others as settings of ours, and back: a key that changes the computation and is not understood is an error."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from plait.errors import InputError, choices

# Keys that any Hugging Face config may carry: about files, training, generation, names of classes and what a forward returns.
GENERAL = frozenset(
    "_attn_implementation _name_or_path architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id "
    "chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size "
    "eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label "
    "initializer_range is_decoder keys_to_ignore_at_inference label2id length_penalty max_length min_length model_type "
    "no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past "
    "output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript "
    "transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache _num_labels".split()
)
# Keys that change the computation of any model as soon as they differ from these values.
PLAIN = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}

# Their names of activations: ours. The way back takes the first name; those after it are the same formula, written otherwise.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Key:
    theirs: str
    ours: str
    default: Any
    kind: type
    optional: bool
    values: Mapping[Any, Any] | None
    also: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs, *self.also)

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: raw[name] for name in self.names if name in raw}
        value = next(iter(given.values()), self.default)
        if any(other != value for other in list(given.values())[1:]):
            raise ValueError(f"{', '.join(f'{name}={other!r}' for name, other in given.items())} are names of one setting: give one")
        if value is None and self.optional:
            return {self.ours: None}
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # JSON of some writers has 10000 for 10000.0
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"{self.theirs}={value!r} must be of type {self.kind.__name__}")
        if (isinstance(value, int) and value < 0) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{self.theirs}={value!r} must be a {'whole number from 0' if self.kind is int else 'finite number'}")
        if self.values is None:
            return {self.ours: value}
        if value not in self.values:
            raise ValueError(f"{self.theirs}={value!r} is not known here: there is {choices(map(repr, self.values))}")
        return {self.ours: self.values[value]}

    def write(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        value = settings[self.ours]
        if value is None and self.default is None:
            return {}  # left out: readers may take a null for a value
        if self.values is None or (value is None and self.optional):
            return {self.theirs: value}
        for theirs, ours in self.values.items():
            if ours == value:
                return {self.theirs: theirs}
        raise ValueError(f"{self.theirs} cannot say {self.ours}={value!r}")


@dataclass(frozen=True)
class Fixed:
    theirs: str
    value: Any
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs,)

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        if self.theirs in raw and raw[self.theirs] != self.value:
            raise ValueError(
                f"{self.theirs}={raw[self.theirs]!r} is not understood{self.why and ' (' + self.why + ')'}: only {self.value!r} is"
            )
        return {}

    def write(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Group:
    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], dict[str, Any]]


def key(
    theirs: str,
    ours: str,
    default: Any,
    *,
    kind: type | None = None,
    optional: bool = False,
    values: Mapping[Any, Any] | None = None,
    also: Iterable[str] = (),
) -> Key:
    """Their key is our setting. `default` is what the reference takes where the key is missing; `optional` allows null.

    `values` maps their values to ours (the way back takes the first that fits), `also` are other names of the same key.
    """
    return Key(theirs, ours, default, kind or type(default), optional or default is None, values, tuple(also))


def activation(theirs: str, default: str) -> Key:
    """Their key names the feed-forward's activation."""
    return key(theirs, "activation", default, values=ACTIVATIONS)


def fixed(theirs: str, value: Any, why: str = "") -> Fixed:
    """Their key may only have this value, which is also its default."""
    return Fixed(theirs, value, why)


def group(
    names: Iterable[str], read: Callable[[Mapping[str, Any]], dict[str, Any]], write: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Group:
    """Keys that only mean something together. Both functions see everything, and raise `ValueError` with one line where they cannot."""
    return Group(tuple(names), read, write)


@dataclass(frozen=True)
class Keys:
    """What the config of one `model_type` says. `ignored` keys do not change the computation; `extra` is written as it stands."""

    model_type: str
    entries: Sequence[Key | Fixed | Group]
    ignored: Collection[str] = ()
    extra: Mapping[str, Any] | None = None


def read(tables: Iterable[Keys], raw: Mapping[str, Any], ignore: Collection[str] = ()) -> dict[str, Any]:
    """The settings that a config.json describes. `ignore` names keys that the caller knows to be harmless.

    Raises one `InputError` with all keys that are not understood.
    """
    tables = list(tables)
    table = next((t for t in tables if t.model_type == raw.get("model_type")), None)
    if table is None:
        raise InputError(f"model_type={raw.get('model_type')!r}: this page reads {choices(repr(t.model_type) for t in tables)}")
    faults: list[str] = []
    settings: dict[str, Any] = {}
    known = {name for entry in table.entries for name in entry.names}
    plain = [Fixed(name, value, "") for name, value in PLAIN.items() if name not in known]
    for entry in (*table.entries, *plain):
        try:
            settings |= entry.read(raw)
        except ValueError as problem:
            faults.append(str(problem))
        except (ArithmeticError, AttributeError, LookupError, TypeError):  # a group that met a list in place of a number, or the like
            said = ", ".join(f"{name}={raw[name]!r}" for name in entry.names if name in raw)
            faults.append(f"{said}: {'is' if len(entry.names) == 1 else 'one of these is'} of a kind that cannot be understood")
    harmless = known | GENERAL | set(PLAIN) | set(table.ignored) | set(ignore)
    faults += [f"{name}={value!r} is not understood" for name, value in raw.items() if name not in harmless and value is not None]
    if faults:
        raise InputError(f"this {table.model_type} config says what would change the model in a way not known here", faults)
    return settings


def write(tables: Iterable[Keys], settings: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of the first `model_type` that can say all these settings; keys of `like` that are not ours are kept.

    Where `like` says these settings already, it is given back as it stands: a setting may have several names.
    Settings that no config has (dropout where the reference has none) must have the value that reading gives back, else `InputError`.
    """
    tables, faults = list(tables), list[str]()
    with suppress(InputError):  # not understood: then it is not what these settings came from
        if like is not None and all(settings.get(name) == value for name, value in read(tables, like).items()):
            return dict(like)
    for table in tables:
        raw: dict[str, Any] = {"model_type": table.model_type, **(table.extra or {})}
        before = len(faults)
        for entry in table.entries:
            try:
                raw |= entry.write(settings)
            except ValueError as problem:
                faults.append(f"{table.model_type}: {problem}")
        if len(faults) > before:
            continue
        try:
            back = read([table], raw)
        except ValueError as problem:
            faults.append(f"{table.model_type}: {problem}")
            continue
        if lost := [name for name, value in back.items() if settings.get(name) != value]:
            faults.append(f"{table.model_type}: it cannot say {', '.join(f'{name}={settings.get(name)!r}' for name in lost)}")
            continue
        if like is not None and like.get("model_type") == table.model_type:
            ours = {name for entry in table.entries for name in entry.names}
            raw |= {name: value for name, value in like.items() if name not in ours}
        return raw
    raise InputError("no config.json can describe this model", faults)
