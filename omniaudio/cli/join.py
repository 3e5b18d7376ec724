"""Several folders of shards as one, to train on together: corpora that were prepared, and what was built.

    omniaudio join folders=[data/asterisk,data/spoken] data_dir=data/both
    omniaudio train experiment=... data=both

Tars are linked, so this takes no space. What a build refused comes along, each segment for the one kind of document
that can learn from it (asr, tts); refused=false leaves it out. Whatever has a text or passage that any of the folders
holds out (dev, test) is learned from by nothing; a chat ends before it. How much that is stands in the output and in
joined.json. Folders of code shards of one token layout likewise:

    omniaudio join folders=[exp/one/codes,exp/other/codes] data_dir=exp/both/codes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omniaudio.errors import UserError


def main(config: dict[str, Any]) -> None:
    """Join ``folders`` into ``data_dir``."""
    from omniaudio.corpus.join import join
    from omniaudio.data.chats import held_out_line

    if not isinstance(config["folders"], list):
        raise UserError(
            f"config folders: {config['folders']!r} must be a list: folders=[data/one,data/other]"
        )
    joined = join([Path(folder) for folder in config["folders"]], Path(config["data_dir"]), config["refused"])
    for folder, counts in joined["samples"].items():
        print(
            f"  {folder}: "
            + (", ".join(f"{split} {count:,}" for split, count in counts.items()) or "nothing")
        )
        if told := held_out_line(joined["held_out"][folder]):
            print(f"    of these, {told}")
    print(f"joined in {config['data_dir']}")
