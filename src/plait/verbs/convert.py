"""plait convert: a model in another format, or in fewer bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from plait.verbs import positional


@dataclass
class Convert:
    """Write a model in another format: Hugging Face's folder, a GGUF or ONNX files; or in 8 or 4 bits, for Plait."""

    model: Annotated[str, positional, "a checkpoint's folder, a .gguf, or a name such as smollm2; for onnx, plait and peft a run too"]
    to: Annotated[
        Literal["hf", "gguf", "onnx", "plait", "peft"],
        "hf: config.json, model.safetensors and the tokenizer's files; gguf: one file for llama.cpp; onnx: graphs for onnxruntime; "
        "plait: with --bits, for Plait alone; peft: what a run of plait tune learned",
    ]
    out: Annotated[Path, "DIR", "the folder to make; for a GGUF also the file, by a name that ends in .gguf"]
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        "type of the numbers (q8_0: gguf alone; onnx: f32 alone); default: unchanged, bit for bit",
    ] = None
    bits: Annotated[int | None, "with --to plait: 8 or 4 bits a value of its matrices; a GGUF's blocks that have no more are kept"] = None

    def run(self) -> dict[str, Any]:
        """What was written; InputError, and nothing left there, where the format cannot say this model."""
        from plait.hub import place
        from plait.hub.writing import convert

        return convert(place(self.model), self.to, self.out, self.dtype, self.bits)
