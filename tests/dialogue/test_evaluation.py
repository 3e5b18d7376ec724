import copy
import dataclasses

import numpy as np
import pytest
import torch

from omniaudio.cli.evaluate import judged
from omniaudio.data.shards import ShardWriter
from omniaudio.dialogue import evaluation
from omniaudio.dialogue.evaluation import Clip, choose_clips
from omniaudio.dialogue.flow_ways import FlowWays
from omniaudio.dialogue.speech_stream import SpeechStream
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio, resample
from tests.dialogue.tiny_experiment import speech


def quiet(items, description):
    return items


@pytest.fixture(scope="module")
def clips(trained) -> list[Clip]:
    return choose_clips(trained[1] / "shards", "test", 4)


def test_languages_in_turn_long_sentences_first(trained):
    chosen = choose_clips(trained[1] / "shards", "test", 6)
    assert [clip.language for clip in chosen] == ["en", "it"] * 3
    assert [len(clip.text.split()) >= 4 for clip in chosen] == [True] * 4 + [False] * 2
    assert [clip.key for clip in chosen] == [
        clip.key for clip in choose_clips(trained[1] / "shards", "test", 6)
    ]
    assert [clip.key for clip in choose_clips(trained[1] / "shards", "test", 3)] == [
        clip.key for clip in chosen[:3]
    ]


def test_a_split_without_words_is_one_line(tmp_path):
    facts = {"num_samples": 800, "sample_rate_hz": 16000, "text": "...", "language": "en"}
    with ShardWriter(tmp_path, "test") as writer:
        writer.write("en/a", {"flac": encode_audio(speech(0.05, 16000, 0), 16000)}, facts)
    with pytest.raises(UserError, match="no clip with words"):
        choose_clips(tmp_path, "test", 3)


