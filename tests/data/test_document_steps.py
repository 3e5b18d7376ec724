import json
import shutil
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from omniaudio.data.compose import DocumentComposer
from omniaudio.data.document_steps import DocumentSteps, TextSteps
from omniaudio.data.mixture import Mixture, MixturePlan, OneByOne, largest_part
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.data.steps import StepStream
from omniaudio.data.texts import cut_texts
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

LINES = ["one two three four five six seven", "eight nine", "ten eleven twelve"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    with ShardWriter(folder, "train", fingerprint={"codebook_sizes": [8, 4]}) as writer:
        for i, line in enumerate(LINES * 4):
            facts = {"language": "en", "speaker": f"s{i % 2}", "text": line, "num_frames": 5}
            facts |= {"corpus": "big" if i % 4 else "small"} | ({"response": "yes"} if i % 4 else {})
            writer.write(f"c-{i}", {"codes.npy": dump_npy(np.full((5, 2), i % 4, np.uint16))}, facts)
    TextTokenizer.train(LINES, 270, folder / "tokenizer.json")
    (folder / "texts.txt").write_text("\n".join(LINES) + "\n\n")
    return folder


def steps(folder, space=None, **changes):
    arguments = {"weights": {"asr": 1, "itts": 1, "text": 1}, "tokens_per_step": 200, **changes}
    names = ("weights", "corpora", "voices", "optional", "loss_on_intlv_audio")
    of_mixture = {name: arguments.pop(name) for name in names if name in arguments}
    arguments["mixture"] = Mixture(**of_mixture)
    space = space or TokenSpace(270, [8, 4])
    texts = folder / "texts.txt"
    return DocumentSteps(
        space, folder / "tokenizer.json", codes_dir=folder, split="train", texts_path=texts, **arguments
    )


@pytest.mark.parametrize("bears_loss", [False, True])
def test_interleaved_audio_bears_loss_where_the_mixture_says_so(folder, bears_loss):
    batch = steps(folder, weights={"intlv": 1}, loss_on_intlv_audio=bears_loss).batch(0, 0, 1)
    assert set(batch.kinds) == {"intlv"} and (batch.ids_L == TokenSpace(270, [8, 4]).audio_pad).any()
    assert bool((batch.audio_label_LK != NO_LABEL).any()) == bears_loss


def test_names_of_voices_that_do_not_reply_are_told_before_the_first_step(folder):
    with pytest.raises(UserError, match="no reply is spoken by s0"):
        steps(folder, voices={"s0": "a calm voice"})
    with pytest.raises(UserError, match="no reply is spoken by s0"):
        steps(folder, weights={"sft_read": 0, "asr": 1}, voices={"s0": "a calm voice"})
    assert steps(folder, weights={"sft_read": 1, "asr": 1}, voices={"s0": "a calm voice"})


def test_parts_of_a_step_are_the_whole(folder):
    source = steps(folder)
    whole = source.batch(2, 0, 1)
    parts = [source.batch(2, part, 2) for part in range(2)]
    assert sorted(whole.keys) == sorted(parts[0].keys + parts[1].keys)
    assert len(whole.ids_L) == sum(len(part.ids_L) for part in parts) <= 200
    assert {kind for step in range(6) for kind in source.batch(step, 0, 1).kinds} == {"asr", "itts", "text"}
    assert source.plan[2] == steps(folder).plan[2]


def test_corpora_have_their_shares_in_every_kind_that_they_can_give(folder):
    weights = {"asr": 2, "aqa": [[0, 1]], "text": 1}
    source = steps(folder, weights=weights, corpora={"big": 1, "small": 3}, tokens_per_step=400)
    assert source.plan.kinds == ["aqa@big", "asr@big", "asr@small", "text"]
    assert source.plan.shares(60) == pytest.approx(
        {"aqa@big": 0.25, "asr@big": 0.125, "asr@small": 0.375, "text": 0.25}, abs=0.02
    )
    batch = source.batch(0, 0, 1)
    assert set(batch.kinds) == {"asr", "aqa", "text"}
    for document in source.plan[0]:
        if document.kind == "asr@small":
            assert document.item_ids[0] % 4 == 0
    for corpora, expected in (
        ({"big": -1}, "must be a share >= 0"),
        (["big"], "must be corpora with their shares"),
        ({"big": 0}, "not all 0"),
        ({"bgi": 1}, "none of bgi has clips for the kind 'asr'"),
        ({"big": 1, "bgi": 1}, "bgi has no clips for any kind"),
    ):
        with pytest.raises(UserError, match=expected):
            steps(folder, corpora=corpora)


def test_a_held_out_split_needs_no_kind_that_it_has_no_clips_for(folder):
    mixture = Mixture(weights={"asr": 2, "s2tt": 1, "tts": 0, "text": 1})
    assert mixture.streams(lambda kind, _: kind == "asr", all_named=False) == {"asr": 2, "tts": 0, "text": 1}
    assert "s2tt" in mixture.streams(lambda kind, _: kind == "asr"), "of a training it is an error, later"


def test_an_optional_kind_that_no_clip_has_is_left_out_and_told(folder, capsys):
    weights = {"asr": 1, "aqa": 1, "s2tt": 1}
    with pytest.raises(UserError, match="s2tt"):
        steps(folder, weights=weights).batch(0, 0, 1)
    assert steps(folder, weights=weights, optional=["aqa", "s2tt"]).plan.kinds == ["aqa", "asr"]
    told = "mixture: no clip has what s2tt needs; its share goes to the other kinds\n"
    assert capsys.readouterr().out == told
    assert steps(folder, weights=weights | {"s2tt": 0}, optional=["s2tt"]).plan.kinds == ["aqa", "asr"]
    assert not capsys.readouterr().out
    source = steps(folder, weights=weights, optional=["aqa", "s2tt"], corpora={"small": 1})
    assert source.plan.kinds == ["asr@small"]
    with pytest.raises(UserError, match="mixture.optional: 'poems' is none of asr, aqa, s2tt"):
        steps(folder, weights=weights, optional=["poems"])


def test_shares_of_corpora_may_change_with_the_step_and_be_tempered():
    def weights(step, **settings):
        streams = Mixture(weights={"asr": [[0, 1], [100, 3]], "text": 1}, **settings).streams(
            lambda kind, name: True
        )
        points = {
            name: weight if isinstance(weight, list) else [(0, weight)] for name, weight in streams.items()
        }
        return {name: float(np.interp(step, *zip(*pairs, strict=True))) for name, pairs in points.items()}

    corpora = {"big": [[0, 1], [50, 1], [100, 0]], "small": 3}
    assert weights(0, corpora=corpora) == pytest.approx({"asr@big": 0.25, "asr@small": 0.75, "text": 1})
    assert weights(50, corpora=corpora) == pytest.approx({"asr@big": 0.5, "asr@small": 1.5, "text": 1})
    assert weights(100, corpora=corpora) == pytest.approx({"asr@big": 0, "asr@small": 3, "text": 1})
    even = MixturePlan(
        OneByOne([5]),
        Mixture(weights={"asr": 4, "tts": 1}, corpora={"big": 9, "small": 1}, temperature=2.0).streams(
            lambda *_: True
        ),
        100,
        temperature=2.0,
    ).shares_at(0)
    kinds, names = {"asr": 2 / 3, "tts": 1 / 3}, {"big": 3 / 4, "small": 1 / 4}
    assert even == pytest.approx({f"{k}@{n}": kinds[k] * names[n] for k in kinds for n in names})


def test_a_held_out_split_need_not_have_all_corpora(folder, tmp_path):
    for path in folder.glob("train*"):
        new = tmp_path / path.name.replace("train", "dev")
        (shutil.copytree if path.is_dir() else shutil.copy)(path, new)
    listing = tmp_path / "dev.shards.json"
    listing.write_text(listing.read_text().replace("train-", "dev-"))
    mixture = Mixture(weights={"asr": 1, "aqa": 1}, corpora={"small": 1, "elsewhere": 3})
    source = DocumentSteps(TokenSpace(270, [8, 4]), folder / "tokenizer.json", mixture, 200, tmp_path, "dev")
    assert source.plan.kinds == ["aqa", "asr@small"], (
        "aqa has no clips of small: those that there are stand in"
    )


def test_documents_of_damaged_codes_are_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "codes")
    whole = steps(folder, weights={"asr": 1}).batch(0, 0, 1)
    entry = ShardReader(folder, "train").entries[4]
    path = tmp_path / "codes" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[entry.members["codes.npy"].offset + 130] ^= 1
    path.write_bytes(content)
    batch = steps(tmp_path / "codes", weights={"asr": 1}).batch(0, 0, 1)
    assert batch.keys == [key for key in whole.keys if key != "c-4"] and len(batch.keys) < len(whole.keys)
    assert len(batch.damaged) == whole.keys.count("c-4") and "'c-4.codes.npy'" in batch.damaged[0]
    assert batch.doc_len_G.sum() == len(batch.ids_L)


