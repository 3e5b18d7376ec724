import itertools

import numpy as np
import pytest
import torch

from omniaudio.data.chats import to_clips
from omniaudio.data.compose import CHATS, KINDS, DocumentComposer, split_clip
from omniaudio.data.planning import ShuffledWindows
from omniaudio.data.prompts import prompt_for
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.errors import UserError
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

SPACE = TokenSpace(256, [8, 4])
CLIPS = [
    ("en", "ann", "Hello there, how are you today?", 40),
    ("en", "ann", "Goodbye", 10),
    ("en", "ann", "One", 7),
    ("en", "bob", "Two", 8),
    ("it", "eva", "Buongiorno", 12),
    ("it", "eva", "Ciao", 9),
]


def codes_of(i):
    rng = np.random.default_rng(i)
    return np.stack([rng.integers(8, size=CLIPS[i][3]), rng.integers(4, size=CLIPS[i][3])], 1).astype(
        np.uint16
    )


OF_CLIPS = [kind for kind in KINDS if kind not in CHATS]


@pytest.fixture(scope="module")
def composer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    with ShardWriter(folder, "train") as writer:
        for i, (language, speaker, text, num_frames) in enumerate(CLIPS):
            facts = {"language": language, "speaker": speaker, "text": text, "num_frames": num_frames}
            facts |= {"response": "yes", "translation": "ja"}
            writer.write(f"clip-{i}", {"codes.npy": dump_npy(codes_of(i))}, facts)
    texts = ["a line", "another line"]
    return DocumentComposer(ShardReader(folder, "train"), lambda t: list(t.encode()), SPACE, texts)


def items(composer, kind, seed=0):
    assert composer.num_windows(kind) == 1
    return composer.groups(kind, 0, seed)


def text_of(ids):
    return bytes(i for i in ids.tolist() if i < 256).decode()


@pytest.mark.parametrize("kind", OF_CLIPS)
def test_lengths_are_known_without_reading(composer, kind):
    groups = items(composer, kind)
    assert groups
    for seed, group in enumerate(groups * 3):
        assert composer.num_tokens(kind, group, seed) == len(composer.compose(kind, group, seed))


@pytest.mark.parametrize("kind", OF_CLIPS)
def test_every_clip_is_visited_once_an_epoch(composer, kind):
    groups = items(composer, kind)
    visited = [group[0] for group in groups] if kind == "sft_continue" else [i for g in groups for i in g]
    assert sorted(visited) == list(range(2 if kind == "text" else len(CLIPS)))
    assert items(composer, kind, 0) == groups
    assert kind == "text" or items(composer, kind, 1) != groups


@pytest.mark.parametrize("kind", OF_CLIPS)
def test_same_seed_same_document(composer, kind):
    group = items(composer, kind)[0]
    first, again = (composer.compose(kind, group, 3) for _ in range(2))
    assert torch.equal(first.ids_L, again.ids_L)
    assert first.kind == kind


@pytest.mark.parametrize("kind", ["intlv", "itts", "sft_repeat", "sft_continue"])
def test_joined_clips_are_of_one_voice(composer, kind):
    groups = [group for seed in range(5) for group in items(composer, kind, seed)]
    assert all(len({CLIPS[i][1] for i in group}) == 1 for group in groups)
    assert max(map(len, groups)) > 1


def test_segments_of_a_passage_follow_each_other(tmp_path):
    """Two passages, one with a gap; speakers take turns in the first; two clips belong to none."""
    clips = [("p", 0, "a"), ("p", 1, "b"), ("p", 2, "a"), ("q", 0, "a"), ("q", 2, "a"), ("q", 3, "a")]
    with ShardWriter(tmp_path, "train") as writer:
        for i, (passage, place, speaker) in enumerate([*clips, ("", 0, "a"), ("", 0, "a")]):
            facts = {"language": "en", "speaker": speaker, "text": f"t{i}", "num_frames": 5}
            facts |= {"passage": passage, "place": place} if passage else {}
            writer.write(f"clip-{i}", {"codes.npy": dump_npy(np.zeros((5, 2), np.uint16))}, facts)
    composer = DocumentComposer(
        ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE, max_clips=9
    )
    for seed in range(8):
        groups = composer.groups("intlv", 0, seed)
        assert sorted(i for group in groups for i in group) == list(range(8))
        for run in ([0, 1, 2], [3], [4, 5]):
            inside = [i for group in groups for i in group if i in run]
            assert sorted(inside) == run
            assert all(list(group) == sorted(group) for group in groups if group[0] in run)
            assert all(set(group) <= set(run) for group in groups if group[0] in run)
    assert any((0, 1, 2) in composer.groups("itts", 0, seed) for seed in range(8))
    pairs = composer.groups("sft_continue", 0, 0)
    assert sorted(pairs) == [(0, 1), (1, 2), (4, 5), (6, 7), (7, 6)], "nothing follows the last of a passage"


