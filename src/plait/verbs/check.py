"""plait check: what a load of released weights proved."""

from dataclasses import dataclass
from typing import Annotated

from plait.verbs import positional


@dataclass
class Check:
    """Load released weights and print the certificate: what was claimed, tied and dropped."""

    model: Annotated[str, positional, "a checkpoint's folder, or a name such as minilm"]

    def run(self) -> str:
        """The certificate; InputError with all faults where the files are not the model they say."""
        from plait.errors import InputError
        from plait.hub import place
        from plait.hub.checkpoints import is_checkpoint, open_checkpoint

        folder = place(self.model)
        if not is_checkpoint(folder):
            raise InputError(f"{folder}: is no released checkpoint (a folder whose config.json has a model_type, or a GGUF)")
        return open_checkpoint(folder).told()