@pytest.mark.parametrize("recalled", [True, False])
def test_a_run_may_go_on_with_other_ranks_and_workers(folder, monkeypatch, recalled):
    """(ranks, workers, batches of a step): (1, 0, 1), then (2, 2, 1), then (1, 1, 2): the steps of one process."""
    monkeypatch.setattr("omniaudio.data.mixture.CHAPTER_TOKENS", 1000)
    settings = {"weights": {"asr": 1, "itts": [[0, 2], [20, 0]], "text": 1}}
    whole = [Counter(steps(folder, **settings).batch(step, 0, 1).keys) for step in range(24)]
    found, memo = [], None
    for ranks, workers, accumulate, first, last in ((1, 0, 1, 0, 7), (2, 2, 1, 7, 16), (1, 1, 2, 16, 24)):
        streams = []
        for rank in range(ranks):
            source = steps(folder, **settings)
            assert memo is None or not recalled or source.plan.recall(memo)
            stream = StepStream(source, first * accumulate, last * accumulate, rank, ranks, accumulate)
            streams.append(list(DataLoader(stream, batch_size=None, num_workers=workers)))
        for i in range(last - first):
            parts = [batch for stream in streams for batch in stream[i * accumulate : (i + 1) * accumulate]]
            found.append(Counter(key for part in parts for key in part.keys))
        memo = json.loads(json.dumps(streams[-1][-1].memo))
    assert found == whole


