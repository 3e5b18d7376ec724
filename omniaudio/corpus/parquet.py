"""Datasets of Hugging Face whose recordings lie in parquet files, such as VoiceAssistant-400K."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key
from omniaudio.data.chats import to_clips
from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.progress import Progress

ROWS = 64  # read at one time


class ParquetAudio:
    """Rows with a recording, its words, and perhaps what was answered.

    The recordings are taken out once into files; a parquet file that is done is not read again.

    Args:
        repository: name of the dataset on the hub; null takes ``root``.
        root: folder with the parquet files; null fetches the repository.
        pattern: of the parquet files below the folder.
        language: ISO 639-1 of the speech.
        audio_column: with the recording, ``{bytes, path}``.
        text_column: with its words.
        response_column: with the answer; null has none.
        chats: make a chat of every recording and its answer, too: a passage of its own, never joined with others.
        speaker_column: with the speaker; null takes ``name``.
        name: of the prepared folder.
        licence: a line for ATTRIBUTION.
    """

    def __init__(
        self,
        language: str,
        repository: str | None = None,
        root: str | None = None,
        pattern: str = "**/*.parquet",
        audio_column: str = "audio",
        text_column: str = "text",
        response_column: str | None = None,
        chats: bool = False,
        speaker_column: str | None = None,
        name: str = "parquet",
        licence: str = "Licence not stated.",
    ) -> None:
        if (repository is None) == (root is None):
            raise UserError("corpus.repository, corpus.root: give one of them")
        self.repository, self.root = repository, Path(root).resolve() if root else None
        self.chats = chats
        self.pattern, self.language, self.name, self.licence = pattern, language, name, licence
        self.columns = {
            "audio": audio_column,
            "text": text_column,
            **({"response": response_column} if response_column else {}),
            **({"speaker": speaker_column} if speaker_column else {}),
        }

    def attribution(self) -> str:
        return f"{self.name}: {self.licence}"

    def fetch(self, folder: Path) -> None:
        for name, path in self._files(folder).items():
            listing = folder / "clips" / name / "rows.jsonl"
            if not listing.is_file():
                rows = list(self._extract(path, listing.parent))
                write_whole(listing, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def inventory(self, folder: Path) -> Inventory:
        items: list[RawItem] = []
        left_out: list[LeftOut] = []
        for name in self._files(folder, fetch=False):
            listing = folder / "clips" / name / "rows.jsonl"
            if not listing.is_file():
                raise UserError(f"{listing}: no recordings; run step=fetch first")
            for line in listing.read_text("utf-8").split("\n"):
                if not line:
                    continue
                row = json.loads(line)
                key = clean_key(f"{listing.parent.name}/{row['number']:06d}")
                if row["file"] is None:
                    left_out.append(LeftOut(name=key, reason="row without a recording"))
                    continue
                items.append(self._item(row, key, listing.parent / row["file"]))
        if not items:
            raise UserError(f"{folder / 'clips'}: no recordings; run step=fetch first")
        return Inventory(items, left_out)

    def _item(self, row: dict[str, Any], key: str, path: Path) -> RawItem:
        """A recording; in a chat it is the question, and what was answered the written reply."""
        text, response = _text(row.get("text")), _text(row.get("response"))
        clips = (
            to_clips([("user", [path]), ("assistant", [response])], key)
            if self.chats and text and response
            else []
        )
        return RawItem(
            key=key,
            path=path,
            text=text,
            language=self.language,
            speaker=_text(row.get("speaker")) or self.name,
            response=(response,) if response else (),
            chat=json.dumps(clips[0][1], ensure_ascii=False) if clips else "",
        )

    def _files(self, folder: Path, fetch: bool = True) -> dict[str, Path]:
        """Parquet files by the name of their folder of clips."""
        root = self.root
        if root is None:
            root = self._fetched(folder) if fetch else folder / "hub"
        if not root.is_dir():
            raise UserError(f"corpus.root {root}: no such folder")
        files = sorted(root.glob(self.pattern))
        if not files:
            raise UserError(f"{root}: no files {self.pattern}")
        names = [path.relative_to(root).with_suffix("").as_posix() for path in files]
        return {clean_key(name).replace("/", "__"): path for name, path in zip(names, files, strict=True)}

    def _fetched(self, folder: Path) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        assert self.repository is not None
        try:
            return Path(
                snapshot_download(
                    self.repository,
                    repo_type="dataset",
                    local_dir=folder / "hub",
                    allow_patterns=[self.pattern, self.pattern.replace("**/", "")],
                )
            )
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"corpus.repository {self.repository}: {str(error).splitlines()[0]}; or fetch it elsewhere and give "
                f"corpus.repository=null corpus.root=DIR"
            ) from error

    def _extract(self, path: Path, folder: Path) -> Iterator[dict[str, Any]]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise UserError(f"{path.name} is read with pyarrow: pip install pyarrow") from error
        try:
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if missing := [name for name in self.columns.values() if name not in names]:
                raise UserError(f"{path}: no column {', '.join(missing)}; there are {', '.join(names)}")
            progress = Progress(f"Recordings of {path.name}", file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(ROWS, columns=list(self.columns.values())):
                for row in batch.to_pylist():
                    yield self._taken_out(row, number, folder)
                    number += 1
                    progress.advance()
            progress.close()
        except pyarrow.ArrowException as error:
            raise UserError(
                f"{path}: not a parquet file that can be read ({str(error).splitlines()[0]})"
            ) from error

    def _taken_out(self, row: dict[str, Any], number: int, folder: Path) -> dict[str, Any]:
        facts = {name: row[column] for name, column in self.columns.items() if name != "audio"}
        audio = row[self.columns["audio"]]
        content = audio.get("bytes") if isinstance(audio, dict) else None
        if not content:
            return {"number": number, "file": None, **facts}
        suffix = Path(audio.get("path") or "").suffix.lower() or ".wav"
        name = f"{number:06d}{suffix}"
        with user_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return {"number": number, "file": name, **facts}


def _text(value: Any) -> str | None:
    """A value of a column as text: numbers are speakers and answers, too."""
    return None if value is None else str(value)
