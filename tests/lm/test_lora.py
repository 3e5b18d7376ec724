import pytest
import torch
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.lm.lora import adapted, merged
from omniaudio.training.artifacts import load_state
from omniaudio.training.freeze import apply_trainable
from omniaudio.types import NO_LABEL
from tests.lm.test_backbone import SIZES

LORA = {"rank": 2, "alpha": 6.0}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make(**changes):
    torch.manual_seed(1)
    return CausalBackbone(50, **SIZES, **changes)


def hidden(backbone, ids):
    with torch.no_grad():
        return backbone(backbone.embed_text(ids), [4, len(ids) - 4])


def test_adapters_begin_as_the_model_and_alone_learn():
    plain, lora = make(), make(lora=LORA)
    load_state(lora, plain.state_dict(), "there")
    ids = torch.randint(50, (9,))
    assert_close(hidden(lora, ids), hidden(plain, ids))
    apply_trainable(lora, ["layers.*.lora_*"])
    learning = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert len(learning) == 2 * len(TARGETS) * SIZES["num_layers"] and all(
        ".lora_" in name for name in learning
    )
    label = torch.randint(50, (9,))
    label[0] = NO_LABEL
    optimizer = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=5.0)
    for _ in range(2):
        optimizer.zero_grad()
        lora.text_loss(lora(lora.embed_text(ids), [4, 5]), label).sum().backward()
        optimizer.step()
    assert not torch.allclose(hidden(lora, ids), hidden(plain, ids), atol=1e-3)
    for name, tensor in plain.state_dict().items():
        ours = lora.state_dict()
        assert torch.equal(
            ours.get(
                name,
                ours.get(name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")),
            ),
            tensor,
        )
    alone = make()
    alone.load_state_dict(merged(lora.state_dict(), **LORA))
    assert_close(hidden(alone, ids), hidden(lora, ids))


def test_adapters_are_saved_and_loaded_like_all_weights():
    first, second = make(lora=LORA), make(lora=LORA)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    load_state(second, first.state_dict(), "there")
    ids = torch.randint(50, (7,))
    assert_close(hidden(second, ids), hidden(first, ids))
    state = make().state_dict()
    assert adapted(state, make().state_dict()).keys() == state.keys()
    with pytest.raises(UserError, match=r"there: the weights have adapters and the config none"):
        load_state(make(), first.state_dict(), "there")
    with pytest.raises(UserError, match="missing norm.weight"):
        load_state(make(lora=LORA), {k: v for k, v in state.items() if k != "norm.weight"}, "there")


def test_some_maps_alone_and_mistakes():
    names = {
        name
        for name, _ in make(lora={"rank": 1, "targets": ["q_proj"]}).named_parameters()
        if ".lora_" in name
    }
    assert {name.split(".")[3] for name in names} == {"q_proj"}
    with pytest.raises(
        UserError, match=r"backbone\.lora\.targets: \[\] adapts nothing; null is all of q_proj"
    ):
        make(lora={"targets": []})
    with pytest.raises(UserError, match=r"backbone\.lora\.targets: 'qproj' is not one of q_proj"):
        make(lora={"targets": ["qproj"]})
    with pytest.raises(UserError, match=r"backbone\.lora\.rank: 0 must be at least 1"):
        make(lora={"rank": 0})
