import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.metrics.asr_judge import AsrJudge, load_judge, words_of


def save_vocabulary(folder: Path, tokens: list[str]) -> Any:
    """A tokenizer of these tokens and no merges."""
    from transformers import WhisperTokenizer

    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def tiny_whisper(folder: Path, tokenizer: Any, seed: int, end: int, start: int, **facts: int) -> Any:
    """A few thousand random weights around a tokenizer, which is saved beside the features' config."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
            suppress_tokens=[], begin_suppress_tokens=[], **facts,
        )
    )  # fmt: skip
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    return model


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Whisper checkpoint, English only."""
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = save_vocabulary(folder, ["<|endoftext|>", "<|startoftranscript|>", "a", "b", "c", "d"])
    model = tiny_whisper(folder, tokenizer, seed=1, end=0, start=1, vocab_size=6, max_target_positions=200)
    model.generation_config.is_multilingual = False
    model.generation_config.no_timestamps_token_id = 5
    model.save_pretrained(folder)
    return folder


def speech(num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def test_one_text_a_waveform_alike_alone_and_in_a_batch(whisper_folder):
    wavs = [speech(24000, 0), speech(12000, 1), speech(16000, 2)]
    judge = AsrJudge(str(whisper_folder), batch_size=2)
    texts = judge.transcribe(wavs, 24000, ["en", "en", "it"])
    assert len(texts) == 3
    assert texts == [judge.transcribe([wav], 24000, ["en"])[0] for wav in wavs]


@pytest.mark.parametrize("kind", ["whisper_folder", "timing_folder"])
def test_it_writes_what_transformers_own_generate_writes(kind, request, tmp_path):
    """Of each sound alone; the judge has them in one batch, and runs the encoder by itself."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / kind)
    if kind == "timing_folder":  # it writes two letters alone, on and on
        path = folder / "generation_config.json"
        others = [*range(2, json.loads((folder / "config.json").read_text())["vocab_size"])]
        path.write_text(json.dumps({**json.loads(path.read_text()), "suppress_tokens": others}))
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    wavs, languages = [speech(16000 * n, n) for n in (1, 3, 2)], ["en", "zh", "en"]
    expected = []
    for wav_N, language in zip(wavs, languages, strict=True):
        inputs = processor(wav_N, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        named = {"language": language, "task": "transcribe"} if kind == "timing_folder" else {}
        ids_BL = model.generate(
            **inputs, **named, do_sample=False, num_beams=1, max_new_tokens=10 + 8 * len(wav_N) // 16000
        )
        expected.append(processor.batch_decode(ids_BL, skip_special_tokens=True)[0].strip())
    assert AsrJudge(str(folder)).transcribe(wavs, 16000, languages) == expected
    assert all(expected) and len(set(expected)) == 3, (
        "the model of this test says one thing: it proves nothing"
    )


def test_nobody_could_have_said_more(whisper_folder):
    """Random weights write on and on, a letter a token; each clip by its own length, whatever else is in the batch."""
    judge = AsrJudge(str(whisper_folder), batch_size=4)
    texts = judge.transcribe([speech(16000 * n, n) for n in (1, 2, 4)], 16000, ["en"] * 3)
    assert all(len(text) <= 10 + 8 * n for text, n in zip(texts, (1, 2, 4), strict=True))
    assert len(texts[2]) > 10 + 8 * 2, "the model of this test does not write on: it proves nothing"


def test_tokens_become_words_with_times():
    pieces = [(" Good", 0.1), ("bye", 0.4), (",", 0.5), (" there", 0.8), (".", 1.2)]
    assert words_of(pieces, 2.0, True) == [(" Goodbye,", 0.1, 0.8), (" there.", 0.8, 2.0)]
    assert words_of([("你", 0.0), ("好", 0.5)], 1.0, False) == [("你", 0.0, 0.5), ("好", 0.5, 1.0)]
    assert words_of([(" Good", 0.1), ("bye", 0.4)], 1.0, True) == [(" Goodbye", 0.1, 1.0)]
    assert words_of([], 1.0, True) == []


@pytest.fixture(scope="module")
def timing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with languages, tasks and time stamps, and bytes of Chinese letters: 你 is three tokens."""
    folder = tmp_path_factory.mktemp("timing")
    plain = [
        "a",
        "b",
        "Ġ",
        "ä",
        "½",
        "ł",
    ]  # the last three: the bytes of a letter, as byte-level BPE writes them
    control = [
        "<|startoftranscript|>",
        "<|en|>",
        "<|zh|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    control += [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    tokenizer = save_vocabulary(folder, [*plain, "<|endoftext|>"])
    tokenizer.add_special_tokens({"additional_special_tokens": control[:6]})
    tokenizer.add_tokens(control[6:])
    ids = tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    model = tiny_whisper(folder, tokenizer, seed=3, end=end, start=start, vocab_size=len(tokenizer))
    settings = model.generation_config
    settings._from_model_config, settings.is_multilingual = (
        False,
        True,
    )  # else the facts below are not read back
    settings.lang_to_id = {name: ids(name) for name in ("<|en|>", "<|zh|>")}
    settings.task_to_id = {"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")}
    settings.no_timestamps_token_id = ids("<|notimestamps|>")
    settings.alignment_heads = [[0, 0], [0, 1]]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_words_come_with_times_and_a_confidence(timing_folder, seconds):
    judge = AsrJudge(str(timing_folder))
    words, confidence = judge.timed_words(speech(int(24_000 * seconds), 0), 24_000, "en")
    assert 0 < confidence <= 1
    assert words, "the model of this test writes nothing: it proves nothing"
    assert all("<|" not in word and "\ufffd" not in word for word, _, _ in words)
    starts, ends = [start for _, start, _ in words], [end for _, _, end in words]
    assert starts == sorted(starts) and all(
        0 <= start <= end <= seconds for start, end in zip(starts, ends, strict=True)
    )
    assert judge.timed_words(speech(int(24_000 * seconds), 0), 24_000, "en") == (words, confidence)


def listening(judge, wav_N, ids, first):
    """When the decoder begins to listen for each token behind the first ones, and when it ends: by hand."""
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    model = judge._model
    model.set_attn_implementation("eager")
    features = judge._processor(wav_N, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        read = model(features, decoder_input_ids=torch.tensor([ids]), output_attentions=True)
    num_states = len(wav_N) // 320  # of 20 ms
    heads_HLS = read.cross_attentions[0][0][:, first - 1 :, :num_states]
    heads_HLS = (heads_HLS - heads_HLS.mean(-2, keepdim=True)) / heads_HLS.std(
        -2, keepdim=True, unbiased=False
    )
    weights_LS = _median_filter(heads_HLS[None], model.config.median_filter_width)[0].mean(0)
    rows, states = _dynamic_time_warping(-weights_LS.double().numpy())
    return [float(states[rows == row][0]) * 0.02 for row in range(len(ids) - first + 1)]


def test_words_of_a_known_text_are_found_where_the_decoder_listens_for_them(timing_folder):
    judge = AsrJudge(str(timing_folder), batch_size=2)
    wavs, texts = [speech(16_000 * n, n) for n in (2, 1, 3)], ["ab a", "b你 ba a", "你a"]
    heard, words = judge.transcribe_and_align(wavs, 16_000, ["en", "en", "zh"], texts)
    assert heard == judge.transcribe(wavs, 16_000, ["en", "en", "zh"])
    assert [[word for word, _, _ in timed] for timed in words] == [
        [" ab", " a"],
        [" b你", " ba", " a"],
        ["你", "a"],
    ]
    for timed, wav in zip(words, wavs, strict=True):
        times = [at for _, start, end in timed for at in (start, end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(wav) / 16_000
    tokenizer = judge._processor.tokenizer
    control = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    ids = [
        *tokenizer.convert_tokens_to_ids(control),
        *tokenizer.encode(" b你 ba a", add_special_tokens=False),
    ]
    at = listening(judge, wavs[1], ids, len(control))
    starts = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids[4:])) if token == "Ġ"]
    assert [start for _, start, _ in words[1]] == pytest.approx([at[i] for i in starts])
    assert words[1][-1][2] == pytest.approx(at[-1])
    assert judge.transcribe_and_align(wavs[:1], 16_000, ["en"], [""])[1] == [[]]
    assert judge.transcribe_and_align(wavs[:1], 16_000, ["en"], ["a " * 400])[1] == [[]], (
        "more than the decoder reads"
    )
    with pytest.raises(UserError, match="does not know the language 'xx'"):
        judge._prefix("xx")


def test_what_is_heard_is_the_same_with_an_alignment_and_without(whisper_folder):
    judge = AsrJudge(str(whisper_folder), batch_size=2)
    wavs, languages = [speech(16_000 * n, n) for n in (2, 1, 3)], ["en"] * 3
    with pytest.raises(UserError, match="has no alignment_heads"):
        judge.transcribe_and_align(wavs, 16_000, languages, ["a"] * 3)
    settings = judge._model.generation_config  # its config does not tell them
    settings.alignment_heads, settings.no_timestamps_token_id = [[0, 0]], 5
    heard, words = judge.transcribe_and_align(wavs, 16_000, languages, [""] * 3)
    assert heard == judge.transcribe(wavs, 16_000, languages) and all(heard) and words == [[]] * 3


def test_a_word_begins_where_the_one_before_it_ends(timing_folder, monkeypatch):
    """What transformers call the time of a token is its end."""
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    told = []
    extract = WhisperGenerationMixin._extract_token_timestamps

    def noted(self, *facts, **more):
        told.append(extract(self, *facts, **more)[0, more["num_input_ids"] :].tolist())
        return torch.cat([torch.zeros(1, more["num_input_ids"]), torch.tensor([told[-1]])], 1)

    monkeypatch.setattr(WhisperGenerationMixin, "_extract_token_timestamps", noted)
    words, _ = AsrJudge(str(timing_folder)).timed_words(speech(48_000, 0), 16_000, "en")
    assert {start for _, start, _ in words} <= {0.0, *told[0]} and words[0][1] == 0.0
    assert words[0][2] == words[1][1] if len(words) > 1 else words[0][2] <= 3.0


def test_what_cannot_be_timed_is_said(timing_folder, whisper_folder):
    with pytest.raises(UserError, match="is English only"):
        AsrJudge(str(whisper_folder)).timed_words(speech(16_000, 0), 16_000, "en")
    with pytest.raises(UserError, match="does not know the language 'xx'"):
        AsrJudge(str(timing_folder)).timed_words(speech(16_000, 0), 16_000, "xx")


def test_no_judge_is_none():
    assert load_judge(None) is None and load_judge("") is None


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist") as error:
        load_judge(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_folder_that_is_no_whisper_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_judge(str(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown_dtype_is_refused(whisper_folder):
    with pytest.raises(UserError, match="fp32, bf16"):
        AsrJudge(str(whisper_folder), dtype="int4")
