"""Language models: the next token of a text, learned from all texts at once."""

from plait.tasks.objective import EntryObjective


class NextToken(EntryObjective):
    """Each entry's answer is the token that follows it (Radford et al. 2018, equation 1), where one is asked for."""

    tower, head = "decoder", "lm"
