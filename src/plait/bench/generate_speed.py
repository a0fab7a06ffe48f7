"""Tokens a second of one prompt continued greedily: ours and the peers on the same weights, in turn, prompt and output head included.

All are in one process so far, where the threads of one library disturb the next (docs/log.md): no figure of it is recorded yet.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from plait.bench.measure import Turns, aligned, compared
from plait.bench.peers import need
from plait.errors import InputError
from plait.hub import place
from plait.hub.checkpoints import gguf_of, open_checkpoint
from plait.hub.writing import convert

ALWAYS = ("plait", "plait int8", "plait int4", "transformers")
MODELS = {  # -> the peers that can read it
    "gpt2": (*ALWAYS, "ctranslate2", "ctranslate2 int8"),
    "smollm2": (*ALWAYS, "llama.cpp f32", "llama.cpp q8_0", "llama.cpp q4_1"),
}
WHAT = {
    "plait": "plait.load, generate(ids), float32",
    "plait int8": "the same with bits=8: weights in groups of 32, activations rounded to 8 bits too",
    "plait int4": "the same with bits=4",
    "transformers": "AutoModelForCausalLM.generate, greedy, float32",
    "ctranslate2": "Generator.generate_batch, float32",
    "ctranslate2 int8": "the same with int8 weights",
    "llama.cpp f32": "xllamacpp's server, the same weights in float32",
    "llama.cpp q8_0": "the same in Q8_0",
    "llama.cpp q4_1": "the file as it was released",
}
Continue = Callable[[list[int], int], Sequence[int]]  # (prompt, number of new ids) -> the new ids


def random_gpt2(folder: Path) -> Path:
    """GPT-2's 124 M shape with random weights, and a vocabulary of words "0" to "50256" that converters may read."""
    transformers = need("transformers")
    tokenizers = need("tokenizers")
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(50257)}, unk_token="0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="50256", eos_token="50256", unk_token="0").save_pretrained(
        folder
    )
    return folder


def contestants(model: str, names: list[str], scratch: Path, threads: int) -> dict[str, Continue]:
    folder = random_gpt2(scratch / "gpt2") if model == "gpt2" else place(model)
    released = gguf_of(folder)
    hf = folder
    if released is not None and "transformers" in names:
        hf = scratch / "hf"
        convert(folder, "hf", hf)
    made: dict[str, Continue] = {}
    for name in names:
        if name.startswith("plait"):
            made[name] = ours(folder, {"plait": None, "plait int8": 8, "plait int4": 4}[name])
        elif name == "transformers":
            made[name] = transformers_of(hf)
        elif name.startswith("ctranslate2"):
            made[name] = ctranslate2_of(hf, scratch / name.replace(" ", "-"), "int8" if name.endswith("int8") else "float32", threads)
        else:
            made[name] = llama_cpp_of(gguf(folder, released, name.rpartition(" ")[2], scratch), threads)
    return made


def gguf(folder: Path, released: Path | None, kind: str, scratch: Path) -> Path:
    if kind == "q4_1":
        if released is None:
            raise InputError(f"{folder}: is no GGUF, and Q4_1 is only taken as released")
        return released
    out = scratch / f"{kind}.gguf"
    convert(folder, "gguf", out, dtype=kind)
    return out


def ours(folder: Path, bits: int | None) -> Continue:
    model = open_checkpoint(folder, bits=bits)
    return lambda ids, new: model.generate(ids, max_new_tokens=new, min_new_tokens=new)  # type: ignore[attr-defined]


def transformers_of(folder: Path) -> Continue:
    transformers = need("transformers")
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def go(ids: list[int], new: int) -> list[int]:
        given = torch.tensor([ids])
        out = net.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        return out[0, len(ids) :].tolist()

    return go


def ctranslate2_of(folder: Path, out: Path, kind: str, threads: int) -> Continue:
    module = need("ctranslate2")
    need("ctranslate2.converters").TransformersConverter(str(folder)).convert(str(out), quantization=None if kind == "float32" else kind)
    generator = module.Generator(str(out), device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1)

    def go(ids: list[int], new: int) -> list[int]:
        words = [str(i) for i in ids]
        options = dict(max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, beam_size=1)
        return list(generator.generate_batch([words], **options)[0].sequences_ids[0])

    return go


def llama_cpp_of(file: Path, threads: int) -> Continue:
    module = need("xllamacpp")
    params = module.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 1024, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = module.Server(params)

    def go(ids: list[int], new: int) -> list[int]:
        asked = {"prompt": ids, "n_predict": new, "temperature": 0, "cache_prompt": False, "ignore_eos": True, "return_tokens": True}
        found = server.handle_completions(asked)
        return found.get("tokens", [0] * found["timings"]["predicted_n"])

    return go


def run(model: str, rounds: int, names: list[str], scratch: Path, threads: int, prompt: int = 32, new: int = 128) -> dict[str, Any]:
    made = contestants(model, names, scratch, threads)
    ids = torch.randint(10, 40000, (prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    answers: dict[str, Sequence[int]] = {}

    def work(name: str) -> None:
        answers[name] = made[name](ids, new)

    times = Turns({name: partial(work, name) for name in made}, rounds, rest=0.3).run().times
    first = next(iter(made))
    rows = {}
    for name, seconds in times.items():
        alike = next((i for i, (a, b) in enumerate(zip(answers[name], answers[first], strict=False)) if a != b), new)
        rows[name] = {"what": WHAT[name], "seconds": seconds, "tokens_per_second": new / median(seconds), "same_ids_until": alike}
        if len(answers[name]) != new:
            raise InputError(f"{name} gave {len(answers[name])} tokens of {new}: its figure would not compare")
    return {"model": model, "prompt": prompt, "new": new, "contestants": rows, "ratios": compared(times, "plait")}


def shown(found: dict[str, Any]) -> str:
    rows = [["", "tokens/s", "same ids until", "plait is so many times as fast"]]
    for name, row in found["contestants"].items():
        ratio = found["ratios"].get(name)
        times = "" if ratio is None else f"{ratio['median']:.2f}  ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        rows.append([name, f"{row['tokens_per_second']:,.1f}", str(row["same_ids_until"]), times])
    return "\n".join([f"{found['model']}: a prompt of {found['prompt']} ids, {found['new']} more, greedily", *aligned(rows)])
