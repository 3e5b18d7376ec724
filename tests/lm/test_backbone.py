import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from omniaudio.errors import UserError
from omniaudio.lm import cross_entropy
from omniaudio.lm.backbone import (
    KINDS,
    CausalBackbone,
    Gemma2Backbone,
    Gemma3Backbone,
    LlamaBackbone,
    OtherBackbone,
    Qwen3Backbone,
)
from omniaudio.types import NO_LABEL

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 24}
THEIR_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}

CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return CausalBackbone(50, **SIZES).eval()


def test_packed_documents_equal_documents_alone(backbone):
    ids = torch.randint(50, (12,))
    together = backbone(backbone.embed_text(ids), torch.tensor([5, 1, 6]))
    alone = torch.cat([backbone(backbone.embed_text(part), [len(part)]) for part in ids.split([5, 1, 6])])
    assert_close(together, alone)


def test_equals_transformers_own_model(backbone):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**{**backbone.config.to_dict(), "attn_implementation": "sdpa"})
    model = Qwen2ForCausalLM(config).eval()
    named = {k: v for k, v in backbone.state_dict().items() if not k.startswith("lm_head")}
    model.model.load_state_dict(named)
    model.lm_head.load_state_dict(backbone.lm_head.state_dict())
    ids = torch.randint(50, (7,))
    with torch.no_grad():
        ours = backbone.lm_head(backbone(backbone.embed_text(ids), [7]))
        assert_close(ours, model(ids[None]).logits[0])


