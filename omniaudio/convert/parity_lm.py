"""Parity of the audio LLM: forward, packed, audio head, greedy speech."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from omniaudio.convert.baichuan_audio import model_converter
from omniaudio.convert.parity import Case, Check, Checks, Recording, there_and_back
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.generate import Generator
from omniaudio.lm.sampling import SamplingSettings
from omniaudio.sequence.spans import Document
from omniaudio.sequence.vocab import TokenSpace

CHAT_IDS = {"bos_sys": 151665, "c_q": 151667, "c_a": 151668}
END_ID = 151643


def build_lm(of: Recording) -> AudioLM:
    size, audio = of.sizes("config/"), of.sizes("config/audio_config/")
    names = ("audio_start", "audio_end", "audio_pad", "audiotext_start", "audiotext_end", "audiotext_pad")
    ids = {name: audio(f"{name}_token_id") for name in (*names, "audiogen_start", "audiogen_end")}
    ids |= {**CHAT_IDS, "eos": END_ID, "pad": END_ID}
    sizes = audio("vq_config/codebook_sizes")
    space = TokenSpace(CHAT_IDS["bos_sys"], sizes, ids, vocab_size=size("vocab_size"))
    backbone = CausalBackbone(
        size("vocab_size"),
        size("hidden_size"),
        size("num_hidden_layers"),
        size("num_attention_heads"),
        size("num_key_value_heads"),
        size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
    )
    head = AudioHead(size("hidden_size"), sizes, num_layers=audio("audio_head_transformer_layers"))
    return AudioLM(backbone, head, space).eval()


def whole_weights(of: Recording) -> dict[str, Tensor]:
    """The recording's state dict.

    A matrix W may be kept as (W Q) and Q, with Q an orthonormal basis of all inputs that it meets in the recording:
    W x = (W Q) Q^T x for them. Matrices with weights by depth may be kept depth by depth.
    """
    state, depths = of.below("state_dict/"), dict[str, dict[int, Tensor]]()
    for key in [key.removesuffix("/basis") for key in of.tensors if key.endswith("/basis")]:
        _, name, *depth = key.split("/")
        weight = (of[f"{key}/product"].double() @ of[f"{key}/basis"].double().T).float()
        if depth:
            depths.setdefault(name, {})[int(depth[0])] = weight
        else:
            state[name] = weight
    for name, by_depth in depths.items():
        state[name] = torch.cat([by_depth[depth] for depth in sorted(by_depth)], dim=1)
    return state


def lm_cases(of: Recording) -> Iterator[Case]:
    lm = build_lm(of)
    theirs = whole_weights(of)
    vocab, width = lm.backbone.embed_tokens.weight.shape
    for name, ids, rows in (
        ("model.embed_tokens.weight", "embed_rows", "embed_tokens_rows"),
        ("lm_head.weight", "lm_logits_cols", "lm_head_rows"),
    ):
        if name not in theirs:  # only the rows that the recording reads were kept
            theirs[name] = torch.zeros(vocab, width)
            theirs[name][of[ids]] = of[rows]
    ids_L, codes_FK = of["input_ids"][0], of["audio_codes"]
    codes_LK = torch.zeros(len(ids_L), codes_FK.shape[1], dtype=torch.int64)
    codes_LK[ids_L == lm.token_space.audio_pad] = codes_FK

    def forward() -> Checks:
        embeds_LD = lm.embed(ids_L, codes_LK)
        yield Check(
            "audio embeddings", embeds_LD[ids_L == lm.token_space.audio_pad], of["audio_embed_sum"], 1e-4
        )
        hidden_LD = lm.backbone(embeds_LD, [len(embeds_LD)])
        yield Check("hidden states", hidden_LD, of["last_hidden"][0], 1e-4)
        logits_LV = lm.backbone.lm_head(hidden_LD)[:, of["lm_logits_cols"]]
        yield Check("logits", logits_LV, of["lm_logits"][0], 1e-4)
        ends = [end for end in of["packed_seqlens"][0].tolist() if end]
        doc_len_G = torch.tensor(ends).diff(prepend=torch.tensor([0]))
        packed_LD = lm.backbone(lm.embed(ids_L, codes_LK), doc_len_G)
        yield Check("packed documents", packed_LD, of["packed_hidden"][0], 1e-4)

    def head() -> Checks:
        prefix = lm.embed_prefix(of["head_teacher_codes"])
        for book, logits_FV in enumerate(lm.audio_head.logits(of["head_in"], prefix)):
            yield Check(f"book {book}", logits_FV, of[f"head_logits/{book}"], 1e-4)

    def generate(name: str) -> Checks:
        frames_FK = of[f"gen/{name}/audios_sequences"][0][:-1]  # the last row is always an end of audio
        ends = (frames_FK[:, 0] == lm.token_space.codebook_sizes[0]).nonzero()[:, 0].tolist()
        spoken_FK = frames_FK[: ends[0]] if ends else frames_FK
        settings = SamplingSettings(temperature=0.0, repetition=float(name.rpartition("rp")[2]))
        labels = {"text_label_L": ids_L, "audio_label_LK": codes_LK}  # not read
        prompt = Document(ids_L=ids_L, codes_LK=codes_LK, kind="prompt", key="recorded", **labels)
        most = len(spoken_FK) + (1 if ends else 0)
        reply = Generator(lm, audio=settings, max_text_tokens=0, max_frames=most).reply(prompt)
        frames_FK = reply.codes[0] if reply.codes else torch.zeros(0, len(spoken_FK.T))
        if frames_FK.shape == spoken_FK.shape:  # what the kept weights do not decide is kept as -1
            frames_FK = frames_FK.where(spoken_FK >= 0, -1)
        yield Check("frames", frames_FK, spoken_FK)

    yield there_and_back({"lm": lm}, theirs, model_converter())
    yield Case("lm text and audio", forward)
    yield Case("lm audio head", head)
    for name in of.names_below("gen/"):
        yield Case(f"lm speech, {name}", partial(generate, name))
