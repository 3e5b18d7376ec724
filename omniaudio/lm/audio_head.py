"""From a hidden state of the LLM to one frame of codes, book by book: the audio head of arXiv:2502.17239.

Shape suffixes here: F frames (label positions), K depths (one a codebook), D width, H heads, R rows: K of each full
frame, which has all depths, then one of each frame that has depth 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.lm.cross_entropy import LogitHead, chunked_cross_entropy

KeyValue = tuple[Tensor, Tensor]


class DepthAttention(nn.Module):
    """Causal attention over the depths of a frame.

    Args:
        width: D, a multiple of ``head_dim``.
        head_dim: width of one head.
        num_depths: K.
    """

    def __init__(self, width: int, head_dim: int, num_depths: int) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"audio head: width {width} is not a multiple of head_dim {head_dim}")
        self.num_heads, self.num_depths = width // head_dim, num_depths
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_RD: Tensor, num_full: int) -> Tensor:
        """All depths of the full frames at once; a depth alone sees nothing but its own value."""
        num_rows = num_full * self.num_depths
        qkv_RD = self.qkv(x_RD)
        sizes = {"f": num_full, "k": self.num_depths, "n": 3, "h": self.num_heads}
        query, key, value = rearrange(qkv_RD[:num_rows], "(f k) (n h d) -> n f h k d", **sizes)
        # A handful of depths: plain products take half the time of a fused kernel here.
        score_FHKK = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        later_KK = torch.ones(self.num_depths, self.num_depths, dtype=torch.bool, device=x_RD.device).triu(1)
        weight_FHKK = score_FHKK.masked_fill(later_KK, -torch.inf).softmax(dim=-1).to(value.dtype)
        attended = rearrange(weight_FHKK @ value, "f h k d -> (f k) (h d)")
        return self.out(torch.cat([attended, qkv_RD[num_rows:].chunk(3, dim=-1)[2]]))

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

    def forward(self, x_RD: Tensor, num_full: int) -> Tensor:
        """All depths of the full frames, depth 0 of the others."""
        num_rows = num_full * self.num_depths
        weight_KDO = rearrange(self.weight, "o (k d) -> k d o", k=self.num_depths)
        x_KFD = rearrange(x_RD[:num_rows], "(f k) d -> k f d", f=num_full, k=self.num_depths)
        if num_rows == len(x_RD):
            return rearrange(torch.bmm(x_KFD, weight_KDO), "k f o -> (f k) o")
        # Split once: the gradient of a slice is as large as the whole weight.
        first_1DO, later_KDO = weight_KDO.split([1, self.num_depths - 1])
        first = torch.cat([x_KFD[0], x_RD[num_rows:]]) @ first_1DO[0]
        full_KFO = torch.cat([first[None, :num_full], torch.bmm(x_KFD[1:], later_KDO)])
        return torch.cat([rearrange(full_KFO, "k f o -> (f k) o"), first[num_full:]])

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
        self.attention = DepthAttention(width, head_dim, num_depths)
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.linear1 = DepthLinear(width, ffn_size, num_depths)
        self.linear2 = DepthLinear(ffn_size, width, num_depths)

    def forward(self, x_RD: Tensor, num_full: int) -> Tensor:
        """All rows at once; the first ``num_full`` frames are full."""
        x_RD = self.norm2(x_RD + self.attention(self.norm1(x_RD), num_full))
        return x_RD + self.linear2(functional.gelu(self.linear1(x_RD, num_full)), num_full)

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
        self.heads = nn.ModuleList(LogitHead(hidden_size, size + 1) for size in self.codebook_sizes)

    def forward(self, hidden_FD: Tensor, prefix_FKD: Tensor) -> list[Tensor]:
        """States of every depth, teacher-forced.

        Args:
            hidden_FD: the LLM's hidden state that predicts each frame.
            prefix_FKD: (F, K - 1, D), sums of the embeddings of the true books 0..i; fewer rows than frames give
                the first frames all depths and the others depth 0 alone.

        Returns:
            By depth, (F, D) for depth 0 and one row a prefix for the others; ``heads[k]`` of depth k gives the logits
            of book k.
        """
        num_full, num_depths = len(prefix_FKD), len(self.heads)
        full_FKD = torch.cat([hidden_FD[:num_full, None], prefix_FKD.to(hidden_FD.dtype)], dim=1)
        x_RD = torch.cat([full_FKD.flatten(0, 1), hidden_FD[num_full:]])
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_RD = checkpoint(layer, x_RD, num_full, use_reentrant=False)
            else:
                x_RD = layer(x_RD, num_full)
        full_RD, alone_RD = self.norm(x_RD).tensor_split([num_full * num_depths])
        first_FD, *later = rearrange(full_RD, "(f k) d -> k f d", f=num_full, k=num_depths)
        return [torch.cat([first_FD, alone_RD]), *later]

    def logits(self, hidden_FD: Tensor, prefix_FKD: Tensor) -> list[Tensor]:
        """Teacher-forced logits (F, book size + 1) of every book; frames without a prefix have those of book 0."""
        states = self.forward(hidden_FD, prefix_FKD)
        return [head(state_FD) for head, state_FD in zip(self.heads, states, strict=True)]

    def loss(self, hidden_FD: Tensor, prefix_FKD: Tensor, label_FK: Tensor, z_weight: float = 0.0) -> Tensor:
        """Cross-entropy (F, K) in nats of every depth (see ``forward``), 0 where there is no label or no prefix."""
        losses = []
        for book, state_FD in enumerate(self.forward(hidden_FD, prefix_FKD)):
            head: Any = self.heads[book]  # of an export they may be held otherwise
            label_F = label_FK[: len(state_FD), book]
            loss_F = chunked_cross_entropy(head, state_FD, label_F, z_weight)
            losses.append(functional.pad(loss_F, (0, len(label_FK) - len(loss_F))))
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
