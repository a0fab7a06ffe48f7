"""The contestants of `plait bench vision`, each in a process of its own, and the files that they read."""

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from plait.bench.libraries import need


class Prepared:
    """Random weights of one model, and the files of them that contestants read."""

    def __init__(self, model: str, scratch: str, shape: dict[str, Any], rows: int):
        import torch

        transformers = need("transformers")
        self.folder, self.rows = Path(scratch), rows
        torch.manual_seed(0)
        if model == "vit":
            self.net = transformers.ViTForImageClassification(transformers.ViTConfig(**shape["config"]))
        else:
            backbone = transformers.ResNetConfig(**{"out_features": ["stage4"], **shape["config"].get("backbone_config", {})})
            settings = {"num_labels": 91, **shape["config"], "backbone_config": backbone}
            self.net = transformers.DetrForObjectDetection(transformers.DetrConfig(use_timm_backbone=False, **settings))
        self.net.eval().save_pretrained(self.folder)
        self.pixels = torch.from_numpy(pixels(rows, shape["picture"]))

    def operations(self) -> int:
        """Of all pictures of a turn, as torch counts products and convolutions; those inside its fused attention it does not see."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        net = deepcopy(self.net)  # there is no way back for a net with a ResNet in it
        net.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(self.pixels)
        return counter.get_total_flops()

    def file(self, kind: str) -> str:
        import torch

        out = self.folder / f"{kind or 'none'}.onnx".replace(" ", "-")
        if kind in ("", "folder"):
            return str(self.folder)
        if kind == "onnx int8":
            graph = need("onnx").load(self.file("onnx"))
            graph.graph.ClearField("value_info")  # shapes that the exporter noted, and that the quantiser's new nodes contradict
            need("onnxruntime.quantization").quantize_dynamic(graph, out, op_types_to_quantize=["MatMul", "Gemm"])
        elif not out.exists():
            torch.onnx.export(Answers(self.net), (self.pixels,), out, dynamo=True, external_data=False)
        return str(out)


def Answers(net: Any) -> Any:
    """A model of transformers as one of tensors alone, which can be exported."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixels: Any) -> Any:
            return tuple(answers_of(self.net(pixels)))

    return Module().eval()


def answers_of(said: Any) -> list[Any]:
    return [said.logits, said.pred_boxes] if "pred_boxes" in said else [said.logits]


def pixels(rows: int, picture: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 3, *picture), np.float32)


class Contestant:
    """One that answers about the same pictures whenever it is asked."""

    def __init__(self, file: str, bits: int, rows: int, picture: list[int], threads: int):
        self.file, self.bits, self.threads, self.pixels = file, bits, threads, pixels(rows, picture)
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def answers(self) -> list[np.ndarray]:
        raise NotImplementedError

    def go(self) -> None:
        self.answers()

    def told(self, out: str) -> None:
        """Writes one row with all that it answers."""
        np.save(out, np.concatenate([np.asarray(one, np.float64).ravel() for one in self.answers()]))


class Plait(Contestant):
    def open(self) -> None:
        from plait.hub import load

        self.model = load(self.file, bits=None if self.bits == 32 else self.bits)

    def answers(self) -> list[np.ndarray]:
        said = self.model.logits(self.pixels)
        return list(said) if isinstance(said, tuple) else [said]


class Transformers(Contestant):
    def open(self) -> None:
        import torch

        transformers = need("transformers")
        name = transformers.AutoConfig.from_pretrained(self.file).architectures[0]
        self.net = getattr(transformers, name).from_pretrained(self.file).eval()
        if self.bits == 8:
            self.net = torch.ao.quantization.quantize_dynamic(self.net, {torch.nn.Linear}, torch.qint8)

    def answers(self) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            return [one.numpy() for one in answers_of(self.net(torch.from_numpy(self.pixels)))]


class OnnxRuntime(Contestant):
    def open(self) -> None:
        options = (library := need("onnxruntime")).SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = library.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])

    def answers(self) -> list[np.ndarray]:
        return self.session.run(None, {self.session.get_inputs()[0].name: self.pixels})


class Timm(Contestant):
    def open(self) -> None:
        import torch

        without_torchvision()
        torch.manual_seed(0)
        self.net = need("timm").create_model("vit_base_patch16_224", img_size=self.pixels.shape[-1]).eval()

    def answers(self) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            return [self.net(torch.from_numpy(self.pixels)).numpy()]


class Nothing(type):
    """A class with whatever attribute is asked for, each its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(ModuleType):
    """A module whose every name is a class of nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})


def without_torchvision() -> None:
    """Where that is not installed, empty modules of its names: a ViT of timm asks for them, and uses none."""
    from importlib.util import find_spec

    if find_spec("torchvision") is None:
        for name in (
            "",
            ".ops",
            ".ops.misc",
            ".transforms",
            ".transforms.functional",
            ".datasets",
            ".models",
            ".models.feature_extraction",
        ):
            made = sys.modules[f"torchvision{name}"] = Empty(f"torchvision{name}")
            above, _, last = made.__name__.rpartition(".")
            if above:
                setattr(sys.modules[above], last, made)
