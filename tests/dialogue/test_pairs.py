import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

import omniaudio
from omniaudio.corpus.build.pipeline import DONE
from omniaudio.data.extraction import join_shards
from omniaudio.data.mixture import PlannedDocument, seed_of
from omniaudio.data.pairs import PairSteps
from omniaudio.data.shards import ShardReader, ShardWriter, load_npy
from omniaudio.dialogue.folder import write_model
from omniaudio.dialogue.pairs import PairMaker, error_rate, fault_of, jobs_of, parts_of
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.generate import Generator

SAMPLING = {"_target_": "omniaudio.lm.sampling.SamplingSettings", "temperature": 3.0}
SETTINGS = {
    "text": SAMPLING, "audio": SAMPLING, "max_text_tokens": 60, "max_frames": 300, "flow_steps": 1,
    "mel_path": "coarse",
}  # fmt: skip
FRAME = 1920  # samples
PROMPTS = {"train": 4, "dev": 2}


def hear(reply):
    """What the stand-in writes of a reply."""
    return "a" if reply["wav"] is not None and len(reply["wav"]) // FRAME % 2 else ""


class StandIn:
    """Hears a word of one letter, if the speech has an odd number of frames."""

    def transcribe(self, wavs, sample_rate_hz, languages):
        assert len(wavs) == len(languages) and sample_rate_hz == 24000
        return [hear({"wav": wav}) for wav in wavs]


@pytest.fixture(scope="module")
def made(trained, parts, tmp_path_factory):
    """An untrained model that says words of two letters, speaks, or ends; and what its pairs are made of."""
    folder = tmp_path_factory.mktemp("export") / "model"
    write_model(folder, parts, trained[0] / "text_lm/tokenizer.json", SETTINGS)
    pieces = TextTokenizer.from_file(folder)
    letters = [i for i in range(pieces.vocab_size) if pieces.decode([i]) in ("a", "b", " ")]
    assert len(letters) == 3
    with pytest.MonkeyPatch.context() as patch:

        def few(self, may_speak):
            allowed_V, space = torch.zeros_like(self._allowed_V), self.lm.token_space
            allowed_V[[*letters, space.eos]] = True
            allowed_V[space.audiogen_start] = may_speak
            return allowed_V

        patch.setattr(Generator, "allowed_text", few)
        patch.setattr("omniaudio.metrics.asr_judge.load_judge", lambda *_: StandIn())
        words = {"model": str(folder), "judge": "nobody", "codes_dir": str(trained[0] / "codes")}
        yield {
            **words,
            "num_replies": 8,
            "against": ["own"],
            "unit": "word",
            "margin": 0.01,
            "seed": 3,
            "num_threads": 1,
        }


def all_jobs():
    return jobs_of(PROMPTS, ["sft_repeat"], 2)


def make(made, folder, **changes):
    maker = PairMaker(**{**made, **changes})
    for job in all_jobs():
        maker.run(job, folder)
    return join_shards(folder, all_jobs(), {split: {} for split in PROMPTS})


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    told = make(made, folder)
    shutil.rmtree(folder / "jobs")
    return folder, told


def test_the_best_and_the_worst_heard_reply_are_the_pair(made, whole):
    folder, told = whole
    model, reader = omniaudio.load(made["model"]), ShardReader(folder, "train")
    assert len(reader) == told["train"]["pairs"] > 0
    for entry in reader.entries:
        facts = entry.facts
        (role, heard), prompt = json.loads(facts["prompt"])[0], facts["prompt_of"]
        assert role == "user" and heard[:-1] == list(range(len(prompt)))
        codes = ShardReader(made["codes_dir"], "train")
        numbers = {e.key: i for i, e in enumerate(codes.entries)}
        sounds = [load_npy(codes.member(numbers[key], "codes.npy")) for key in prompt]
        messages = [{"role": "user", "content": [*sounds, heard[-1]]}]
        replies = [model.reply(messages, seed=seed_of(3, entry.key, n, "reply")) for n in range(8)]
        good = [reply for reply in replies if not fault_of(reply, facts["language"])]
        wers = [error_rate(r["text"], hear(r), facts["language"]) for r in good]
        assert facts["chosen_reward"] == pytest.approx(-min(wers), abs=1e-4)
        assert facts["rejected_reward"] == pytest.approx(-max(wers), abs=1e-4)
        for name, wer in (("chosen", min(wers)), ("rejected", max(wers))):
            texts = [part for part in json.loads(facts[name]) if isinstance(part, str)]
            assert texts == [part for part in parts_of(good[wers.index(wer)]) if isinstance(part, str)]


def test_what_became_of_prompts_and_replies_is_counted(whole):
    for split, counts in whole[1].items():
        assert counts["prompts"] == PROMPTS[split]
        assert sum(n for name, n in counts.items() if name.startswith("no pair")) == counts[
            "prompts"
        ] - counts.get("pairs", 0)
        left_out = sum(n for name, n in counts.items() if name.startswith("reply left out"))
        assert counts["replies"] == 8 * counts["prompts"] - left_out
        assert 0 < counts["reply without speech: heard as nothing"] < counts["replies"]
        assert counts["reward"] <= 0


