"""Pictures at equal time, from scratch: plait train, and transformers' model of the same size, learned as its users do.

`python -m plait.bench.vision_quality digits|blood-cells MINUTES [NAMES ...]`: each contestant is one command and has MINUTES of wall time
from its start; then it is scored on pictures that none has learned from. A name may have a learning rate behind it
("transformers 0.0005"). Threads are as OMP_NUM_THREADS says.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plait.bench.label_quality import command
from plait.bench.libraries import need
from plait.bench.measure import load_average

HELD = 0.2  # of the digits, by the hash of their names; the cells have a test list of their own
PRESETS = {"digits": ("classify", "modern-vision-nano"), "blood-cells": ("detect", "modern-detector-small")}
RATES = {"digits": 1e-3, "blood-cells": 2e-4}  # of transformers' contestants, where a name does not say
WARMUP, CLIP, DECAY = 0.05, 0.1, 1e-4  # DETR's clipping and decay (Carion et al. 2020, section 4)
BATCHES = {"digits": 64, "blood-cells": 8}


def parts_of(name: str, folder: Path) -> list[Path]:
    """Archives of the pictures to learn from and to score."""
    from plait.data.builtin_pictures import archive

    def held(key: str) -> bool:
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32 < HELD

    made = []
    for part in ("train", "test"):
        data, _ = archive(name, part, lambda key, part=part: held(key) == (part == "test"))
        made.append(folder / f"{part}.zip")
        made[-1].write_bytes(data)
    return made


def ours(name: str, files: Sequence[Path], out: Path, minutes: float, rate: float | None) -> dict[str, Any]:
    task, preset = PRESETS[name]
    words = ["plait.cli", "train", task, "--data", str(files[0]), "--out", str(out), "--minutes", str(minutes), "--preset", preset]
    trained = json.loads(command([*words, *(["--learning-rate", str(rate)] if rate else [])]))
    scored = json.loads(command(["plait.cli", "eval", str(out), "--data", str(files[1]), "--no-baselines"]))
    return {"steps": trained["steps"], "parameters": trained["parameters"], **{key: scored[key] for key in ("n", "metrics")}}


def theirs(name: str, files: Sequence[Path], out: Path, minutes: float, rate: float | None) -> dict[str, Any]:
    words = ["plait.bench.vision_quality", "--theirs", name, *map(str, files), str(out), str(minutes), str(rate or RATES[name])]
    return json.loads(command(words).splitlines()[-1])


CONTESTANTS = {"plait": ours, "transformers": theirs}


# ---- in a process of its own ----


class Clock:
    """The contestant's time, from the start of its process, and a rate that rises and falls with it: no number of steps is guessed."""

    def __init__(self, minutes: float):
        from plait.train.log import process_age

        self.start, self.limit = time.perf_counter() - process_age(), 60 * minutes

    @property
    def share(self) -> float:
        """Of the time that is over."""
        return min((time.perf_counter() - self.start) / self.limit, 1.0)

    @property
    def rate(self) -> float:
        """Of the peak rate: up in the first `WARMUP` of the time, then linearly down to nothing."""
        return min(self.share / WARMUP, (1 - self.share) / (1 - WARMUP))


def small_vit(side: int, labels: int, like: int) -> Any:
    """`ViTForImageClassification` of patches of 4 pixels and four layers; its width is the one with the nearest to `like` parameters."""
    import torch

    transformers = need("transformers")

    def made(width: int) -> Any:
        sizes = {"image_size": side, "patch_size": 4, "hidden_size": width, "num_hidden_layers": 4, "intermediate_size": 4 * width}
        return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_attention_heads=2, num_labels=labels))

    def off(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in made(width).parameters()) - like)

    torch.manual_seed(0)
    return made(min(range(16, 260, 4), key=off))


def small_detr(labels: int) -> Any:
    """`DetrForObjectDetection` from nothing, of the sizes of our preset detr-small.

    Norms of its backbone stay as they begin, as that library has it; all convolutions learn, the first ones too, which it freezes since
    it expects released ones.
    """
    import torch

    from plait.models.detr import PRESETS

    transformers, c = need("transformers"), PRESETS["small"]
    widths, depths = list(c["widths"]), list(c["depths"])
    backbone = transformers.ResNetConfig(
        embedding_size=c["stem"], hidden_sizes=widths, depths=depths, layer_type="basic", out_features=[f"stage{len(widths)}"]
    )
    sizes: dict[str, Any] = {"d_model": c["d_model"], "num_queries": c["n_queries"], "num_labels": labels, "auxiliary_loss": True}
    for side, ours in (("encoder", ""), ("decoder", "decoder_")):
        sizes |= {f"{side}_layers": c[f"n_{ours}layers"], f"{side}_ffn_dim": c[f"d_{ours}ff"]}
        sizes |= {f"{side}_attention_heads": c[f"n_{ours}heads"]}
    torch.manual_seed(0)
    config = transformers.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **sizes)
    return transformers.DetrForObjectDetection(config).requires_grad_()


