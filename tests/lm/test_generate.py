import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.generate import (
    AUDIO_SAMPLING,
    GREEDY,
    TEXT_SAMPLING,
    Frame,
    Generator,
    SpeechEnd,
    TextToken,
    _Run,
    collect,
)
from omniaudio.sequence.spans import DocumentBuilder
from omniaudio.sequence.vocab import TokenSpace

SIZES = (6, 4, 3)
SPACE = TokenSpace(40, SIZES)


@pytest.fixture
def lm():
    torch.manual_seed(0)
    backbone = CausalBackbone(SPACE.vocab_size, 16, 2, 2, 1, 24)
    lm = AudioLM(backbone, AudioHead(16, SIZES, num_layers=2, head_dim=8), SPACE).eval()
    for parameter in lm.parameters():  # lively: small random models repeat themselves
        torch.nn.init.normal_(parameter, std=0.5)
    return lm


def prompt(*ids):
    return DocumentBuilder(SPACE).text(ids, loss=False).heard(torch.tensor([[1, 2, 0]])).build("prompt", "k")


@torch.no_grad()
def replay(lm, start, events, may_speak=True):
    """Check greedy events one by one, running the whole document anew for every one."""
    ids, codes = start.ids_L.tolist(), start.codes_LK.tolist()
    speaking, spoken = False, 0

    def hidden():
        embeds = lm.embed(torch.tensor(ids), torch.tensor(codes))
        return lm.backbone(embeds, [len(ids)])[-1:]

    def next_text():
        logits = lm.backbone.lm_head(hidden())[0]
        allowed = [*range(40), SPACE.eos] + [SPACE.audiogen_start] * may_speak
        return max(allowed, key=lambda i: float(logits[i]))

    def next_frame():
        frame = []
        for book in range(3):
            forced = torch.tensor([frame + [0] * (3 - book)])
            logits = lm.audio_head.logits(hidden(), lm.embed_prefix(forced))[book][0]
            if book or not spoken:
                logits = logits[:-1]
            frame.append(int(logits.argmax()))
        return frame

    for event in events:
        if isinstance(event, TextToken):
            assert next_text() == event.token_id
            ids.append(event.token_id)
            codes.append([0, 0, 0])
        elif isinstance(event, Frame):
            if not speaking:
                assert next_text() == SPACE.audiogen_start
                ids.append(SPACE.audiogen_start)
                codes.append([0, 0, 0])
                speaking, spoken = True, 0
            assert next_frame() == event.codes_K.tolist()
            ids.append(SPACE.audio_pad)
            codes.append(event.codes_K.tolist())
            spoken += 1
        elif event.complete:
            assert next_frame()[0] == SIZES[0]
            ids.append(SPACE.audiogen_end)
            codes.append([0, 0, 0])
            speaking = False
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_cached_loop_equals_recomputation(lm, seed):
    torch.manual_seed(seed)
    torch.nn.init.normal_(lm.backbone.lm_head.weight, std=1.0)
    lm.backbone.lm_head.weight.data[SPACE.audiogen_start] *= 3
    start = prompt(seed, 5)
    generator = Generator(lm, GREEDY, GREEDY, max_text_tokens=8, max_frames=8)
    events = list(generator.stream(start))
    assert events
    replay(lm, start, events)


def test_speech_form_begins_with_speech_and_text_form_has_none(lm):
    generator = Generator(lm, max_text_tokens=4, max_frames=5)
    assert isinstance(next(iter(generator.stream(prompt(1), "speech"))), Frame)
    for seed in range(5):
        assert generator.reply(prompt(1), "text", seed).codes == []


def test_same_seed_same_reply(lm):
    generator = Generator(lm, max_text_tokens=6, max_frames=6)
    first, again, other = (generator.reply(prompt(1), "speech", seed) for seed in (1, 1, 2))
    assert torch.equal(first.codes[0], again.codes[0])
    assert first.text_ids == again.text_ids
    assert first.codes[0].tolist() != other.codes[0].tolist()