def test_the_pairs_are_read_by_the_training(made, whole, trained):
    model = omniaudio.load(made["model"])
    source = PairSteps(
        model.lm.token_space,
        trained[0] / "text_lm/tokenizer.json",
        whole[0],
        "train",
        2000,
        max_positions=512,
    )
    for i in range(len(source.reader)):
        chosen, rejected = source.documents(PlannedDocument("pair", (i,), 0, 0))
        assert (chosen.audio_label_LK[:, 0] >= 0).any() and (chosen.text_label_L >= 0).any()
        assert (rejected.text_label_L >= 0).any() and model.lm.token_space.audiotext_start in rejected.ids_L
    assert len(source.batch(0, 0, 1).kinds) >= 2


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_done_is_not_done_again_and_another_start_ends_in_the_same_bytes(
    made, whole, tmp_path, monkeypatch
):
    jobs = all_jobs()
    PairMaker(**made).run(jobs[0], tmp_path)
    (tmp_path / "jobs" / jobs[1].name).mkdir()
    (tmp_path / "jobs" / jobs[1].name / "train-000000.tar").write_bytes(b"broken off")
    asked, pair = [], PairMaker.pair
    monkeypatch.setattr(PairMaker, "pair", lambda self, *words: asked.append(words[:3]) or pair(self, *words))
    told = make(made, tmp_path)
    assert len(asked) == sum(PROMPTS.values()) - 2
    assert all((tmp_path / "jobs" / job.name / DONE).is_file() for job in jobs)
    shutil.rmtree(tmp_path / "jobs")
    assert contents(tmp_path) == contents(whole[0]) and told == whole[1]


def test_rewards_by_hand(made):
    spoken = {"complete": True, "wav": np.zeros(FRAME), "text": "a b", "sample_rate_hz": 24000, "events": []}
    replies = [spoken, {**spoken, "wav": np.zeros(2 * FRAME)}, {**spoken, "wav": None}]
    for against, wanted in ((["own"], -0.5), (["answer"], 0.0), (["own", "answer"], -0.25)):
        rewards, heard = PairMaker(**{**made, "against": against})._rewards(replies, "A.", "en")
        assert rewards == [wanted, -1, -1] and heard == ["a", "", ""]


def test_a_prompt_without_a_pair_says_why(made, monkeypatch):
    told: Counter[str] = Counter()
    assert PairMaker(**made).pair("train", "sft_repeat", 10**6, told) is None and not told["prompts"]
    assert PairMaker(**{**made, "margin": 99}).pair("train", "sft_repeat", 0, told) is None
    monkeypatch.setattr("omniaudio.dialogue.pairs.fault_of", lambda *_: "cut off")
    assert PairMaker(**{**made, "num_replies": 2}).pair("train", "sft_repeat", 0, told) is None
    assert told["prompts"] == 2 and told["reply left out: cut off"] == 2
    assert told["no pair: the replies are heard equally well"] == 1
    assert told["no pair: fewer than two replies to compare"] == 1


def test_faults_of_replies():
    reply = {"complete": True, "wav": np.zeros(10), "text": "yes", "sample_rate_hz": 1, "events": []}
    assert fault_of(reply, "en") == ""
    assert fault_of({**reply, "complete": False}, "en") == "cut off"
    assert fault_of({**reply, "wav": None}, "en") == ""
    assert fault_of({**reply, "text": "..."}, "en") == "without words"
    assert fault_of({**reply, "wav": np.zeros(31)}, "en").startswith("longer than the 30 s")
    events = [{"text": " a"}, {"codes": [[1, 2]]}, {"text": " "}, {"codes": [[3, 4], [5, 6]]}]
    first, second, third = parts_of({**reply, "events": events})
    assert first == " a" and second.tolist() == [[1, 2]] and third.tolist() == [[3, 4], [5, 6]]


def test_error_rates_are_of_words_or_of_characters():
    assert error_rate("one two", "One, too!", "en") == 0.5
    assert error_rate("一二", "一三", "zh") == 0.5
    assert error_rate("one", "one and on and on", "en") == 1.0
    assert error_rate("one two", "ohe two", "en", "character") == pytest.approx(1 / 7)


def test_codes_of_another_tokenizer_are_refused(made, tmp_path):
    with ShardWriter(tmp_path, "train", fingerprint={"codebook_sizes": [4, 4, 4]}) as writer:
        writer.write("a", {}, {"text": "a", "language": "en", "num_frames": 1})
    with pytest.raises(UserError, match=r"codebook_sizes: \[4, 4, 4\] there, \[16, 8, 8\] here"):
        PairMaker(**{**made, "codes_dir": str(tmp_path)}).pair("train", "sft_repeat", 0, Counter())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_replies": 1}, "num_replies: 1 must be at least 2"),
        ({"against": ["ownn"]}, r"against: \['ownn'\] must name own, answer, or both"),
        ({"unit": "letter"}, "unit"),
        ({"margin": 0}, "margin: 0 must be > 0"),
    ],
)
def test_mistakes_are_one_line(made, changes, expected):
    with pytest.raises(UserError, match=expected):
        PairMaker(**{**made, **changes})


def test_jobs_are_of_one_split_and_kinds_are_spoken():
    jobs = jobs_of({"train": 3, "dev": 1}, ["sft_repeat", "sft_chat"], 4)
    assert [len(job.sources) for job in jobs] == [4, 2, 2] and [job.number for job in jobs] == [0, 1, 2]
    assert [{source["split"] for source in job.sources} for job in jobs] == [{"train"}, {"train"}, {"dev"}]
    with pytest.raises(UserError, match="'sft_transcribe': give some of sft_repeat"):
        jobs_of({"train": 1}, ["sft_transcribe"], 4)
