"""plait inspect: what a model attends to, and what its answer rests on, as a page one can explore or as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from plait.errors import InputError, choices
from plait.verbs import positional
from plait.verbs.numbers import number_faults

if TYPE_CHECKING:
    from plait.verbs.inspecting_views import View

KINDS = ("encoder", "decoder", "cross", "attention", "rollout", "flow", "gradient", "integrated", "lens", "frame", "time")


@dataclass
class Inspect:
    """Show what a model attends to and what its answer rests on: a page to explore (.html) or one picture of it (.png)."""

    model: Annotated[str, positional, "a run, a released checkpoint's folder, or a name"]
    input: Annotated[str, positional, "the text, or the file of the picture or the clip, to look at"]
    out: Annotated[Path, "PAGE", "where to write: .html or .png"]
    answer: Annotated[str | None, "TEXT", "the answer or the continuation to look at; default: the model's own"] = None
    kind: Annotated[str | None, f"what a .png shows and a page shows first: {', '.join(KINDS)}; flow and integrated only if asked"] = None
    layer: Annotated[int | None, "counted from 0, as on the page; a .png without it shows the last layer"] = None
    head: Annotated[int | None, "counted from 0; a .png without it shows all heads of the layer"] = None
    query: Annotated[int | None, "the entry that looks, as the page counts them; a .png of a picture shows it alone"] = None
    beams: Annotated[int, "beams of the search for the answer"] = 4
    threshold: Annotated[float | None, "how sure a detected object must be to be marked; default: as of plait run"] = None

    def run(self) -> dict[str, Any]:
        from plait.hub import load
        from plait.hub.pictures import PictureModel
        from plait.verbs import inspecting_pictures, inspecting_text
        from plait.verbs.inspecting_views import views

        if self.out.suffix not in (".html", ".png"):
            raise InputError(f"--out {self.out}: its name must end in .html (a page to explore) or .png (a picture)")
        if self.kind is not None and self.kind.partition("-")[0] not in KINDS:
            raise InputError(f"--kind {self.kind}: choose {', '.join(KINDS)}")
        if faults := number_faults(self, ("beams",)):
            raise InputError(faults[0])
        model = load(self.model)
        reads = inspecting_pictures if isinstance(model, PictureModel) else inspecting_text
        subject = reads.subject_of(self, model)
        found = views(subject, self.kind)
        kind = self.chosen(found)
        shown = found.pop(kind)
        maps, *_ = shown
        layers, heads, n_queries, _ = maps.weights.shape
        given = (("layer", "layers", self.layer, layers), ("head", "heads", self.head, heads), ("query", "queries", self.query, n_queries))
        faults = [f"--{one}: this model has {many} 0 to {most - 1}" for one, many, value, most in named(given) if not 0 <= value < most]
        if faults:
            raise InputError(f"{kind}: not in this model", faults) if len(faults) > 1 else InputError(faults[0])
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.suffix == ".html":
            self.page(model, subject, [shown, *found.values()])
        else:
            self.picture(subject, shown)
        return {"page": str(self.out), "input": self.input, "answer": subject.answer, "layers": layers, "heads": heads}

    def chosen(self, found: dict[str, "View"]) -> str:
        """The name of what was asked for; of several towers' the last one that reads another comes first."""
        wanted = None if self.kind == "attention" else self.kind
        fits = [name for name in found if wanted in (None, name) or name.startswith(f"{wanted}-")]
        if not fits:
            raise InputError(f"--kind {self.kind}: of this model and input there are {choices(found)}")
        return fits[0]

    def page(self, model: Any, subject: Any, some: list["View"]) -> None:
        from dataclasses import replace

        from plait.inspect.overlay import Shown
        from plait.inspect.page import fitted, write_page

        small = fitted([maps for maps, _, _ in some])
        some = [(maps, queries, keys) for maps, (_, queries, keys) in zip(small, some, strict=True)]
        if self.query is not None:
            some[0] = (some[0][0], replace(some[0][1], first=self.query), some[0][2])
        name = model.config["arch"] if "arch" in model.config else type(model.parts.settings).__module__.rpartition(".")[2]
        about = {"source": self.input, "answer": subject.answer, "model": f"{name}, {Path(self.model).name}"}
        picture = None
        if subject.pictured is not None:
            about["source"] = Path(self.input).name
            picture = Shown(subject.pictured, some)
        write_page(self.out, [maps for maps, _, _ in some], title="Attention", picture=picture, **about)

    def picture(self, subject: Any, shown: "View") -> None:
        from plait.inspect.overlay import draw_over
        from plait.inspect.picture import draw

        maps, queries, keys = shown
        if subject.pictured is None or not any(place[0] == place[0] for place in keys.places):  # NaN has no place
            draw(self.out, maps, layer=self.layer, head=self.head)
            return
        query = queries.first if self.query is None else self.query
        draw_over(self.out, subject.pictured, maps, queries, keys, query=query, layer=self.layer, head=self.head)


def named(given: Any) -> list[tuple[str, str, int, int]]:
    return [(f"{one} {value}", many, value, most) for one, many, value, most in given if value is not None]
