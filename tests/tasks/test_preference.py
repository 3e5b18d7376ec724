import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from omniaudio.data.pairs import CHOSEN, REJECTED
from omniaudio.data.planning import PooledPlan
from omniaudio.errors import UserError
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.chat import ChatLayout
from omniaudio.sequence.spans import pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.preference import PreferenceTask, by_pair, log_probs
from tests.tasks import accumulate_run

SPACE = TokenSpace(40, [6, 4, 3])
CHAT = ChatLayout(SPACE, lambda text: [ord(char) % 40 for char in text])
SHORT, LONG = np.array([[1, 2, 0]]), np.array([[5, 3, 2], [0, 1, 1], [5, 0, 2]])


def make_lm(lora=None):
    backbone = CausalBackbone(SPACE.vocab_size, 16, 1, 2, 1, 24, **({"lora": lora} if lora else {}))
    return AudioLM(backbone, AudioHead(16, [6, 4, 3], num_layers=1, head_dim=8), SPACE, deep_frame_share=0.5)


def make_task(lora=None, **changes):
    arguments = {"optimizer": torch.optim.AdamW, "scheduler": None, "trainable": ["*"], **changes}
    weights = {"dpo/pairs": 1.0, "ce/chosen": 0.5}
    task = PreferenceTask(modules={"lm": lambda: make_lm(lora)}, loss_weights=weights, **arguments)
    task.configure_model()
    task.logged = {}
    task.log_stats = lambda stats, split="train": task.logged.update(stats)
    return task


def pair(chosen, rejected, prompt=None):
    prompt = prompt or [{"role": "user", "content": ["say", LONG]}]
    spoken = any(not isinstance(part, str) for part in [*chosen, *rejected])
    return [
        CHAT.answered(prompt, reply, spoken, kind, kind)
        for reply, kind in ((chosen, CHOSEN), (rejected, REJECTED))
    ]


def spoken_pair():
    return pair(["one", SHORT, " two", LONG], ["two", LONG])


def written_pair():
    earlier = [{"role": "user", "content": ["hi"]}, {"role": "assistant", "content": ["ho", SHORT]}]
    return pair(["yes"], ["no way"], [*earlier, {"role": "user", "content": ["and now"]}])


@torch.no_grad()
def reply_by_reading(lm, document):
    """Log-probability of the reply, token by token and book by book, and the number of its positions."""
    hidden = lm.backbone(lm.embed(document.ids_L, document.codes_LK), [len(document)])
    start = int((document.ids_L == SPACE.c_a).nonzero()[-1])
    total, count, ids = 0.0, 0, document.ids_L.tolist()
    for i in range(start, len(ids) - 1):
        count += 1
        if ids[i + 1] == SPACE.audio_pad or ids[i] == SPACE.audio_pad:
            frame = document.codes_LK[i + 1] if ids[i + 1] == SPACE.audio_pad else None
            past, x = [], hidden[i][None]
            for book, size in enumerate(SPACE.codebook_sizes):
                code = size if frame is None else int(frame[book])
                total += lm.audio_head.step(x, past)[0].log_softmax(-1)[code]
                if frame is None:  # "end of audio" is said by book 0
                    break
                embed = lm.audio_embed[book].weight[code][None]
                x = embed if book == 0 else x + embed
        else:
            total += lm.backbone.lm_head(hidden[i]).log_softmax(-1)[ids[i + 1]]
    return total, count


