"""The causal language model under the audio LLM: transformers' layers over packed documents."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniaudio.errors import UserError, check_choice
from omniaudio.init import copy_whole, drawn_whole, unsharded
from omniaudio.lm.alike import prove_alike, reason_of
from omniaudio.lm.attention import CHOICES, Packing, register
from omniaudio.lm.cross_entropy import LogitHead, chunked_cross_entropy
from omniaudio.lm.lora import add_lora
from omniaudio.lm.row_cache import RowCache
from omniaudio.ranks import rank_and_number

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig

WITHOUT_MEANING = frozenset(
    {
        *(
            "architectures",
            "attn_implementation",
            "dtype",
            "initializer_range",
            "name_or_path",
            "pretraining_tp",
        ),
        *("bos_token_id", "eos_token_id", "pad_token_id", "chunk_size_feed_forward", "transformers_version"),
        *("vocab_size", "max_position_embeddings", "use_cache", "attention_dropout", "problem_type"),
        *(
            "max_window_layers",
            "id2label",
            "label2id",
            "return_dict",
            "output_hidden_states",
        ),
    }
)
"""Entries of a transformers config that do not change what the layers compute (the vocabulary has its own check)."""

NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon")
"""What kinds of models call the smallest variance of their norms."""


class CausalBackbone(nn.Module):
    """Text model with named parts: ``embed_tokens``, ``layers``, ``norm``, ``lm_head``; the layers are Qwen2's.

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
        entries: further entries of the transformers config of this kind of model (``head_dim``, ``attention_bias``,
            ``rope_parameters``, ...); ``lora``, the arguments of ``add_lora``; and ``attention``, how packed
            documents are attended to: one of ``omniaudio.lm.attention.CHOICES``.
    """

    model_type = "qwen2"
    not_computed: tuple[str, ...] = ("use_bidirectional_attention",)
    """Entries that the attention here does not compute, or transformers' layers of this kind leave out."""

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
        **entries: Any,
    ) -> None:
        super().__init__()
        lora, attention = entries.pop("lora", None), entries.pop("attention", "auto")
        check_choice("backbone.attention", attention, CHOICES)
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": ffn_size,
            "rope_parameters": self._rope(rope_theta),
            "rms_norm_eps": rms_norm_eps,
            "tie_word_embeddings": tie_embeddings,
            "max_position_embeddings": max_positions,
        }
        config = self._config(sizes, entries)
        model: Any
        if pretrained is None or torch.get_default_device().type == "meta":  # a shape needs no weights
            model = _new(config)
        else:
            model = _load(pretrained, config)
        if lora is not None:
            add_lora(model.model.layers, **lora)
        self._take(model, vocab_size, attention, recompute)

    @classmethod
    def around(cls, model: Any) -> CausalBackbone:
        """A backbone of the parts of a model of transformers, whose attention must be that of ``register``."""
        backbone = cls.__new__(cls)
        nn.Module.__init__(backbone)
        backbone._take(model, model.config.vocab_size)
        return backbone

    def _take(self, model: Any, vocab_size: int, attention: str = "auto", recompute: bool = False) -> None:
        self.config: PreTrainedConfig = model.config
        self.vocab_size, self.hidden_size = vocab_size, int(model.config.hidden_size)
        self.num_layers = int(model.config.num_hidden_layers)
        self.attention, self.recompute = attention, recompute
        self.embed_tokens: nn.Embedding = model.model.embed_tokens
        scale = getattr(self.embed_tokens, "scalar_embed_scale", 1.0)  # Gemma's kin: D ** 0.5
        self.embed_scale = float(scale)
        self.layers: nn.ModuleList = model.model.layers
        self.norm: nn.Module = model.model.norm
        self.rotary: nn.Module = model.model.rotary_emb
        self.rotary_by_type = "layer_type" in inspect.signature(self.rotary.forward).parameters
        self.lm_head: nn.Linear = LogitHead.around(
            model.lm_head, getattr(model.config, "final_logit_softcapping", None)
        )

    def _config(self, sizes: dict[str, Any], entries: dict[str, Any]) -> PreTrainedConfig:
        """The transformers config of this kind, of entries that it knows and that are computed here."""
        from transformers import AutoConfig

        known = AutoConfig.for_model(self.model_type).to_dict().keys()
        if unknown := sorted(set(entries) - known):
            raise UserError(
                f"backbone.{unknown[0]}: neither {type(self).__name__} nor a {self.model_type!r} knows this"
            )
        eps = sizes.pop("rms_norm_eps")
        sizes.update({name: eps for name in NORM_EPS if name in known})
        if foreign := sorted(set(sizes) - known):
            raise UserError(
                f"backbone.model_type: a {self.model_type!r} has no entry {foreign[0]}, so it is built otherwise"
            )
        try:
            config = AutoConfig.for_model(self.model_type, **{**sizes, "pad_token_id": None, **entries})
        except Exception as error:  # each kind checks its own entries
            raise UserError(f"backbone: no {self.model_type!r} can be so ({reason_of(error)})") from error
        if wrong := [name for name in self.not_computed if getattr(config, name, None)]:
            raise UserError(
                f"backbone.{wrong[0]}: {getattr(config, wrong[0])} is not computed here; must be null"
            )
        return config

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
        return self._run(embeds_LD[None], position_L[None], packing=Packing(doc_len, self.attention))[0]

    def new_cache(self) -> Cache:
        """An empty key-value cache for ``step``."""
        from transformers import DynamicCache

        return DynamicCache()

    def step(self, embeds_LD: Tensor, cache: Cache) -> Tensor:
        """Hidden states of the next positions of one document; ``cache`` holds its past and is extended."""
        past = cache.get_seq_length()
        position_L = torch.arange(past, past + len(embeds_LD), device=embeds_LD.device)
        return self._run(embeds_LD[None], position_L[None], past_key_values=cache)[0]

    def step_rows(self, embeds_BD: Tensor, past: RowCache) -> Tensor:
        """Hidden states (B, D) of the next position of each of several documents; ``past`` is extended."""
        position_B1 = torch.tensor(past.lengths, device=embeds_BD.device)[:, None]
        visible = past.visible(embeds_BD.device)
        past.grow()
        return self._run(embeds_BD[:, None], position_B1, past_key_values=past.cache, visible=visible)[:, 0]

    def text_loss(self, hidden_LD: Tensor, label_L: Tensor, z_weight: float = 0.0) -> Tensor:
        """Cross-entropy by position against ids; 0 where the label is NO_LABEL."""
        return chunked_cross_entropy(self.lm_head, hidden_LD, label_L, z_weight)

    def _run(self, hidden_BLD: Tensor, position_BL: Tensor, **kwargs: Any) -> Tensor:
        for layer, rotary in zip(self.layers, self._rotary(hidden_BLD, position_BL), strict=True):
            arguments = {"attention_mask": None, "position_embeddings": rotary, **kwargs}
            if self.recompute and torch.is_grad_enabled():
                hidden_BLD = checkpoint(layer, hidden_BLD, use_reentrant=False, **arguments)
            else:
                hidden_BLD = layer(hidden_BLD, **arguments)
        return self.norm(hidden_BLD)

    @staticmethod
    def _rope(theta: float) -> dict[str, Any]:
        """The entry ``rope_parameters`` for a base of the rotary positions."""
        return {"rope_type": "default", "rope_theta": theta}

    def _rotary(self, hidden_BLD: Tensor, position_BL: Tensor) -> list[Any]:
        """Rotary positions for each layer."""
        if not self.rotary_by_type:
            return [self.rotary(hidden_BLD, position_BL)] * self.num_layers
        types = self.config.layer_types
        by_type = {of: self.rotary(hidden_BLD, position_BL, of) for of in set(types)}
        return [by_type[of] for of in types]


