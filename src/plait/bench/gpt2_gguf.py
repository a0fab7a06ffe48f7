"""GPT-2's weights as llama.cpp reads them, through its own package for GGUF: matrices in a type that is asked for, all else in float32."""

from pathlib import Path
from typing import Any

from plait.bench.libraries import need
from plait.models.gpt2 import KEYS
from plait.text.special import read_object
from plait.weights import config as keys
from plait.weights.opening import open_source

# Names of Hugging Face -> of llama.cpp. Both keep q, k and v in one matrix; Hugging Face's are [d_in, d_out].
LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
WHOLE = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def write(folder: Path, out: Path, dtype: str) -> None:
    """`dtype` f32, f16, q8_0 or q4_0, as ggml rounds; the output is the token table, as in the model. Tokens are mere names."""
    gguf = need("gguf")
    c: Any = keys.read(KEYS, read_object(folder / "config.json", "a config.json of GPT-2"))
    writer = gguf.GGUFWriter(str(out), "gpt2")
    writer.add_context_length(c["max_length"])
    writer.add_embedding_length(c["d_model"])
    writer.add_block_count(c["n_layers"])
    writer.add_feed_forward_length(c["d_ff"] or 4 * c["d_model"])
    writer.add_head_count(c["n_heads"])
    writer.add_layer_norm_eps(c["norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(c["vocab_size"])])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(c["vocab_size"] - 1)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    source = open_source(folder)
    names = {f"{theirs}.{end}": f"{ours}.{end}" for theirs, ours in WHOLE.items() for end in ("weight", "bias")}
    for i in range(c["n_layers"]):
        names |= {f"h.{i}.{theirs}.{end}": f"blk.{i}.{ours}.{end}" for theirs, ours in LAYER.items() for end in ("weight", "bias")}
    for name in source.shapes():
        if (short := name.removeprefix("transformer.")) not in names:
            continue  # a copy of the token table, a mask
        values = source.read(name).float()
        values = (values.t() if short.startswith("h.") and values.ndim == 2 else values).contiguous().numpy()
        this = kind if values.ndim == 2 and not short.startswith("wpe") else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names[short], gguf.quants.quantize(values, this), raw_dtype=this)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
