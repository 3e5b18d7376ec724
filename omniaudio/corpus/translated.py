"""CoVoST 2: Common Voice with translations into English."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omniaudio.corpus.download import fetch_archive, need_root
from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key
from omniaudio.errors import UserError

TRANSLATIONS = "https://dl.fbaipublicfiles.com/covost/covost_v2.{}_en.tsv.tar.gz"
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
HOW = "https://commonvoice.mozilla.org/datasets (version 4)"


class CoVoST2:
    """Recordings of Common Voice with their sentence and its translation.

    The translations are fetched; Common Voice, whose terms one must accept, is given as ``root``.

    Args:
        source: language of the speech, as Common Voice names it (de, zh-CN, sv-SE, ...); not English.
        root: Common Voice's folder of the language, with ``validated.tsv`` and ``clips``.
        name: of the prepared folder.
    """

    def __init__(self, source: str, root: str | None = None, name: str = "covost2") -> None:
        if source == "en":
            raise UserError(
                "corpus.source=en: translations are into English; name another language (de, zh-CN, ...)"
            )
        self.source, self.name = source, name
        self.root = Path(root).resolve() if root else None

    def fetch(self, folder: Path) -> None:
        root = need_root(self.root, "Common Voice", HOW)
        if not any((place / self._table).is_file() for place in (root, folder)):
            fetch_archive(TRANSLATIONS.format(self.source), folder)

    def inventory(self, folder: Path) -> Inventory:
        root = need_root(self.root, "Common Voice", HOW)
        table = next(
            (place / self._table for place in (root, folder) if (place / self._table).is_file()), None
        )
        if table is None:
            raise UserError(f"{folder / self._table}: no such file; run step=fetch first")
        spoken = {
            row["path"]: row for row in read_tsv(root / "validated.tsv", ("path", "sentence", "client_id"))
        }
        items: list[RawItem] = []
        left_out: list[LeftOut] = []
        for row in read_tsv(table, ("path", "translation", "split")):
            name, known = row["path"], spoken.get(row["path"])
            if row["split"] not in SPLITS:
                left_out.append(LeftOut(name=name, reason=f"in no split of CoVoST ({row['split']})"))
            elif known is None:
                left_out.append(LeftOut(name=name, reason="not in this version of Common Voice"))
            else:
                items.append(
                    RawItem(
                        key=clean_key(Path(name).stem),
                        path=root / "clips" / name,
                        text=known["sentence"],
                        language=self.source.split("-")[0],
                        speaker=known["client_id"],
                        translation=row["translation"],
                        split=SPLITS[row["split"]],
                    )
                )
        return Inventory(items, left_out)

    def attribution(self) -> str:
        return (
            "CoVoST 2 (https://github.com/facebookresearch/covost), C. Wang, A. Wu, J. Pino; CC0-1.0 (translations)\n"
            "Common Voice (https://commonvoice.mozilla.org), its contributors; CC0-1.0"
        )

    @property
    def _table(self) -> str:
        return f"covost_v2.{self.source}_en.tsv"


def read_tsv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a table with a head line and a backslash before tabs and quotes of its fields."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    names = lines[0].rstrip("\r").split("\t")
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path}: no column {', '.join(missing)}; there are {', '.join(names)}")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").replace("\\\t", "\0").split("\t")
        if len(fields) != len(names):
            raise UserError(f"{path}:{number}: {len(fields)} columns, expected {len(names)}")
        values = (field.replace("\0", "\t").replace('\\"', '"') for field in fields)
        yield dict(zip(names, values, strict=True))
