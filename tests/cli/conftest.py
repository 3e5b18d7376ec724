from pathlib import Path
from typing import Any

import pytest

from tests.dialogue.tiny_experiment import write_experiment


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(exp_dir, data_dir) of a trained tiny experiment; tests that change it copy it first."""
    return write_experiment(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def composed(trained: tuple[Path, Path]) -> Any:
    """(verb, *overrides) -> the config of that verb for the tiny experiment."""
    from omniaudio.cli.main import compose

    exp_dir, data_dir = trained

    def of(verb: str, *overrides: str) -> dict[str, Any]:
        where = ["system=made", "scale=tiny", "tag=tiny", f"exp_dir={exp_dir}", f"data_dir={data_dir}"]
        return compose(verb, [*where, *overrides])

    return of


SMALL = ["dialogue.max_text_tokens=6", "dialogue.max_frames=6", "dialogue.flow_steps=2"]


@pytest.fixture(scope="session")
def exported(composed: Any) -> Path:
    """The export of the tiny experiment."""
    from omniaudio.cli import export

    config = composed("export", *SMALL)
    export.main(config)
    return Path(config["model_dir"])
