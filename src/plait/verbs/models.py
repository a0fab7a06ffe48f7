"""plait models: what there is to build, and what of others it opens."""

import textwrap
from dataclasses import dataclass, fields
from itertools import groupby, product
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

from plait.verbs import Rows

WIDTH = 120  # columns of what is printed


class Pages(Rows):
    """Rows of presets, shown a page at a time: the paper, what it does, which files it opens, its presets with their totals."""

    def __str__(self) -> str:
        told = []
        for arch, rows in groupby(self, lambda row: row["page"]):
            presets = list(rows)
            page = presets[0]
            told.append(_listed(arch, [page["model"]]))
            told += [_listed(f"  {task}:", names or ["trained here"]) for task, names in page["tasks"].items()]
            told += [_listed("  opens:", [kind.replace(" ", "\xa0") for kind in page["opens"]])] * bool(page["opens"])
            told += [_listed("  presets:", [f"{row['preset']}\xa0{_short(row['parameters'])}" for row in presets]), ""]
        return "\n".join(told[:-1]).replace("\xa0", " ")


@dataclass
class Models:
    """List the models there are, with their presets and parameter totals."""

    vocab_size: Annotated[int, "tokens that totals of untrained translators are counted for, one vocabulary for both sides"] = 37000
    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Pages:
        """One row a preset; the models are built without memory to count them."""
        import torch

        from plait import models
        from plait.core.model import parameters

        rows = Pages()
        with torch.device("meta"):
            for arch, page in models.PAGES.items():
                facts = {"model": (page.__doc__ or "").strip().partition("\n")[0], "tasks": tasks(arch, page), "opens": opens(page)}
                for size, config in page.PRESETS.items():
                    # Released models have a vocabulary; those that are only trained here are counted for the one asked for.
                    own = hasattr(page, "KEYS") and not models.of_pairs(arch)
                    vocab = {} if own else models.vocabulary(arch, self.vocab_size, self.vocab_size, "all")
                    total = parameters(models.build(arch, {**config, **vocab}))
                    rows.append({"preset": f"{arch}-{size}", "parameters": total, "shape": config, "page": arch, **facts})
        return rows


def tasks(arch: str, page: ModuleType) -> dict[str, list[str]]:
    """What models of a page do, each with the architectures of others that do it: those that its config.json names, and is compared with.

    Both are asked of the page: each of its heads is built, its config.json written, and what comes of it looked at as `plait.load` does.
    """
    from plait.hub.checkpoints import kind_of
    from plait.hub.ready import Parts
    from plait.models import of_pairs, vocabulary
    from plait.weights.certificate import Certificate

    found: dict[str, list[str]] = {"translation": []} if of_pairs(arch) else {}
    heads = next((get_args(f.type) for f in fields(page.Config) if f.name == "head"), ())
    for head, table in product([{"head": head} for head in heads] or [{}], getattr(page, "KEYS", () if found else (None,))):
        settings = page.Config(**{**vocabulary(arch, 64, 64), **page.PRESETS["tiny"], **head})
        try:
            net, config = page.build(settings), {} if table is None else _config(table, settings)
        except ValueError:  # a head that needs another setting as well
            continue
        if kind := kind_of(net):
            names = found.setdefault(kind(Parts(Path(), net, None, Certificate("", {}), config=config)).task, [])
            names += [name for name in config.get("architectures", ()) if name not in names]
    return found


def _config(table: Any, settings: Any) -> dict[str, Any]:
    """The config.json of these settings; of a table that cannot say them, only which kind of model it is."""
    from plait.errors import InputError
    from plait.weights.config import write

    try:
        return write([table], vars(settings))
    except InputError:
        return {"model_type": table.model_type, **(table.extra or {})}


def opens(page: ModuleType) -> list[str]:
    """The kinds of files that a page reads, as they call themselves: a config.json, a GGUF, a model of CTranslate2."""
    kinds = [f"config.json {table.model_type}" for table in getattr(page, "KEYS", ())]
    kinds += [f"GGUF {kind}" for kind in getattr(page, "GGUF", ())]
    return kinds + [f"CTranslate2 {kind}" for kind in getattr(page, "CTRANSLATE2", ())]


def _listed(head: str, names: list[str]) -> str:
    """A paragraph of names beside its head; it is broken between names alone."""
    return textwrap.fill(f"{head:15} {', '.join(names)}", WIDTH, subsequent_indent=" " * 16, break_on_hyphens=False)


def _short(total: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if total >= size:
            return f"{total / size:.3g}\xa0{letter}"
    return f"{total / 1e3:.3g}\xa0k"
