"""The audio LLM against recordings of the published implementation (see tests/golden/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from omniaudio.convert.baichuan_audio import load_released, model_converter
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.generate import Generator
from omniaudio.lm.sampling import SamplingSettings
from omniaudio.sequence.spans import Document
from omniaudio.sequence.vocab import TokenSpace

GOLDEN = Path(__file__).parents[1] / "golden" / "lm.safetensors"
SIZES = [64, 32, 16, 8, 8, 8, 8, 8]
IDS = {
    "bos_sys": 151665, "c_q": 151667, "c_a": 151668, "audio_start": 151676, "audio_end": 151677,
    "audio_pad": 151678, "audiotext_start": 151697, "audiotext_end": 151698, "audiotext_pad": 151699,
    "audiogen_start": 151700, "audiogen_end": 151701, "eos": 151643, "pad": 151643,
}  # fmt: skip
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def whole_weights(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recording's state dict; its matrices are kept as (W Q) and Q, which is W for all recorded inputs.

    Q is an orthonormal basis of the inputs that a matrix meets in the recording, so W x = (W Q) Q^T x for
    them. Matrices with weights by depth are kept depth by depth.
    """
    state = {k.removeprefix("state_dict/"): v for k, v in golden.items() if k.startswith("state_dict/")}
    depths: dict[str, dict[int, torch.Tensor]] = {}
    for key in [k.removesuffix("/basis") for k in golden if k.endswith("/basis")]:
        _, name, *depth = key.split("/")
        weight = (golden[f"{key}/product"].double() @ golden[f"{key}/basis"].double().T).float()
        if depth:
            depths.setdefault(name, {})[int(depth[0])] = weight
        else:
            state[name] = weight
    for name, by_depth in depths.items():
        state[name] = torch.cat([by_depth[depth] for depth in sorted(by_depth)], dim=1)
    return state


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def lm(golden):
    space = TokenSpace(151665, SIZES, IDS, vocab_size=152064)
    backbone = CausalBackbone(152064, 128, 2, 4, 2, 160, max_positions=256)
    lm = AudioLM(backbone, AudioHead(128, SIZES, num_layers=3), space)
    theirs = whole_weights(golden)
    for name, ids, rows in [
        ("model.embed_tokens.weight", "embed_rows", "embed_tokens_rows"),
        ("lm_head.weight", "lm_logits_cols", "lm_head_rows"),
    ]:
        theirs[name] = torch.zeros(152064, 128)
        theirs[name][golden[ids]] = golden[rows]
    load_released({"lm": lm}, theirs, model_converter())
    return lm.eval()


@pytest.fixture(scope="module")
def prompt(golden, lm):
    ids_L = golden["input_ids"][0]
    codes_LK = torch.zeros(len(ids_L), len(SIZES), dtype=torch.int64)
    codes_LK[ids_L == lm.token_space.audio_pad] = golden["audio_codes"]
    labels = {"text_label_L": ids_L, "audio_label_LK": codes_LK}  # unused
    return Document(ids_L=ids_L, codes_LK=codes_LK, kind="prompt", key="golden", **labels)


@torch.no_grad()
def test_mixed_forward(golden, lm, prompt):
    embeds_LD = lm.embed(prompt.ids_L, prompt.codes_LK)
    frames_L = prompt.ids_L == lm.token_space.audio_pad
    assert_close(embeds_LD[frames_L], golden["audio_embed_sum"], **TOLERANCE)
    hidden_LD = lm.backbone(embeds_LD, [len(embeds_LD)])
    assert_close(hidden_LD, golden["last_hidden"][0], **TOLERANCE)
    logits_LV = lm.backbone.lm_head(hidden_LD)[:, golden["lm_logits_cols"]]
    assert_close(logits_LV, golden["lm_logits"][0], **TOLERANCE)


@torch.no_grad()
def test_packed_forward(golden, lm, prompt):
    ends = [end for end in golden["packed_seqlens"][0].tolist() if end]
    doc_len = torch.tensor(ends).diff(prepend=torch.tensor([0]))
    hidden_LD = lm.backbone(lm.embed(prompt.ids_L, prompt.codes_LK), doc_len)
    assert_close(hidden_LD, golden["packed_hidden"][0], **TOLERANCE)


@torch.no_grad()
def test_audio_head(golden, lm):
    codes_FK = golden["head_teacher_codes"]
    for book, logits_FV in enumerate(lm.audio_head.logits(golden["head_in"], lm.embed_prefix(codes_FK))):
        assert_close(logits_FV, golden[f"head_logits/{book}"], **TOLERANCE)


def test_greedy_generation_with_repetition_penalty(golden, lm, prompt):
    settings = SamplingSettings(temperature=0.0, repetition=1.3)
    reply = Generator(lm, audio=settings, max_text_tokens=0).reply(prompt)
    frames = golden["gen/greedy_rp1.3/audios_sequences"][0]
    spoken = frames[
        : int((frames[:, 0] == SIZES[0]).nonzero()[0])
    ]  # the reference keeps frames after the end
    assert len(spoken) == 2
    assert reply.complete
    assert torch.equal(reply.codes[0], spoken)
