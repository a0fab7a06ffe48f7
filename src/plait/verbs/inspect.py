"""plait inspect: what a model attends to, as a page one can explore or as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from plait.errors import InputError
from plait.verbs import positional
from plait.verbs.numbers import number_faults

KINDS = {"encoder": ("encoder", "self_attn"), "decoder": ("decoder", "self_attn"), "cross": ("decoder", "cross_attn")}
TITLES = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}


@dataclass
class Inspect:
    """Show what a model attends to: a page to explore (.html) or a heat map (.png)."""

    model: Annotated[str, positional, "a run folder"]
    input: Annotated[str, positional, "the text, or the file of the picture, to look at"]
    out: Annotated[Path, "PAGE", "where to write: .html or .png"]
    answer: Annotated[str | None, "TEXT", "the answer to look at; default: the model's own"] = None
    kind: Annotated[str | None, "encoder, decoder, cross, of pictures rollout: what a .png shows, and a page of a picture first"] = None
    layer: Annotated[int | None, "counted from 0, as on the page; a .png without it shows the last layer"] = None
    head: Annotated[int | None, "counted from 0; a .png without it shows all heads of the layer"] = None
    query: Annotated[int | None, "of a picture the entry that looks, as the page counts them; default: class token or surest object"] = None
    beams: Annotated[int, "beams of the search for the answer"] = 4

    def run(self) -> dict[str, Any]:
        from plait.hub import load
        from plait.hub.pictures import PictureModel
        from plait.inspect.page import Maps, write_page
        from plait.inspect.picture import draw
        from plait.inspect.record import record

        if self.out.suffix not in (".html", ".png"):
            raise InputError(f"--out {self.out}: its name must end in .html (a page to explore) or .png (a picture)")
        if self.kind not in (None, *KINDS, "rollout"):
            raise InputError(f"--kind {self.kind}: choose {', '.join(KINDS)}, of a picture also rollout")
        if faults := number_faults(self, ("beams",)):
            raise InputError(faults[0])
        model = load(self.model)
        if isinstance(model, PictureModel):
            from plait.verbs.inspecting_pictures import inspect_picture

            return inspect_picture(self, model)
        if model.task != "translation":
            raise InputError(f"{self.model}: its task is {model.task}; this verb knows translation and pictures so far")
        kind = "cross" if self.kind is None else self.kind
        if kind == "rollout" or self.query is not None:
            raise InputError("--kind rollout and --query are for pictures; leave them out")
        answer = self.answer if self.answer is not None else model(self.input, beams=self.beams)
        source, target, keys, queries = model.forced(self.input, answer)
        seen, _ = record(model.net, encoder=source, decoder=target)
        maps = {}
        for name, (tower, step) in KINDS.items():
            weights = seen.stacked(tower, step)
            if weights is not None:
                maps[name] = Maps(TITLES[name], weights, keys if tower == "encoder" else queries, queries if name == "decoder" else keys)
        layers, heads = maps[kind].weights.shape[:2]
        for name, value, most in (("layer", self.layer, layers), ("head", self.head, heads)):
            if value is not None and not 0 <= value < most:
                raise InputError(f"--{name} {value}: this model has {name}s 0 to {most - 1}")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.suffix == ".html":
            named = f"{model.config['arch']}, {Path(self.model).name}"
            write_page(
                self.out,
                [maps["cross"], maps["encoder"], maps["decoder"]],
                title="Attention",
                source=self.input,
                answer=answer,
                model=named,
            )
        else:
            draw(self.out, maps[kind], layer=self.layer, head=self.head)
        return {"page": str(self.out), "input": self.input, "answer": answer, "layers": layers, "heads": heads}
