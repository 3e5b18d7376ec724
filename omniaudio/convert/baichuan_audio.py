"""Released checkpoints of the Baichuan audio models (arXiv:2502.17239) <-> ours.

Our names begin with the part: ``tokenizer``, ``lm``, ``flow`` (SpeechTokenizer, AudioLM, FlowMatchingDecoder)
for the model's checkpoint, ``vocoder`` (HiFT) for hift.pt, which is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from omniaudio.convert.base import Converter, OnlyOurs, OnlyTheirs, Rule, Split
from omniaudio.encoders.transformer import sinusoids

PRENET_POSITIONS = 5000
"""Rows of a position table that the released prenet holds and never reads."""

FORMS = ("weight_g", "parametrizations")
"""Names of normalised weights: weight_g and weight_v, or parametrizations.weight.original0 and original1."""


def model_converter() -> Converter:
    """The checkpoint of the audio model; its vision part is not ours."""
    rules = [*_tokenizer_rules(), *_flow_rules(), *_lm_rules()]
    return Converter(rules, ignored=("model.visual_model.{rest}", "model.visual_bridge_model.{rest}"))


def vocoder_converter(form: str = FORMS[0]) -> Converter:
    """hift.pt, of Baichuan's or CosyVoice2's release: the same vocoder, weight norm in either of torch's two forms.

    Args:
        form: one of FORMS, in which names are written; both are read.
    """
    f0, source = "vocoder.f0_predictor", "vocoder.source.mix"
    return Converter(
        [
            *_weight_norm("f0_predictor.condnet.{i*2}", f"{f0}.convs.{{i}}", form),
            Rule("f0_predictor.classifier.{leaf}", f"{f0}.classifier.{{leaf}}"),
            Rule("m_source.l_linear.{leaf}", f"{source}.{{leaf}}"),
            *_weight_norm("{rest}", "vocoder.{rest}", form),
        ]
    )


def discriminator_converter() -> Converter:
    """The multi-resolution discriminator; ours has the multi-period one beside it."""
    return Converter(_weight_norm("discriminators.{i}.{rest}", "discriminator.resolutions.{i}.{rest}"))


CHECKPOINTS: dict[str, tuple[tuple[str, ...], Callable[[str], Converter]]] = {
    "model": (("tokenizer", "lm", "flow"), lambda form: model_converter()),
    "vocoder": (("vocoder",), vocoder_converter),
}
"""Of each released checkpoint the parts that it holds, and its table by form."""


def form_of(theirs: Mapping[str, Tensor]) -> str:
    """Which of FORMS a checkpoint has."""
    return FORMS[any(".parametrizations." in name for name in theirs)]


def load_released(
    modules: Mapping[str, nn.Module],
    theirs: Mapping[str, Tensor],
    converter: Converter,
    where: str = "checkpoint",
) -> None:
    """Put a released checkpoint into modules (those on the meta device too), all of it or nothing.

    Args:
        modules: part -> module, by the names at the head of this file; they keep their types.
        theirs: their state dict.
        converter: one of this file's.
        where: for messages.
    """
    expected = {
        f"{part}.{name}": value for part, m in modules.items() for name, value in m.state_dict().items()
    }
    ours = converter.to_ours(theirs, expected, where)
    for part, module in modules.items():
        state = {name: ours[f"{part}.{name}"].to(value.dtype) for name, value in module.state_dict().items()}
        module.load_state_dict(state, assign=True)


def to_released(modules: Mapping[str, nn.Module], converter: Converter) -> dict[str, Tensor]:
    """The modules' weights under the released names."""
    ours = {f"{part}.{name}": value for part, m in modules.items() for name, value in m.state_dict().items()}
    return converter.to_theirs(ours)


