"""OmniAudio: training framework for spoken language models, from raw speech to a model that listens and talks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniaudio.dialogue.model import SpokenLanguageModel

__version__ = "0.1.0"


def load(folder: str | Path, device: str = "cpu") -> SpokenLanguageModel:
    """Load an exported model; needs neither Lightning, DeepSpeed nor Hydra.

    Args:
        folder: what ``omniaudio export`` wrote.
        device: a torch device.

    Raises:
        UserError: the folder is incomplete or its parts do not share one token layout.
    """
    from omniaudio.dialogue.model import SpokenLanguageModel

    return SpokenLanguageModel.from_folder(Path(folder), device)
