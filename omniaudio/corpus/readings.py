"""Corpora of read speech that anyone may fetch: LibriSpeech, LibriTTS, LJSpeech, AISHELL-1.

Each reads the folder that its archives unpack to. With ``root`` it is taken from there, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omniaudio.corpus.download import fetch_archive, unpack
from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key
from omniaudio.corpus.kaldi import read_table
from omniaudio.errors import UserError
from omniaudio.files import write_whole

OPENSLR = "https://www.openslr.org/resources"
LIBRI_PARTS = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip


class _Fetched:
    """A corpus that its archives unpack to one folder, ``top``.

    Args:
        root: the folder that holds ``top``, or ``top`` itself; null fetches the archives.
        name: of the prepared folder; null takes the corpus's own.
    """

    top: str
    own_name: str
    credit: str

    def __init__(self, root: str | None = None, name: str | None = None) -> None:
        self.root, self.name = Path(root).resolve() if root else None, name or self.own_name

    def archives(self) -> list[str]:
        """Addresses."""
        raise NotImplementedError

    def fetch(self, folder: Path) -> None:
        if self.root is None:
            for url in self.archives():
                fetch_archive(url, folder)

    def attribution(self) -> str:
        return self.credit

    def home(self, folder: Path) -> Path:
        """The corpus's own folder: below what was fetched or given, or the given one itself."""
        base = self.root or folder
        home = base if base.name == self.top else base / self.top
        if not home.is_dir():
            raise UserError(
                f"{home}: no such folder; run step=fetch first, or give the folder that holds {self.top}"
            )
        return home


class _Libri(_Fetched):
    resource: int

    def __init__(self, parts: Sequence[str], root: str | None = None, name: str | None = None) -> None:
        super().__init__(root, name)
        if unknown := sorted(set(parts) - set(LIBRI_PARTS)) or (not parts and ["none given"]):
            raise UserError(f"corpus.parts: {', '.join(unknown)}; allowed are {', '.join(LIBRI_PARTS)}")
        self.parts = tuple(parts)

    def archives(self) -> list[str]:
        return [f"{OPENSLR}/{self.resource}/{part}.tar.gz" for part in self.parts]

    def inventory(self, folder: Path) -> Inventory:
        items: list[RawItem] = []
        for part in self.parts:
            home = self.home(folder) / part
            if not home.is_dir():
                raise UserError(
                    f"{home}: no such folder; run step=fetch first, or leave {part} out of corpus.parts"
                )
            items += self.part(home, part.partition("-")[0])
        return Inventory(items)

    def part(self, home: Path, split: str) -> Iterator[RawItem]:
        """The recordings of a part, by speaker and chapter."""
        raise NotImplementedError


class LibriSpeech(_Libri):
    """LibriSpeech: a thousand hours of English audiobooks at 16 kHz; texts in capitals, without punctuation.

    Args:
        parts: some of train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other, test-clean, test-other.
        root: the folder with ``LibriSpeech``, or that folder; null fetches the parts.
        name: of the prepared folder.
    """

    top, own_name, resource = "LibriSpeech", "librispeech", 12
    credit = (
        "LibriSpeech (https://www.openslr.org/12), V. Panayotov, G. Chen, D. Povey, S. Khudanpur; CC-BY-4.0"
    )

    def part(self, home: Path, split: str) -> Iterator[RawItem]:
        for table in sorted(home.glob("*/*/*.trans.txt")):
            chapter = table.parent
            texts = dict(read_table(table))
            for name in sorted(texts.keys() | {path.stem for path in chapter.glob("*.flac")}):
                yield RawItem(
                    key=clean_key(f"{home.name}/{name}"),
                    path=chapter / f"{name}.flac",
                    text=texts.get(name),
                    language="en",
                    speaker=chapter.parent.name,
                    split=split,
                )


