"""The audio LLM of arXiv:2502.17239: text backbone, audio embedding tables, audio head."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint
from omniaudio.init import whole
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.vocab import PREDICTED, WITHOUT_ROWS, TokenSpace
from omniaudio.types import NO_LABEL, LMOutput, PackedBatch


class CodeTable(nn.Embedding):
    """Embeddings of one book's codes, drawn inside the constructor: ZeRO 3 shards a module as soon as it returns.

    Args:
        num_codes: rows.
        width: columns.
        std: of the first weights.
    """

    def __init__(self, num_codes: int, width: int, std: float) -> None:
        self.std = std
        super().__init__(num_codes, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class AudioLM(nn.Module):
    """Reads and writes text and code frames.

    Args:
        backbone: the text model.
        audio_head: hidden state -> codes of a frame.
        token_space: ids of text, special tokens and frames.
        deep_frame_share: share of the frames, chosen anew each training step, on which the books after the
            first are trained; their loss is scaled up so that its expectation stays. 1 trains
            all.
        z_weight: of the z-loss in training (see chunked_cross_entropy), which both losses then contain.
    """

    def __init__(
        self,
        backbone: CausalBackbone,
        audio_head: AudioHead,
        token_space: TokenSpace,
        deep_frame_share: float = 1.0,
        z_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if token_space.vocab_size > backbone.vocab_size:
            raise UserError(
                f"backbone.vocab_size {backbone.vocab_size} is smaller than the token space: "
                f"{token_space.vocab_size}"
            )
        if audio_head.hidden_size != backbone.hidden_size:
            raise UserError(
                f"audio_head.hidden_size {audio_head.hidden_size} is not "
                f"backbone.hidden_size {backbone.hidden_size}"
            )
        if audio_head.codebook_sizes != token_space.codebook_sizes:
            raise UserError(
                f"audio_head.codebook_sizes {list(audio_head.codebook_sizes)} are not those of the "
                f"token space: {list(token_space.codebook_sizes)}"
            )
        if not 0 < deep_frame_share <= 1:
            raise UserError(f"lm.deep_frame_share: {deep_frame_share} is not in (0, 1]")
        if z_weight < 0:
            raise UserError(f"lm.z_weight: {z_weight} must be >= 0; 0 is no z-loss")
        self.deep_frame_share, self.z_weight = deep_frame_share, z_weight
        self.backbone = backbone
        self.audio_head = audio_head
        self.token_space = token_space
        # A frame is a sum of K rows: give it the size of one text embedding.
        std = 0.02 * backbone.embed_scale * token_space.num_books**-0.5
        self.audio_embed = nn.ModuleList(
            CodeTable(size, backbone.hidden_size, std) for size in token_space.audio_table_sizes
        )

    def fingerprint(self) -> Fingerprint:
        """Facts that ids and codes must share with this model."""
        return self.token_space.fingerprint()

    def embed_frames(self, codes_SK: Tensor) -> Tensor:
        """Frames of codes (S, K) to their summed embeddings (S, D)."""
        frames_SD = self.audio_embed[0](codes_SK[:, 0])
        for book in range(1, len(self.audio_embed)):
            frames_SD = frames_SD + self.audio_embed[book](codes_SK[:, book])
        return frames_SD

    def embed_prefix(self, codes_FK: Tensor) -> Tensor:
        """Running sums (F, K - 1, D) of the embeddings of books 0..i: what the audio head is forced with."""
        books = [self.audio_embed[book](codes_FK[:, book]) for book in range(len(self.audio_embed) - 1)]
        if not books:
            return codes_FK.new_zeros((len(codes_FK), 0, self.backbone.hidden_size), dtype=torch.float32)
        return torch.stack(books, dim=1).cumsum(dim=1)

    def embed(self, ids_L: Tensor, codes_LK: Tensor) -> Tensor:
        """Ids, and codes where the id is ``audio_pad``, to the LLM's input embeddings (L, D)."""
        embeds_LD = self.backbone.embed_text(ids_L)
        frames_S = (ids_L == self.token_space.audio_pad).nonzero()[:, 0]
        frames_SD = self.embed_frames(codes_LK[frames_S]).to(embeds_LD.dtype)
        return embeds_LD.index_copy(0, frames_S, frames_SD)

    def forward(self, batch: PackedBatch, exact: bool = False) -> LMOutput:
        """Hidden states and both losses by position.

        Args:
            exact: losses are negative log-probabilities in training too: of all frames, and without z-loss.
        """
        embeds_LD = self.embed(batch.ids_L, batch.codes_LK)
        hidden_LD = self.backbone(embeds_LD, batch.doc_len_G)
        exact = exact or not self.training
        z_weight = 0.0 if exact else self.z_weight
        return LMOutput(
            hidden_LD=hidden_LD,
            text_loss_L=self.backbone.text_loss(hidden_LD, batch.text_label_L, z_weight),
            audio_loss_LK=self._audio_loss(
                hidden_LD, batch.audio_label_LK, 1.0 if exact else self.deep_frame_share, z_weight
            ),
        )

    def _audio_loss(self, hidden_LD: Tensor, label_LK: Tensor, share: float, z_weight: float) -> Tensor:
        """Cross-entropy (L, K) of every book, 0 where there is no frame to predict."""
        loss_LK = torch.zeros(label_LK.shape, device=hidden_LD.device)
        rows_F = (label_LK[:, 0] != NO_LABEL).nonzero()[:, 0]
        num_full = len(rows_F)
        if share < 1:
            chosen_F = torch.rand(num_full, device=rows_F.device) < share
            rows_F, num_full = torch.cat([rows_F[chosen_F], rows_F[~chosen_F]]), int(chosen_F.sum())
        label_FK = label_LK[rows_F]
        prefix_FKD = self.embed_prefix(label_FK[:num_full])
        loss_FK = self.audio_head.loss(hidden_LD[rows_F], prefix_FKD, label_FK, z_weight)
        if share < 1:
            loss_FK = torch.cat([loss_FK[:, :1], loss_FK[:, 1:] / share], dim=1)
        return loss_LK.index_copy(0, rows_F, loss_FK)


