from pathlib import Path
from typing import Any

import pytest

import omniaudio
from omniaudio.dialogue.folder import write_model
from omniaudio.dialogue.model import SpokenLanguageModel
from tests.dialogue.tiny_experiment import write_experiment

SETTINGS: dict[str, Any] = {"max_text_tokens": 5, "max_frames": 6, "flow_steps": 2}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(exp_dir, data_dir) of a trained tiny experiment; tests that change it copy it first."""
    return write_experiment(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def parts(trained: tuple[Path, Path]) -> dict[str, Path]:
    """The folders of the trained parts."""
    stages = {"tokenizer": "tokenizer", "lm": "sft", "flow": "flow", "vocoder": "vocoder"}
    return {part: trained[0] / stage / "final" / part for part, stage in stages.items()}


@pytest.fixture(scope="session")
def exported(trained: tuple[Path, Path], parts: dict[str, Path]) -> Path:
    """The export of the tiny experiment."""
    folder = trained[0] / "export" / "model"
    write_model(folder, parts, trained[0] / "text_lm/tokenizer.json", SETTINGS)
    return folder


@pytest.fixture(scope="session")
def model(exported: Path) -> SpokenLanguageModel:
    return omniaudio.load(exported)
