import dataclasses
import itertools
import weakref
from threading import Event, Thread

import numpy as np
import pytest
import torch

from omniaudio.data.chats import to_clips
from omniaudio.data.compose import DocumentComposer
from omniaudio.data.prompts import prompt_for
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.dialogue.model import DialogueSettings, SpokenLanguageModel
from omniaudio.dialogue.replies import in_chunks
from omniaudio.errors import UserError
from omniaudio.lm.generate import Frame, Generator, Reply, SpeechEnd, TextToken
from tests.dialogue.tiny_experiment import speech


def test_encode_takes_any_rate(model):
    low, high = model.encode(speech(1.0, 16000, 0), 16000), model.encode(speech(1.0, 48000, 0), 48000)
    assert low.codes_BSK.shape == high.codes_BSK.shape == (1, 12, 3)


@pytest.mark.parametrize("path", ["flow", "refined", "coarse"])
@pytest.mark.parametrize("num_books", [1, None])
def test_every_path_and_depth_speaks_for_the_time_of_the_codes(model, path, num_books):
    wav = model.decode(model.encode(speech(1.0, 16000, 0), 16000), num_books, path)
    assert wav.dtype == np.float32 and np.isfinite(wav).all()
    assert abs(len(wav) / 24000 - 12 / 12.5) < 0.09


def test_number_of_books_and_path_matter(model):
    codes = model.encode(speech(1.0, 16000, 0), 16000)
    full = model.decode(codes, path="refined")
    assert not np.array_equal(full, model.decode(codes, 1, "refined"))
    assert not np.array_equal(full, model.decode(codes, path="coarse"))


def test_unknown_path_is_refused(model):
    with pytest.raises(UserError, match="flow, refined, coarse"):
        model.decode(model.encode(speech(1.0, 16000, 0), 16000), path="magic")


def test_the_settings_choose_the_path(model):
    codes = model.encode(speech(1.0, 16000, 0), 16000)
    before = model.settings
    try:
        model.settings = dataclasses.replace(before, mel_path="coarse")
        np.testing.assert_array_equal(model.decode(codes), model.decode(codes, path="coarse"))
        with pytest.raises(UserError, match="'magic' is not one of flow, refined, coarse"):
            dataclasses.replace(before, mel_path="magic")
    finally:
        model.settings = before
    np.testing.assert_array_equal(model.decode(codes), model.decode(codes, path="flow"))


def test_speech_too_short_for_a_code_is_no_speech(model):
    codes = model.encode(np.zeros(800, np.float32), 16000)
    assert int(codes.num_frames_B) == 0
    assert all(model.decode(codes, path=path).shape == (0,) for path in ("flow", "refined", "coarse"))


@pytest.mark.parametrize("broken", [np.full(16000, np.nan, np.float32), np.zeros((16000, 2), np.float32)])
def test_broken_speech_is_one_line_everywhere(model, broken):
    for use in (model.encode, model.copy_synthesis):
        with pytest.raises(UserError, match="expected one channel of finite samples"):
            use(broken, 16000)


def test_no_flow_step_is_refused():
    with pytest.raises(UserError, match="dialogue.flow_steps 0: at least 1"):
        DialogueSettings(flow_steps=0)


@pytest.mark.parametrize("guidance", [-0.1, float("nan"), float("inf")])
def test_a_guidance_that_is_none_is_refused(guidance):
    with pytest.raises(UserError, match=f"dialogue.flow_guidance {guidance}: a finite number, at least 0"):
        DialogueSettings(flow_guidance=guidance)
    assert DialogueSettings(flow_guidance=0).flow_options()["guidance"] == 0


@pytest.mark.parametrize("speak", [True, False])
def test_a_streamed_reply_is_the_reply_in_pieces(model, speak):
    spoken = 0
    for seed in range(4):
        messages = [model.question(speech(1.0, 16000, 0), 16000, "repeat")]
        whole, [*chunks, end] = model.reply(messages, speak, seed), model.stream(messages, speak, seed)
        assert end == {"complete": whole["complete"]}
        assert all(chunk.get("text", "-") for chunk in chunks)
        assert all(
            len(chunk) and (chunk.keys() == {"text"} or chunk.keys() == {"wav", "codes_SK"})
            for chunk in chunks
        )
        assert "".join(chunk.get("text", "") for chunk in chunks).strip() == whole["text"]
        wavs = [chunk["wav"] for chunk in chunks if "wav" in chunk]
        spoken += len(wavs)
        assert bool(wavs) == (whole["wav"] is not None)
        if wavs:
            np.testing.assert_array_equal(np.concatenate(wavs), whole["wav"])
        kinds = ["text" in chunk for chunk in chunks]  # in the order of the reply
        assert [kind for kind, _ in itertools.groupby(kinds)] == [
            "text" in event for event in whole["events"]
        ]
    assert bool(spoken) == speak