@pytest.fixture
def chats(tmp_path):
    """Two chats of two questions and a reply of two clips each; the second lost its last clip; a clip of none."""
    said = [
        ("user", [b"q1", "please"]),
        ("assistant", [b"a1", b"a2"]),
        ("user", [b"q2"]),
        ("assistant", [b"b1", b"b2"]),
    ]
    clips = [
        (facts, sound.decode()) for sound, facts in [*to_clips(said, "one"), *to_clips(said, "two")[:-1]]
    ]
    with ShardWriter(tmp_path, "train") as writer:
        for i, (facts, text) in enumerate([({}, "alone"), *clips]):
            frames = np.tile(np.array([i % 8, i % 4], np.uint16), (3, 1))
            known = {"language": "en", "speaker": "s", "text": text, "num_frames": 3}
            writer.write(f"c{i}", {"codes.npy": dump_npy(frames)}, {**known, **facts})
    return DocumentComposer(ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE)


def test_what_was_refused_of_a_chat_is_none_of_its_clips(tmp_path):
    """The shards of refused segments of a joined folder may begin with a clip of the chat that ends those before."""
    clips = to_clips([("user", [b"q"]), ("assistant", [b"a"]), ("user", [b"r"])], "one")
    with ShardWriter(tmp_path, "train") as writer:
        for i, (sound, facts) in enumerate(clips):
            known = {"language": "en", "speaker": "s", "text": sound.decode(), "num_frames": 3}
            frames = np.zeros((3, 2), np.uint16)
            refused = {"only": "asr"} if i == 2 else {}
            writer.write(f"c{i}", {"codes.npy": dump_npy(frames)}, {**known, **facts, **refused})
    composer = DocumentComposer(ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE)
    assert composer.groups("sft_chat", 0, 0) == [(0, 1)]


def test_chats_are_documents_with_loss_on_whole_replies(chats):
    assert chats.occurs("sft_chat", "")
    groups = chats.groups("sft_chat", 0, 0)
    assert sorted(groups) == [(1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11)]
    whole = chats.compose("sft_chat", (1, 2, 3, 4, 5, 6), 0)
    assert whole.key == "one" and text_of(whole.ids_L) == "q1 pleasea1 a2b1 b2".replace("q1", "")
    assert (
        whole.codes_LK[whole.ids_L == SPACE.audio_pad][:, 0].tolist()
        == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    )
    learned = whole.audio_label_LK[whole.audio_label_LK[:, 0] != NO_LABEL][:, 0].tolist()
    assert learned == [2, 2, 2, 8, 3, 3, 3, 8, 5, 5, 5, 8, 6, 6, 6, 8], "no loss on what the user says"
    assert text_of(whole.text_label_L[whole.text_label_L != NO_LABEL]) == "a1 a2b1 b2"
    cut = chats.compose("sft_chat", (7, 8, 9, 10, 11), 0)
    assert text_of(cut.text_label_L[cut.text_label_L != NO_LABEL]) == "a1 a2", "the second reply has a hole"


