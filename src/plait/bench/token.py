"""Where the time of one token goes, operation by operation: `python -m plait.bench.token MODEL [BITS]`.

MODEL is anything that `plait.load` opens as a language model; its step must be a native program (`core/program.py`).
"""

import ctypes
import sys
from collections import Counter
from statistics import median
from time import perf_counter

import torch

import plait
from plait.bench.measure import aligned
from plait.core.cache import Cache
from plait.core.lowering import MULTIPLY, Op
from plait.errors import InputError

KINDS = ("norm", "rounding", "addition", "turning and placing", "product", "attention")  # in the order of core/lowering.py
STEPS, PROMPT = 50, 64


def size(op: Op) -> int:
    """Bytes of weights that an operation reads; 8 and 4 bits have a scale, 4 bits a least value too, for each 32."""
    if op.kind != MULTIPLY:
        return 0
    return op.d_in * op.d_out * 4 if op.bits == 32 else op.d_in * op.d_out * (op.bits * 4 + (4 if op.least else 2)) // 32


@torch.inference_mode()
def spent(net: torch.nn.Module, steps: int = STEPS, prompt: int = PROMPT) -> list[list[str]]:
    """Rows of a table: kind, ms a token, GB/s; InputError where the modules do the work."""
    ids = torch.ones(1, prompt, dtype=torch.long)
    cache = Cache(prompt + steps + 1)
    net.run("decoder", ids, cache=cache)  # type: ignore[operator]
    net.run("decoder", ids[:, :1], cache=cache)  # type: ignore[operator]
    if (program := cache.programs.get("decoder")) is None:
        raise InputError("this model's step is no native program: see plait.core.program")
    program.spent = (ctypes.c_double * len(program.ops))()
    whole, head = [], []
    for _ in range(steps):
        start = perf_counter()
        hidden = net.run("decoder", ids[:, :1], cache=cache).x[:, -1]  # type: ignore[operator]
        whole.append(perf_counter() - start)
        net.heads["lm"](hidden)  # type: ignore[index]
        head.append(perf_counter() - start - whole[-1])
    seconds, read = Counter[str](), Counter[str]()
    for op, time in zip(program.ops, program.spent, strict=True):
        name = f"{KINDS[op.kind]} {op.d_in} x {op.d_out}" if op.kind == MULTIPLY else KINDS[op.kind]
        seconds[name] += time / steps
        read[name] += size(op)
    rows = [["", "ms a token", "GB/s"]]
    rows += [[name, f"{1000 * s:.2f}", f"{read[name] / s / 1e9:.1f}" if read[name] else ""] for name, s in seconds.items()]
    rows.append(["all of a step", f"{1000 * median(whole):.2f}", ""])
    return [*rows, ["output head", f"{1000 * median(head):.2f}", ""]]


if __name__ == "__main__":
    try:
        model = plait.load(sys.argv[1], bits=int(sys.argv[2]) if len(sys.argv) > 2 else None)
        print("\n".join(aligned(spent(model.net))))
    except InputError as error:
        sys.exit(str(error))
    except (IndexError, ValueError):
        sys.exit("python -m plait.bench.token MODEL [BITS]")
