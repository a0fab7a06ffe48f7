"""plait tune: a model taught by a small part of it, which is all that is saved."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from plait.errors import InputError
from plait.verbs import positional
from plait.verbs.train import LESSONS, Train

OF_MODELS = {"generate": "language-model", "fill-mask": "masked-lm"}  # what a released model does -> the task it learns that by


@dataclass(kw_only=True)
class Tune(Train):
    """Tune a model on your own data by a small part of it, such as LoRA or a prefix; only that part is saved."""

    model: Annotated[str, positional, "what is tuned: a run, a released checkpoint's folder, a name such as smollm2"] = field()
    task: Annotated[  # type: ignore[assignment]
        Literal["translation", "language-model", "masked-lm", "classify", "tag", "answer", "embed", "detect"] | None,
        "what is learned; default: what the model does",
    ] = None
    method: Annotated[  # type: ignore[assignment]
        Literal["lora", "rslora", "dora", "prefix", "prompt", "houlsby", "pfeiffer", "ia3", "bitfit", "head", "full"],
        "the small part: low-rank products beside the weights; learned keys and values, or entries; adapters; scales; biases; a new head",
    ] = "lora"

    def run(self) -> dict[str, Any] | None:
        """As of `plait train`."""
        given = {f.name: getattr(self, f.name) for f in fields(Train)}
        return Train(**{**given, "task": self.task or self.own_task()}).run()

    def own_task(self) -> str:
        from plait.hub import load

        does = load(self.model).task
        task = OF_MODELS.get(does, does)
        if task not in LESSONS:
            raise InputError(f"{self.model}: what it does ({does or 'nothing named'}) is no task that is trained: say --task")
        return task