def test_end_comes_from_book_0_only_and_after_a_frame(lm):
    for head, size in zip(lm.audio_head.heads, SIZES, strict=True):
        head.bias.data[size] = 100.0  # every book wants to end
    reply = Generator(lm, max_text_tokens=0).reply(prompt(1), "speech")
    assert [len(codes) for codes in reply.codes] == [1]
    assert (reply.codes[0] < torch.tensor(SIZES)).all()
    assert reply.complete


def test_limits(lm):
    lm.audio_head.heads[0].bias.data[SIZES[0]] = -100.0  # never ends
    reply = Generator(lm, max_text_tokens=3, max_frames=7).reply(prompt(1), "speech")
    assert len(reply.codes[0]) == 7
    assert not reply.complete
    lm.backbone.lm_head.weight.data[SPACE.eos] = 0
    assert len(Generator(lm, GREEDY, max_text_tokens=3).reply(prompt(1), "text").text_ids) <= 3


def test_a_text_that_was_cut_is_not_complete(lm):
    generator = Generator(lm, max_text_tokens=3)
    generator._allowed_V[SPACE.eos] = False  # it never ends by itself
    reply = generator.reply(prompt(1), "text")
    assert len(reply.text_ids) == 3 and not reply.complete


def test_a_prompt_can_go_on_from_a_cache(lm):
    whole, cache = prompt(1, 2, 3), lm.backbone.new_cache()
    generator = Generator(lm, GREEDY, GREEDY, max_text_tokens=5, max_frames=5)
    lm.backbone.step(lm.embed(whole.ids_L[:2], whole.codes_LK[:2]), cache)
    rest = DocumentBuilder(SPACE).text([3], loss=False).heard(torch.tensor([[1, 2, 0]])).build("prompt", "k")
    events = list(generator.stream(rest, cache=cache))
    assert repr(events) == repr(list(generator.stream(whole)))


@pytest.mark.parametrize("overwritten", [(), (7,)])
def test_the_mark_that_the_published_inference_overwrites_is_told_and_not_read(lm, monkeypatch, overwritten):
    """5 7 <speech> 9 7 <speech> end: the first 7 is before any speech; at the second, speech comes by itself."""
    start, end = SPACE.audiogen_start, SPACE.eos
    speech = [1, 2, 0, SIZES[0]]  # a frame, book by book, and "end of audio"
    symbols = iter([5, 7, start, *speech, 9, 7, *([] if overwritten else [start]), *speech, end])
    said, read, embed = [], [], lm.embed

    def scripted(logits_BV, settings, said_BV, generators):
        said.append(said_BV[0].nonzero()[:, 0].tolist())
        return torch.tensor([next(symbols)])

    monkeypatch.setattr("omniaudio.lm.generate.draw", scripted)
    monkeypatch.setattr(
        lm, "embed", lambda ids_L, codes_LK: read.extend(ids_L.tolist()) or embed(ids_L, codes_LK)
    )
    reply = Generator(lm, overwritten_ids=overwritten).reply(prompt(1))
    assert [segment if isinstance(segment, list) else segment.tolist() for segment in reply.segments] == [
        [5, 7], [[1, 2, 0]], [9, 7], [[1, 2, 0]],
    ]  # fmt: skip
    spoken = [start, SPACE.audio_pad, SPACE.audiogen_end]
    kept = [] if overwritten else [7]
    assert read[len(prompt(1)) :] == [5, 7, *spoken, 9, *kept, *spoken]
    assert said[-1] == [5, 7, 9] and next(symbols, None) is None