class OtherBackbone(CausalBackbone):
    """The same around the layers of any other causal language model of transformers that is built alike.

    Alike are embedding, decoder layers, norm and head, with causal attention by rotary positions and nothing else
    between them: Mistral, Phi-3, OLMo 2, SmolLM3, GLM-4, StarCoder2, Granite at scales of 1, and some thirty more.
    Whether a kind is alike is not believed but tried: a small model of it with random weights must give the logits of
    its own forward pass, by packed documents and step by step, before the real one is built.

    Args:
        model_type: transformers' name of the kind, as in its config.json.
        sizes: arguments and entries as in CausalBackbone; ``rms_norm_eps`` is of its norms, whatever they are.

    Raises:
        UserError: transformers does not know the kind, or it computes otherwise.
    """

    def __init__(self, model_type: str, **sizes: Any) -> None:
        from transformers import CONFIG_MAPPING

        if model_type not in CONFIG_MAPPING:
            raise UserError(
                f"backbone.model_type: transformers knows no {model_type!r}; it stands in the model's config.json"
            )
        self.model_type = model_type
        super().__init__(**sizes)

    def _config(self, sizes: dict[str, Any], entries: dict[str, Any]) -> PreTrainedConfig:
        config = super()._config(sizes, entries)
        prove_alike(config, CausalBackbone.around)
        return config


