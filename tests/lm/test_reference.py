import pytest
import torch
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.lora import ADAPTER
from omniaudio.lm.reference import Reference
from omniaudio.training.freeze import apply_trainable
from tests.lm.test_audio_lm import SIZES, SPACE, batch

ADAPTERS = ["backbone.layers.*.lora_*"]


def make(trainable, lora=None, **changes):
    torch.manual_seed(0)
    backbone = CausalBackbone(SPACE.vocab_size, 16, 2, 2, 1, 24, **({"lora": lora} if lora else {}))
    lm = AudioLM(backbone, AudioHead(16, SIZES, num_layers=1, head_dim=8), SPACE, **changes)
    apply_trainable(lm, trainable)
    return lm.train()


def learn(lm):
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def losses(output):
    return torch.cat([output.text_loss_L, output.audio_loss_LK.flatten()])


@pytest.mark.parametrize(
    ("trainable", "lora", "num_kept"),
    [
        (ADAPTERS, {"rank": 2}, 0),
        ([*ADAPTERS, "audio_embed.*"], {"rank": 2}, 3),
        (["*", "!backbone.embed_tokens.*", "!backbone.lm_head.*"], None, None),
    ],
)
def test_it_stays_the_start_model_exactly_and_keeps_only_what_learns(trainable, lora, num_kept):
    lm, data = make(trainable, lora, deep_frame_share=0.3, z_weight=0.1), batch()
    reference = Reference(lm)
    first = losses(lm.eval()(data))
    lm.train()
    learn(lm)
    assert torch.equal(losses(reference(data)), first) and not reference(data).hidden_LD.requires_grad
    assert not torch.allclose(losses(lm.eval()(data)), first, atol=1e-2), "the model itself has moved"
    learning = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert reference.kept.keys() == {name for name in learning if not (lora and ADAPTER in name)}
    assert num_kept is None or len(reference.kept) == num_kept
    assert not any(kept.requires_grad for kept in reference.kept.values())


def test_modes_and_gradients_are_as_before():
    lm = make(ADAPTERS, {"rank": 2})
    lm.audio_head.eval()
    modes = [part.training for part in lm.modules()]
    learning = [parameter.requires_grad for parameter in lm.parameters()]
    Reference(lm)(batch())
    assert [part.training for part in lm.modules()] == modes
    assert [parameter.requires_grad for parameter in lm.parameters()] == learning
    learn(lm)
    assert losses(lm(batch())).requires_grad, "the adapters are on again"


def test_adapters_that_were_trained_before_are_part_of_the_start():
    lm, data = make(ADAPTERS, {"rank": 2}), batch()
    learn(lm)
    first, reference = losses(lm.eval()(data)), Reference(lm)
    assert reference.kept and all(ADAPTER in name for name in reference.kept)
    learn(lm)
    assert_close(losses(reference(data)), first, rtol=0, atol=0)


def test_pieces_of_weights_are_refused():
    lm = make(["*"])
    next(lm.parameters()).ds_id = 0
    with pytest.raises(UserError, match="strategy=zero3: .* use zero2 or ddp"):
        Reference(lm)