def _tokenizer_rules() -> list[Rule]:
    bridge, decoder = "audio_tokenizer.audio_bridge_model", "audio_tokenizer.audio_decoder"
    book, our_book = f"{bridge}.vq_list.{{i}}.codebook", "tokenizer.quantizer.books.{i}"
    post_net, refine = f"{decoder}.post_net.layers", "tokenizer.decoder.refine"
    never_unused = OnlyOurs(lambda cluster_size: torch.zeros_like(cluster_size, dtype=torch.int64))
    return [
        Rule("audio_tokenizer.audio_model.{rest}", "tokenizer.encoder.{rest}"),
        Rule(f"{book}.cluster_size", (f"{our_book}.cluster_size", f"{our_book}.unused_steps"), never_unused),
        Rule(f"{book}.embed", f"{our_book}.embed"),
        Rule(f"{book}.embed_avg", f"{our_book}.embed_avg"),
        Rule(f"{bridge}.{{rest}}", "tokenizer.bridge.{rest}"),
        # Convolution, norm, activation four times, then a last convolution.
        Rule(f"{post_net}.12.{{leaf}}", f"{refine}.out.{{leaf}}"),
        Rule(f"{post_net}.{{i*3}}.{{leaf}}", f"{refine}.layers.{{i}}.conv.{{leaf}}"),
        Rule(f"{post_net}.{{i*3+1}}.{{leaf}}", f"{refine}.layers.{{i}}.norm.{{leaf}}"),
        Rule(f"{decoder}.{{rest}}", "tokenizer.decoder.{rest}"),
    ]


def _flow_rules() -> list[Rule]:
    prenet, unet = (
        f"audio_tokenizer.audio_flow_matching_decoder.{part}" for part in ("prenet", "conditional_decoder")
    )
    layer, our_layer = f"{prenet}.transformer_layers.{{i}}", "flow.prenet.layers.{i}"
    unread_positions = OnlyTheirs(_unread_positions)
    return [
        Rule(
            (f"{prenet}.final_norm.weight", f"{prenet}.positional_embedding"),
            "flow.prenet.final_norm.weight",
            unread_positions,
        ),
        Rule(f"{layer}.self_attn.{{rest}}", f"{our_layer}.attention.{{rest}}"),
        Rule(f"{layer}.self_attn_layer_norm.{{leaf}}", f"{our_layer}.attention_norm.{{leaf}}"),
        Rule(f"{layer}.final_layer_norm.{{leaf}}", f"{our_layer}.ffn_norm.{{leaf}}"),
        Rule(f"{layer}.{{rest}}", f"{our_layer}.{{rest}}"),
        Rule(f"{prenet}.{{rest}}", "flow.prenet.{rest}"),
        Rule(f"{unet}.time_mlp.{{rest}}", "flow.estimator.time_embedding.{rest}"),
        *_unet_stage(f"{unet}.down_blocks.0", "flow.estimator.down"),
        *_unet_stage(f"{unet}.mid_blocks.{{i}}", "flow.estimator.mids.{i}"),
        *_unet_stage(f"{unet}.up_blocks.0", "flow.estimator.up"),
        *_conv_block(f"{unet}.final_block", "flow.estimator.final_block"),
        Rule(f"{unet}.final_proj.{{leaf}}", "flow.estimator.final_proj.{leaf}"),
    ]


