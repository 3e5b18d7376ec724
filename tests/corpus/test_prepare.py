import json
from dataclasses import replace

import numpy as np
import pytest

from omniaudio.corpus.asterisk import AsteriskSounds
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import Inventory, RawItem
from omniaudio.corpus.json_manifests import NemoManifest
from omniaudio.corpus.manifest import read_manifest
from omniaudio.corpus.messages import ChatMessages
from omniaudio.corpus.prepare import Plan, fetch, inventory_key, is_prepared, prepare
from omniaudio.corpus.split import SPLITS
from omniaudio.corpus.texts import NoTexts, TextFile
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio
from omniaudio.frontend.text import normalise_text
from tests.corpus.make_audio import make_asterisk, tone, write_audio

FRACTIONS = {"train": 0.5, "dev": 0.25, "test": 0.25}


@pytest.fixture
def make_plan(make_checks):
    def plan(checks=None, **changes):
        defaults = {
            "checks": make_checks(**(checks or {})),
            "split": FRACTIONS,
            "text_source": NoTexts(),
            "text_dev_share": 0.1,
            "max_shard_bytes": 100_000,
            "num_workers": 0,
            "key": "k",
        }
        return Plan(**{**defaults, **changes})

    return plan


def small_asterisk(root, bad=0):
    english = {f"w{i}": (f"word {i}", tone(0.5 + 0.05 * i)) for i in range(20)}
    english |= {f"short{i}": (f"short {i}", tone(0.1)) for i in range(bad)}
    make_asterisk(root, "en", english)
    make_asterisk(root, "it", {f"w{i}": (f"Word  {i}!", tone(0.5)) for i in range(20)}, bom=True)
    return AsteriskSounds(["en", "it"])


def contents(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "raw" not in p.parts
    }


def test_everything_is_there_and_agrees(tmp_path, make_plan):
    report = prepare(small_asterisk(tmp_path / "raw", bad=1), tmp_path, make_plan())
    place = {}
    for split in SPLITS:
        utterances = read_manifest(tmp_path / "manifest" / f"{split}.jsonl")
        reader = ShardReader(tmp_path / "shards", split)
        assert [entry.key for entry in reader.entries] == [u.key for u in utterances] and reader.verify()
        for position, utterance in enumerate(utterances):
            words = normalise_text(utterance.text, utterance.language)
            assert place.setdefault(words, split) == split, "a text in two splits"
            raw = read_audio(tmp_path / "manifest" / utterance.audio_path, sample_rate_hz=16_000)
            stored = read_audio(reader.read(position)["flac"], sample_rate_hz=16_000)
            assert np.array_equal(raw, stored) and len(raw) == utterance.num_samples
            facts = reader.entries[position].facts
            assert facts == {
                "num_samples": len(raw),
                "sample_rate_hz": 16_000,
                "text": utterance.text,
                "language": utterance.language,
                "speaker": utterance.speaker,
                "corpus": "asterisk",
                **({"translation": utterance.translation} if utterance.translation else {}),
            }
    assert len(place) == 20
    assert report == json.loads((tmp_path / "checks.json").read_text())
    assert (report["num_items"], report["num_good"], report["bad"]) == (41, 40, {"too short": 1})
    assert report["bad_items"][0]["key"] == "en/short0"
    assert sum(sum(by.values()) for by in report["clips"].values()) == 40
    minutes = 60 * sum(sum(by.values()) for by in report["hours"].values())
    assert minutes == pytest.approx((20 * 0.5 + sum(0.5 + 0.05 * i for i in range(20))) / 60, abs=0.1)
    assert "Carlo Flora" in (tmp_path / "ATTRIBUTION").read_text()


def test_equal_bytes_again_and_with_workers(tmp_path, make_plan):
    corpus = small_asterisk(tmp_path / "raw")
    corpus.root = tmp_path / "raw"
    prepare(corpus, tmp_path / "a", make_plan())
    before = contents(tmp_path / "a")
    prepare(corpus, tmp_path / "a", make_plan())
    assert contents(tmp_path / "a") == before
    prepare(corpus, tmp_path / "b", make_plan(num_workers=2))
    assert contents(tmp_path / "b") == before


def test_done_is_known_by_the_key_and_whole_shards(tmp_path, make_plan):
    assert not is_prepared(tmp_path, "k")
    prepare(small_asterisk(tmp_path / "raw"), tmp_path, make_plan())
    assert is_prepared(tmp_path, "k") and not is_prepared(tmp_path, "other")
    shard = tmp_path / "shards" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert not is_prepared(tmp_path, "k")


