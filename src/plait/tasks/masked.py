"""Masked language models: what stood where a token was hidden (Devlin et al. 2019, section 3.1)."""

from typing import Any

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.objective import EntryObjective, Vectors


class MaskedTokens(EntryObjective):
    """Cross-entropy at the hidden places alone; the head projects, activates and norms before it scores (section 3.1 and its code)."""

    head = "mlm"

    def vectors(self, net: Model, batch: Examples) -> Vectors:
        """What the last matrix of the head reads, of the hidden places."""
        found = super().vectors(net, batch)
        head: Any = found.head
        return Vectors(head.norm(head.activation(head.dense(found.hidden))), head.scores, found.answers)
