"""The causal language model under the audio LLM: transformers' Qwen2 layers over packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniaudio.errors import UserError
from omniaudio.lm.attention import register
from omniaudio.lm.cross_entropy import chunked_cross_entropy

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig

SUPPORTED = ("qwen2", "llama")
"""Model types whose layers are laid out as this file expects."""


class CausalBackbone(nn.Module):
    """Text model with named parts: ``embed_tokens``, ``layers``, ``norm``, ``lm_head``.

    Defaults are the shape of Qwen2.5-7B (arXiv:2412.15115), the backbone of arXiv:2502.17239.

    Args:
        vocab_size: rows of the embedding: text, special tokens, padding.
        hidden_size: width D.
        num_layers, num_heads, num_kv_heads, ffn_size: shape of the layers.
        rope_theta: base of the rotary positions.
        rms_norm_eps: of the RMSNorms.
        tie_embeddings: lm_head shares the weight of embed_tokens.
        max_positions: longest document that the model is meant for.
        recompute: trade time for memory: keep only the layers' inputs for the backward pass.
        pretrained: name on a model hub, or a local folder, to start from; the sizes above must be its
            sizes. A smaller vocabulary is extended (text ids never move).
    """

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        num_layers: int = 28,
        num_heads: int = 28,
        num_kv_heads: int = 4,
        ffn_size: int = 18944,
        rope_theta: float = 1e6,
        rms_norm_eps: float = 1e-6,
        tie_embeddings: bool = False,
        max_positions: int = 32768,
        recompute: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.vocab_size, self.hidden_size, self.num_layers = vocab_size, hidden_size, num_layers
        self.recompute = recompute
        sizes: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": ffn_size,
            "tie_word_embeddings": tie_embeddings,
        }
        if pretrained is None:
            config = Qwen2Config(
                vocab_size=vocab_size,
                rms_norm_eps=rms_norm_eps,
                max_position_embeddings=max_positions,
                rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
                pad_token_id=None,
                attn_implementation=register(),
                **sizes,
            )
            model: Any = Qwen2ForCausalLM(config)
        else:
            model = _load(
                pretrained, {**sizes, "rope_theta": rope_theta, "rms_norm_eps": rms_norm_eps}, vocab_size
            )
        self.config: PreTrainedConfig = model.config
        self.embed_tokens: nn.Embedding = model.model.embed_tokens
        self.layers: nn.ModuleList = model.model.layers
        self.norm: nn.Module = model.model.norm
        self.rotary: nn.Module = model.model.rotary_emb
        self.lm_head: nn.Linear = model.lm_head

    def embed_text(self, ids_L: Tensor) -> Tensor:
        """Ids of any shape to embeddings (..., D)."""
        return self.embed_tokens(ids_L)

    def forward(self, embeds_LD: Tensor, doc_len_G: Tensor | Sequence[int]) -> Tensor:
        """Packed documents to final hidden states; nothing crosses from one document to another.

        Args:
            embeds_LD: input embeddings of all documents, one after the other.
            doc_len_G: lengths of the documents, sum L.

        Returns:
            hidden_LD after the last norm.
        """
        doc_len = doc_len_G.tolist() if isinstance(doc_len_G, Tensor) else list(doc_len_G)
        assert sum(doc_len) == len(embeds_LD), f"documents {doc_len} in {len(embeds_LD)} positions"
        position_L = torch.cat([torch.arange(n, device=embeds_LD.device) for n in doc_len])
        return self._run(embeds_LD[None], position_L[None], doc_len=doc_len)[0]

    def new_cache(self) -> Cache:
        """An empty key-value cache for ``step``."""
        from transformers import DynamicCache

        return DynamicCache()

    def step(self, embeds_LD: Tensor, cache: Cache) -> Tensor:
        """Hidden states of the next positions of one document; ``cache`` holds its past and is extended."""
        past = cache.get_seq_length()
        position_L = torch.arange(past, past + len(embeds_LD), device=embeds_LD.device)
        return self._run(embeds_LD[None], position_L[None], past_key_values=cache)[0]

    def text_loss(self, hidden_LD: Tensor, label_L: Tensor) -> Tensor:
        """Cross-entropy by position against ids; 0 where the label is NO_LABEL."""
        return chunked_cross_entropy(self.lm_head, hidden_LD, label_L, self.vocab_size)

    def _run(self, hidden_1LD: Tensor, position_1L: Tensor, **kwargs: Any) -> Tensor:
        rotary = self.rotary(hidden_1LD, position_1L)
        for layer in self.layers:
            arguments = {"attention_mask": None, "position_embeddings": rotary, **kwargs}
            if self.recompute and torch.is_grad_enabled():
                hidden_1LD = checkpoint(layer, hidden_1LD, use_reentrant=False, **arguments)
            else:
                hidden_1LD = layer(hidden_1LD, **arguments)
        return self.norm(hidden_1LD)


def _load(pretrained: str, sizes: dict[str, Any], vocab_size: int) -> Any:
    """A pretrained model of just these sizes, its vocabulary extended to ``vocab_size``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"backbone.pretrained: cannot read {pretrained!r} ({reason})") from error
    if config.model_type not in SUPPORTED or getattr(config, "use_sliding_window", False):
        raise UserError(
            f"backbone.pretrained: {pretrained} is a {config.model_type!r}; can be {', '.join(SUPPORTED)}"
        )
    theirs = {name: getattr(config, name, None) for name in sizes}
    theirs["rope_theta"] = config.rope_parameters["rope_theta"]
    wrong = [
        f"{name} {theirs[name]} there, {ours} here" for name, ours in sizes.items() if theirs[name] != ours
    ]
    if config.vocab_size > vocab_size:
        wrong.append(f"vocab_size {config.vocab_size} there, {vocab_size} here (may be larger, not smaller)")
    if wrong:
        raise UserError(f"backbone.pretrained: {pretrained} has other sizes: {'; '.join(wrong)}")
    model = AutoModelForCausalLM.from_pretrained(
        pretrained, dtype=torch.float32, attn_implementation=register()
    )
    if config.vocab_size < vocab_size:
        print(f"backbone: vocabulary of {pretrained} extended from {config.vocab_size} to {vocab_size} rows")
        model.resize_token_embeddings(vocab_size, mean_resizing=True)
    return model