class LlamaBackbone(CausalBackbone):
    """The same around Llama's layers, whose attention has no biases: Llama, SmolLM2, TinyLlama and their kin."""

    model_type = "llama"


class Qwen3Backbone(CausalBackbone):
    """The same around Qwen3's layers, which normalise queries and keys (arXiv:2505.09388); see ``head_dim``."""

    model_type = "qwen3"


class GemmaBackbone(CausalBackbone):
    """The same around the layers of the first Gemma (arXiv:2403.08295); see ``head_dim``, and ``tie_embeddings``."""

    model_type = "gemma"


class Gemma2Backbone(CausalBackbone):
    """The same around the layers of Gemma 2 (arXiv:2408.00118): every other one sees ``sliding_window`` positions,
    scores are capped (``attn_logit_softcapping``), and so are logits (``final_logit_softcapping``)."""

    model_type = "gemma2"


class Gemma3Backbone(CausalBackbone):
    """The same around the layers of Gemma 3's text models (arXiv:2503.19786): five see ``sliding_window`` positions,
    each sixth all. ``rope_theta`` is of the sixth; ``rope_parameters`` says both."""

    model_type = "gemma3_text"
    not_computed = (*CausalBackbone.not_computed, "attn_logit_softcapping")

    @staticmethod
    def _rope(theta: float) -> dict[str, Any]:
        return {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }


KINDS: tuple[type[CausalBackbone], ...] = (
    CausalBackbone, LlamaBackbone, Qwen3Backbone, GemmaBackbone, Gemma2Backbone, Gemma3Backbone,
)  # fmt: skip


def _new(config: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    with drawn_whole():
        return AutoModelForCausalLM.from_config(config, attn_implementation=register())


def _load(pretrained: str, ours: PreTrainedConfig) -> Any:
    """A pretrained model that computes what ``ours`` says, its vocabulary extended to that of ``ours``."""
    from transformers import AutoConfig

    try:
        theirs = AutoConfig.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"backbone.pretrained: cannot read {pretrained!r} ({reason})") from error
    if theirs.model_type != ours.model_type:
        known = {kind.model_type: kind.__name__ for kind in KINDS}
        advice = f"set backbone._target_ to omniaudio.lm.backbone.{known.get(theirs.model_type)}"
        other = (
            "set backbone._target_ to omniaudio.lm.backbone.OtherBackbone and "
            f"backbone.model_type to {theirs.model_type}"
        )
        raise UserError(
            f"backbone.pretrained: {pretrained} is a {theirs.model_type!r}, the config says {ours.model_type!r}; "
            + (advice if theirs.model_type in known else other)
        )
    wanted, found = ours.to_dict(), theirs.to_dict()
    wrong = [
        f"{name} {found.get(name)} there, {value} here"
        for name, value in wanted.items()
        if name not in WITHOUT_MEANING and not name.startswith("_") and not _equal(found.get(name), value)
    ]
    rows = ours.vocab_size
    if theirs.vocab_size > rows:
        wrong.append(f"vocab_size {theirs.vocab_size} there, {rows} here (may be larger, not smaller)")
    if wrong:
        raise UserError(f"backbone.pretrained: {pretrained} has other sizes: {'; '.join(wrong)}")
    with unsharded() as sharding:
        given = _published(pretrained, rows) if not sharding or rank_and_number()[0] == 0 else None
    if not sharding:
        return given
    theirs.vocab_size = rows
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # later draws are those of other strategies
        model = _new(theirs)
    copy_whole(model.state_dict(keep_vars=True), given.state_dict() if given else None)
    return model


def _published(pretrained: str, rows: int) -> Any:
    """The model whole, in host memory, its vocabulary extended to so many rows."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        pretrained, dtype=torch.float32, attn_implementation=register()
    )
    if (found := model.config.vocab_size) < rows:
        print(f"backbone: vocabulary of {pretrained} extended from {found} to {rows} rows")
        model.resize_token_embeddings(rows, mean_resizing=False)  # else the new rows are one vector, nearly
    return model


def _equal(theirs: Any, ours: Any) -> bool:
    """Equal values; numbers may differ as much as single precision stores them."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(_equal(theirs.get(name), value) for name, value in ours.items())
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)
