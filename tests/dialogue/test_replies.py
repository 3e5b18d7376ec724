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
