"""plait eval: how good a model is on data with right answers, beside what needs no model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from plait.errors import InputError
from plait.verbs import positional
from plait.verbs.numbers import number_faults


@dataclass
class Eval:
    """Score a model on data with right answers (one JSON object on stdout)."""

    model: Annotated[str, positional, "a run folder, a released checkpoint's folder, or a name such as smollm2"]
    data: Annotated[
        list[str],
        "FILES",
        "as for train; of a built-in set its test part is taken; default: what the run was trained on, if built in",
    ] = field(default_factory=list)
    beams: Annotated[int, "of a translator: beams of the search; 1 is greedy"] = 4
    length_penalty: Annotated[float, "of a translator: exponent of ((5 + length) / 6) that scores are divided by"] = 0.6
    limit: Annotated[int | None, "score only the first so many inputs"] = None
    baselines: Annotated[bool, "score what needs no model as well, beside it"] = True
    out: Annotated[Path | None, "FILE", "of a translator: write source, answer and right answers as TSV"] = None
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None

    def run(self) -> dict[str, Any]:
        """{"task", "n", "metrics", "signatures", "baselines", "seconds"}; several right answers a source count, the nearest one."""
        if faults := number_faults(self, ("beams", "limit", "threads"), ("length_penalty",)):
            raise InputError("nothing can be scored so", faults)
        from plait.verbs.scoring import score

        return score(self)