def indistinct_specials(lm: AudioLM, most: float = 0.999) -> list[str]:
    """What to tell of special tokens whose rows are nearly one vector in a table that does not learn.

    Published models leave rows behind their tokenizer's vocabulary as training shrank them: all alike, nearly. A
    special token that is put there and frozen there is the same word to the model as the next one.

    Args:
        most: cosine above which two rows are not told apart.
    """
    read = [name for name in lm.token_space.special_ids if name not in WITHOUT_ROWS]
    tables = {
        "embed_tokens": (lm.backbone.embed_tokens.weight, read),
        "lm_head": (lm.backbone.lm_head.weight, PREDICTED),
    }
    told = []
    for table, (weight_VD, names) in tables.items():
        if weight_VD.requires_grad or weight_VD.is_meta:
            continue
        with torch.no_grad(), whole([weight_VD]):
            row_SD = weight_VD[[lm.token_space.special_ids[name] for name in names]].double()
        row_SD = torch.where(row_SD.any(-1, keepdim=True), row_SD, 1.0)  # rows of zeros are one vector too
        cosines = functional.cosine_similarity(row_SD[:, None], row_SD[None], dim=-1, eps=1e-300).tolist()
        pairs = [(i, j) for i, j in combinations(range(len(names)), 2) if cosines[i][j] > most]
        if pairs:
            one, other = (names[i] for i in pairs[0])
            more = f" (so are {len(pairs) - 1} other pairs)" if len(pairs) > 1 else ""
            told.append(
                f"lm.backbone.{table}: the rows of {one} and {other} are nearly one vector{more} and do not learn, so "
                f"the model cannot tell them apart: let task.trainable match lm.backbone.{table}.*"
            )
    return told
