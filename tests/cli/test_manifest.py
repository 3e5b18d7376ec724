import pytest

from omniaudio.cli.main import main
from omniaudio.corpus.kaldi import KaldiFolder
from omniaudio.corpus.manifest import write_manifest
from tests.corpus.test_kaldi import check_round_trip, make_utterances


def test_a_prepared_corpus_goes_out_and_comes_back(tmp_path, capsys):
    utterances = make_utterances(tmp_path)
    for split, utterance in zip(("train", "dev", "test"), utterances, strict=True):
        write_manifest(tmp_path / "manifest" / f"{split}.jsonl", [utterance])
    for form in ("kaldi", "lhotse", "nemo"):
        main(["manifest", f"data_dir={tmp_path}", f"form={form}", f"out={tmp_path / form}"])
    assert capsys.readouterr().out.count(": 1 utterances in") == 9
    items = KaldiFolder(str(tmp_path / "kaldi"), "xx").inventory(tmp_path).items
    assert [item.split for item in items] == ["train", "dev", "test"]
    check_round_trip(utterances, items, tmp_path / "manifest")


def test_mistakes_are_one_line(tmp_path, capsys):
    for words, expected in (
        (["form=ark", "out=x"], "config form: 'ark' is not one of kaldi, lhotse, nemo"),
        ([f"data_dir={tmp_path}", "out=x"], "prepare the corpus first"),
    ):
        with pytest.raises(SystemExit):
            main(["manifest", *words])
        assert expected in capsys.readouterr().err