def test_clips_of_one_corpus(tmp_path):
    facts = {"num_samples": 800, "sample_rate_hz": 16000, "text": "one two three four", "language": "en"}
    with ShardWriter(tmp_path, "test") as writer:
        for i, corpus in enumerate(("first", "second", "second")):
            sound = {"flac": encode_audio(speech(0.05, 16000, i), 16000)}
            writer.write(f"{corpus}/{i}", sound, {**facts, "corpus": corpus})
    assert {clip.key[:-2] for clip in choose_clips(tmp_path, "test", 9, corpora=["second"])} == {"second"}
    assert len(choose_clips(tmp_path, "test", 9)) == 3
    with pytest.raises(UserError, match="no clip of third with words"):
        choose_clips(tmp_path, "test", 9, corpora=["third"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_own_recognition_in_parts_is_that_of_every_clip(model, clips, batch_size):
    alone = [model.transcribe(clip.wav_N, clip.sample_rate_hz, clip.language) for clip in clips]
    assert evaluation.recognise(model, clips, quiet, batch_size) == alone


def test_mel_error_is_that_of_the_decoded_mel(model, clips):
    scores = evaluation.score_tokenizer(model, clips[:1], quiet)
    decoded = model.tokenizer.decode(model.encode(clips[0].wav_N, 16000), 2)
    from omniaudio.frontend.mel import LogMel

    log_mel = LogMel(model.tokenizer.decoder_mel_spec)
    true_BMT, _ = log_mel(torch.from_numpy(clips[0].wav_N)[None], torch.tensor([len(clips[0].wav_N)]))
    num_frames = min(int(decoded.mel_len_B), true_BMT.shape[-1])
    error = (decoded.refined_BMT - true_BMT[..., :num_frames])[..., :num_frames].abs().mean()
    assert scores.mae["refined"][1] == pytest.approx(float(error), rel=1e-5)
    assert [book.size for book in scores.books] == [16, 8, 8]


def test_clips_of_another_rate_are_compared_at_the_tokenizers(model, clips):
    """Shards may hold 24 kHz; the error is that of the same speech at 16 kHz, not of speech that is too slow."""
    fast = dataclasses.replace(clips[0], wav_N=resample(clips[0].wav_N, 16000, 24000), sample_rate_hz=24000)
    wanted, found = (
        evaluation.score_tokenizer(model, [clip], quiet).mae["refined"] for clip in (clips[0], fast)
    )
    assert found == pytest.approx(wanted, rel=0.05)


def test_all_variants_of_a_clip(model, clips):
    codes = model.encode(clips[0].wav_N, 16000)
    wavs, mels = evaluation.synthesize(model, clips[0], codes)
    assert set(wavs) == set(evaluation.VARIANTS)
    assert wavs["original"] is clips[0].wav_N
    np.testing.assert_array_equal(wavs["flow"], model.decode(codes))
    assert set(mels) == {"original", "coarse", "refined", "flow", "vocoded"}
    assert all(mel.shape[0] == 20 for mel in mels.values())


def test_speech_by_steps_and_in_chunks(model, clips):
    codes = model.encode(clips[0].wav_N, 16000)
    wavs, _ = evaluation.synthesize(model, clips[0], codes, FlowWays(flow_steps=[1]), chunks=[2, 1000])
    assert list(wavs) == evaluation.variants(FlowWays(flow_steps=[1]), [2, 1000])
    assert len(wavs["streamed_2"]) == len(wavs["flow"])
    stream = dataclasses.replace(model.settings.stream, chunk_frames=2)
    spoken = SpeechStream(model, stream, path="flow")
    expected = [spoken.push(codes.codes_BSK[0, :3]), spoken.push(codes.codes_BSK[0, 3:]), spoken.finish()]
    np.testing.assert_allclose(wavs["streamed_2"], np.concatenate(expected), atol=1e-5)
    assert not np.array_equal(wavs["streamed_2"], wavs["streamed_1000"])


@torch.no_grad()
def test_speech_by_other_solvers_of_the_same_model(model, clips, monkeypatch):
    flow = copy.deepcopy(model.flow)
    for parameter in flow.parameters():  # the first velocity is zero everywhere
        parameter.add_(0.1 * torch.randn_like(parameter))
    monkeypatch.setitem(model._modules, "flow", flow)
    codes = model.encode(clips[0].wav_N, 16000)
    ways = FlowWays(flow_steps=[1], flow_solvers=["euler", "midpoint"])
    wavs, _ = evaluation.synthesize(model, clips[0], codes, ways)
    assert list(wavs) == evaluation.variants(ways)
    kind = "codes → flow matching, 1 step of"
    names = [f"{kind} euler → vocoder", f"{kind} midpoint → vocoder"]
    assert [evaluation.variant_name(variant) for variant in list(wavs)[-2:]] == names
    settings = dataclasses.replace(model.settings, flow_steps=1, flow_solver="midpoint")
    monkeypatch.setattr(model, "settings", settings)
    np.testing.assert_array_equal(wavs["flow_1_midpoint"], model.decode(codes, path="flow"))
    assert not np.array_equal(wavs["flow_1_midpoint"], wavs["flow_1_euler"])
    ways = FlowWays(flow_steps=[3], flow_warps=["cosine", "uniform"], flow_guidances=[0, 2.5])
    wavs, _ = evaluation.synthesize(model, clips[0], codes, ways)
    made = {name: wav_N for name, wav_N in wavs.items() if name.startswith("flow_")}
    assert len({wav_N.tobytes() for wav_N in made.values()}) == 4
    for name, warp, guidance in (
        ("flow_3_cosine_guidance0", "cosine", 0),
        ("flow_3_uniform_guidance2.5", "uniform", 2.5),
    ):
        asked = dataclasses.replace(settings, flow_steps=3, flow_warp=warp, flow_guidance=guidance)
        monkeypatch.setattr(model, "settings", asked)
        np.testing.assert_array_equal(made[name], model.decode(codes, path="flow"))


class EchoJudge:
    """Hears the number of samples that it is given."""

    batch_size = 3

    def transcribe(self, wavs, rate, languages):
        return [f"{len(wav)} {rate} {language}" for wav, language in zip(wavs, languages, strict=True)]


def test_judge_hears_every_variant_at_its_rate(clips):
    wavs = {"original": [clip.wav_N for clip in clips], "flow": [np.zeros(10 + i) for i in range(4)]}
    heard = evaluation.judge_variants(EchoJudge(), clips, wavs, 24000, quiet)
    assert heard["flow"] == [f"{10 + i} 24000 {clip.language}" for i, clip in enumerate(clips)]
    assert heard["original"] == [f"{len(clip.wav_N)} 16000 {clip.language}" for clip in clips]
    for at in (1, 3):  # other corpora may have other rates
        clips = [*clips[:at], dataclasses.replace(clips[at], sample_rate_hz=8000), *clips[at + 1 :]]
    heard = evaluation.judge_variants(EchoJudge(), clips, wavs, 24000, quiet)
    assert [text.split()[1] for text in heard["original"]] == ["16000", "8000", "16000", "8000"]
    assert {text.split()[1] for text in heard["flow"]} == {"24000"}


def test_character_error_rate_of_perfect_hearing_is_zero(clips):
    assert evaluation.cer_of(clips, [clip.text.upper() + "!" for clip in clips]) == 0


def test_a_judge_that_loops_is_told_and_counted(clips):
    heard = [clip.text for clip in clips]
    assert judged(clips, heard, "judge") == (0.0, "judge")
    heard[1] = "de la idea " * 9  # what a judge may write of four seconds
    rate, note = judged(clips, heard, "judge")
    assert rate > 0.1 and note == "judge; it loops on 1, 0.0% without them"
    everything = ["no no no no " * 9] * len(clips)
    assert judged(clips, everything, "judge")[1] == "judge", "nothing is left to measure without them"
    wrong = ["quite other words than were spoken, and a good deal more of them than there were"] * len(clips)
    assert judged(clips, wrong, "judge")[1] == "judge", "wrong is not a loop"


def test_speed_of_all_three_directions(model, clips):
    factors = evaluation.real_time_factors(model, clips[:1], quiet, num_frames=3)
    assert set(factors) == {"encode", "decode", "generate"}
    assert all(value is not None and value > 0 for value in factors.values())
