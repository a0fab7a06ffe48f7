"""What loading costs in memory, of a process of its own: nothing may be there twice."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plait.models import llama
from plait.weights import config as keys
from plait.weights import rules

# The kernel's own high-water mark, set back once everything is imported; 5 is what clears it (Linux, proc(5)).
MEASURE = """
import re, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from plait.hub.checkpoints import open_checkpoint
status = Path("/proc/self/status")
def now(name): return int(re.search(name + r":\\s*(\\d+) kB", status.read_text()).group(1)) * 1024
torch.randn(64, 64) @ torch.randn(64, 64)  # what a first product sets aside
Path("/proc/self/clear_refs").write_text("5")
before = now("VmRSS")
model = open_checkpoint(Path(sys.argv[1]), bits=int(sys.argv[2]) or None)
ids = model.generate([1, 2, 3], max_new_tokens=1)
assert "torch._dynamo" not in sys.modules, "torch's compiler was imported, which takes seconds"
print(now("VmHWM") - before, sum(t.nbytes for t in model.net.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the largest memory a process had")
@pytest.mark.parametrize("bits", [0, 8, 4])
def test_a_model_is_loaded_in_little_more_than_its_weights_and_without_a_compiler(tmp_path, bits):
    """With fewer bits: in little more than those take and the largest matrix while it is rounded, not in float32 first."""
    torch.manual_seed(0)
    settings = llama.Config(vocab_size=8000, d_model=768, n_heads=12, n_layers=7, d_ff=2048, max_length=512)  # 248 MB
    net = llama.build(settings)
    (tmp_path / "config.json").write_text(json.dumps(keys.write(llama.KEYS, asdict(settings))))
    save_file(rules.export(net, llama.RULES), tmp_path / "model.safetensors")
    del net
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path), str(bits)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, weights = map(int, done.stdout.split())
    largest = 4 * settings.vocab_size * settings.d_model
    assert weights > {0: 200e6, 8: 60e6, 4: 35e6}[bits] and peak < 1.15 * weights + 2.5 * largest * bool(bits)