def test_a_killed_run_is_not_done_and_can_be_repeated(tmp_path, make_plan, monkeypatch):
    corpus = small_asterisk(tmp_path / "raw")
    prepare(corpus, tmp_path, make_plan())
    before = contents(tmp_path)
    written = []

    def killed(*args):
        written.append(args)
        if len(written) > 30:
            raise KeyboardInterrupt
        return original(*args)

    original = prepare.__globals__["_flac"]
    monkeypatch.setitem(prepare.__globals__, "_flac", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path, make_plan())
    assert not is_prepared(tmp_path, "k")
    monkeypatch.undo()
    prepare(corpus, tmp_path, make_plan())
    assert contents(tmp_path) == before


def test_too_many_bad_recordings_stop_the_run(tmp_path, make_plan):
    corpus = small_asterisk(tmp_path / "raw", bad=5)
    with pytest.raises(
        UserError, match=r"5 of 45 recordings are bad \(too short: 5; first: en/short0: 0\.10 s"
    ):
        prepare(corpus, tmp_path, make_plan())
    assert len(json.loads((tmp_path / "checks.json").read_text())["bad_items"]) == 5
    assert not (tmp_path / "shards").exists()
    prepare(corpus, tmp_path, make_plan({"max_bad_share": 0.2}))
    assert is_prepared(tmp_path, "k")


def test_texts_hold_the_transcripts_of_their_split_and_the_source(tmp_path, make_plan):
    (tmp_path / "more.txt").write_text("".join(f"more text {i}\n" for i in range(200)))
    plan = make_plan(text_source=TextFile(str(tmp_path / "more.txt")))
    prepare(small_asterisk(tmp_path / "raw"), tmp_path, plan)
    texts = {name: (tmp_path / "texts" / f"{name}.txt").read_text().splitlines() for name in ("train", "dev")}
    for split in ("train", "dev"):
        spoken = {u.text for u in read_manifest(tmp_path / "manifest" / f"{split}.jsonl")}
        assert spoken == {line for line in texts[split] if not line.startswith("more")}
        assert len(texts[split]) == len(set(texts[split]))
    assert 5 < sum(line.startswith("more") for line in texts["dev"]) < 40
    assert sum(line.startswith("more") for lines in texts.values() for line in lines) == 200
    tested = {u.text for u in read_manifest(tmp_path / "manifest" / "test.jsonl")}
    assert not tested & {line for lines in texts.values() for line in lines}


def test_a_users_folder_of_another_rate(tmp_path, make_plan):
    for i in range(12):
        write_audio(tmp_path / "mine" / f"{i}.wav", tone(rate_hz=8_000), rate_hz=8_000)
        (tmp_path / "mine" / f"{i}.txt").write_text(f"sentence {i}")
    corpus = AudioFolder(str(tmp_path / "mine"), "en")
    fetch(corpus, tmp_path / "data")
    with pytest.raises(
        UserError, match=r"wrong sample rate: 12.*8000 Hz, expected 16000 \(checks\.resample=true"
    ):
        prepare(corpus, tmp_path / "data", make_plan())
    prepare(corpus, tmp_path / "data", make_plan({"resample": True}))
    utterance = read_manifest(tmp_path / "data" / "manifest" / "train.jsonl")[0]
    assert (utterance.sample_rate_hz, utterance.num_samples) == (8_000, 8_000)
    assert utterance.audio_path == str((tmp_path / "mine").resolve() / f"{utterance.key}.wav")
    facts = ShardReader(tmp_path / "data" / "shards", "train").entries[0].facts
    assert (facts["sample_rate_hz"], facts["num_samples"]) == (16_000, 16_000)


def test_an_empty_split_is_named(tmp_path, make_plan):
    write_audio(tmp_path / "mine" / "a.wav")
    (tmp_path / "mine" / "a.txt").write_text("only one")
    with pytest.raises(UserError, match=r"split '(train|dev|test)' is empty; add recordings"):
        prepare(AudioFolder(str(tmp_path / "mine"), "en"), tmp_path / "data", make_plan())


