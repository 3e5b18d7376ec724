import json
from collections import Counter

import numpy as np
import pytest

from omniaudio.corpus.recorded_pairs import write_recorded
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy, load_npy
from omniaudio.errors import UserError

FACTS = {"codebook_sizes": [300, 4], "code_rate_hz": 12.5}
VOICES = [("en", "ann"), ("en", "bob"), ("it", "ann")]
ALL = {"train": 1000, "dev": 1000}


def codes_of(split, voice, i):
    """Codes that are of one clip alone, the lengths shuffled."""
    num_frames = 5 + (7 * i) % 20
    return np.stack(
        [np.full(num_frames, 100 * (split == "dev") + 20 * voice + i), np.arange(num_frames) % 4], 1
    )


def write_clips(folder, split, number, **changes):
    with ShardWriter(folder, split, fingerprint=FACTS) as writer:
        for voice, (language, speaker) in enumerate(VOICES):
            for i in range(number):
                codes = codes_of(split, voice, i).astype(np.uint16)
                facts = {
                    "text": f"{split} {i}",
                    "language": language,
                    "speaker": speaker,
                    "num_frames": len(codes),
                }
                facts |= {name: change(i) for name, change in changes.items()}
                writer.write(f"{split}/{voice}-{i}", {"codes.npy": dump_npy(codes)}, facts)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    write_clips(folder, "train", 20)
    write_clips(folder, "dev", 4)
    return folder


def made(clips, folder, split, **changes):
    told = write_recorded(clips, folder, **{"num_prompts": ALL, "seed": 1, **changes})
    return ShardReader(folder, split), told


@pytest.mark.parametrize("same_length", [True, False])
@pytest.mark.parametrize(("split", "number"), [("train", 20), ("dev", 4)])
def test_a_clip_against_another_of_its_voice_and_split(clips, tmp_path, split, number, same_length):
    reader, told = made(clips, tmp_path, split, same_length=same_length)
    entries = {entry.key: entry for entry in ShardReader(clips, split).entries}
    assert told[split]["prompts"] == told[split]["pairs"] == len(reader) == 3 * number
    assert reader.fingerprint == FACTS
    rejected_of, differences = {}, []
    for i, pair in enumerate(reader.entries):
        own, other = entries[pair.key].facts, entries[pair.facts["rejected_of"]].facts
        assert json.loads(pair.facts["prompt"]) == own["text"] != other["text"] == pair.facts["rejected_text"]
        assert (own["language"], own["speaker"]) == (other["language"], other["speaker"])
        differences.append(abs(own["num_frames"] - other["num_frames"]))
        assert (pair.facts["language"], pair.facts["chosen"], pair.facts["rejected"]) == (
            own["language"],
            "[0]",
            "[1]",
        )
        sounds = load_npy(reader.member(i, "codes.npy"))
        first = [
            codes_of(split, *map(int, key.split("/")[1].split("-")))
            for key in (pair.key, pair.facts["rejected_of"])
        ]
        assert np.array_equal(sounds, np.concatenate(first)) and pair.facts["sounds"] == [*map(len, first)]
        rejected_of[pair.key] = pair.facts["rejected_of"]
    assert number == 4 or (max(differences) == 1) == same_length
    assert all(rejected_of[rejected_of[key]] == key for key in entries), (
        "each is chosen once and rejected once"
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_seed_says_which_pairs_and_a_few_are_some_of_all(clips, tmp_path):
    few = {"train": 7, "dev": 2}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        reader, told = made(clips, tmp_path / name, "train", num_prompts=few, seed=seed)
        assert told["train"]["pairs"] == len(reader) == 6 and told["dev"]["pairs"] == 2
        assert told["train"]["left out: num_prompts asks for no more"] == 60 - 6
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a["train-000000.tar"] != c["train-000000.tar"]


def test_what_cannot_be_paired_is_counted_by_reason(tmp_path):
    codes, pairs = tmp_path / "codes", tmp_path / "pairs"
    write_clips(codes, "train", 5)  # the fifth of each voice has nobody
    # of 3 x 6 clips three have no text, three are for chats alone, three are nobody's, of nine the words are one's
    write_clips(
        codes,
        "dev",
        6,
        text=lambda i: ["", "a b", "a b", "A, b!", "a b", "c"][i],
        only=lambda i: "sft_chat" if i == 1 else "tts",
        speaker=lambda i: "" if i == 2 else "ann",
    )
    told = write_recorded(codes, pairs, ALL, seed=1)
    assert told["train"]["left out: its voice has no other clip that is free"] == 3
    assert told["train"]["pairs"] == 12 == told["train"]["prompts"] - 3
    dev = told["dev"]
    assert dev["left out: it has no text, or is for another kind of document"] == 6
    assert dev["left out: its speaker is unknown"] == 3
    same = "left out: the clip beside it has the same words"
    assert dev[same] > 0 and sum(n for name, n in dev.items() if name != "prompts") == dev["prompts"] == 18
    for entry in ShardReader(pairs, "dev").entries:
        assert "c" in (json.loads(entry.facts["prompt"]), entry.facts["rejected_text"])


def test_mistakes_are_one_line(clips, tmp_path):
    with pytest.raises(UserError, match=r"config num_prompts\.dev: 1 must be at least 2"):
        write_recorded(clips, tmp_path / "pairs", {"train": 2, "dev": 1}, seed=1)
    with pytest.raises(UserError, match="config same_length: 'some' must be true or false"):
        write_recorded(clips, tmp_path / "pairs", ALL, seed=1, same_length="some")
    with pytest.raises(UserError, match="test"):
        write_recorded(clips, tmp_path / "pairs", {"test": 2}, seed=1)
    write_clips(tmp_path / "codes", "train", 0)
    assert write_recorded(tmp_path / "codes", tmp_path / "pairs", {"train": 2}, seed=1)["train"] == {}


def test_no_clip_is_chosen_twice_however_many_are_asked_for(clips, tmp_path):
    reader, _ = made(clips, tmp_path, "train", num_prompts={"train": 40})
    counts = Counter(entry.facts["rejected_of"] for entry in reader.entries)
    assert counts.keys() == {entry.key for entry in reader.entries} and set(counts.values()) == {1}
