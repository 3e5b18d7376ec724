import pytest

from omniaudio.corpus.asterisk import AsteriskSounds
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import Corpus
from omniaudio.corpus.manifest import read_manifest
from omniaudio.corpus.prepare import Plan, prepare
from omniaudio.corpus.several import Several
from omniaudio.corpus.split import SPLITS
from omniaudio.corpus.texts import NoTexts
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio
from tests.corpus.make_audio import make_asterisk, tone, write_audio


@pytest.fixture
def both(tmp_path):
    words = {f"w{i}": (f"word {i}", tone()) for i in range(12)}
    make_asterisk(tmp_path / "raw" / "prompts", "en", words)
    make_asterisk(tmp_path / "raw" / "prompts", "it", {name: (f"parola {name}", tone()) for name in words})
    own = tmp_path / "own"
    for i in range(12):
        write_audio(own / f"c{i}.wav", tone(rate_hz=8000), rate_hz=8000)
    (own / "transcripts.tsv").write_text("".join(f"c{i}\tword {i}\n" for i in range(12)))
    return Several({"prompts": AsteriskSounds(["it", "en"]), "own": AudioFolder(str(own), "en")}, "both")


def plan(checks):
    shares = {"train": 0.5, "dev": 0.25, "test": 0.25}
    return Plan(
        checks=checks, split=shares, text_source=NoTexts(), text_dev_share=0.1,
        max_shard_bytes=1_000_000, num_workers=0, key="k",
    )  # fmt: skip


def test_keys_and_shards_tell_where_a_recording_is_from(tmp_path, both, make_checks):
    assert isinstance(both, Corpus)
    prepare(both, tmp_path, plan(make_checks(resample=True)))
    found = [(split, u) for split in SPLITS for u in read_manifest(tmp_path / "manifest" / f"{split}.jsonl")]
    assert len(found) == 36 and len({u.key for _, u in found}) == 36
    assert {(u.key.split("/")[0], u.corpus) for _, u in found} == {("prompts", "prompts"), ("own", "own")}
    texts = {}
    for split, u in found:
        assert texts.setdefault((u.language, u.text), split) == split, "a text of both corpora in two splits"
    for split in SPLITS:
        reader = ShardReader(tmp_path / "shards", split)
        found_bands = {(entry.facts["corpus"], entry.facts.get("band_hz")) for entry in reader.entries}
        assert found_bands == {("prompts", None), ("own", 4000)}, "recorded at 8 kHz: no sound above 4"
    assert (tmp_path / "ATTRIBUTION").read_text().count("\n\n") == 1


def test_training_never_holds_a_text_that_is_held_out(tmp_path, both, make_checks):
    """Translations are the English prompts, some of which are spoken in held-out clips."""
    prepare(both, tmp_path, plan(make_checks(resample=True)))
    held_out, translated, without = set(), 0, 0
    for split in ("dev", "test"):
        for u in read_manifest(tmp_path / "manifest" / f"{split}.jsonl"):
            held_out.add(u.text)
            assert u.language != "it" or u.translation == u.text.replace("parola w", "word ")
    for u in read_manifest(tmp_path / "manifest" / "train.jsonl"):
        assert u.translation not in held_out
        translated += bool(u.translation)
        without += u.language == "it" and not u.translation
    assert translated and without


def test_a_corpus_may_state_its_own_rate(tmp_path, both, make_checks):
    from dataclasses import replace

    item = both.inventory(tmp_path / "raw").items[-1]
    assert make_checks().check(item).reason == "wrong sample rate"
    stated = replace(item, sample_rate_hz=8000)
    assert make_checks().check(stated).reason is None
    assert len(make_checks().load(stated)) == 16000
    again = replace(stated, path=write_audio(tmp_path / "other.wav"))
    assert make_checks().check(again).detail.startswith("16000 Hz, expected 8000")
    assert len(read_audio(again.path)) == 16000


def test_none_is_a_mistake():
    with pytest.raises(UserError, match="corpora: none given"):
        Several({}, "x")
