"""A user's own folder of recordings with transcripts.

Transcripts are looked for in this order, and all must come from one place:

1. ``transcripts.tsv``: ``id<TAB>text``, and optionally ``<TAB>speaker`` and ``<TAB>language``;
2. ``metadata.csv``: ``id|text``; further columns are ignored;
3. beside every recording a ``.txt`` of the same name.

No header line; UTF-8. An id is the recording's path in the folder, with or without its ending; its bare name
is enough where only one recording has it. Other files are not read; they are counted by their endings.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key, unique_keys
from omniaudio.errors import UserError
from omniaudio.frontend.audio import AUDIO_ENDINGS

TABLES = (("transcripts.tsv", "\t"), ("metadata.csv", "|"))


def recordings_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Recordings in a folder and all below it, and the files that are none and belong to none, by their names; both
    sorted. Hidden files are not looked at."""
    every = sorted(path for path in folder.rglob("*") if not path.is_dir())
    recordings = [path for path in every if path.suffix.lower() in AUDIO_ENDINGS]
    names = {path.with_suffix("") for path in recordings}
    others = [
        path
        for path in every
        if path.suffix.lower() not in AUDIO_ENDINGS
        and path.with_suffix("") not in names
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return recordings, others


def not_read(path: Path) -> str:
    """Why a file is taken for nothing: its ending, which is not one of recordings."""
    return (
        f"files ending in {path.suffix.lower()} are not read"
        if path.suffix
        else "files without an ending are not read"
    )


class AudioFolder:
    """Recordings and transcripts of one folder and all below it.

    Args:
        folder: where they are.
        language: ISO 639-1, for lines that name none.
        name: of the prepared folder.
        speaker: for lines that name none; null takes the recording's subfolder, or ``name`` without one.
        licence: a line for ATTRIBUTION.
    """

    def __init__(
        self,
        folder: str,
        language: str,
        name: str = "folder",
        speaker: str | None = None,
        licence: str = "The user's own recordings; licence not stated.",
    ) -> None:
        self.folder, self.language, self.name = Path(folder).resolve(), language, name
        self.speaker, self.licence = speaker, licence

    def fetch(self, folder: Path) -> None:
        if not self.folder.is_dir():
            raise UserError(f"corpus.folder {self.folder}: no such folder")

    def inventory(self, folder: Path) -> Inventory:
        self.fetch(folder)
        recordings, others = recordings_in(self.folder)
        others = [path for path in others if path.parent != self.folder or path.name not in dict(TABLES)]
        if not recordings:
            found = ", ".join(f"{count} {reason}" for reason, count in Counter(map(not_read, others)).items())
            raise UserError(
                f"corpus.folder {self.folder}: no recordings; files must end in one of {', '.join(AUDIO_ENDINGS)}"
                + (f" ({found})" if found else "")
            )
        left_out = [
            LeftOut(name=path.relative_to(self.folder).as_posix(), reason=not_read(path)) for path in others
        ]
        return Inventory(self._items(recordings), left_out)

    def _items(self, recordings: list[Path]) -> list[RawItem]:
        for name, separator in TABLES:
            if (self.folder / name).is_file():
                return self._from_table(self.folder / name, separator, recordings)
        if not any(path.with_suffix(".txt").is_file() for path in recordings):
            raise UserError(
                f"corpus.folder {self.folder}: no transcripts; give transcripts.tsv (id<TAB>text), "
                f"metadata.csv (id|text) or a .txt beside every recording"
            )
        return unique_keys([self._with_text_beside(path) for path in recordings])

    def attribution(self) -> str:
        return f"{self.name}: {self.licence}"

    def _with_text_beside(self, path: Path) -> RawItem:
        text_path = path.with_suffix(".txt")
        if not text_path.is_file():
            return self._item(path, None)
        try:
            return self._item(path, " ".join(text_path.read_text("utf-8-sig").split()))
        except UnicodeDecodeError:
            return self._item(path, None, fault="transcript not UTF-8")

    def _from_table(self, table: Path, separator: str, recordings: list[Path]) -> list[RawItem]:
        try:
            lines = table.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{table}: not UTF-8 at byte {error.start}") from error
        places = self._places(recordings)
        items: list[RawItem] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            columns = [column.strip() for column in line.split(separator)]
            if len(columns) < 2:
                raise UserError(
                    f"{table}:{number}: one column; expected id and text, parted by {separator!r}"
                )
            extra = columns[2:4] if separator == "\t" else []
            items.append(self._row_item(places, columns[0], columns[1], *extra))
        used = {item.path for item in items}
        items += [self._item(path, None) for path in recordings if path not in used]
        return unique_keys(items)

    def _places(self, recordings: list[Path]) -> dict[str, list[Path]]:
        """Recordings by all names that an id may have."""
        places: dict[str, list[Path]] = {}
        for path in recordings:
            relative = path.relative_to(self.folder)
            for name in {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}:
                places.setdefault(name, []).append(path)
        return places

    def _row_item(
        self, places: dict[str, list[Path]], name: str, text: str, speaker: str = "", language: str = ""
    ) -> RawItem:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not name:
            return self._item(self.folder / clean_key(name).strip("/"), text, fault="path outside the folder")
        found = places.get(name, [])
        if len(found) > 1:
            return self._item(self.folder / name, text, fault="several recordings of this name")
        return self._item(found[0] if found else self.folder / name, text, speaker=speaker, language=language)

    def _item(
        self, path: Path, text: str | None, fault: str | None = None, speaker: str = "", language: str = ""
    ) -> RawItem:
        relative = path.relative_to(self.folder)
        below = relative.parent.name or self.name
        return RawItem(
            key=clean_key(relative.with_suffix("").as_posix()),
            path=path,
            text=text,
            language=language or self.language,
            speaker=speaker or self.speaker or below,
            fault=fault,
        )