def test_replies_in_text_alone_and_lengths_that_are_known_before(chats):
    group = (1, 2, 3, 4, 5, 6)
    written = chats.compose("sft_chat_text", group, 0)
    assert (written.audio_label_LK == NO_LABEL).all() and SPACE.audiotext_start not in written.ids_L
    assert text_of(written.text_label_L[written.text_label_L != NO_LABEL]) == "a1 a2b1 b2"
    for kind in CHATS:
        assert chats.num_tokens(kind, group, 0) == len(chats.compose(kind, group, 0))


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize(
    ("longest", "bos"), [(20, None), (36, None), (50, None), (75, None), (None, None), (37, 2), (76, 2)]
)
def test_a_long_chat_is_cut_behind_replies_and_nothing_of_it_is_lost(tmp_path, kind, longest, bos):
    """Its fifth exchange alone is longer than 36 positions: it is a document of its own, which the plan leaves out."""
    said = [("system", ["s"])]
    for i in range(8):
        said += [
            ("user", [f"q{i}".encode()]),
            ("assistant", [f"r{i}".encode(), "w"] if i % 3 else ["only text"]),
        ]
    with ShardWriter(tmp_path, "train") as writer:
        for i, (sound, facts) in enumerate(to_clips(said, "long")):
            frames = np.tile(np.array([i % 8, i % 4], np.uint16), (40 if sound == b"q4" else 3, 1))
            known = {"language": "en", "speaker": "s", "text": sound.decode(), "num_frames": len(frames)}
            writer.write(f"c{i}", {"codes.npy": dump_npy(frames)}, {**known, **facts})
    reader, encode = ShardReader(tmp_path, "train"), lambda t: list(t.encode())
    space = TokenSpace(SPACE.text_vocab_size, SPACE.codebook_sizes, {**SPACE.special_ids, "bos": bos})
    head = [*space.beginning, space.bos_sys]
    whole, cut = (DocumentComposer(reader, encode, space, longest=n) for n in (None, longest))
    (chat,) = whole.groups(kind, 0, 0)
    groups = cut.groups(kind, 0, 0)
    assert [i for group in groups for i in group] == list(chat) == list(range(len(reader)))
    documents = [cut.compose(kind, group, 0) for group in groups]
    assert [cut.num_tokens(kind, group, 0) for group in groups] == list(map(len, documents))
    assert len({document.key for document in documents}) == len(groups)
    assert (len(groups) == 1) == (longest is None)
    one = whole.compose(kind, chat, 0)
    begun_anew = [
        ids[len(head) :] if ids[: len(head)] == head and n else ids
        for n, ids in enumerate(d.ids_L.tolist() for d in documents)
    ]
    assert [i for ids in begun_anew for i in ids] == one.ids_L.tolist(), "each begins with bos and bos_sys"
    labels = [label for d in documents for label in d.text_label_L.tolist() if label != NO_LABEL]
    assert labels == one.text_label_L[one.text_label_L != NO_LABEL].tolist()
    assert [cut.goes_on(kind, group) for group in groups] == [False] + [True] * (len(groups) - 1)
    if longest is not None:
        too_long = [document for document in documents if len(document) > longest]
        assert all((document.ids_L == SPACE.eos).sum() == 1 for document in too_long), (
            "exchanges that stand alone"
        )
        assert len(too_long) >= (longest < 50)
        assert all(len(a) + len(b) - len(head) > longest for a, b in itertools.pairwise(documents)), (
            "none is cut in vain"
        )