def test_a_closed_stream_makes_nothing_more(model, monkeypatch):
    steps = []
    step = type(model.lm.backbone).step
    monkeypatch.setattr(
        type(model.lm.backbone), "step", lambda self, *arguments: steps.append(1) or step(self, *arguments)
    )
    messages = [model.question(speech(1.0, 16000, 0), 16000, "repeat")]
    first = model.stream(messages, speak=False)
    assert not steps, "nothing before somebody listens"
    next(first)
    made = len(steps)
    first.close()
    assert len(steps) == made == 1, "the prompt alone: the first word needs no more"


def test_a_stream_is_cancelled_between_two_frames_of_a_chunk(model):
    """By another thread, as when the user breaks in: a chunk of speech that is begun is not waited for."""
    frame, broke_in, made = torch.zeros(model.lm.token_space.num_books, dtype=torch.long), Event(), []

    def events():
        yield TextToken(5)
        for number in range(50):
            if number == 3:
                thread = Thread(target=broke_in.set)
                thread.start()
                thread.join()
            made.append(number)
            yield Frame(frame)
        yield SpeechEnd(True)

    chunks = list(in_chunks(model, events(), 0, 12, broke_in.is_set))
    assert made == [0, 1, 2, 3] and not any("wav" in chunk or "complete" in chunk for chunk in chunks)
    messages = [model.question(speech(1.0, 16000, 0), 16000, "repeat")]
    assert list(model.stream(messages, cancelled=lambda: True)) == []
    assert list(model.stream(messages, seed=2, cancelled=lambda: False))[-1].keys() == {"complete"}


def test_a_stream_says_that_a_limit_cut_it_off(model, monkeypatch):
    monkeypatch.setattr(model, "settings", dataclasses.replace(model.settings, max_text_tokens=2))
    messages = [model.question(speech(1.0, 16000, 0), 16000, "repeat")]
    assert not model.reply(messages, False)["complete"]
    assert list(model.stream(messages, False))[-1] == {"complete": False}


def test_a_stream_left_at_any_moment_leaves_nothing_behind(model, monkeypatch):
    """Neither caches nor draws: what is asked next is answered as if nothing had been."""
    caches, new_cache = [], type(model.lm.backbone).new_cache

    def watched(self):
        cache = new_cache(self)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(type(model.lm.backbone), "new_cache", watched)
    messages = [model.question(speech(1.0, 16000, 0), 16000, "repeat")]
    whole, chance = model.reply(messages, seed=2), torch.get_rng_state()
    num_chunks = len(list(model.stream(messages, seed=2)))
    prompt, held = model.text_prompt("hello"), len(caches)
    left = [(model.stream(messages, seed=2), n) for n in range(1, num_chunks + 1)]
    left += [(model._generator().stream(prompt, "speech", torch.Generator()), n) for n in (1, 2, 4)]
    left += [
        (model._generator().stream_rows([prompt] * 3, "speech", [torch.Generator()] * 3), n) for n in (1, 5)
    ]
    for stream, num in left:
        for _ in range(num):
            next(stream)
        stream.close()
    assert len(caches) == held + num_chunks + 3 + 2 * 3 and num_chunks > 1
    assert not any(cache() for cache in caches)
    assert torch.equal(torch.get_rng_state(), chance)
    assert model.reply(messages, seed=2)["events"] == whole["events"]


def test_stretches_of_speech_are_told_apart_and_no_piece_is_empty(model, monkeypatch):
    monkeypatch.setattr(model.text_tokenizer, "decode", lambda ids: "".join({5: "", 6: "b"}[i] for i in ids))
    frame = torch.zeros(model.lm.token_space.num_books, dtype=torch.long)
    speech_of_two = [Frame(frame), Frame(frame), SpeechEnd(True)]
    events = [TextToken(5), *speech_of_two, TextToken(6), TextToken(5), Frame(frame), SpeechEnd(True)]
    monkeypatch.setattr("omniaudio.lm.generate.Generator.stream", lambda *_: iter(events))
    *chunks, end = model.stream([{"role": "user", "content": "hello"}])
    assert end == {"complete": True}
    assert [chunk.get("text") or len(chunk["codes_SK"]) for chunk in chunks] == [2, "b", 1]


def test_letters_of_several_bytes_come_whole(model, monkeypatch):
    pieces = {1: "a", 2: "a\ufffd", 3: "aé", 4: "aé\ufffd"}
    monkeypatch.setattr(model.text_tokenizer, "decode", lambda ids: pieces[len(ids)] if ids else "")
    events = [TextToken(5), TextToken(6), TextToken(7), TextToken(8)]
    monkeypatch.setattr("omniaudio.lm.generate.Generator.stream", lambda *_: iter(events))
    *chunks, end = model.stream([{"role": "user", "content": "hello"}], speak=False)
    assert end == {"complete": True}
    assert [chunk["text"] for chunk in chunks] == ["a", "é", "\ufffd"]


