"""The only owner of token ids: names of special tokens <-> ids, beside the text vocabulary.

Text tokenizers can never produce a special token; every other file asks for ids by name here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint

SPECIALS: dict[str, str] = {
    "bos_sys": "begins a chat; the system prompt follows",
    "c_q": "begins the user's turn",
    "c_a": "begins the assistant's turn",
    "audio_start": "begins heard audio",
    "audio_end": "ends heard audio",
    "audio_pad": "one code frame, heard or spoken; its embedding comes from the audio tables",
    "audiotext_start": "last of the user's turn: the reply shall be spoken",
    "audiotext_end": "reserved",
    "audiotext_pad": "reserved",
    "audiogen_start": "begins spoken audio; its hidden state predicts the first frame",
    "audiogen_end": "ends spoken audio; its hidden state predicts the next text token",
    "eos": "ends a document and every reply",
    "pad": "fills rows that must be of one length",
}
"""Special tokens in the order in which they are appended after the text vocabulary."""

WITHOUT_ROWS = ("audio_pad", "audiotext_end", "audiotext_pad", "pad")
"""Nothing reads or predicts their rows of the text tables."""

PREDICTED = ("audiogen_start", "eos")
"""The only ones that are labels of text."""

OF_THE_TEXT_MODEL = ("eos", "pad", "bos")
"""They may be ids that the text tokenizer reserves; all others lie outside the text vocabulary."""


class TokenSpace:
    """Ids of text, special tokens and code frames in one LLM vocabulary.

    Layout as in arXiv:2502.17239: a code frame is one ``audio_pad`` position, its books are summed
    embeddings, so codes need no ids of their own. In each book the index after the last code means
    "end of audio".

    Args:
        text_vocab_size: ids below it belong to the text tokenizer.
        codebook_sizes: codes in each book, outermost first; empty for a model of text alone.
        special_ids: name -> id for every name of SPECIALS, as a released model has them; None appends them
            after the text vocabulary. ``eos`` and ``pad`` may share an id. ``bos`` may be there too: a text model
            that was pretrained with an id at the beginning of every text (Gemma, Llama) needs it there.
        vocab_size: rows of the embedding, when the backbone fixes it; all ids must fit.
        pad_to: without ``vocab_size``, the size is rounded up to a multiple of this.
    """

    bos_sys: int
    c_q: int
    c_a: int
    audio_start: int
    audio_end: int
    audio_pad: int
    audiotext_start: int
    audiotext_end: int
    audiotext_pad: int
    audiogen_start: int
    audiogen_end: int
    eos: int
    pad: int
    bos: int | None = None

    def __init__(
        self,
        text_vocab_size: int,
        codebook_sizes: Sequence[int] = (),
        special_ids: Mapping[str, int | None] | None = None,
        vocab_size: int | None = None,
        pad_to: int = 64,
    ) -> None:
        self.text_vocab_size = text_vocab_size
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if special_ids is None:
            special_ids = {name: text_vocab_size + i for i, name in enumerate(SPECIALS)}
        self.special_ids = _checked(special_ids, text_vocab_size)
        for name, token_id in self.special_ids.items():
            setattr(self, name, token_id)
        used = max(text_vocab_size, 1 + max(self.special_ids.values()))
        if vocab_size is not None and vocab_size < used:
            raise UserError(
                f"token_space.vocab_size: {vocab_size} rows cannot hold {text_vocab_size} text ids and "
                f"{len(SPECIALS)} special tokens; at least {used} are needed: set backbone.vocab_size"
            )
        self.vocab_size = vocab_size if vocab_size is not None else -(-used // pad_to) * pad_to

    @property
    def num_books(self) -> int:
        return len(self.codebook_sizes)

    @property
    def beginning(self) -> list[int]:
        """What every document and prompt begins with; never a label."""
        return [] if self.bos is None else [self.bos]

    @property
    def end_frame(self) -> tuple[int, ...]:
        """The frame that means "end of audio": in each book the index after its last code."""
        return self.codebook_sizes

    @property
    def audio_table_sizes(self) -> tuple[int, ...]:
        """Rows of the audio embedding tables and outputs of the audio head, by book."""
        return tuple(size + 1 for size in self.codebook_sizes)

    def is_text(self, token_id: int) -> bool:
        """True for ids that stand for text."""
        return 0 <= token_id < self.text_vocab_size and token_id not in self.special_ids.values()

    def fingerprint(self) -> Fingerprint:
        """Facts that an artefact with token ids must share with us."""
        facts: Fingerprint = {
            "text_vocab_size": self.text_vocab_size,
            "special_ids": dict(self.special_ids),
        }
        if self.codebook_sizes:
            facts["codebook_sizes"] = list(self.codebook_sizes)
        return facts


def _checked(special_ids: Mapping[str, int | None], text_vocab_size: int) -> dict[str, int]:
    given = {name: int(token_id) for name, token_id in special_ids.items() if token_id is not None}
    names = [*SPECIALS, *(["bos"] if "bos" in given else [])]
    if set(given) != set(names):
        missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
        raise UserError(f"token_space.special_ids: missing {missing}, unknown {unknown}")
    ids = {name: given[name] for name in names}
    owners: dict[int, str] = {}
    for name, token_id in ids.items():
        other = owners.setdefault(token_id, name)
        if other != name and {other, name} != {"eos", "pad"}:
            raise UserError(f"token_space.special_ids: {other} and {name} share the id {token_id}")
        if token_id < text_vocab_size and name not in OF_THE_TEXT_MODEL:
            raise UserError(
                f"token_space.special_ids.{name}: {token_id} is an id of the text vocabulary "
                f"(0..{text_vocab_size - 1})"
            )
    return ids
