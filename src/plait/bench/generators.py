"""The contestants of `plait bench generate`, each for a process of its own: they continue rows of ids, and say how likely ids are.

A contestant has `go(rows, new)`, which gives exactly `new` ids for each row of ids (all of one length), and `told(texts, out)`, which
writes natural log-probabilities: of a causal model all those after each text [texts, V], of a translator those of each target's ids
[texts, L]. Nothing is imported that a contestant does not need: its process' memory is its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from plait.bench.libraries import need

Rows = list[list[int]]


class Contestant:
    """What all have; `scores` is given a causal model's ids, or a source's and a target's."""

    def scores(self, *text: list[int]) -> Any:
        raise NotImplementedError

    def told(self, texts: list[Rows], out: str) -> None:
        import numpy as np

        np.save(out, np.stack([self.scores(*text) for text in texts]))


def log_softmax(x: Any) -> Any:
    """Over the last axis, in float64."""
    import numpy as np

    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def chosen(scores: Any, target: list[int], pad: int) -> Any:
    """Log-probabilities [L] of the ids of a target by scores [L, V] of each. A translator never writes padding: so CTranslate2 has it."""
    scores[:, pad] = float("-inf")
    return log_softmax(scores)[range(len(target)), target]


class Plait(Contestant):
    """`plait.load` and `generate`, as anybody would. Not `whole`: at most so many ids. `double`: in float64, a reference."""

    def __init__(self, file: str, bits: int | None = None, whole: bool = True, double: bool = False, **options: Any):
        import plait

        self.model, self.whole, self.options = plait.load(file, bits=bits), whole, options
        if double:
            self.model.net.double()

    def go(self, rows: Rows, new: int) -> Rows:
        return self.model.generate(rows, max_new_tokens=new, min_new_tokens=new if self.whole else 0, **self.options)

    def scores(self, *text: list[int]) -> Any:
        if len(text) == 1:
            return log_softmax(self.model.logits(*text)[0, -1])
        source, target = text
        start, pad = (self.model.config[f"{name}_token_id"] for name in ("decoder_start", "pad"))
        return chosen(self.model.logits(source, [start, *target[:-1]])[0], target, pad)

    def sizes(self) -> dict[str, int]:
        """Weights that a token is multiplied by: of the blocks, and of the output. `width` is that of attention, all heads and blocks."""
        from plait.core.attention import Attention
        from plait.core.linear import Linear

        net: Any = self.model.net
        parts = list(net.get_submodule(net.towers[-1]).modules())
        body = sum(part.weight.numel() for part in parts if isinstance(part, Linear))
        width = sum(part.q_proj.weight.shape[0] for part in parts if isinstance(part, Attention))  # type: ignore[union-attr, index]
        return {"body": body, "head": net.heads["lm"].weight.numel(), "width": width}