def test_plans_and_documents_are_those_of_texts_held_in_memory(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "codes")
    lines = [" ".join(LINES[i:] * (i + 5)) for i in range(3)] * 5
    (tmp_path / "codes" / "texts.txt").write_text("\n".join(lines))
    tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
    source = steps(tmp_path / "codes", max_positions=190)
    held = list(cut_texts(lines, 189))
    assert len(held) > len(lines)
    composer = DocumentComposer(source.reader, tokenizer.encode, TokenSpace(270, [8, 4]), held, longest=190)
    plan = MixturePlan(composer, {"asr": 1, "itts": 1, "text": 1}, 200, 0, 1.0, 190)
    assert [source.plan[step] for step in range(9)] == [plan[step] for step in range(9)]
    assert source.plan.memo(9) == plan.memo(9)
    texts = [document for step in range(9) for document in plan[step] if document.kind == "text"]
    for document in texts:
        ids = composer.compose("text", document.item_ids, document.seed).ids_L
        assert source.document(document).ids_L.tolist() == ids.tolist()

    alone = TextSteps(TokenSpace(270), folder, folder / "texts.txt", tokens_per_step=12, max_positions=5)
    pieces = [ids[i : i + 4] for ids in map(tokenizer.encode, LINES) for i in range(0, len(ids), 4)]
    plan = MixturePlan(OneByOne([len(ids) + 1 for ids in pieces]), {"text": 1.0}, 12, 0, 1.0, 5)
    assert [alone.plan[step] for step in range(9)] == [plan[step] for step in range(9)]
    assert alone.plan.memo(9) == plan.memo(9)
    assert [alone.pieces[i] for i in range(len(alone.pieces))] == pieces