def test_a_chat_is_in_one_split_and_may_have_sounds_without_words(tmp_path, make_plan):
    lines = []
    for i in range(24):
        parts = [{"type": "audio", "audio": f"q{i}.wav"}]
        chat = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": f"reply {i}", "audio": {"path": f"a{i}.wav"}},
        ]
        lines.append(json.dumps({"id": f"chat{i}", "messages": chat}) + "\n")
        for name in "qa":
            write_audio(tmp_path / "in" / f"{name}{i}.wav", tone(0.05 if (name, i) == ("a", 3) else 0.6))
    (tmp_path / "in" / "chats.jsonl").write_text("".join(lines))
    corpus = ChatMessages(str(tmp_path / "in" / "chats.jsonl"), "en", "chats")
    report = prepare(corpus, tmp_path / "out", make_plan())
    assert report["bad"] == {"too short": 1} and report["chats"] == {"whole": 23, "without a whole reply": 1}
    split_of_chat = {}
    for split in SPLITS:
        for entry in ShardReader(tmp_path / "out" / "shards", split).entries:
            split_of_chat.setdefault(entry.facts["passage"], set()).add(split)
            assert "chat" not in entry.facts and entry.facts["turns"] == 2
    assert len(split_of_chat) == 24 and all(len(splits) == 1 for splits in split_of_chat.values())
    assert len(set.union(*split_of_chat.values())) == 3
    again = read_manifest(tmp_path / "out" / "manifest" / "train.jsonl")[0]
    assert json.loads(again.chat)["passage"] in split_of_chat


def test_when_a_line_is_said_in_its_dialogue_does_not_matter_to_what_is_prepared(tmp_path):
    item = RawItem(key="a", path=tmp_path / "a.wav", text="t", language="en", speaker="s")
    keys = [inventory_key(Inventory([replace(item, order=order)])) for order in ((), (1, 2))]
    assert keys[0] == keys[1] != inventory_key(Inventory([replace(item, text="u")]))


def test_a_passage_of_a_build_is_in_one_split_and_what_was_prepared_before_keeps_its_key(tmp_path, make_plan):
    lines = []
    for i in range(48):
        write_audio(tmp_path / "in" / f"{i}.wav", tone(0.6))
        built = json.dumps({"passage": f"p{i // 2}", "place": i % 2})
        lines.append(
            json.dumps({"audio_filepath": f"{i}.wav", "text": f"say number {i}", "built": built}) + "\n"
        )
    (tmp_path / "in" / "list.jsonl").write_text("".join([*lines[1::2], *lines[::2]]))  # a shuffled list
    prepare(NemoManifest(str(tmp_path / "in" / "list.jsonl"), "en", "n"), tmp_path / "out", make_plan())
    places = {}
    for split in SPLITS:
        for entry in ShardReader(tmp_path / "out" / "shards", split).entries:
            places.setdefault(entry.facts["passage"], []).append((split, entry.facts["place"]))
    assert len(places) == 24 and len({split for (split, _), _ in places.values()}) == 3
    assert all(found == [(found[0][0], 0), (found[0][0], 1)] for found in places.values())
    item = RawItem(key="a", path=tmp_path / "a.wav", text="t", language="en", speaker="s")
    assert inventory_key(Inventory([item])) == "3a61379d6b22e749"


def test_lines_that_cannot_be_used_are_bad_and_what_a_list_means_to_leave_out_is_not(tmp_path, make_plan):
    for i in range(24):
        write_audio(tmp_path / "in" / f"{i}.wav", tone(0.6))
    say = {"role": "user", "content": [{"type": "audio", "audio": "0.wav"}]}
    good = [
        {"id": f"c{i}", "messages": [{**say, "content": [{"type": "audio", "audio": f"{i}.wav"}]}]}
        for i in range(24)
    ]
    written = [{"id": f"w{i}", "messages": [{"role": "user", "content": "Only written."}]} for i in range(12)]
    lines = [json.dumps(line) for line in (*good, *written)]
    path = tmp_path / "in" / "chats.jsonl"
    path.write_text("\n".join([*lines, '{"id"', '{"messages": "x"}', '{"messages": 1']))
    corpus = ChatMessages(str(path), "en", "chats")
    with pytest.raises(
        UserError, match=r"3 of 27 recordings are bad \(not valid json: 2, messages is no list: 1; .*:37"
    ):
        prepare(corpus, tmp_path / "out", make_plan())
    report = prepare(corpus, tmp_path / "out", make_plan(checks={"max_bad_share": 0.2}))
    assert report["bad"] == {"not valid json": 2, "messages is no list": 1}
    assert report["left_out"] == {"chat without a sound": 12} and (
        report["num_good"],
        report["num_items"],
    ) == (24, 27)
    assert [item["key"] for item in report["bad_items"]] == [f"{path}:{number}" for number in (37, 38, 39)]
    assert "line 2 column 1" in report["bad_items"][0]["detail"]
