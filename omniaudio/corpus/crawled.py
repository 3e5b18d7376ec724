"""Corpora of long recordings from the web with one large json of segments: WenetSpeech, GigaSpeech.

Their owners give them out on request; ``root`` is the folder as their own tools leave it. The json has several
gigabytes: it is read recording by recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omniaudio.corpus.download import need_root
from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key, unique_keys
from omniaudio.errors import UserError


class _Crawled:
    """Segments of recordings by subset.

    Args:
        subsets: of the corpus, training and held out.
        root: the folder with the json and ``audio``.
        name: of the prepared folder.
    """

    name: str
    json_name: str
    language: str
    held_out: dict[str, str]  # subset -> dev, test
    known: tuple[str, ...]
    how: str
    credit: str

    def __init__(self, subsets: Sequence[str], root: str | None, name: str) -> None:
        if unknown := sorted(set(subsets) - set(self.known)) or (not subsets and ["none given"]):
            raise UserError(f"corpus.subsets: {', '.join(unknown)}; allowed are {', '.join(self.known)}")
        self.subsets, self.name = tuple(subsets), name
        self.root = Path(root).resolve() if root else None

    def fetch(self, folder: Path) -> None:
        need_root(self.root, self.name, self.how)

    def attribution(self) -> str:
        return self.credit

    def inventory(self, folder: Path) -> Inventory:
        root = need_root(self.root, self.name, self.how)
        items: list[RawItem] = []
        left_out: list[LeftOut] = []
        for recording in self._recordings(root / self.json_name):
            for segment in recording["segments"]:
                subsets = {str(subset).strip("{}") for subset in segment["subsets"]}
                chosen = next((name for name in self.subsets if name in subsets), None)
                if chosen is None:
                    continue
                text = self.text(segment)
                if text is None:
                    left_out.append(LeftOut(name=str(segment["sid"]), reason="no words, by its own account"))
                    continue
                begin = float(segment["begin_time"])
                items.append(
                    RawItem(
                        key=clean_key(str(segment["sid"])),
                        path=root / str(recording["path"]),
                        start_sec=begin,
                        duration_sec=float(segment["end_time"]) - begin,
                        text=text,
                        language=self.language,
                        speaker=str(recording["aid"]),  # who speaks is not known, where it was said is
                        split=self.held_out.get(chosen, "train"),
                    )
                )
        return Inventory(unique_keys(items), left_out)

    def text(self, segment: dict[str, Any]) -> str | None:
        """The words of a segment; None if it has none."""
        raise NotImplementedError

    def _recordings(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            import ijson
        except ModuleNotFoundError as error:
            raise UserError(f"{path.name} is read with ijson: pip install ijson") from error
        if not path.is_file():
            raise UserError(f"{path}: no such file; corpus.root is the folder with {path.name} and audio")
        try:
            with path.open("rb") as file:
                for number, recording in enumerate(ijson.items(file, "audios.item", use_float=True)):
                    missing = {"aid", "path", "segments"} - set(recording)
                    if missing:
                        raise UserError(f"{path}: recording {number} has no {', '.join(sorted(missing))}")
                    for segment in recording["segments"]:
                        if missing := {"sid", "subsets", "begin_time", "end_time"} - set(segment):
                            raise UserError(
                                f"{path}: a segment of {recording['aid']} has no {', '.join(sorted(missing))}"
                            )
                    yield recording
        except ijson.JSONError as error:
            raise UserError(f"{path}: not valid json ({error})") from error


class WenetSpeech(_Crawled):
    """WenetSpeech: 10,000 hours of Mandarin from the web; texts from subtitles and recognisers, with confidence.

    Args:
        subsets: one of L, M, S, W to train on, and DEV, TEST_NET, TEST_MEETING.
        root: the folder with ``WenetSpeech.json`` and ``audio``.
        min_confidence: segments below are left out.
        name: of the prepared folder.
    """

    json_name, language = "WenetSpeech.json", "zh"
    known = ("S", "M", "L", "W", "DEV", "TEST_NET", "TEST_MEETING")
    held_out = {"DEV": "dev", "TEST_NET": "test", "TEST_MEETING": "test"}
    how = "https://wenet.org.cn/WenetSpeech"
    credit = (
        "WenetSpeech (https://wenet.org.cn/WenetSpeech), B. Zhang et al.; for research, terms of its owner"
    )

    def __init__(
        self,
        subsets: Sequence[str] = ("L", "DEV", "TEST_NET"),
        root: str | None = None,
        min_confidence: float = 0.0,
        name: str = "wenetspeech",
    ) -> None:
        super().__init__(subsets, root, name)
        self.min_confidence = min_confidence

    def text(self, segment: dict[str, Any]) -> str | None:
        if float(segment.get("confidence", 1.0)) < self.min_confidence:
            return None
        return str(segment.get("text", "")).strip() or None


PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


class GigaSpeech(_Crawled):
    """GigaSpeech: 10,000 hours of English audiobooks, podcasts and videos; texts in capitals, punctuation as marks.

    Args:
        subsets: one of XS, S, M, L, XL to train on, and DEV, TEST.
        root: the folder with ``GigaSpeech.json`` and ``audio``.
        name: of the prepared folder.
    """

    json_name, language = "GigaSpeech.json", "en"
    known = ("XS", "S", "M", "L", "XL", "DEV", "TEST")
    held_out = {"DEV": "dev", "TEST": "test"}
    how = "https://github.com/SpeechColab/GigaSpeech"
    credit = "GigaSpeech (https://github.com/SpeechColab/GigaSpeech), G. Chen et al.; for research, terms of its owner"

    def __init__(
        self,
        subsets: Sequence[str] = ("XL", "DEV", "TEST"),
        root: str | None = None,
        name: str = "gigaspeech",
    ) -> None:
        super().__init__(subsets, root, name)

    def text(self, segment: dict[str, Any]) -> str | None:
        text = str(segment.get("text_tn", ""))
        if GARBAGE.search(text):
            return None
        for mark, char in PUNCTUATION.items():
            text = text.replace(f" {mark}", char).replace(mark, char)
        return " ".join(text.split()) or None
