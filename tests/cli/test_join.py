import pytest

from omniaudio.cli.main import main
from omniaudio.data.shards import ShardReader
from tests.corpus.test_join import built, prepared  # noqa: F401  fixtures


def test_folders_become_one(built, prepared, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "both"
    main(["join", f"folders=[{prepared},{built}]", f"data_dir={out}"])
    said = capsys.readouterr().out
    assert f"{prepared}: train 5, dev 2, test 1" in said and f"joined in {out}" in said
    assert "asr" in said.split(str(built))[1]
    assert len(ShardReader(out / "shards", "dev")) >= 2
    with pytest.raises(SystemExit):
        main(["join", f"folders={prepared}", f"data_dir={out}"])
    assert "must be a list" in capsys.readouterr().err
