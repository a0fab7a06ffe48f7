"""Where a run's figures go besides metrics.jsonl: TensorBoard and Weights & Biases, each behind one `add`."""

from pathlib import Path
from typing import Any, Protocol

from plait.errors import InputError


class Tracker(Protocol):
    def add(self, row: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`; the optimizer's step is the step of every curve."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard: the package tensorboard is not installed: pip install 'plait[tensorboard]'") from None
        self.writer = SummaryWriter(str(folder))

    def add(self, row: dict[str, Any]) -> None:
        for name, value in figures(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of `project`, with what the run was started with as its config; a resumed run goes on with the one it had."""

    def __init__(self, project: str, name: str, config: dict[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("--wandb: the package wandb is not installed: pip install 'plait[wandb]'") from None
        self.run = wandb.init(project=project, name=name, id=name, config=config, resume="allow")

    def add(self, row: dict[str, Any]) -> None:
        self.run.log(figures(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


def figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
