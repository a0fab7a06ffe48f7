"""plait bench: what is timed against what."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from plait.errors import InputError, choices
from plait.verbs import positional


@dataclass
class Bench:
    """Measure Plait beside named peers, in one run, in turn."""

    job: Annotated[Literal["train-speed", "translate-speed", "quality"], positional, "what is measured"]
    only: Annotated[list[str], "NAMES", "contestants; default: all"] = field(default_factory=list)
    rounds: Annotated[int, "counted turns of each contestant"] = 12
    minutes: Annotated[float, "quality: training time of each contestant"] = 5.0
    data: Annotated[str | None, "quality, train-speed: a built-in set; default: cmudict, or random ids"] = None
    beams: Annotated[list[int], "translate-speed: widths of the search"] = field(default_factory=lambda: [4, 1])
    tiny: Annotated[bool, "toy shapes, to see that it runs"] = False
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    out: Annotated[Path | None, "FILE", "where the figures go; default bench/results/JOB-DATE.json"] = None

    def run(self) -> str:
        """The table; every figure goes to a JSON file as well."""
        import torch

        from plait.bench import measure, quality, train_speed, translate_speed
        from plait.bench.operations import Shape

        if self.threads:
            torch.set_num_threads(self.threads)
        known = {
            "train-speed": ["plait", *train_speed.PEERS, "plait modern"],
            "translate-speed": ["plait", *translate_speed.PEERS],
            "quality": ["plait", "marian"],
        }[self.job]
        if odd := [name for name in self.only if name not in known]:
            raise InputError(f"--only {' '.join(odd)}: not a contestant of {self.job}; there are {choices(known)}")
        if self.rounds < 1 or self.minutes <= 0:
            raise InputError(f"--rounds {self.rounds} --minutes {self.minutes}: both must be above 0")
        only = self.only or known
        settings = {"only": only, "rounds": self.rounds, "minutes": self.minutes, "data": self.data, "tiny": self.tiny}
        head = measure.record(self.job, torch.get_num_threads(), settings)
        with TemporaryDirectory() as folder:
            found, text = self.measured(only, Path(folder), Shape, train_speed, translate_speed, quality)
        out = self.out or Path("bench/results") / f"{self.job}-{head['date'][:10]}.json"
        measure.write({**head, "load_after": measure.load_average(), **found}, out)
        return f"{text}\n\n{head['machine']['cpu']}, {head['threads']} threads, torch {head['machine']['torch']}; all figures: {out}"

    def measured(self, only: list[str], folder: Path, shape: Any, train_speed: Any, translate_speed: Any, quality: Any) -> tuple[dict, str]:
        import torch

        if self.job == "train-speed":
            size = shape(32, 4, 2, 64, 100, 100) if self.tiny else shape(256, 4, 4, 1024, 8000, 8000)
            job = train_speed.Job(size, rows=4, length=8) if self.tiny else train_speed.Job(size, data=self.data)
            found = train_speed.run(job, self.rounds, only, folder)
            return found, train_speed.shown(found)
        if self.job == "translate-speed":
            size = shape(32, 4, 2, 64, 100, 100) if self.tiny else translate_speed.BASE
            lengths = dict(rows=2, source=5, target=5) if self.tiny else {}
            found = translate_speed.run(size, self.rounds, only, folder, torch.get_num_threads(), self.beams, **lengths)
            return found, translate_speed.shown(found)
        found = quality.run(self.data or "cmudict", self.minutes, only, folder)
        return found, quality.shown(found)