def test_texts_without_weight_are_not_opened(folder):
    arguments = {
        "tokens_per_step": 200,
        "codes_dir": folder,
        "split": "train",
        "texts_path": folder / "none.txt",
    }
    space = TokenSpace(270, [8, 4])
    source = DocumentSteps(space, folder, Mixture(weights={"asr": 1, "text": 0}), **arguments)
    assert set(source.batch(0, 0, 1).kinds) == {"asr"}
    with pytest.raises(UserError, match="none.txt: cannot read the texts"):
        DocumentSteps(space, folder, Mixture(weights={"asr": 1, "text": 1}), **arguments)


def test_texts_are_cut_not_lost(folder):
    space = TokenSpace(270)
    source = TextSteps(
        space, folder / "tokenizer.json", folder / "texts.txt", tokens_per_step=12, max_positions=5
    )
    assert max(map(len, source.pieces)) == 4
    encode = TextTokenizer.from_file(folder / "tokenizer.json").encode
    assert [i for piece in source.pieces for i in piece] == [i for line in LINES for i in encode(line)]
    batch = source.batch(0, 0, 1)
    assert batch.codes_LK.shape == (len(batch.ids_L), 0)
    assert len(batch.ids_L) <= 12


def test_bos_has_its_place_in_every_document(folder):
    space = TokenSpace(270, [8, 4], {**TokenSpace(270).special_ids, "bos": 0})
    texts = TextSteps(space, folder, folder / "texts.txt", tokens_per_step=12, max_positions=5)
    assert max(map(len, texts.pieces)) == 3
    for source in (texts, steps(folder, space)):
        for step in range(4):
            batch = source.batch(step, 0, 1)
            begin = batch.doc_len_G.cumsum(0) - batch.doc_len_G
            assert (batch.ids_L[begin] == 0).all() and (batch.text_label_L != 0).all()
            assert sorted(batch.doc_len_G.tolist()) == sorted(each.num_tokens for each in source.plan[step])


@pytest.mark.parametrize(("num_parts", "bos"), [(1, None), (3, None), (1, 0)])
def test_the_largest_batches_hold_what_a_part_of_any_step_may(folder, num_parts, bos):
    space = TokenSpace(270, [8, 4], {**TokenSpace(270).special_ids, "bos": bos})
    source = steps(folder, space, weights={"asr": 1, "text": 1}, tokens_per_step=200, max_positions=90)
    audio, text = source.largest(num_parts)
    (alone,) = TextSteps(
        space,
        folder / "tokenizer.json",
        folder / "texts.txt",
        tokens_per_step=200,
        max_positions=90,
    ).largest(num_parts)
    most = max(len(source.batch(s, part, num_parts).ids_L) for s in range(20) for part in range(num_parts))
    for batch in (audio, text, alone):
        assert int(batch.doc_len_G[0]) == 90 and len(batch.ids_L) >= largest_part(200, 90, num_parts) >= most
        assert len(batch.ids_L) <= largest_part(200, 90, num_parts) + 3 and int(batch.doc_len_G.max()) == 90
    assert set(audio.kinds) == {"audio"} and set(text.kinds) == {"text"}
    assert (audio.audio_label_LK[:, 0] >= 0).sum() > 0.8 * len(audio.ids_L)


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match=r"codebook_sizes: \[8, 4\] there, \[4, 8\] here"):
        steps(folder, space=TokenSpace(270, [4, 8]))
    with pytest.raises(UserError, match="text tokenizer has"):
        steps(folder, space=TokenSpace(100, [8, 4]))
    empty = folder / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(UserError, match="has no texts"):
        DocumentSteps(
            TokenSpace(270, [8, 4]), folder, Mixture(weights={"text": 1}), 200, folder, "train", empty
        )