def learn_digits(train: Path, test: Path, out: Path, minutes: float, rate: float) -> dict[str, Any]:
    """`Trainer` on a ViT with AdamW; pictures and what is changed in them as `plait train` has them."""
    clock = Clock(minutes)
    import numpy as np
    import torch

    from plait import models
    from plait.core.model import parameters
    from plait.data.picture_feed import PictureSet
    from plait.data.picture_rows import read_pictures
    from plait.media.augment import Augmentation
    from plait.media.preparing import Exactly, Preparation

    transformers, side = need("transformers"), 28
    (learned, _), (scored, _) = read_pictures([train]), read_pictures([test])
    labels = sorted({row.label for row in learned})
    prepare, change = Preparation(size=Exactly(side, side)), Augmentation.named("digits", side)
    answers = [np.array([labels.index(row.label) for row in rows]) for rows in (learned, scored)]
    pictures = PictureSet(learned, answers[0], prepare, change)
    with torch.device("meta"):
        page = models.PAGES["modern-vision"]
        like = parameters(page.build(page.Config(**{**page.PRESETS["nano"], "head": "classify", "labels": len(labels)})))
    net, drawn = small_vit(side, len(labels), like), iter(range(2**62))

    class Numbers(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(learned)

        def __getitem__(self, i: int) -> int:
            return i

    def collated(rows: list[int]) -> dict[str, Any]:
        batch = pictures.batch(np.array(rows), epoch=next(drawn))
        return {"pixel_values": batch.pixels, "labels": batch.answers}

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= clock.share >= 1

    how = transformers.TrainingArguments(
        output_dir=str(out), use_cpu=True, max_steps=10**9, per_device_train_batch_size=BATCHES["digits"], save_strategy="no",
        logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    with_it = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: clock.rate))
    made = transformers.Trainer(
        model=net, args=how, train_dataset=Numbers(), data_collator=collated, callbacks=[Stop()], optimizers=with_it
    )
    made.remove_callback(transformers.PrinterCallback)
    made.train()
    net.eval()
    with torch.inference_mode():
        batches = PictureSet(scored, answers[1], prepare).feed(100).rereading()
        right = sum(int((net(batch.pixels).logits.argmax(-1) == batch.answers).sum()) for batch in batches)
    figures = {"n": len(scored), "metrics": {"accuracy": 100 * right / len(scored)}}
    return {"steps": made.state.global_step, "parameters": parameters(net), **figures}


def learn_cells(train: Path, test: Path, out: Path, minutes: float, rate: float) -> dict[str, Any]:
    """A loop around DETR as its paper has it, but for the rate's course; pictures as `plait train` has them."""
    clock = Clock(minutes)
    import torch

    from plait.core.model import parameters
    from plait.data.box_rows import read_boxes
    from plait.data.picture_feed import BoxSet
    from plait.data.picture_rows import classes_of
    from plait.media.augment import Augmentation
    from plait.media.preparing import Preparation, Shortest
    from plait.tasks.average_precision import average_precision
    from plait.tasks.detecting import absolute, answers
    from plait.verbs.lessons.detect import LONG, SIDE

    (learned, _), (scored, _) = read_boxes([train]), read_boxes([test])
    names = classes_of(learned)
    prepare = Preparation(size=Shortest(SIDE, round(SIDE * LONG)), processor="DetrImageProcessor")
    net = small_detr(len(names)).train()
    optimizer, steps = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY), 0
    batches = BoxSet(learned, names, prepare, Augmentation.named("boxes", SIDE)).feed(BATCHES["blood-cells"])

    def given(batch: Any) -> dict[str, Any]:
        return {"pixel_values": batch.pixels, "pixel_mask": None if batch.real is None else batch.real.long()}

    for *_, batch in batches.stream(0, 0):
        if clock.share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * clock.rate
        right = [{"class_labels": label, "boxes": some} for label, some in zip(batch.labels, batch.boxes)]
        optimizer.zero_grad()
        net(**given(batch), labels=right).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        steps += 1
    net.eval()
    found, wanted = [], []
    with torch.inference_mode():
        for batch in BoxSet(scored, names, prepare).feed(1).rereading():
            said = net(**given(batch))
            found += answers(said.logits, said.pred_boxes, batch.sizes)
            wanted += [(absolute(some, size).numpy(), n.numpy()) for some, size, n in zip(batch.boxes, batch.sizes, batch.labels)]
    figures = {"n": len(scored), "metrics": average_precision(found, wanted, names).figures}
    return {"steps": steps, "parameters": parameters(net), **figures}


LEARN: dict[str, Callable[[Path, Path, Path, float, float], dict[str, Any]]] = {"digits": learn_digits, "blood-cells": learn_cells}


def run(name: str, minutes: float, names: Sequence[str] = ()) -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    found: dict[str, Any] = {"data": name, "minutes": minutes, "threads": threads, "load_before": load_average()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = parts_of(name, folder)
        for who in names or CONTESTANTS:
            library, _, rate = who.partition(" ")
            found[who] = CONTESTANTS[library](name, files, folder / who.replace(" ", "-"), minutes, float(rate) if rate else None)
            print(json.dumps({who: found[who]}), file=sys.stderr)
    return {**found, "load_after": load_average()}


if __name__ == "__main__":
    if sys.argv[1] == "--theirs":
        name, (train, test, out), (minutes, rate) = sys.argv[2], map(Path, sys.argv[3:6]), map(float, sys.argv[6:8])
        print(json.dumps(LEARN[name](train, test, out, minutes, rate)))
    else:
        print(json.dumps(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]), indent=2))
