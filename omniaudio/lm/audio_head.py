"""From a hidden state of the LLM to one frame of codes, book by book: the audio head of arXiv:2502.17239.

Shape suffixes here: F frames (label positions), K depths (one a codebook), D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.lm.cross_entropy import chunked_cross_entropy

KeyValue = tuple[Tensor, Tensor]


class DepthAttention(nn.Module):
    """Causal attention over the depths of a frame.

    Args:
        width: D, a multiple of ``head_dim``.
        head_dim: width of one head.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"audio head: width {width} is not a multiple of head_dim {head_dim}")
        self.num_heads = width // head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_FKD: Tensor) -> Tensor:
        """All depths at once."""
        query, key, value = rearrange(self.qkv(x_FKD), "f k (n h d) -> n f h k d", n=3, h=self.num_heads)
        # A handful of depths: plain products take half the time of a fused kernel here.
        score_FHKK = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        num_depths = x_FKD.shape[1]
        later_KK = torch.ones(num_depths, num_depths, dtype=torch.bool, device=x_FKD.device).triu(1)
        weight_FHKK = score_FHKK.masked_fill(later_KK, -torch.inf).softmax(dim=-1).to(value.dtype)
        return self.out(rearrange(weight_FHKK @ value, "f h k d -> f k (h d)"))

    def step(self, x_FD: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """The depth after ``past``, which sees all of them; returns the new past too."""
        qkv_FNHKd = self.qkv(x_FD).view(len(x_FD), 3, self.num_heads, 1, -1)
        query, key, value = qkv_FNHKd.unbind(1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.out(attended.reshape(x_FD.shape)), (key, value)


class DepthLinear(nn.Module):
    """A linear map with weights of its own at every depth, without bias.

    ``weight`` is (out, depths * in), as released checkpoints hold it.
    """

    def __init__(self, in_width: int, out_width: int, num_depths: int) -> None:
        super().__init__()
        self.num_depths = num_depths
        self.weight = nn.Parameter(torch.empty(out_width, num_depths * in_width))
        nn.init.normal_(self.weight, std=in_width**-0.5)

    def forward(self, x_FKD: Tensor) -> Tensor:
        """The first depths, as many as ``x`` holds."""
        weight_KDO = rearrange(self.weight, "o (k d) -> k d o", k=self.num_depths)[: x_FKD.shape[1]]
        return torch.bmm(x_FKD.transpose(0, 1), weight_KDO).transpose(0, 1)

    def step(self, x_FD: Tensor, depth: int) -> Tensor:
        """One depth."""
        width = x_FD.shape[1]
        return functional.linear(x_FD, self.weight[:, depth * width : (depth + 1) * width])


class DepthLayer(nn.Module):
    """Attention over depths and a feed-forward net of each depth's own.

    The second residual is taken after the norm, not before it: a property of the published model.
    """

    def __init__(self, width: int, head_dim: int, ffn_size: int, num_depths: int, eps: float) -> None:
        super().__init__()
        self.attention = DepthAttention(width, head_dim)
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.linear1 = DepthLinear(width, ffn_size, num_depths)
        self.linear2 = DepthLinear(ffn_size, width, num_depths)

    def forward(self, x_FKD: Tensor) -> Tensor:
        """All depths at once."""
        x_FKD = self.norm2(x_FKD + self.attention(self.norm1(x_FKD)))
        return x_FKD + self.linear2(functional.gelu(self.linear1(x_FKD)))

    def step(self, x_FD: Tensor, depth: int, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """One depth after those in ``past``."""
        attended_FD, past = self.attention.step(self.norm1(x_FD), past)
        x_FD = self.norm2(x_FD + attended_FD)
        return x_FD + self.linear2.step(functional.gelu(self.linear1.step(x_FD, depth)), depth), past


class AudioHead(nn.Module):
    """Depth transformer: the books of a frame one after the other, each seeing those before it.

    The input at depth 0 is the LLM's hidden state, at depth i the sum of the embeddings of books 0..i-1
    (the LLM's own input tables). No positions.

    Args:
        hidden_size: width D of the LLM and of the head.
        codebook_sizes: codes a book; every head has one class more, "end of audio".
        num_layers: depth-transformer layers.
        ffn_size: inner width of the feed-forward nets; the published model has 2 D.
        head_dim: width of an attention head.
        eps: of the RMSNorms.
        recompute: trade time for memory: keep only the layers' inputs for the backward pass.
    """

    def __init__(
        self,
        hidden_size: int,
        codebook_sizes: Sequence[int],
        num_layers: int = 3,
        ffn_size: int | None = None,
        head_dim: int = 128,
        eps: float = 1e-6,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size, self.recompute = hidden_size, recompute
        self.codebook_sizes = tuple(codebook_sizes)
        num_depths, ffn_size = len(self.codebook_sizes), ffn_size or 2 * hidden_size
        self.layers = nn.ModuleList(
            DepthLayer(hidden_size, head_dim, ffn_size, num_depths, eps) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, size + 1) for size in self.codebook_sizes)

    def forward(self, hidden_FD: Tensor, prefix_FKD: Tensor) -> Tensor:
        """States of every depth, teacher-forced.

        Args:
            hidden_FD: the LLM's hidden state that predicts each frame.
            prefix_FKD: (F, K - 1, D), sums of the embeddings of the true books 0..i; fewer books give the
                states of the first depths.

        Returns:
            (F, K, D); ``heads[k]`` of depth k gives the logits of book k.
        """
        x_FKD = torch.cat([hidden_FD[:, None], prefix_FKD.to(hidden_FD.dtype)], dim=1)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_FKD = checkpoint(layer, x_FKD, use_reentrant=False)
            else:
                x_FKD = layer(x_FKD)
        return self.norm(x_FKD)

    def logits(self, hidden_FD: Tensor, prefix_FKD: Tensor) -> list[Tensor]:
        """Teacher-forced logits (F, book size + 1) of every book."""
        states_FKD = self.forward(hidden_FD, prefix_FKD)
        return [head(states_FKD[:, book]) for book, head in enumerate(self.heads)]

    def loss(self, hidden_FD: Tensor, prefix_FKD: Tensor, label_FK: Tensor, z_weight: float = 0.0) -> Tensor:
        """Cross-entropy (F, K) in nats of every depth given (see ``forward``), 0 where there is no label."""
        states_FKD = self.forward(hidden_FD, prefix_FKD)
        losses = [
            chunked_cross_entropy(head, states_FKD[:, book], label_FK[:, book], size + 1, z_weight)
            for book, (head, size) in enumerate(zip(self.heads, self.codebook_sizes, strict=True))
            if book < states_FKD.shape[1]
        ]
        return torch.stack(losses, dim=1)

    def step(self, x_FD: Tensor, past: list[KeyValue]) -> Tensor:
        """Logits of the next book of frames in the making.

        Args:
            x_FD: the hidden state first, then the running sum of the embeddings of the books chosen so far.
            past: empty for the first book; filled in place with one entry a layer.

        Returns:
            (F, book size + 1).
        """
        depth = past[0][0].shape[2] if past else 0
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DepthLayer)
            x_FD, key_value = layer.step(x_FD, depth, past[i] if depth else None)
            past[i : i + 1] = [key_value]
        return self.heads[depth](self.norm(x_FD))