class LibriTTS(_Libri):
    """LibriTTS: 585 hours of English audiobooks at 24 kHz, by sentences, with punctuation.

    Args:
        parts: as of LibriSpeech.
        root: the folder with ``LibriTTS``, or that folder; null fetches the parts.
        name: of the prepared folder.
    """

    top, own_name, resource = "LibriTTS", "libritts", 60
    credit = "LibriTTS (https://www.openslr.org/60), H. Zen et al.; CC-BY-4.0"

    def part(self, home: Path, split: str) -> Iterator[RawItem]:
        for path in sorted(home.glob("*/*/*.wav")):
            text = path.with_suffix(".normalized.txt")
            yield RawItem(
                key=clean_key(f"{home.name}/{path.stem}"),
                path=path,
                text=" ".join(text.read_text("utf-8").split()) if text.is_file() else None,
                language="en",
                speaker=path.parts[-3],
                sample_rate_hz=24_000,
                split=split,
            )


class LJSpeech(_Fetched):
    """LJSpeech: 24 hours of one English voice at 22 kHz. The split is by the hash of the text: it has none of its own.

    See ``_Fetched`` for the arguments.
    """

    top, own_name = "LJSpeech-1.1", "ljspeech"
    credit = "The LJ Speech Dataset 1.1 (https://keithito.com/LJ-Speech-Dataset), K. Ito, L. Johnson; public domain"

    def archives(self) -> list[str]:
        return ["https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"]

    def inventory(self, folder: Path) -> Inventory:
        home = self.home(folder)
        table = home / "metadata.csv"
        if not table.is_file():
            raise UserError(f"{table}: no such file")
        items = []
        for number, line in enumerate(table.read_text("utf-8").split("\n"), 1):
            columns = line.split("|")
            if not line.strip():
                continue
            if len(columns) != 3:
                raise UserError(f"{table}:{number}: {len(columns)} columns, expected id|text|normalized text")
            items.append(
                RawItem(
                    key=clean_key(columns[0]),
                    path=home / "wavs" / f"{columns[0]}.wav",
                    text=columns[2].strip() or columns[1].strip(),
                    language="en",
                    speaker="lj",
                    sample_rate_hz=22_050,
                )
            )
        return Inventory(items)


class Aishell1(_Fetched):
    """AISHELL-1: 178 hours of read Mandarin by 400 speakers at 16 kHz, with splits.

    See ``_Fetched`` for the arguments.
    """

    top, own_name = "data_aishell", "aishell1"
    credit = "AISHELL-1 (https://www.openslr.org/33), Beijing Shell Shell Technology Co., Ltd.; Apache-2.0"

    def archives(self) -> list[str]:
        return [f"{OPENSLR}/33/data_aishell.tgz"]

    def fetch(self, folder: Path) -> None:
        super().fetch(folder)
        wav = self.home(folder) / "wav"
        for archive in sorted(wav.glob("*.tar.gz")):  # one a speaker, inside the archive
            done = wav / f".{archive.name}.unpacked"
            if not done.exists():
                unpack(archive, wav)
                write_whole(done, "")

    def inventory(self, folder: Path) -> Inventory:
        home = self.home(folder)
        texts = dict(read_table(home / "transcript" / "aishell_transcript_v0.8.txt"))
        items = [
            RawItem(
                key=clean_key(path.stem),
                path=path,
                text=texts[path.stem].replace(" ", "")
                if path.stem in texts
                else None,  # words are parted there
                language="zh",
                speaker=path.parent.name,
                split=split,
            )
            for split in ("train", "dev", "test")
            for path in sorted((home / "wav" / split).glob("*/*.wav"))
        ]
        if not items:
            raise UserError(
                f"{home / 'wav'}: no recordings in train, dev, test; are the speakers' archives unpacked?"
            )
        recorded = {item.path.stem for item in items}
        left_out = [
            LeftOut(name=name, reason="transcript without a recording")
            for name in texts
            if name not in recorded
        ]
        return Inventory(items, left_out)
