"""Preference pairs that somebody gives, as json lines: see ``omniaudio pairs --help``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.corpus.items import LeftOut, clean_key
from omniaudio.corpus.json_manifests import Fields, LineError, language_code, read_json_lines, read_lines
from omniaudio.corpus.split import split_of
from omniaudio.data.chats import ROLES
from omniaudio.data.pairs import Pair, write_pair
from omniaudio.data.shards import ShardWriter, load_npy
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio_at
from omniaudio.sequence.chat import Message, Segment, segments_of
from omniaudio.sequence.spans import DocumentBuilder

FRACTIONS = {"train": 0.95, "dev": 0.05, "test": 0.0}


def write_given(
    path: str | Path, model_dir: str | Path, folder: Path, device: str = "cpu"
) -> dict[str, dict[str, int]]:
    """Pairs of a file into shards.

    Args:
        path: json lines.
        model_dir: exported folder whose tokenizer makes codes of sounds, and whose token layout the pairs have.
        folder: of the shards.
        device: of the tokenizer.

    Returns:
        by split: pairs, prompts, and lines left out by reason.
    """
    import omniaudio
    from omniaudio.dialogue.folder import layout_of

    model = omniaudio.load(model_dir, device)
    reader = _Reader(model, Path(path).resolve().parent)
    told: dict[str, Counter[str]] = {split: Counter() for split in ("train", "dev")}
    with (
        ShardWriter(folder, "train", fingerprint=layout_of(model)) as train,
        ShardWriter(folder, "dev", fingerprint=layout_of(model)) as dev,
    ):
        for found in read_lines(read_json_lines(Path(path)), reader.read):
            if isinstance(found, LeftOut):
                told["train"][f"left out: {found.name}: {found.reason}"] += 1
                continue
            split, pair = found
            write_pair(train if split == "train" else dev, pair)
            told[split].update(prompts=1, pairs=1)
    return {split: dict(counts) for split, counts in told.items()}


class _Reader:
    """Lines to pairs."""

    def __init__(self, model: Any, home: Path) -> None:
        self.model, self.home = model, home
        self._names: set[str] = set()

    def read(self, line: dict[str, Any], where: str) -> Iterator[tuple[str, Pair]]:
        field = Fields(line, where)
        name = clean_key(str(line.get("id") or f"line-{where.rpartition(':')[2]}"))
        if name in self._names:
            raise LineError(where, f"the id {name!r} stands twice")
        language = language_code(field("language", str, None), "en")
        prompt = self._prompt(line.get("prompt"), where)
        chosen, rejected = (self._parts(line.get(w), f"{where}: {w}") for w in ("chosen", "rejected"))
        words = " ".join(part for m in prompt for part in segments_of(m["content"]) if isinstance(part, str))
        split = field("split", str, None) or split_of(words or name, language, FRACTIONS)
        if split not in ("train", "dev"):
            raise LineError(where, f"split is {split!r}, expected train or dev")
        self._names.add(name)
        yield split, Pair(key=name, language=language, prompt=prompt, chosen=chosen, rejected=rejected)

    def _prompt(self, given: Any, where: str) -> list[Message]:
        if not (isinstance(given, list) and given and isinstance(given[0], dict) and "role" in given[0]):
            return [{"role": "user", "content": self._parts(given, f"{where}: prompt")}]
        messages: list[Message] = []
        for number, message in enumerate(given):
            field = Fields(message, f"{where}: prompt, message {number}")
            role = field("role", str)
            if (
                role not in ROLES
                or (role == "system" and number)
                or (number == len(given) - 1 and role != "user")
            ):
                expected = "system (the first only), user and assistant in turn, user at the end"
                raise LineError(field.where, f"the role is {role!r}, expected {expected}")
            messages.append({"role": role, "content": self._parts(message.get("content"), field.where)})
        return messages

    def _parts(self, given: Any, where: str) -> list[Segment]:
        """Texts and codes of a message."""
        parts = [self._part(part, where) for part in (given if isinstance(given, list) else [given])]
        if not parts:
            raise LineError(where, "is empty")
        return parts

    def _part(self, part: Any, where: str) -> Segment:
        field = Fields({"text": part} if isinstance(part, str) else part, where)
        try:
            if "codes" in field.found:
                codes_SK = load_npy((self.home / field("codes", str)).read_bytes())
                return self._checked(codes_SK)
            if "audio" in field.found:
                rate_hz = self.model.tokenizer.sample_rate_hz
                wav_N = read_audio_at(self.home / field("audio", str), rate_hz)
                return self._checked(self.model.encode(wav_N, rate_hz).codes_BSK[0].cpu().numpy())
            text: str = field("text", str)
            self.model.text_tokenizer.encode(text)
        except (OSError, UserError) as error:
            raise error if isinstance(error, LineError) else LineError(where, str(error)) from error
        return text

    def _checked(self, codes_SK: np.ndarray) -> np.ndarray:
        """Codes that a document may be made of."""
        DocumentBuilder(self.model.lm.token_space).heard(codes_SK)
        return codes_SK
