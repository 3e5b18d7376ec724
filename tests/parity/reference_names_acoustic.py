"""Names of the recorded reference flow decoder and vocoder -> names of FlowMatchingDecoder and HiFT."""

from __future__ import annotations

import re

UNET = (
    (r"^conditional_decoder\.time_mlp\.", "estimator.time_embedding."),
    (r"^conditional_decoder\.(down|up)_blocks\.0\.2\.", r"estimator.\1_conv."),
    (r"^conditional_decoder\.(down|up)_blocks\.0\.", r"estimator.\1."),
    (r"^conditional_decoder\.mid_blocks\.(\d+)\.", r"estimator.mids.\1."),
    (r"^conditional_decoder\.", "estimator."),
    (r"^estimator\.(down|up|mids\.\d+)\.0\.", r"estimator.\1.resnet."),
    (r"^estimator\.(down|up|mids\.\d+)\.1\.", r"estimator.\1.transformers."),
    (r"\.mlp\.1\.", ".time_proj."),
    (r"\.block\.0\.", ".conv."),
    (r"\.block\.2\.", ".norm."),
    (r"\.res_conv\.", ".shortcut."),
    (r"\.attn1\.to_out\.0\.", ".to_out."),
    (r"\.attn1\.", "."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm3\.", ".ffn_norm."),
    (r"\.ff\.net\.0\.proj\.", ".fc1."),
    (r"\.ff\.net\.2\.", ".fc2."),
)
PRENET = (
    (r"^prenet\.transformer_layers\.", "prenet.layers."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".attention_norm."),
    (r"\.final_layer_norm\.", ".ffn_norm."),
)
HIFT = (
    (r"^m_source\.l_linear\.", "source.mix."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)


def flow_name(key: str) -> str | None:
    """Our name of a tensor of the flow decoder; None for the positions that the reference never uses."""
    if key == "prenet.positional_embedding":
        return None
    for pattern, replacement in PRENET if key.startswith("prenet.") else UNET:
        key = re.sub(pattern, replacement, key)
    return key


def hift_name(key: str) -> str:
    """Our name of a tensor of the vocoder."""
    key = re.sub(r"^f0_predictor\.condnet\.(\d+)", lambda m: f"f0_predictor.convs.{int(m[1]) // 2}", key)
    for pattern, replacement in HIFT:
        key = re.sub(pattern, replacement, key)
    return key