def test_copy_synthesis_keeps_the_time(model):
    assert len(model.copy_synthesis(speech(1.0, 16000, 0), 16000)) == 24000


def test_spoken_reply_is_complete_and_repeatable(model):
    question = model.question(speech(1.0, 16000, 0), 16000, "repeat")
    first, again = model.reply([question], seed=3), model.reply([question], seed=3)
    assert first["events"] == again["events"]
    spoken = [event for event in first["events"] if "speech_sec" in event]
    seconds = 0 if first["wav"] is None else len(first["wav"]) / first["sample_rate_hz"]
    assert seconds == pytest.approx(sum(event["speech_sec"] for event in spoken), abs=0.01)


def test_text_reply_has_no_speech(model):
    reply = model.reply([{"role": "user", "content": "hello"}], speak=False)
    assert reply["wav"] is None and not any("codes" in event for event in reply["events"])


def test_speak_begins_with_speech(model):
    reply = model.speak("hello there")
    assert "codes" in reply["events"][0]
    assert reply["wav"] is not None and len(reply["wav"]) > 0


def test_question_is_the_recording_then_the_words_of_the_training(model):
    wav = speech(1.0, 16000, 0)
    codes, words = model.question(wav, 16000, "transcribe", "it")["content"]
    assert torch.equal(codes.codes_BSK, model.encode(wav, 16000).codes_BSK)
    assert words == prompt_for("sft_transcribe", "it")
    assert model.question(wav, 16000, "language", "it")["content"][1] == prompt_for("sft_language", "en")
    assert model.question(wav, 16000, None)["content"].codes_BSK.shape == (1, 12, 3)
    with pytest.raises(UserError, match="transcribe, repeat"):
        model.question(wav, 16000, "sing")


def test_several_chats_are_answered_together_as_each_alone(model):
    chats = [[model.question(speech(1.0 + i, 16000, i), 16000, "repeat")] for i in range(2)]
    chats.append([{"role": "user", "content": "hello"}])
    together = model.replies(chats, seeds=[4, 5, 6])
    for reply, messages, seed in zip(together, chats, (4, 5, 6), strict=True):
        alone = model.reply(messages, seed=seed)
        assert reply["events"] == alone["events"] and reply["text"] == alone["text"]
        assert (reply["wav"] is None) == (alone["wav"] is None)
        if alone["wav"] is not None:
            np.testing.assert_array_equal(reply["wav"], alone["wav"])
    assert [r["events"] for r in model.replies(chats)] == [model.reply(chat)["events"] for chat in chats]
    assert model.replies([]) == []


def test_chats_that_are_answered_together_may_ask_for_different_things(model):
    heard = model.question(speech(1.0, 16000, 0), 16000, None)
    chat = [
        heard,
        {"role": "assistant", "content": "a word"},
        model.question(speech(2.0, 16000, 1), 16000, "repeat"),
    ]
    speak, history = [False, True, True], ["audio", "text", "audio"]
    together = model.replies([chat] * 3, speak, [4, 5, 6], history)
    alone = [model.reply(chat, *of_row) for of_row in zip(speak, (4, 5, 6), history, strict=True)]
    assert [reply["events"] for reply in together] == [reply["events"] for reply in alone]
    assert together[0]["wav"] is None and any(reply["wav"] is not None for reply in together[1:])
    for name in ("prompt_positions", "saved_positions"):
        assert [reply[name] for reply in together] == [reply[name] for reply in alone]
    with pytest.raises(UserError, match="speak: 2 given for 3 prompts; give one for all, or one for each"):
        model.replies([chat] * 3, [True, False])


