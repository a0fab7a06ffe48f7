"""What was kept, what was dropped and why, as something that can be printed and stored."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3  # places named for each reason: enough to go and look, few enough to read


@dataclass(slots=True)
class Finding:
    """How often one thing happened, and where it happened first."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, where: str = "", count: int = 1) -> None:
        self.count += count
        if where and len(self.examples) < EXAMPLES:
            self.examples.append(where)

    def merge(self, other: "Finding") -> None:
        self.count += other.count
        self.examples = (self.examples + other.examples)[:EXAMPLES]

    def __str__(self) -> str:
        if not self.examples:
            return f"{self.count:,}"
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count:,} ({', '.join(self.examples)}{more})"


@dataclass(slots=True)
class Report:
    """Counts of one step over the data: `dropped` left the set, `noted` stayed in it but the user should know.

    Both map a reason in plain words to a `Finding`. `str(report)` is a few readable lines.
    """

    step: str
    kept: int = 0
    dropped: dict[str, Finding] = field(default_factory=dict)
    noted: dict[str, Finding] = field(default_factory=dict)
    unit: str = "pairs"

    def drop(self, reason: str, where: str = "", count: int = 1) -> None:
        self.dropped.setdefault(reason, Finding()).add(where, count)

    def note(self, reason: str, where: str = "", count: int = 1) -> None:
        self.noted.setdefault(reason, Finding()).add(where, count)

    @property
    def n_dropped(self) -> int:
        return sum(finding.count for finding in self.dropped.values())

    def lines(self) -> Iterable[str]:
        yield f"{self.step}: {self.kept:,} {self.unit} kept" + (f", {self.n_dropped:,} dropped" if self.dropped else "")
        for word, findings in (("dropped", self.dropped), ("note", self.noted)):
            for reason, finding in findings.items():
                yield f"  {word}: {reason}: {finding}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def asdict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, ready for JSON."""

        def plain(findings: dict[str, Finding]) -> dict[str, Any]:
            return {reason: {"count": f.count, "examples": list(f.examples)} for reason, f in findings.items()}

        return {"step": self.step, "kept": self.kept, "dropped": plain(self.dropped), "noted": plain(self.noted)}