def rows_of(lm):
    """Prompts of several lengths, one in the middle of speech, for a model that does everything now and then."""
    torch.nn.init.normal_(lm.backbone.lm_head.weight, std=0.5)
    lm.backbone.lm_head.weight.data[[SPACE.audiogen_start, SPACE.eos]] *= 3
    speaking = DocumentBuilder(SPACE).text([7, SPACE.audiogen_start], loss=False).build("prompt", "k")
    return [prompt(1), prompt(2, 5, 9, 11, 3), speaking, prompt(4, 4), prompt(1)]


@pytest.mark.parametrize(("text", "audio"), [(GREEDY, GREEDY), (TEXT_SAMPLING, AUDIO_SAMPLING)])
def test_a_row_says_what_it_says_alone(lm, text, audio):
    prompts, seeds = rows_of(lm), [3, 1, 4, 1, 5]
    generator = Generator(lm, text, audio, max_text_tokens=20, max_frames=15)
    alone = [generator.reply(p, seed=seed) for p, seed in zip(prompts, seeds, strict=True)]
    together = generator.replies(prompts, "free", seeds)
    assert repr(together) == repr(alone)
    assert len({repr(reply) for reply in alone}) > 2


def test_rows_of_different_forms_say_what_they_say_alone(lm):
    prompts, forms, seeds = rows_of(lm), ["text", "speech", "free", "text", "speech"], [3, 1, 4, 1, 5]
    generator = Generator(lm, max_text_tokens=20, max_frames=15)
    alone = [generator.reply(*of_row) for of_row in zip(prompts, forms, seeds, strict=True)]
    together = generator.replies(prompts, forms, seeds)
    assert repr(together) == repr(alone)
    assert [bool(reply.codes) for reply in together] == [False, True, True, False, True]
    with pytest.raises(UserError, match="form: 2 given for 5 prompts"):
        generator.replies(prompts, forms[:2], seeds)


def test_one_row_writes_while_another_speaks_and_rows_that_are_over_leave(lm, monkeypatch):
    prompts, steps = rows_of(lm), []

    def spy(owner, name):
        method = getattr(owner, name)

        def recorded(self, rows, *rest):
            steps.append((name, len(rows)))
            return method(self, rows, *rest)

        monkeypatch.setattr(owner, name, recorded)

    spy(CausalBackbone, "step_rows"), spy(_Run, "_tokens"), spy(_Run, "_frames")
    Generator(lm, max_text_tokens=20, max_frames=15).replies(prompts, "free", [3, 1, 4, 1, 5])
    read = [i for i, (name, _) in enumerate(steps) if name == "step_rows"]
    sizes = [steps[i][1] for i in read]
    assert sizes[0] == 5 and sizes[-1] < 4 and sizes == sorted(sizes, reverse=True)
    drawn = [steps[i + 1 : end] for i, end in zip(read, [*read[1:], None], strict=True)]
    assert [sum(size for _, size in of_step) for of_step in drawn] == sizes, "one piece of every row"
    assert any(len(of_step) == 2 for of_step in drawn), "both kinds in one step"


def test_wrong_numbers_of_seeds_are_an_error(lm):
    with pytest.raises(AssertionError, match="1 generators for 2 prompts"):
        Generator(lm).replies([prompt(1), prompt(2)], "free", [0])


def test_collect_keeps_order():
    a, b = torch.tensor([1, 2, 0]), torch.tensor([3, 0, 1])
    events = [TextToken(4), TextToken(5), Frame(a), Frame(b), SpeechEnd(True), TextToken(6)]
    reply = collect(events)
    assert reply.segments[0] == [4, 5]
    assert torch.equal(reply.segments[1], torch.stack([a, b]))
    assert reply.segments[2] == [6]
    assert reply.text_ids == [4, 5, 6]


def test_wrong_prompts_are_refused(lm):
    with pytest.raises(UserError, match="empty"):
        Generator(lm).reply(DocumentBuilder(SPACE).build("prompt", "k"))
    with pytest.raises(UserError, match="outside the token space"):
        Generator(lm).reply(DocumentBuilder(SPACE).text([999], loss=False).build("prompt", "k"))