def test_history_as_text_is_the_written_chat_and_says_what_it_saves(model):
    heard = [model.question(speech(1.0 + i, 16000, i), 16000, None) for i in range(3)]
    spoken = np.zeros((7, 3), np.int64)
    chat = [
        heard[0],
        {"role": "assistant", "content": ["a word", spoken]},
        {**heard[1], "text": "known"},
        {"role": "assistant", "content": [spoken]},
        heard[2],
    ]
    own = [model.transcribe(speech(1.0, 16000, 0), 16000), model._written([said_by_user(spoken)])[0]]
    written = [
        {"role": "user", "content": own[0]},
        {"role": "assistant", "content": "a word"},
        {"role": "user", "content": "known"},
        {"role": "assistant", "content": own[1]},
        heard[2],
    ]
    short, as_text, as_audio = model.reply(written), model.reply(chat, history="text"), model.reply(chat)
    assert as_text["events"] == short["events"] != as_audio["events"]
    assert (short["saved_positions"], as_audio["saved_positions"]) == (0, 0)
    assert as_text["prompt_positions"] == short["prompt_positions"]
    saved = as_audio["prompt_positions"] - short["prompt_positions"]
    assert as_text["saved_positions"] == saved > 0
    first, *chunks = model.stream(chat, history="text")
    assert first == {"saved_positions": saved}
    assert "".join(chunk.get("text", "") for chunk in chunks).strip() == short["text"]
    known = model.with_texts(chat)
    assert [message.get("text") for message in known] == [own[0], None, "known", own[1], None]
    assert model.with_texts(known) == known
    with pytest.raises(UserError, match="history 'codes': can be audio, text"):
        model.reply(chat, history="codes")


def said_by_user(codes_SK):
    return {"role": "user", "content": [codes_SK, prompt_for("sft_transcribe", "en")]}


@pytest.mark.parametrize("own", [[], [("system", ["Be brief."])]])
def test_a_voice_is_asked_for_in_the_words_of_the_training(model, tmp_path, monkeypatch, own):
    said = [*own, ("user", [b"q1"]), ("assistant", [b"a1"]), ("user", [b"q2"]), ("assistant", [b"a2"])]
    codes = np.zeros((5, 3), np.uint16)
    with ShardWriter(tmp_path, "train") as writer:
        for i, (sound, facts) in enumerate(to_clips(said, "chat")):
            known = {"language": "en", "speaker": "s", "text": sound.decode(), "num_frames": len(codes)}
            writer.write(f"c{i}", {"codes.npy": dump_npy(codes)}, {**known, **facts})
    encode, space = model.text_tokenizer.encode, model.lm.token_space
    composer = DocumentComposer(ShardReader(tmp_path, "train"), encode, space, voices={"s": "a calm one"})
    trained = composer.compose("sft_chat", *composer.groups("sft_chat", 0, 0), 0).ids_L.tolist()
    monkeypatch.setattr(model, "settings", dataclasses.replace(model.settings, voices={"a calm one": ["s"]}))
    asked = []
    monkeypatch.setattr(
        Generator, "replies", lambda self, prompts, *_: asked.extend(prompts) or [Reply()] * len(prompts)
    )
    chat = [{"role": role, "content": parts} for role, parts in own]
    chat += [{"role": "user", "content": [codes]}, {"role": "assistant", "content": ["a1", codes]}]
    model.reply([*chat, {"role": "user", "content": [codes]}], voice="a calm one")
    model.reply(chat[:-1], voice="a calm one")
    for prompt in asked:
        assert prompt.ids_L.tolist() == trained[: len(prompt)]
    model.speak("a1", voice="a calm one")
    read, num = asked.pop().ids_L.tolist(), len(asked)
    in_words = [composer.compose("sft_read", (1,), seed).ids_L.tolist() for seed in range(9)]
    assert num == 2 and any(ids[: len(read)] == read for ids in in_words)
    assert trained[len(asked[0]) :][: len(encode("a2"))] == encode("a2"), "the reply follows"


def test_wrong_voices_are_one_line(model, monkeypatch):
    chat = [{"role": "user", "content": "hello"}]
    with pytest.raises(UserError, match="voice 'ann': this model's training named none"):
        model.reply(chat, voice="ann")
    monkeypatch.setattr(
        model, "settings", dataclasses.replace(model.settings, voices={"ann": ["1"], "bob": []})
    )
    with pytest.raises(UserError, match="voice 'eve': can be ann, bob"):
        next(model.stream(chat, voice="eve"))
    with pytest.raises(UserError, match="voice 'ann': a reply in text has none"):
        model.reply(chat, speak=False, voice="ann")


def test_transcript_does_not_depend_on_chance(model):
    wav = speech(1.0, 16000, 0)
    assert model.transcribe(wav, 16000) == model.transcribe(wav, 16000)


def test_several_channels_and_not_finite_are_refused(model):
    for wav in (np.zeros((2, 16000), np.float32), np.full(16000, np.nan, np.float32)):
        with pytest.raises(UserError, match="one channel of finite samples"):
            model.encode(wav, 16000)


def test_parts_that_do_not_fit_are_named(model):
    class OtherTokenizer(torch.nn.Module):
        codebook_sizes = (16, 8)
        decoder = model.tokenizer.decoder

    with pytest.raises(
        UserError, match="codebook_sizes is \\(16, 8, 8\\), tokenizer codebook_sizes is \\(16, 8\\)"
    ):
        SpokenLanguageModel(OtherTokenizer(), model.lm, model.flow, model.vocoder, model.text_tokenizer)
