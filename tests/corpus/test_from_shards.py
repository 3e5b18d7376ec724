import json

import pytest

from omniaudio.corpus.from_shards import built_facts, write_clips
from omniaudio.corpus.join import join
from omniaudio.data.chats import chat_facts, to_clips
from omniaudio.data.shards import ShardWriter
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio, read_audio
from tests.corpus.make_audio import RATE_HZ, tone


def make_shards(folder, splits):
    """By split, three clips as a build writes them: key, flac and facts of each; two are parts of a chat."""
    written = {}
    for split in splits:
        name = f"{split}-000"
        (_, ask), (_, reply) = to_clips([("user", [0]), ("assistant", [1])], name)
        clips = []
        for place, more in enumerate((ask, reply, {"response": "Yes."})):
            wav_N = tone(0.8 + place / 10, hz=200 + 100 * place)
            facts = {
                "sample_rate_hz": RATE_HZ, "num_samples": len(wav_N), "text": f"clip {place} of {split}",
                "language": "en", "speaker": "a voice", "corpus": "built", "band_hz": 4000, **more,
            }  # fmt: skip
            clips.append({"key": f"{name}/{place:04d}", "flac": encode_audio(wav_N, RATE_HZ), **facts})
        with ShardWriter(folder, split) as writer:
            for clip in clips:
                facts = {fact: value for fact, value in clip.items() if fact not in ("key", "flac")}
                writer.write(clip["key"], {"flac": clip["flac"]}, {**facts, "score": 0.5, "band_hz": 4000.0})
        written[split] = clips
    return written


def test_clips_are_files_and_facts_are_kept(tmp_path):
    clips = make_shards(tmp_path / "shards", ["dev"])["dev"]
    found = write_clips(tmp_path / "shards", "dev", tmp_path / "clips")
    assert [u.key for u in found] == [clip["key"] for clip in clips]
    for utterance, clip in zip(found, clips, strict=True):
        assert utterance.audio_path == str(tmp_path / "clips" / f"{clip['key']}.flac")
        assert len(read_audio(utterance.audio_path, sample_rate_hz=RATE_HZ)) == utterance.num_samples
        assert (utterance.text, utterance.speaker, utterance.band_hz) == (clip["text"], "a voice", 4000)
    asked, replied, alone = found
    assert chat_facts(replied.chat, "")["role"] == "assistant" and json.loads(asked.chat)["turns"] == 2
    assert (alone.chat, alone.response) == ("", "Yes.")


def test_what_a_join_takes_for_one_kind_or_none_is_in_no_list(tmp_path):
    """Another reader of the same tars would train on it: only the index tells."""
    built, other = tmp_path / "built" / "shards", tmp_path / "other" / "shards"
    make_shards(built, ["train", "asr"])
    (held_out, *_) = make_shards(other, ["dev"])["dev"]
    with ShardWriter(other, "train") as writer:
        for key, text in (("kept", "new"), ("left", held_out["text"])):
            facts = {
                name: held_out[name]
                for name in ("sample_rate_hz", "num_samples", "language", "speaker", "corpus")
            }
            writer.write(key, {"flac": held_out["flac"]}, {**facts, "text": text})
    join([built.parent, other.parent], tmp_path / "both")
    found = write_clips(tmp_path / "both" / "shards", "train", tmp_path / "clips")
    assert [u.key for u in found] == [f"train-000/{i:04d}" for i in range(3)] + ["kept"]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"place": "1"}',
        '{"place": true}',
        '{"words": [["a", 0]]}',
        '{"num_samples": 1}',
        '{"role": "user"}',
        '{"cer": NaN}',
        '{"cer": 1' + "0" * 400 + "}",
        '{"../x": 1}',
        '{"spoken": "\\ud800"}',
    ],
)
def test_facts_that_no_build_writes_are_refused(text):
    with pytest.raises(UserError, match="m:1: built is .*, expected json with passage, place"):
        built_facts(text, "m:1")


def test_shards_without_sound_are_named(tmp_path):
    with ShardWriter(tmp_path, "dev") as writer:
        writer.write("a", {"txt": b"x"}, {"text": "x"})
    with pytest.raises(UserError, match="sample 'a' has no 'flac', only json, txt"):
        write_clips(tmp_path, "dev", tmp_path / "clips")