def _unet_stage(theirs: str, ours: str) -> list[Rule]:
    """Theirs is a list: ResNet block, transformer blocks, convolution (the middle stages have none)."""
    resnet, block, our_block = f"{theirs}.0", f"{theirs}.1.{{j}}", f"{ours}.transformers.{{j}}"
    return [
        *_conv_block(f"{resnet}.block1", f"{ours}.resnet.block1"),
        *_conv_block(f"{resnet}.block2", f"{ours}.resnet.block2"),
        Rule(f"{resnet}.mlp.1.{{leaf}}", f"{ours}.resnet.time_proj.{{leaf}}"),
        Rule(f"{resnet}.res_conv.{{leaf}}", f"{ours}.resnet.shortcut.{{leaf}}"),
        Rule(f"{block}.norm1.{{leaf}}", f"{our_block}.attention_norm.{{leaf}}"),
        Rule(f"{block}.attn1.to_out.0.{{leaf}}", f"{our_block}.to_out.{{leaf}}"),
        Rule(f"{block}.norm3.{{leaf}}", f"{our_block}.ffn_norm.{{leaf}}"),
        Rule(f"{block}.ff.net.0.proj.{{leaf}}", f"{our_block}.fc1.{{leaf}}"),
        Rule(f"{block}.ff.net.2.{{leaf}}", f"{our_block}.fc2.{{leaf}}"),
        Rule(f"{block}.attn1.{{rest}}", f"{our_block}.{{rest}}"),  # after all others of the block: fits any
        Rule(f"{theirs}.2.{{leaf}}", f"{ours}_conv.{{leaf}}"),
    ]


def _conv_block(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.block.0.{{leaf}}", f"{ours}.conv.{{leaf}}"),
        Rule(f"{theirs}.block.2.{{leaf}}", f"{ours}.norm.{{leaf}}"),
    ]


def _lm_rules() -> list[Rule]:
    layer, our_layer = "model.layers.{i}", "lm.backbone.layers.{i}"
    packed = tuple(f"{our_layer}.self_attn.{part}_proj.{{leaf}}" for part in "qkv")
    head, our_head = "audio_head.transformer_layers.{i}", "lm.audio_head.layers.{i}"
    unread_bias = OnlyTheirs(lambda weight: weight.new_zeros(len(weight)))
    return [
        Rule("model.embed_tokens.weight", "lm.backbone.embed_tokens.weight"),
        Rule(f"{layer}.self_attn.W_pack.{{leaf}}", packed, Split()),
        Rule(f"{layer}.{{rest}}", f"{our_layer}.{{rest}}"),
        Rule("model.norm.weight", "lm.backbone.norm.weight"),
        Rule("lm_head.weight", "lm.backbone.lm_head.weight"),
        Rule("model.audio_embed_layers.{i}.weight", "lm.audio_embed.{i}.weight"),
        Rule(f"{head}.self_attention.in_proj_{{leaf}}", f"{our_head}.attention.qkv.{{leaf}}"),
        Rule(f"{head}.self_attention.out_proj.{{leaf}}", f"{our_head}.attention.out.{{leaf}}"),
        Rule(f"{head}.layernorm{{j}}.weight", f"{our_head}.norm{{j}}.weight"),
        # The released feed-forward nets hold biases that are never added.
        Rule(
            (f"{head}.linear{{j}}.weight", f"{head}.linear{{j}}.bias"),
            f"{our_head}.linear{{j}}.weight",
            unread_bias,
        ),
        Rule("audio_head.headnorm.weight", "lm.audio_head.norm.weight"),
        Rule("audio_head.heads.{i}.{leaf}", "lm.audio_head.heads.{i}.{leaf}"),
    ]


def _unread_positions(norm_weight: Tensor) -> Tensor:
    return sinusoids(PRENET_POSITIONS, len(norm_weight)).to(norm_weight)


def _weight_norm(theirs: str, ours: str, form: str = FORMS[0]) -> list[Rule]:
    """Norm and direction of normalised weights, and everything else below; the first rule that fits writes."""
    old = [
        Rule(f"{theirs}.weight_g", f"{ours}.parametrizations.weight.original0"),
        Rule(f"{theirs}.weight_v", f"{ours}.parametrizations.weight.original1"),
    ]
    new = [Rule(f"{theirs}.parametrizations.weight.{{leaf}}", f"{ours}.parametrizations.weight.{{leaf}}")]
    both = [*old, *new] if form == FORMS[0] else [*new, *old]
    return [*both, Rule(f"{theirs}.{{leaf}}", f"{ours}.{{leaf}}")]
