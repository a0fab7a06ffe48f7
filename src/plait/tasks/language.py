"""Language models: the next token of a text, learned from all texts at once."""

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.objective import ExampleObjective, Loss, asked


class NextToken(ExampleObjective):
    """Each entry's answer is the token that follows it (Radford et al. 2018, equation 1), where one is asked for."""

    tower, head = "decoder", "lm"

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = smoothing

    def loss(self, net: Model, batch: Examples) -> Loss:
        batch = self.on_device(net, batch)
        hidden, answers = asked(self.hidden(net, batch), batch.answers)
        return self.token_loss(net, hidden, answers, net.heads[self.head], self.smoothing)