def test_sliding_windows_equal_transformers_own(backbone, tmp_path):
    """In the second layer alone, in two documents; by FlexAttention too."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    ours = CausalBackbone(50, **SIZES, **windows).eval()
    ours.load_state_dict(backbone.state_dict())
    config = Qwen2Config(**{**ours.config.to_dict(), "attn_implementation": "sdpa"})
    assert config.layer_types == ["full_attention", "sliding_attention"]
    model = Qwen2ForCausalLM(config).eval()
    named = {k: v for k, v in backbone.state_dict().items() if not k.startswith("lm_head")}
    model.model.load_state_dict(named)
    ids = torch.randint(50, (12,))
    with torch.no_grad():
        theirs = torch.cat([model.model(part[None]).last_hidden_state[0] for part in ids.split([5, 7])])
        for ours.attention in ("auto", "flex"):
            hidden = ours(ours.embed_text(ids), [5, 7])
            assert_close(hidden, theirs)
        assert not torch.allclose(hidden, backbone(backbone.embed_text(ids), [5, 7]))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sliding_window 3 there, 4 here"):
        CausalBackbone(50, **SIZES, **windows | {"sliding_window": 4}, pretrained=str(tmp_path))
    with pytest.raises(UserError, match="backbone.attention 'dense': can be auto, documents, flex, varlen"):
        CausalBackbone(50, **SIZES, attention="dense")


def test_steps_with_a_cache_equal_the_whole(backbone):
    embeds = backbone.embed_text(torch.randint(50, (9,)))
    cache = backbone.new_cache()
    parts = [backbone.step(part, cache) for part in embeds.split([4, 1, 3, 1])]
    assert_close(torch.cat(parts), backbone(embeds, [9]))


def test_later_positions_do_not_reach_earlier_ones(backbone):
    embeds = torch.randn(6, 16, requires_grad=True)
    backbone(embeds, [6])[2].sum().backward()
    reached = embeds.grad.abs().sum(1) > 0
    assert reached.tolist() == [True, True, True, False, False, False]


def test_recompute_changes_memory_only(backbone):
    embeds, label = torch.randn(6, 16), torch.tensor([1, 2, NO_LABEL, 3, 4, NO_LABEL])
    grads = []
    for backbone.recompute in (False, True):
        backbone.zero_grad()
        backbone.text_loss(backbone(embeds, [2, 4]), label).sum().backward()
        grads.append([p.grad.clone() for p in backbone.layers.parameters()])
    assert_close(grads[0], grads[1])


def test_pretrained_keeps_text_ids_and_extends(backbone, tmp_path, capsys):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**THEIR_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path)
    ours = CausalBackbone(50, **SIZES, pretrained=str(tmp_path))
    assert "extended from 40 to 50" in capsys.readouterr().out
    assert_close(ours.embed_tokens.weight[:40], model.model.embed_tokens.weight)
    assert_close(ours.lm_head.weight[:40], model.lm_head.weight)
    assert ours.lm_head.weight.shape == (50, 16)
    new = ours.embed_tokens.weight[40:]
    assert torch.pdist(new).min() > 0.1 * new.norm(dim=-1).mean(), "the new tokens can be told apart"
    with pytest.raises(UserError, match="vocab_size 40 there, 30 here"):
        CausalBackbone(30, **SIZES, pretrained=str(tmp_path))
    with pytest.raises(UserError, match="num_hidden_layers 2 there, 3 here"):
        CausalBackbone(50, **{**SIZES, "num_layers": 3}, pretrained=str(tmp_path))
    with pytest.raises(UserError, match=r"backbone\.pretrained: cannot read"):
        CausalBackbone(50, **SIZES, pretrained=str(tmp_path / "nothing"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model_type)
def test_what_was_pretrained_is_built_again_from_its_config_alone(tmp_path, kind):
    """Later stages read the weights from a folder of ours, where nothing names the published model."""
    entries = {"head_dim": 6} if kind.model_type in ("qwen3", "gemma", "gemma2", "gemma3_text") else {}
    if kind.model_type == "gemma2":
        entries |= {"sliding_window": 3, "query_pre_attn_scalar": 9, **CAPS}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    if kind.model_type == "gemma3_text":
        entries |= {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
        rope = {"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 1e4}}
    tied = "gemma" in kind.model_type
    theirs_alone = {"attn_implementation": "eager"} if kind.model_type == "gemma2" else {}
    theirs = {
        **THEIR_SIZES,
        **entries,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind.model_type, **theirs), **theirs_alone
    ).eval()
    model.save_pretrained(tmp_path)
    sizes = {**SIZES, **entries, "tie_embeddings": tied}
    ours = kind(50, **sizes, pretrained=str(tmp_path))
    again = kind(50, **sizes).eval()
    again.load_state_dict(ours.state_dict())
    ids = torch.randint(40, (9,))
    with torch.no_grad():
        hidden_LD = again(again.embed_text(ids), [4, 5])
        expected = torch.cat([model(part[None]).logits[0] for part in ids.split([4, 5])])
        assert_close(again.lm_head(hidden_LD)[:, :40], expected)
        assert_close(ours.embed_text(ids), again.embed_text(ids))
        cache = again.new_cache()
        steps = [again.step(part, cache) for part in again.embed_text(ids[4:]).split([3, 1, 1])]
        assert_close(torch.cat(steps), hidden_LD[4:])


def capped_pair(**entries):
    """Transformers' Gemma 2 and ours with the same weights, far from the first ones so that the caps bite."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    words = {"head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 9, **CAPS, **entries}
    config = AutoConfig.for_model("gemma2", **THEIR_SIZES, **rope, **words, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=rng))
    ours = Gemma2Backbone(40, **SIZES, **words, tie_embeddings=config.tie_word_embeddings).eval()
    head = {"lm_head.weight": model.lm_head.weight}
    ours.load_state_dict(model.model.state_dict() | head)
    return model, ours


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_capped_scores_and_logits_have_transformers_own_loss_and_gradients(monkeypatch, tied, chunks):
    """Over two documents in one pack; in chunks the gradient of the cap is taken by hand."""
    if chunks:
        monkeypatch.setattr(cross_entropy, "FEW_LOGITS", 120)
        monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 120)
    model, ours = capped_pair(tie_word_embeddings=tied)
    ids = torch.randint(40, (12,))
    label = ids.roll(-1)
    label[[4, 11]] = NO_LABEL
    logits = torch.cat([model(part[None]).logits[0] for part in ids.split([5, 7])])
    wanted = torch.nn.functional.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="sum")
    loss = ours.text_loss(ours(ours.embed_text(ids), [5, 7]), label).sum()
    assert_close(loss, wanted)
    wanted.backward()
    loss.backward()
    grads = {name.removeprefix("model."): weight.grad for name, weight in model.named_parameters()}
    for name, weight in ours.named_parameters():
        assert_close(
            weight.grad, grads[name], rtol=1e-4, atol=1e-5, msg=lambda words, name=name: f"{name}: {words}"
        )


