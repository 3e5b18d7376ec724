import numpy as np
import torch

from omniaudio.dialogue.replies import message_of


def test_a_reply_is_a_turn_of_the_chat_that_goes_on(model):
    chat = [{"role": "user", "content": "hello"}]
    for seed in range(3):
        reply = model.reply(chat, seed=seed)
        turn = message_of(reply)
        said = model.chat.document([*chat, turn], "sft", "k")
        assert (said.ids_L == model.lm.token_space.audio_pad).sum() == sum(
            event.get("frames", 0) for event in reply["events"]
        )
        assert "".join(s for s in turn["content"] if isinstance(s, str)).strip() == reply["text"]


def test_so_are_the_chunks_that_came_before_it_was_left():
    codes_SK = torch.arange(12).reshape(4, 3)
    chunks = [
        {"saved_positions": 3},
        {"text": "a"},
        {"text": " word"},
        *({"wav": np.zeros(5), "codes_SK": part_SK} for part_SK in codes_SK.split([1, 3])),
        {"text": "more"},
    ]
    turn = message_of(chunks)
    first, heard_SK, last = turn["content"]
    assert (turn["role"], first, last) == ("assistant", "a word", "more") and torch.equal(heard_SK, codes_SK)
    assert message_of([]) == {"role": "assistant", "content": []}