@pytest.fixture
def voices(tmp_path):
    """Three chats: replies by ann, by bob, and by both."""
    said = [("user", [b"q1"]), ("assistant", [b"a1"]), ("user", [b"q2"]), ("assistant", [b"a2"])]
    with ShardWriter(tmp_path, "train") as writer:
        for name, speakers in (("one", "ann ann"), ("two", "bob bob"), ("three", "ann bob")):
            for i, (sound, facts) in enumerate(to_clips(said, name)):
                speaker = speakers.split()[i // 2] if facts["role"] == "assistant" else "user"
                known = {"language": "en", "speaker": speaker, "text": sound.decode(), "num_frames": 3}
                codes = {"codes.npy": dump_npy(np.zeros((3, 2), np.uint16))}
                writer.write(f"{name}-{i}", codes, {**known, **facts})
    reader, encode = ShardReader(tmp_path, "train"), lambda t: list(t.encode())
    return lambda **more: DocumentComposer(reader, encode, SPACE, voices={"ann": "a calm voice"}, **more)


def test_the_voice_of_spoken_replies_is_named_before_the_chat(voices):
    chats, words = voices(), "You speak with this voice: a calm voice."
    for kind in CHATS:
        for group in chats.groups(kind, 0, 0):
            document = chats.compose(kind, group, 0)
            named = kind == "sft_chat" and document.key == "one"
            assert text_of(document.ids_L).startswith(words if named else "a1")
            assert words not in text_of(document.text_label_L[document.text_label_L != NO_LABEL])
            assert len(document) == chats.num_tokens(kind, group, 0)


def test_a_written_text_is_read_aloud(composer):
    document = composer.compose("sft_read", (1,), 0)
    asked, goodbye = prompt_for("sft_read", "en", np.random.default_rng(0)).encode(), b"Goodbye"
    space = [SPACE.audiotext_start, SPACE.c_a]
    head = [SPACE.bos_sys, SPACE.c_q, *asked, *goodbye, *space, *goodbye]
    assert document.ids_L.tolist()[: len(head)] == head
    labels = document.text_label_L[document.text_label_L != NO_LABEL]
    assert text_of(labels) == "Goodbye", "loss on the reply alone"
    learned = document.audio_label_LK[(document.audio_label_LK != NO_LABEL).all(1)]
    assert np.array_equal(learned[:-1], codes_of(1)), "then its end"


def test_spoken_replies_made_of_clips_are_in_the_voice_that_is_named(composer, monkeypatch):
    monkeypatch.setattr(composer, "voices", {"ann": "a calm voice"})
    words = "You speak with this voice: a calm voice."
    seen = set()
    for kind in (kind for kind in KINDS if kind.startswith("sft_") and kind not in CHATS):
        for group in items(composer, kind):
            for seed in range(4):
                document = composer.compose(kind, group, seed)
                named = text_of(document.ids_L).startswith(words)
                spoken = bool((document.audio_label_LK != NO_LABEL).any())
                assert named == (spoken and CLIPS[group[0]][1] == "ann")
                assert len(document) == composer.num_tokens(kind, group, seed)
                seen.add((kind, named))
    assert {kind for kind, named in seen if named} == {"sft_repeat", "sft_read", "sft_continue"}


def test_the_voice_of_who_goes_on_is_named_whoever_was_heard(tmp_path):
    """In a passage ann's first clip is cut and goes on itself; bob's is short, so the next one, of ann, goes on."""
    said = [("ann", CLIPS[0][2], 40), ("bob", "Goodbye", 3), ("ann", "One", 3)]
    with ShardWriter(tmp_path, "train") as writer:
        for place, (speaker, text, num_frames) in enumerate(said):
            facts = {"language": "en", "speaker": speaker, "text": text, "num_frames": num_frames}
            codes = dump_npy(np.zeros((num_frames, 2), np.uint16))
            writer.write(f"c{place}", {"codes.npy": codes}, {**facts, "passage": "p", "place": place})
    composer = DocumentComposer(
        ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE, voices={"ann": "calm"}
    )

    def named(kind, group):
        documents = [composer.compose(kind, group, seed) for seed in range(8)]
        spoken = [d for d in documents if (d.audio_label_LK != NO_LABEL).any()]
        return {"calm" in text_of(document.ids_L) for document in spoken}

    assert named("sft_continue", (0, 1)) == named("sft_continue", (1, 2)) == {True}
    assert named("sft_repeat", (0, 1)) == {False}
    composer.voices = {"ann": "calm", "bob": "calm"}
    assert named("sft_repeat", (0, 1)) == {True}, "two speakers of one name"


def test_every_piece_of_a_long_chat_names_its_voice_and_is_no_longer_than_it_may_be(voices):
    chats = voices(longest=70)
    documents = [chats.compose("sft_chat", group, 0) for group in sorted(chats.groups("sft_chat", 0, 0))]
    ann = [document for document in documents if document.key.startswith("one")]
    assert len(ann) == 2 and all(
        "calm" in text_of(document.ids_L) and len(document) <= 70 for document in ann
    )
    assert [document.key for document in documents if "calm" not in text_of(document.ids_L)] == [
        "two",
        "three",
    ]


def test_a_voice_that_replies_in_no_chat_is_an_error(voices):
    chats = voices()
    chats.check_voices(["sft_chat"])
    chats.voices = {"ann": "a calm voice", "user": "who only asks", "bbo": "a typing error"}
    with pytest.raises(UserError, match="mixture.voices: no reply is spoken by user, bbo; give labels"):
        chats.check_voices(["sft_chat", "tts"])
    with pytest.raises(UserError, match="no reply is spoken by bbo; give labels"):
        chats.check_voices(["sft_chat", "sft_read"])  # which reads what users say aloud too
    with pytest.raises(UserError, match="no reply is spoken by ann, user, bbo; give labels"):
        chats.check_voices(["sft_transcribe", "sft_chat_text"])


def test_a_voice_whose_clips_no_kind_can_use_is_an_error(tmp_path):
    said = {"ann": {"text": "t"}, "mute": {"text": ""}, "other": {"text": "t", "only": "asr"}}
    with ShardWriter(tmp_path, "train") as writer:
        for speaker, facts in said.items():
            facts = {"language": "en", "speaker": speaker, "num_frames": 3, "corpus": "studio", **facts}
            writer.write(speaker, {"codes.npy": dump_npy(np.zeros((3, 2), np.uint16))}, facts)
    reader, encode = ShardReader(tmp_path, "train"), lambda text: list(text.encode())
    composer = DocumentComposer(reader, encode, SPACE, voices={"ann": "a calm woman"})
    composer.check_voices(["sft_read@studio"])
    with pytest.raises(UserError, match="no reply is spoken by ann;"):
        composer.check_voices(["sft_read@street"])
    composer.voices = dict.fromkeys(said, "a calm voice")
    with pytest.raises(UserError, match="no reply is spoken by mute, other;"):
        composer.check_voices(["sft_read"])


def test_clips_of_a_passage_that_are_no_part_of_its_chat_end_it(tmp_path):
    """A third speaker has no role: neither he nor what follows belongs to the chat."""
    said = [("user", [b"q"]), ("assistant", [b"a"])]
    facts = [facts for _, facts in to_clips(said, "one")]
    with ShardWriter(tmp_path, "train") as writer:
        for i, more in enumerate([*facts, {"passage": "one", "place": 2}, {"passage": "one", "place": 3}]):
            known = {"language": "en", "speaker": "s", "text": "t", "num_frames": 3}
            writer.write(f"c{i}", {"codes.npy": dump_npy(np.zeros((3, 2), np.uint16))}, {**known, **more})
    chats = DocumentComposer(ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE)
    assert chats.groups("sft_chat", 0, 0) == [(0, 1)]


def test_a_corpus_without_chats_has_none(composer):
    assert not composer.occurs("sft_chat", "") and composer.groups("sft_chat", 0, 0) == []


@pytest.fixture
def large(tmp_path, monkeypatch):
    """600 clips, of which 20 are of the corpus ``rare``, with chats of one exchange; windows of 64 clips."""
    monkeypatch.setattr(ShuffledWindows.__init__, "__defaults__", (True, 64, 8))
    said = [("user", [b"q"]), ("assistant", [b"a"])]
    with ShardWriter(tmp_path, "train") as writer:
        for i in range(600):
            rare = 400 <= i < 420
            facts = {"language": "en", "speaker": "s", "text": "t", "num_frames": 3}
            facts |= {"corpus": "rare" if rare else "other" if i % 2 else "third"}
            facts |= to_clips(said, f"chat-{i // 2}")[i % 2][1] if rare else {}
            writer.write(f"c{i}", {"codes.npy": dump_npy(np.zeros((3, 2), np.uint16))}, facts)
    return DocumentComposer(ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE)


def test_a_rare_corpus_of_a_large_folder_is_sought_where_it_lies(large, monkeypatch):
    looked_at, fits = [], large._fits
    monkeypatch.setattr(large, "_fits", lambda k, c, items: (looked_at.extend(items), fits(k, c, items))[1])
    assert large.num_windows("asr") == 10
    for kind in ("asr", "sft_chat"):
        assert large.occurs(kind, "rare") and large.num_windows(f"{kind}@rare") == 1
        for window in range(3):
            groups = large.groups(f"{kind}@rare", window, 7)
            assert sorted(i for group in groups for i in group) == list(range(400, 420))
    assert set(looked_at) == set(range(400, 420))
    assert large.groups("asr@rare", 0, 7) != large.groups("asr@rare", 1, 7)
    assert not large.occurs("asr", "rear") and not large.occurs("sft_chat", "other")
    found = [i for w in range(large.num_windows("asr@third")) for (i,) in large.groups("asr@third", w, 7)]
    assert sorted(found) == [i for i in range(0, 600, 2) if not 400 <= i < 420]


def test_the_order_of_an_epoch_is_drawn_once(large, monkeypatch):
    drawn = []

    class Counted(ShuffledWindows):
        def __init__(self, *arguments):
            drawn.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr("omniaudio.data.compose.ShuffledWindows", Counted)
    visited = [i for window in range(10) for (i,) in large.groups("asr", window, 3)]
    assert sorted(visited) == list(range(600)) and len(drawn) == 1


def test_asr_holds_prompt_codes_and_transcript(composer):
    document = composer.compose("asr", (4,), 0)
    assert text_of(document.ids_L) == "Scrivi quello che viene detto: Buongiorno"
    pads = document.ids_L == SPACE.audio_pad
    assert document.codes_LK[pads].tolist() == codes_of(4).tolist()
    assert text_of(document.text_label_L[document.text_label_L != NO_LABEL]) == "Buongiorno"


def test_repeat_speaks_what_was_heard(composer):
    document = composer.compose("sft_repeat", (1, 2), 0)
    pads = document.codes_LK[document.ids_L == SPACE.audio_pad]
    frames = np.concatenate([codes_of(1), codes_of(2)]).tolist()
    assert pads.tolist() == frames + frames
    labelled = document.audio_label_LK[document.audio_label_LK[:, 0] != NO_LABEL].tolist()
    assert [frame for frame in labelled if frame != [8, 4]] == frames
    assert text_of(document.ids_L).endswith("Goodbye One")
    assert SPACE.audiotext_start in document.ids_L


def test_continue_cuts_where_the_text_pauses(composer):
    spoken = 0
    for seed in range(8):
        document = composer.compose("sft_continue", (0, 1), seed)
        text = text_of(document.text_label_L[document.text_label_L != NO_LABEL])
        assert text == "how are you today?"
        start = int((document.ids_L == SPACE.audio_start).nonzero()[0])
        stop = int((document.ids_L == SPACE.audio_end).nonzero()[0])
        heard = document.codes_LK[start + 1 : stop].tolist()
        assert heard == codes_of(0)[: len(heard)].tolist()
        if SPACE.audiogen_start in document.ids_L:
            spoken += 1
            pads = document.codes_LK[document.ids_L == SPACE.audio_pad]
            assert pads.tolist() == codes_of(0).tolist()
    assert 0 < spoken < 8, "replies in text and in speech"


def test_continue_goes_on_with_the_next_clip_otherwise(composer):
    document = composer.compose("sft_continue", (1, 2), 0)
    assert text_of(document.text_label_L[document.text_label_L != NO_LABEL]) == "One"


def test_language_is_named(composer):
    document = composer.compose("sft_language", (5,), 0)
    assert text_of(document.text_label_L[document.text_label_L != NO_LABEL]) == "Italian"


def test_split_clip_by_hand():
    assert split_clip("Hello there, how are you?", 48) == ("Hello there,", "how are you?", 24)
    assert split_clip("Hello there how are you?", 48) is None
    assert split_clip("Hello there, how are you?", 20) is None, "too little sound on a side"
    assert split_clip("It costs 1,000,000 dollars", 48) is None


TIMED = [
    ["Hello", 0.0, 0.6],
    [" there,", 0.6, 1.0],
    [" how", 1.4, 2.0],
    [" are", 2.0, 3.0],
    [" you?", 3.0, 4.0],
]


def test_a_clip_whose_words_have_times_is_cut_between_them():
    text = "Hello there, how are you?"
    assert split_clip(text, 48, TIMED, 4.0) == ("Hello there,", "how are you?", 14), "at 1.2 s of 4"
    assert split_clip(text, 40, TIMED, 4.0, min_frames=13) is None, "12 frames before"
    other = [["Hello there, how", 0.0, 2.0], [" are you?", 2.0, 4.0]]
    assert split_clip(text, 48, other, 4.0) == split_clip(text, 48), "no word ends at the comma"


def test_times_cut_the_codes_and_their_number_alike(tmp_path):
    codes = np.stack([np.arange(48) % 8, np.arange(48) % 4], 1).astype(np.uint16)
    facts = {"language": "en", "speaker": "s", "text": "Hello there, how are you?", "num_frames": 48}
    facts |= {"words": TIMED, "num_samples": 64_000, "sample_rate_hz": 16_000, "passage": "p", "place": 0}
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("c", {"codes.npy": dump_npy(codes)}, facts)
    composer = DocumentComposer(ShardReader(tmp_path, "train"), lambda t: list(t.encode()), SPACE)
    assert composer.groups("sft_continue", 0, 0) == [(0, 0)]
    for seed in range(4):
        document = composer.compose("sft_continue", (0, 0), seed)
        assert composer.num_tokens("sft_continue", (0, 0), seed) == len(document)
        start, stop = (int((document.ids_L == i).nonzero()[0]) for i in (SPACE.audio_start, SPACE.audio_end))
        assert document.codes_LK[start + 1 : stop].tolist() == codes[:14].tolist()


def test_unknown_kind_is_named(composer):
    with pytest.raises(UserError, match="unknown kind 'ars'"):
        items(composer, "ars")
