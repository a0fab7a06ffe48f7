"""What `plait bench generate` compares: cases, and who takes part in each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plait.bench.operations import Shape

SHAPES: dict[str, dict[str, Any]] = {  # of models with random weights
    "gpt2": {},  # the defaults of its config, 124 M parameters
    "marian": asdict(Shape(512, 8, 6, 2048, 58101, 58101)),
}
GROUPS = {8: 34 / 32, 4: 20 / 32}  # bytes a weight: groups of 32 with a scale in float16, in 4 bits with a least value too


@dataclass(frozen=True)
class Entrant:
    """A contestant: the class in `plait.bench.generators`, the file that it reads, its options, and bits and bytes of a weight.

    `own` is ours, with which its turns are compared.
    """

    make: str
    file: str
    bits: int = 32
    size: float = 4.0
    own: str = "plait"
    options: Mapping[str, Any] = field(default_factory=dict)
    what: str = ""


def llama(dtype: str, bits: int, size: float, own: str = "plait") -> Entrant:
    return Entrant("LlamaCpp", f"gguf {dtype}", bits, size, own, {}, f"xllamacpp's server, weights in {dtype}")


ENTRANTS = {
    "plait": Entrant("Plait", "plait", what="plait.load(place).generate(ids), float32"),
    "plait int8": Entrant("Plait", "plait", 8, GROUPS[8], "plait int8", {"bits": 8}, "the same with bits=8: activations in 8 bits too"),
    "plait int4": Entrant("Plait", "plait", 4, GROUPS[4], "plait int4", {"bits": 4}, "the same with bits=4"),
    "plait released": Entrant(
        "Plait", "plait", 4, GROUPS[4], "plait released", {"bits": 8}, "the file's own blocks, which bits=8 leaves alone"
    ),
    "plait lookup": Entrant(
        "Plait", "plait", 32, 4.0, "plait lookup", {"speculate": "lookup"}, "the same as plait with speculate='lookup'"
    ),
    "transformers": Entrant("Transformers", "hf", what="generate as it comes, float32"),
    "transformers static": Entrant(
        "Transformers", "hf", options={"cache_implementation": "static"}, what="generate with a static cache, not compiled, float32"
    ),
    "ctranslate2": Entrant("CTranslate2", "ctranslate2 float32", options={"kind": "float32"}, what="float32"),
    "ctranslate2 int8": Entrant("CTranslate2", "ctranslate2 int8", 8, 1.0, "plait int8", {"kind": "int8"}, "converted to int8"),
    "llama.cpp f32": llama("f32", 32, 4.0),
    "llama.cpp f16": llama("f16", 16, 2.0),
    "llama.cpp q8_0": llama("q8_0", 8, 34 / 32, "plait int8"),
    "llama.cpp q4_0": llama("q4_0", 4, 18 / 32, "plait int4"),
    "llama.cpp released": llama("released", 4, 20 / 32, "plait released"),
    "onnxruntime": Entrant("OnnxRuntime", "onnx", what="the graph of plait convert --to onnx, float32"),
}
OURS = ("plait", "plait int8", "plait int4")
TRANSFORMERS = ("transformers", "transformers static")
CTRANSLATE2 = ("ctranslate2", "ctranslate2 int8")
LLAMA = ("llama.cpp f32", "llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0")


@dataclass(frozen=True)
class Case:
    """`rows` prompts of `prompt` ids are continued by `new` ids. Tokens a second are those of the prompts where `reads`, else the new ones.

    `limit`: what bounds it, reading the weights from memory once a token ("memory"), or multiplying by them ("product").
    """

    what: str
    model: str
    entrants: tuple[str, ...]
    rows: int = 1
    prompt: int = 32
    new: int = 128
    reads: bool = False
    limit: str = "memory"
    beams: int = 1
    copies: bool = False  # the prompt asks for a text to be repeated, and the answer may end

    def quick(self) -> "Case":
        return Case(**{**asdict(self), "new": min(self.new, 8), "rows": min(self.rows, 4)})

    def options(self, entrant: Entrant, threads: int) -> dict[str, Any]:
        """What makes the contestant for this case."""
        found = dict(entrant.options)
        if entrant.make == "Plait":
            found |= {"whole": not self.copies} | ({"beams": self.beams, "length_penalty": 1.0} if self.beams > 1 else {})
        elif entrant.make == "Transformers":
            found |= {"num_beams": self.beams} if self.beams > 1 else {}
        else:
            found["threads"] = threads
        if entrant.make == "CTranslate2" and self.model == "marian":
            found["beams"] = self.beams
        if entrant.make == "LlamaCpp":
            found |= {"rows": self.rows, "length": self.prompt + self.new + 64}
        return found

    def made_by(self, entrant: Entrant) -> str:
        return entrant.make + ("Pair" if entrant.make == "CTranslate2" and self.model == "marian" else "")


CASES = {
    "gpt2": Case("GPT-2 124M, greedily", "gpt2", (*OURS, *TRANSFORMERS, *CTRANSLATE2, *LLAMA, "onnxruntime")),
    "gpt2-16": Case(
        "GPT-2 124M, greedily", "gpt2", (*OURS, "transformers", *CTRANSLATE2, *LLAMA, "onnxruntime"), rows=16, new=64, limit="product"
    ),
    "gpt2-prefill": Case(
        "GPT-2 124M, reading",
        "gpt2",
        (*OURS, "transformers", *CTRANSLATE2, *LLAMA, "onnxruntime"),
        prompt=512,
        new=1,
        reads=True,
        limit="product",
    ),
    "smollm2": Case(
        "SmolLM2-135M from its GGUF, greedily",
        "smollm2",
        ("plait", "plait released", "plait int4", *TRANSFORMERS, "llama.cpp f32", "llama.cpp released"),
    ),
    "translate": Case(
        "translation, Marian-base shape, beam 4", "marian", (*OURS, "transformers", *CTRANSLATE2), rows=16, new=32, limit="product", beams=4
    ),
    "speculative": Case("SmolLM2-135M repeats a text", "smollm2", ("plait", "plait lookup"), new=192, copies=True),
}
COLD = "cold"  # the case that `plait.bench.start` runs: whole processes
