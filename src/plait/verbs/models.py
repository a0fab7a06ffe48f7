"""plait models: what there is to build."""

from dataclasses import dataclass
from typing import Annotated

from plait.verbs import Rows


@dataclass
class Models:
    """List the models there are, with their presets and parameter totals."""

    vocab_size: Annotated[int, "tokens that the totals are counted for, one vocabulary for both sides"] = 37000
    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Rows:
        """One row a preset; the models are built without memory to count them."""
        import torch

        from plait import models
        from plait.core.model import parameters

        rows = Rows()
        for arch, page in models.PAGES.items():
            paper = (page.__doc__ or "").strip().partition("\n")[0]
            for size, config in page.PRESETS.items():
                # A released size has its vocabulary; the others are counted for the one asked for.
                vocab = {} if "vocab_size" in config else models.vocabulary(arch, self.vocab_size, self.vocab_size, "all")
                with torch.device("meta"):
                    total = parameters(models.build(arch, {**config, **vocab}))
                shape = " ".join(f"{name}={value}" for name, value in config.items())
                rows.append({"preset": f"{arch}-{size}", "parameters": total, "shape": shape, "model": paper})
        return rows
