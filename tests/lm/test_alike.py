import pytest
import torch
from transformers import AutoConfig

from omniaudio.errors import UserError
from omniaudio.lm import alike, cross_entropy
from omniaudio.lm.alike import prove_alike, small_config
from omniaudio.lm.attention import packed_attention
from omniaudio.lm.backbone import CausalBackbone


def config_of(model_type, **entries):
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    return AutoConfig.for_model(model_type, **{**sizes, "vocab_size": 50, "intermediate_size": 96, **entries})


def prove(model_type, **entries):
    prove_alike(config_of(model_type, **entries), CausalBackbone.around)


@pytest.mark.parametrize(
    "kind", ["mistral", "phi3", "olmo2", "smollm3", "glm4", "starcoder2", "granite", "mixtral", "vaultgemma"]
)
def test_kinds_that_are_built_alike_pass(kind):
    prove(kind)


def test_a_layer_of_each_type_is_tried():
    prove("mistral", sliding_window=4096)
    prove("olmo3", layer_types=["sliding_attention"] * 3 + ["full_attention"], sliding_window=4096)
    small = small_config(config_of("olmo3"))
    assert set(small.layer_types) == {"sliding_attention", "full_attention"} and small.sliding_window == 3
    prove("gemma2")
    small = small_config(config_of("gemma2", final_logit_softcapping=None))
    assert small.attn_logit_softcapping == 2 and small.final_logit_softcapping is None


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("granite", {"embedding_multiplier": 2.0}), ("granite", {"logits_scaling": 3.0}), ("cohere", {}),
        ("gpt_oss", {}), ("nanochat", {}), ("phi", {}), ("stablelm", {}), ("deepseek_v3", {}),
    ],
)  # fmt: skip
def test_kinds_that_compute_otherwise_are_refused(kind, entries):
    """Scaled embeddings and logits, sinks of the attention, other norms, other names, other attention."""
    with pytest.raises(
        UserError, match=rf"a '{kind}' of this config is not computed here as transformers does \("
    ):
        prove(kind, **entries)


@pytest.mark.parametrize(
    "fault", ["documents", "causal", "scale", "window", "cache", "score cap", "logit cap"]
)
def test_no_fault_of_ours_passes(fault, monkeypatch):
    """The trial itself: each of these has been a bug somewhere."""

    def wrong(module, query, key, value, mask=None, packing=None, **words):
        if fault == "documents" and packing is not None:
            packing = type(packing)([packing.total])
        if fault == "scale":
            words["scaling"] = 0.9 * words["scaling"]
        if fault == "window":
            words["sliding_window"] = None
        if fault == "score cap":
            words["softcap"] = None
        if fault == "cache" and query.shape[2] < key.shape[2]:
            key, value = key.roll(1, 2), value
        if fault == "causal":
            query = query.flip(2)
        return packed_attention(module, query, key, value, None, packing=packing, **words)

    kind = "gemma2" if "cap" in fault else "mistral"
    prove(kind, sliding_window=4096)
    monkeypatch.setattr(alike, "register", lambda: faulty(wrong))
    if fault == "logit cap":
        monkeypatch.setattr(cross_entropy, "capped", lambda logits, cap: logits)
    with pytest.raises(UserError, match="differ by"):
        prove(kind, sliding_window=4096)


def faulty(attention):
    from transformers import AttentionInterface

    AttentionInterface.register("packed_faulty", attention)
    return "packed_faulty"


def test_the_trial_draws_nothing_of_the_run(monkeypatch):
    """Nor does it seed the generators of GPUs, which it does not use."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    before = torch.get_rng_state()
    prove("mistral")
    assert torch.equal(before, torch.get_rng_state())


def test_the_trial_is_whole_on_the_meta_device():
    with torch.device("meta"):
        prove("mistral")
        assert torch.empty(1).is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_trial_is_in_float32_whatever_the_run_is_in(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        prove("mistral", dtype="bfloat16")
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


def test_experts_are_small_too():
    small = small_config(config_of("qwen3_moe", moe_intermediate_size=768, num_experts=128))
    assert small.moe_intermediate_size == 24
    prove("qwen3_moe")