class Transformers(Contestant):
    """`generate` as it comes, or with `options` of it; a translator where the config says so."""

    def __init__(self, file: str, **options: Any):
        import torch

        transformers = need("transformers")
        transformers.logging.set_verbosity_error()
        self.pair = transformers.AutoConfig.from_pretrained(file).is_encoder_decoder
        kind = transformers.AutoModelForSeq2SeqLM if self.pair else transformers.AutoModelForCausalLM
        self.net = kind.from_pretrained(file, dtype=torch.float32).eval()
        self.options = options

    def go(self, rows: Rows, new: int) -> Rows:
        import torch

        ids = torch.tensor(rows)
        options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, **self.options)
        if not self.pair:
            options["pad_token_id"] = 0  # there is nothing to pad; without one it warns
        out = self.net.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, 1 if self.pair else ids.shape[1] :].tolist()

    def scores(self, *text: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            if not self.pair:
                return log_softmax(self.net(torch.tensor(text)).logits[0, -1].numpy())
            source, target = text
            given = torch.tensor([[self.net.config.decoder_start_token_id, *target[:-1]]])
            return chosen(self.net(torch.tensor([source]), decoder_input_ids=given).logits[0].numpy(), target, self.net.config.pad_token_id)


class CTranslate2(Contestant):
    """`Generator.generate_batch` of a causal model whose words are its ids, as those are that `prepared` makes."""

    def __init__(self, file: str, kind: str, threads: int):
        library = need("ctranslate2")
        self.model = library.Generator(file, device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1)

    def go(self, rows: Rows, new: int) -> Rows:
        options = dict(max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, beam_size=1, max_batch_size=0)
        return [one.sequences_ids[0] for one in self.model.generate_batch(words_of(rows), **options)]

    def scores(self, *text: list[int]) -> Any:
        import numpy as np

        return log_softmax(np.array(self.model.forward_batch(words_of(text)))[0, -1])


def words_of(rows: Any) -> list[list[str]]:
    return [[str(i) for i in row] for row in rows]


class CTranslate2Pair(Contestant):
    """`Translator.translate_batch`, of exactly so many tokens."""

    def __init__(self, file: str, kind: str, threads: int, beams: int):
        import json

        library = need("ctranslate2")
        self.model = library.Translator(file, device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1)
        self.words = json.loads((Path(file) / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self.numbers, self.beams = {word: i for i, word in enumerate(self.words)}, beams

    def go(self, rows: Rows, new: int) -> Rows:
        options = dict(beam_size=self.beams, min_decoding_length=new, max_decoding_length=new, length_penalty=1, max_batch_size=0)
        found = self.model.translate_batch([self.said(row) for row in rows], **options)
        return [[self.numbers[word] for word in one.hypotheses[0]] for one in found]

    def scores(self, *text: list[int]) -> Any:
        import numpy as np

        source, target = map(self.said, text)
        (found,) = self.model.score_batch([source], [target])
        return np.array(found.log_probs[: len(target)])  # after them that of the end

    def said(self, ids: list[int]) -> list[str]:
        return [self.words[i] for i in ids]


class LlamaCpp(Contestant):
    """llama.cpp's server inside xllamacpp: a slot for each row, and requests as many at a time.

    Its keys and values are float16, and so is its table of GELU, with float32 weights too: it comes so, and shows in their error.
    """

    def __init__(self, file: str, threads: int, rows: int, length: int):
        module = need("xllamacpp")
        params = module.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = file, rows * length, rows, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = module.Server(params)
        self.pool = ThreadPoolExecutor(rows)

    def asked(self, ids: list[int], new: int, **more: Any) -> dict[str, Any]:
        given = {"prompt": ids, "n_predict": new, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        return self.server.handle_completions({**given, **more})

    def go(self, rows: Rows, new: int) -> Rows:
        """As many ids as there were, but not which: to ask for them would cost it a sorting of the vocabulary a token."""
        return [[-1] * one["timings"]["predicted_n"] for one in self.pool.map(partial(self.asked, new=new), rows)]

    def ids(self, rows: Rows, new: int) -> Rows:
        """Which ids `go` finds."""
        found = self.pool.map(partial(self.asked, new=new, logprobs=1), rows)
        return [[token["id"] for token in one["choices"][0]["logprobs"]["content"]] for one in found]

    def scores(self, *text: list[int]) -> Any:
        import numpy as np

        (one,) = self.asked(text[0], 1, logprobs=2**30)["choices"][0]["logprobs"]["content"]
        found = {token["id"]: token["logprob"] for token in one["top_logprobs"]}
        return np.array([found[i] for i in range(len(found))])


class OnnxRuntime(Contestant):
    """The graph that `plait convert --to onnx` writes, its past handed from step to step without a copy."""

    def __init__(self, file: str, threads: int):
        self.library = need("onnxruntime")
        options = self.library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = self.library.InferenceSession(str(Path(file) / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.past = [given for given in self.session.get_inputs() if given.name.startswith("past_key_values.")]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def step(self, ids: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """(scores [B, L, V] after ids [B, L], the past with them)"""
        import numpy as np

        value: Callable[..., Any] = self.library.OrtValue.ortvalue_from_numpy
        if not past:
            past = [value(np.zeros((len(ids), given.shape[1], 0, given.shape[3]), np.float32)) for given in self.past]
        mask = np.ones((len(ids), past[0].shape()[2] + ids.shape[1]), np.int64)
        named = dict(zip([given.name for given in self.past], past, strict=True))
        logits, *past = self.session.run_with_ort_values(self.outputs, {"input_ids": value(ids), "attention_mask": value(mask), **named})
        return logits.numpy(), past

    def go(self, rows: Rows, new: int) -> Rows:
        import numpy as np

        ids, past, found = np.array(rows), [], []
        for _ in range(new):
            logits, past = self.step(ids, past)
            ids = logits[:, -1:].argmax(-1)
            found.append(ids)
        return np.concatenate(found, 1).tolist()

    def scores(self, *text: list[int]) -> Any:
        import numpy as np

        return log_softmax(self.step(np.array(text), [])[0][0, -1])


class Bandwidth:
    """Sweeps of a matrix [N, 32768] of `size` bytes times a vector: how fast this machine reads memory with so many threads."""

    def __init__(self, size: int = 2**29, sweeps: int = 4):
        import torch

        self.matrix, self.vector, self.sweeps = torch.ones(size // 2**17, 2**15), torch.ones(2**15), sweeps

    def go(self) -> float:
        """Bytes a second, of the fastest sweep."""
        import time

        import torch

        best = float("inf")
        with torch.inference_mode():
            for _ in range(self.sweeps):
                start = time.perf_counter()
                torch.mv(self.matrix, self.vector)
                best = min(best, time.perf_counter() - start)
        return self.matrix.nbytes / best


class Product:
    """The product of two float32 matrices: how fast this machine multiplies."""

    def __init__(self, size: int = 1024):
        from plait.bench.measure import Product as Measured

        self.product = Measured(size)

    def go(self) -> float:
        """Operations a second."""
        self.product()
        return self.product.rates[-1]
