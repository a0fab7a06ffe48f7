"""A compiled model generates the same tokens. In a process of its own: torch's compiler stumbles over the type checks of the tests."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from plait.generate.running import Continuation, Running, continuing
from plait.models import build, vocabulary

arch = {arch!r}
torch.manual_seed(0)
net = build(arch, {{"d_model": 32, "n_heads": 4, "n_layers": 2, **vocabulary(arch, 29, 29)}}).eval()
for p in net.parameters():
    torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)

def ids():
    with torch.inference_mode():
        memory = net.run("encoder", torch.tensor([[4, 7, 1]])) if "encoder" in net.towers else None
        text = Continuation([5, 2, 9], 8)
        list(continuing(Running(net), [([text], memory)]))
    return text.ids

wanted = ids()
net.get_submodule("decoder").compile(backend="eager")
assert len(wanted) == 8 and ids() == wanted, (wanted, ids())
"""


@pytest.mark.parametrize("arch", ["modern"])  # a page with two towers has all that one with one has
def test_the_same_tokens(arch):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(arch=arch)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
