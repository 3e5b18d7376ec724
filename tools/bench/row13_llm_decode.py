"""128 words by a text LLM of 100 M parameters, batch 1, with its cache, against transformers' generate."""

from __future__ import annotations

import torch
from common import compare
from transformers import Qwen2Config, Qwen2ForCausalLM

from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.decoding import lay_out_for_decoding

WORDS = 128
torch.manual_seed(0)
sizes = {"vocab_size": 16_000, "hidden_size": 768, "num_heads": 12, "num_kv_heads": 4, "ffn_size": 2048}
ours_lm = CausalBackbone(num_layers=12, max_positions=2048, **sizes).eval()
config = Qwen2Config(
    vocab_size=16_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
    intermediate_size=2048, tie_word_embeddings=False, rope_parameters=dict(ours_lm.config.rope_parameters),
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
theirs = Qwen2ForCausalLM(config).eval()
state = {
    name: tensor
    for name, tensor in ours_lm.state_dict().items()
    if not name.startswith(("lm_head", "rotary"))
}
theirs.model.load_state_dict(state)
theirs.lm_head.load_state_dict(ours_lm.lm_head.state_dict())
lay_out_for_decoding(ours_lm)  # as omniaudio.load does
prompt_L = torch.arange(1, 65)


@torch.inference_mode()
def ours() -> list[int]:
    cache, written = ours_lm.new_cache(), list[int]()
    hidden_D = ours_lm.step(ours_lm.embed_text(prompt_L), cache)[-1]
    while True:
        written.append(int(ours_lm.lm_head(hidden_D).argmax()))
        if len(written) == WORDS:
            return written
        hidden_D = ours_lm.step(ours_lm.embed_text(torch.tensor(written[-1:])), cache)[-1]


@torch.inference_mode()
def peer() -> list[int]:
    ids_BL = theirs.generate(
        prompt_L[None], attention_mask=torch.ones(1, 64), max_new_tokens=WORDS, do_sample=False, num_beams=1
    )
    return ids_BL[0, 64:].tolist()


compare(
    "13 LLM decoding, 128 words", ours, peer, lambda mine, other: "" if mine == other else "other words",
    "transformers generate", 1.1, "reading the weights",
)  # fmt: skip
