import pytest

from omniaudio.cli.main import main
from omniaudio.corpus.kaldi import KaldiFolder
from omniaudio.corpus.manifest import write_manifest
from omniaudio.corpus.split import SPLITS
from omniaudio.data.shards import ShardReader
from tests.cli.test_build import built
from tests.corpus.make_audio import tone, write_audio
from tests.corpus.test_from_shards import make_shards
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


def shards(folder):
    """By split: facts and sound of every clip."""
    found = {}
    for split in SPLITS:
        reader = ShardReader(folder / "shards", split)
        found[split] = {e.key: (e.facts, reader.member(i, "flac")) for i, e in enumerate(reader.entries)}
    return found


def prepare_list(form, out, data_dir, *more):
    """Prepare what was written in a form, with the checks as they stand in the config."""
    name = {"lhotse": "cuts.jsonl.gz", "nemo": "manifest.json"}.get(form)
    path = f"corpus.path={{{','.join(f'{split}: {out}/{split}/{name}' for split in SPLITS)}}}"
    where = path if name else f"corpus.folder={out}"
    main(
        [
            "prepare",
            f"corpus={form}",
            where,
            f"data_dir={data_dir}",
            "text_source=none",
            "num_workers=0",
            *more,
        ]
    )


@pytest.mark.parametrize("form", ["kaldi", "lhotse", "nemo"])
def test_a_corpus_of_another_rate_is_prepared_alike_from_its_lists(tmp_path, form):
    for i in range(24):
        rate_hz = 11_025 if i == 5 else 22_050
        write_audio(tmp_path / "mine" / f"{i}.wav", tone(0.5 + i / 40, rate_hz=rate_hz), rate_hz)
    rows = [f"{i}\tword {i}\tAnna van {i % 3}%20\t{('en', 'nl')[i % 2]}\n" for i in range(24)]
    (tmp_path / "mine" / "transcripts.tsv").write_text("".join(rows))
    words = ["corpus=folder", f"corpus.folder={tmp_path}/mine", f"data_dir={tmp_path}/first", "num_workers=0"]
    shares = ["split={train: 0.5, dev: 0.25, test: 0.25}", "checks.resample=true", "text_source=none"]
    main(["prepare", *words, *shares])
    main(["manifest", f"data_dir={tmp_path}/first", f"form={form}", f"out={tmp_path}/out"])
    prepare_list(form, tmp_path / "out", tmp_path / "second")
    first, second = shards(tmp_path / "first"), shards(tmp_path / "second")
    assert sum(map(len, first.values())) == 24 and first == second
    facts = {key: facts for split in SPLITS for key, (facts, _) in second[split].items()}
    assert facts["4"]["speaker"] == "Anna van 1%20" and facts["5"]["band_hz"] == 5512


@pytest.mark.parametrize("form", ["kaldi", "lhotse", "nemo"])
def test_the_clips_of_a_built_folder_go_out_and_come_back(tmp_path, form, capsys):
    built = make_shards(tmp_path / "built" / "shards", ("train", "dev", "test"))
    main(["manifest", f"data_dir={tmp_path}/built", f"form={form}", f"out={tmp_path}/out"])
    assert "dev: 3 utterances" in capsys.readouterr().out
    prepare_list(form, tmp_path / "out", tmp_path / "again")
    for split, clips in shards(tmp_path / "again").items():
        assert clips.keys() == {facts["key"] for facts in built[split]}
        for told in built[split]:
            facts, flac = clips[told.pop("key")]
            assert flac == told.pop("flac") and facts == {**told, "score": 0.5}


def test_all_that_a_build_knows_goes_out_and_comes_back(tmp_path, monkeypatch):
    texts = "It costs $5 today, not $6. This is another sentence.\nThere is one more, of 7 words.\n"
    (tmp_path / "t.txt").write_text(texts)
    words = ["pipeline=synthetic", "text_source=file", f"text_source.path={tmp_path / 't.txt'}"]
    clips = built(tmp_path, monkeypatch, *words)
    assert {name for _, facts in clips for name in facts} > {
        "passage",
        "place",
        "start_sec",
        "spoken",
        "words",
        "cer",
    }
    assert [facts["place"] for _, facts in clips] == [0, 1, 0]
    for form in ("kaldi", "lhotse", "nemo"):
        main(["manifest", f"data_dir={tmp_path}/out", f"form={form}", f"out={tmp_path}/{form}"])
        again = tmp_path / f"{form}_again"
        prepare_list(form, tmp_path / form, again, "split={train: 1, dev: 0, test: 0}")
        assert list(shards(again)["train"].items()) == list(shards(tmp_path / "out")["train"].items())


def test_mistakes_are_one_line(tmp_path, capsys):
    for words, expected in (
        (["form=ark", "out=x"], "config form: 'ark' is not one of kaldi, lhotse, nemo"),
        ([f"data_dir={tmp_path}", "out=x"], "prepare the corpus first"),
    ):
        with pytest.raises(SystemExit):
            main(["manifest", *words])
        assert expected in capsys.readouterr().err
