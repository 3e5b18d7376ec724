"""Several corpora as one: prepared into one folder, split by text across all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from omniaudio.corpus.items import Corpus, Inventory, LeftOut, RawItem
from omniaudio.errors import UserError


class Several:
    """The recordings of all ``corpora``; their keys begin with the corpus's name.

    Args:
        corpora: name -> corpus.
        name: of the prepared folder.
    """

    def __init__(self, corpora: Mapping[str, Corpus], name: str) -> None:
        if not corpora:
            raise UserError("corpus.corpora: none given; name at least one")
        self.corpora = dict(corpora)
        self.name = name

    def fetch(self, folder: Path) -> None:
        for name, corpus in self.corpora.items():
            corpus.fetch(folder / name)

    def inventory(self, folder: Path) -> Inventory:
        items: list[RawItem] = []
        left_out: list[LeftOut] = []
        for name, corpus in self.corpora.items():
            found = corpus.inventory(folder / name)
            items += [replace(item, key=f"{name}/{item.key}", corpus=name) for item in found.items]
            left_out += [replace(entry, name=f"{name}/{entry.name}") for entry in found.left_out]
        return Inventory(items, left_out)

    def attribution(self) -> str:
        return "\n\n".join(corpus.attribution() for corpus in self.corpora.values())