@pytest.mark.parametrize("ignored", ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"])
@torch.no_grad()
def test_what_gemma_2_does_to_scores_and_logits_matters(ignored):
    """With it ours are transformers' own logits, in one pack and in steps; without it they are far from them."""
    model, ours = capped_pair()
    other, _ = capped_pair(**{ignored: 100 if ignored == "sliding_window" else None})
    embeds, ids = ours.embed_text(torch.arange(12)), torch.arange(12)
    cache = ours.new_cache()
    steps = torch.cat([ours.step(part, cache) for part in embeds.split([5, 1, 4, 1, 1])])
    for ours.attention in ("auto", "flex"):
        logits = ours.lm_head(ours(embeds, [12]))
        assert_close(logits, model(ids[None]).logits[0], rtol=1e-4, atol=1e-4)
        assert_close(ours.lm_head(steps), logits, rtol=1e-4, atol=1e-4)
    assert (logits - other(ids[None]).logits[0]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["mistral", "phi3", "starcoder2"])
def test_any_other_model_that_is_built_alike_serves_by_its_name(tmp_path, kind):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    config = AutoConfig.for_model(kind, **THEIR_SIZES, **rope, pad_token_id=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    entries = {"sliding_window": config.sliding_window}
    entries |= {"rms_norm_eps": 1e-5} if kind != "mistral" else {}
    tied = config.tie_word_embeddings
    ours = OtherBackbone(
        kind,
        vocab_size=50,
        **SIZES,
        **entries,
        tie_embeddings=tied,
        pretrained=str(tmp_path),
        lora={"rank": 2},
    ).eval()
    ids = torch.randint(40, (9,))
    with torch.no_grad():
        hidden_LD = ours(ours.embed_text(ids), [4, 5])
        expected = torch.cat([model(part[None]).logits[0] for part in ids.split([4, 5])])
    assert_close(ours.lm_head(hidden_LD)[:, :40], expected)
    assert any("lora_" in name for name, _ in ours.named_parameters())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nonsense", "backbone.model_type: transformers knows no 'nonsense'"),
        ("gpt2", "backbone.model_type: a 'gpt2' has no entry hidden_size, so it is built otherwise"),
        ("cohere", "a 'cohere' of this config is not computed here as transformers does"),
    ],
)
def test_another_model_that_is_built_otherwise_is_refused(kind, words):
    with pytest.raises(UserError, match=words):
        OtherBackbone(kind, vocab_size=50, **SIZES)


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 0}, {"num_layers": 2, "layer_types": ["full_attention"]}], ids=["heads", "types"]
)
def test_sizes_that_no_model_of_a_kind_has_are_one_line(wrong):
    with pytest.raises(UserError, match="a? 'olmo3'.* (can be so|as transformers does) ") as error:
        OtherBackbone("olmo3", vocab_size=50, **{**SIZES, **wrong})
    assert "\n" not in str(error.value)


def test_an_entry_that_the_kind_does_not_know_is_refused():
    with pytest.raises(
        UserError, match="backbone.hiden_size: neither Qwen3Backbone nor a 'qwen3' knows this"
    ):
        Qwen3Backbone(50, **SIZES, hiden_size=3)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Gemma2Backbone, "use_bidirectional_attention", True),
        (Gemma3Backbone, "use_bidirectional_attention", True),
        (Gemma3Backbone, "attn_logit_softcapping", 50.0),  # its layers have left it
    ],
)
def test_what_the_attention_does_not_compute_is_refused(kind, name, value):
    with pytest.raises(UserError, match=rf"backbone.{name}: {value} is not computed here"):
        kind(50, **SIZES, **{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias True there, False here"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters"),
        ({"head_dim": 8}, "head_dim 8 there, 4 here"),
        ({"hidden_act": "gelu"}, "hidden_act gelu there, silu here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_pretrained_model_that_computes_otherwise_is_refused(tmp_path, changes, words):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    LlamaForCausalLM(LlamaConfig(**{**THEIR_SIZES, **rope, **changes})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        LlamaBackbone(50, **SIZES, pretrained=str(tmp_path))


def test_the_class_for_another_kind_of_model_is_named(tmp_path):
    LlamaForCausalLM(LlamaConfig(**THEIR_SIZES)).save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match=r"is a 'llama'.* set backbone\._target_ to .*LlamaBackbone"):
        CausalBackbone(50, **SIZES, pretrained=str(tmp_path / "llama"))
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(
        UserError,
        match="is a 'gpt2'.* to omniaudio.lm.backbone.OtherBackbone and backbone.model_type to gpt2",
    ):
        CausalBackbone(50, **SIZES, pretrained=str(tmp_path / "gpt2"))


def test_tied_head_shares_its_weight():
    backbone = CausalBackbone(50, **SIZES, tie_embeddings=True)
    assert backbone.lm_head.weight is backbone.embed_tokens.weight


def test_a_pretrained_model_is_not_fetched_for_its_shape(tmp_path):
    with torch.device("meta"):
        backbone = CausalBackbone(16, 8, 1, 2, 1, 16, pretrained=str(tmp_path / "nothing"))
    assert backbone.lm_head.weight.is_meta
