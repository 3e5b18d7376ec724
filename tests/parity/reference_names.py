"""Names of the recorded reference tokenizer -> names of SpeechTokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def our_name(key: str) -> str | None:
    """Our name of a tensor of the reference's tokenizer, or None if it belongs to another part."""
    part, _, rest = key.partition(".")
    if part == "audio_model":
        return f"encoder.{rest}"
    if part == "audio_bridge_model":
        if rest.startswith("vq_list."):
            return "quantizer.books." + rest.removeprefix("vq_list.").replace(".codebook.", ".")
        return f"bridge.{rest}"
    if part == "audio_decoder":
        if rest.startswith("post_net.layers."):
            index, leaf = rest.removeprefix("post_net.layers.").split(".")
            layer, role = divmod(int(index), 3)
            return (
                f"decoder.refine.out.{leaf}"
                if layer == 4
                else f"decoder.refine.layers.{layer}.{('conv', 'norm')[role]}.{leaf}"
            )
        return f"decoder.{rest}"
    return None


def tokenizer_state(reference: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's tensors under our names, with our counters where it has none."""
    state = {name: value for key, value in reference.items() if (name := our_name(key)) is not None}
    counters = {name: value for name, value in ours.items() if name.endswith(".unused_steps")}
    return {**counters, **state}