def test_log_probabilities_are_those_of_generation_read_step_by_step():
    task = make_task().train()
    for documents in (spoken_pair(), written_pair()):
        batch = pack(documents)
        found = by_pair(log_probs(task.lm(batch, exact=True), batch, SPACE), batch)[0]
        for log_prob, document in zip(found, documents, strict=True):
            assert_close(log_prob, reply_by_reading(task.lm, document)[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("average", [False, True])
def test_losses_are_those_of_a_readable_loop(average):
    task = make_task(beta=0.3, average=average)
    pairs = [spoken_pair(), written_pair()]
    first = [[reply_by_reading(task.lm, document) for document in documents] for documents in pairs]
    with torch.no_grad():
        for parameter in task.lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    terms = task.losses(pack([document for documents in pairs for document in documents]), "train")
    loss = chosen = margins = positions = 0.0
    for documents, before in zip(pairs, first, strict=True):
        rewards = []
        for document, (log_prob_0, count) in zip(documents, before, strict=True):
            log_prob, _ = reply_by_reading(task.lm, document)
            rewards.append(0.3 * float(log_prob - log_prob_0) / (count if average else 1))
        loss += math.log(1 + math.exp(rewards[1] - rewards[0]))
        margins += rewards[0] - rewards[1]
        chosen -= float(reply_by_reading(task.lm, documents[0])[0])
        positions += before[0][1]
    assert float(terms["dpo/pairs"].total) == pytest.approx(loss, rel=1e-4) and terms["dpo/pairs"].count == 2
    assert float(terms["ce/chosen"].total) == pytest.approx(chosen, rel=1e-4)
    assert terms["ce/chosen"].count == positions
    assert float(task.logged["margin"]) == pytest.approx(margins / 2, rel=1e-3, abs=1e-5)
    assert task.logged["drift"] > 0


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_first_loss_is_log_2_and_nothing_has_drifted(lora):
    task = make_task(lora).train()
    terms = task.losses(pack([*spoken_pair(), *written_pair()]), "train")
    assert float(terms["dpo/pairs"].total / 2) == pytest.approx(math.log(2), abs=1e-6)
    assert float(task.logged["margin"]) == float(task.logged["drift"]) == float(task.logged["accuracy"]) == 0


def test_neither_neighbours_nor_parts_change_a_pair():
    task = make_task()
    with torch.no_grad():
        for parameter in task.lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole = task.losses(pack([*spoken_pair(), *written_pair(), *spoken_pair()]), "train")
    parts = [
        task.losses(pack(documents), "train") for documents in (spoken_pair(), written_pair(), spoken_pair())
    ]
    for name, term in whole.items():
        assert_close(term.total, sum(part[name].total for part in parts))
        assert term.count == sum(part[name].count for part in parts)


@pytest.mark.parametrize(
    ("lora", "trainable"), [(None, ["*", "!lm.audio_head.*"]), ({"rank": 4}, ["lm.backbone.layers.*.lora_*"])]
)
def test_training_parts_the_replies_and_moves_only_what_may_learn(lora, trainable):
    task, batch = make_task(lora, trainable=trainable).train(), pack([*spoken_pair(), *written_pair()])
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    margins = []
    for _ in range(12):
        optimizer.zero_grad()
        task.begin_step(batch)
        term = task.losses(batch, "train")["dpo/pairs"]
        (term.total / term.count).backward()
        optimizer.step()
        margins.append(float(task.logged["margin"]))
    assert margins[-1] > margins[3] > 0 and min(margins) == margins[0] == 0
    assert task.logged["accuracy"] == 1 and task.logged["drift"] > 0
    moved = {name for name, p in task.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= {name for name, p in task.named_parameters() if p.requires_grad}


class UnevenPairs:
    """A pair of many positions and one of few."""

    def __init__(self):
        self.plan = PooledPlan([1.0] * 4, 1.0, seed=0)

    def batch(self, step, part, num_parts):
        pairs = [spoken_pair(), written_pair()][part::num_parts]
        return pack([document for documents in pairs for document in documents])


def test_accumulation_changes_nothing_however_uneven_the_pairs_are(tmp_path):
    for accumulate in (1, 2):
        task = make_task(**accumulate_run.settings(accumulate))
        del task.log_stats
        (tmp_path / str(accumulate)).mkdir()
        accumulate_run.fit(task, UnevenPairs, tmp_path / str(accumulate))
    names = {"train/dpo/pairs", "train/ce/chosen", "train/margin", "train/drift"}
    accumulate_run.check_equal(tmp_path / "2", tmp_path / "1", names)


def test_no_trace_of_the_reference_in_checkpoint_or_optimizer():
    task = make_task()
    assert task.reference.kept
    assert {name.split(".")[0] for name in task.state_dict()} == {"lm"}
    assert len(list(task.parameters())) == len(list(task.lm.parameters()))


def test_held_out_numbers_are_means_over_all_pairs():
    task, logged = make_task(), []
    task._log = lambda values, sync, weight: logged.append((values, weight))
    task._trainer = SimpleNamespace(world_size=1)
    task.losses(pack([*spoken_pair(), *written_pair()]), "val")
    assert {name: weight for values, weight in logged for name in values if "drift" not in name} == {
        f"val/{name}": 2
        for name in (
            "margin",
            "accuracy",
            "likelier",
            "likelier/first",
            "log_prob/chosen",
            "log_prob/rejected",
        )
    }


def test_the_likelier_reply_is_told_by_position_before_and_now():
    task, pairs = make_task(), [spoken_pair(), written_pair(), pair(["yes"], ["a longer reply than that"])]
    found = []
    for _ in range(2):
        batch = pack([document for documents in pairs for document in documents])
        task.begin_step(batch)
        task.losses(batch, "train")
        by_hand = [
            [x / n for x, n in (reply_by_reading(task.lm, d) for d in documents)] for documents in pairs
        ]
        found.append(sum(float(chosen) > float(rejected) for chosen, rejected in by_hand) / len(pairs))
        assert task.logged["likelier"] == pytest.approx(found[-1])
        assert task.logged["likelier/first"] == pytest.approx(found[0])
        with torch.no_grad():  # what it says of text turns round
            task.lm.backbone.lm_head.weight.neg_()
    assert found[0] != found[1]


def test_beta_must_be_positive():
    with pytest.raises(UserError, match=r"task\.beta: 0 must be > 0"):
        make_task(beta=0)
