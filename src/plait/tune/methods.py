"""What can be tuned, as settings: a method's name and its numbers, which can stand in a file. Nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from plait.errors import InputError, choices

Patterns = tuple[str, ...]  # of modules' names, as `fnmatch` takes them: "*.q_proj", "decoder.blocks.1?.*"


@dataclass(frozen=True)
class LoRA:
    """y = W x + scale * B A x, with W frozen, A [rank, d_in] and B [d_out, rank], B zero at first (Hu et al. 2021, section 4.1).

    The scale is alpha / rank, or with scaling="sqrt" alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023). With `magnitude` each row of
    W + scale * B A has a learned length (DoRA, Liu et al. 2024, section 4.1). The targets are those of section 4.2 of the paper;
    ("*_proj",) is all matrices of all blocks, which at equal size of the part is the better choice (Dettmers et al. 2023, section 4).
    """

    rank: int = 8
    alpha: float = 16
    targets: Patterns = ("*.q_proj", "*.v_proj")
    dropout: float = 0.0
    scaling: Literal["rank", "sqrt"] = "rank"
    magnitude: bool = False

    @property
    def method(self) -> str:
        return "dora" if self.magnitude else "rslora" if self.scaling == "sqrt" else "lora"


@dataclass(frozen=True)
class Prefix:
    """`length` learned keys and values in each attention, self and cross (Li & Liang 2021, section 4).

    With `hidden` a network with as many hidden units makes them while they are trained (section 4.3); only keys and values are saved.
    """

    length: int = 16
    hidden: int | None = None
    attentions: Patterns = ("*",)

    method = "prefix"


@dataclass(frozen=True)
class Prompt:
    """`length` learned entries before those of a tower, behind its embedding (Lester et al. 2021, section 2).

    Without `towers` it is the model's first. What reads the tower (cross-attention) sees them too; heads and losses do not.
    """

    length: int = 16
    towers: Patterns = ()

    method = "prompt"


@dataclass(frozen=True)
class Adapter:
    """y + up(activation(down(y))) on what a step gives, `up` zero at first.

    Placement "houlsby" is on every step of a block (Houlsby et al. 2019, section 2.1), "pfeiffer" on the feed-forward only
    (Pfeiffer et al. 2021, section 3.2).
    """

    width: int = 64
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    activation: str = "relu"

    @property
    def method(self) -> str:
        return self.placement


@dataclass(frozen=True)
class IA3:
    """A learned factor, one at first, for each channel of keys, values and the feed-forward's hidden units (Liu et al. 2022, section 3.3).

    What `outputs` give is scaled, and what `inputs` are given.
    """

    outputs: Patterns = ("*.k_proj", "*.v_proj")
    inputs: Patterns = ("*.down_proj",)

    method = "ia3"


@dataclass(frozen=True)
class BitFit:
    """The biases of these modules, those of norms too (Ben Zaken et al. 2022, section 3)."""

    targets: Patterns = ("*",)

    method = "bitfit"


@dataclass(frozen=True)
class HeadOnly:
    """What turns hidden vectors into answers."""

    heads: Patterns = ("heads.*",)

    method = "head"


@dataclass(frozen=True)
class Full:
    """Every parameter; the values from before are kept beside them."""

    method = "full"


Tuning = LoRA | Prefix | Prompt | Adapter | IA3 | BitFit | HeadOnly | Full
METHODS: dict[str, type] = {
    "lora": LoRA,
    "rslora": LoRA,
    "dora": LoRA,
    "prefix": Prefix,
    "prompt": Prompt,
    "houlsby": Adapter,
    "pfeiffer": Adapter,
    "ia3": IA3,
    "bitfit": BitFit,
    "head": HeadOnly,
    "full": Full,
}
SAID: dict[str, dict[str, Any]] = {  # what a name says beside its type
    "rslora": {"scaling": "sqrt"},
    "dora": {"magnitude": True},
    "houlsby": {"placement": "houlsby"},
    "pfeiffer": {"placement": "pfeiffer"},
}


def tuning_of(said: Mapping[str, Any]) -> Tuning:
    """The settings of {"method": name, field: value ...}. InputError with every fault."""
    name, given = said.get("method"), {field: value for field, value in said.items() if field != "method"}
    if name not in METHODS:
        near = get_close_matches(str(name), METHODS, 1)
        raise InputError(f"method {name!r}: there is {choices(METHODS)}{f'; did you mean {near[0]}?' if near else ''}")
    kind = METHODS[name]
    wanted = {f.name: f.type for f in fields(kind)}
    if odd := [field for field in given if field not in wanted]:
        raise InputError(f"method {name}: takes {choices(wanted) if wanted else 'no settings'}", [f"not {field}" for field in odd])
    given = {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
    tuning = kind(**{**SAID.get(name, {}), **given})
    if faults := list(value_faults(tuning)):
        raise InputError(f"method {name}: these settings cannot be used", faults)
    return tuning


def described(tuning: Tuning) -> dict[str, Any]:
    """What `tuning_of` takes, as JSON has it."""
    return {"method": tuning.method, **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(tuning).items()}}


def value_faults(tuning: Tuning) -> list[str]:
    """What is wrong with settings whatever the model."""
    said = asdict(tuning)
    faults = [
        f"{name}={said[name]!r}: expected a whole number from 1"
        for name in ("rank", "length", "width", "hidden")
        if name in said and not (name == "hidden" and said[name] is None) and (type(said[name]) is not int or said[name] < 1)
    ]
    for name, known in (("scaling", ("rank", "sqrt")), ("placement", ("houlsby", "pfeiffer"))):
        if name in said and said[name] not in known:
            faults.append(f"{name}={said[name]!r}: expected {choices(known)}")
    for name in ("targets", "attentions", "towers", "outputs", "inputs", "heads"):
        value = said.get(name, ())
        if not isinstance(value, tuple) or not all(isinstance(pattern, str) for pattern in value):
            faults.append(f"{name}={value!r}: expected a list of patterns of names, such as '*.q_proj'")
    if "dropout" in said and not (isinstance(said["dropout"], int | float) and 0 <= said["dropout"] < 1):
        faults.append(f"dropout={said['dropout']!r}: expected a chance from 0 to below 1")
    if "alpha" in said and not (isinstance(said["alpha"], int | float) and said["alpha"] > 0):
        faults.append(f"alpha={said['alpha']!r}: expected a number above 0")
    return faults
