"""Write the manifests of a prepared corpus in another project's form.

The recordings stay where they are; the lists name them by absolute path, with start and duration. Facts that the other
form has no field for stand where it keeps custom ones, and `omniaudio prepare corpus=<form>` reads all of it back.
A folder of `omniaudio build` has no recordings: the clips of its shards are written to out/<split>/clips.

    kaldi   wav.scp, segments, text, utt2spk, spk2utt, utt2lang, and utt2<fact> for every further fact
    lhotse  cuts.jsonl.gz, one cut with one supervision an utterance
    nemo    manifest.json, one object a line

The shards themselves are WebDataset tars: webdataset.WebDataset("DATA_DIR/shards/train-{000000..000004}.tar"). But
not those of a folder of `omniaudio join`: the train tars also hold clips that a build refused or another folder holds
out, which the index alone tells (fact `only`), so another reader would train on them. The lists leave them out.

    omniaudio manifest data_dir=data/asterisk form=kaldi out=DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omniaudio.errors import UserError


def main(config: dict[str, Any]) -> None:
    """Write ``out``/<split> for every split."""
    from omniaudio.corpus.from_shards import write_clips
    from omniaudio.corpus.json_manifests import write_lhotse, write_nemo
    from omniaudio.corpus.kaldi import write_kaldi
    from omniaudio.corpus.manifest import read_manifest
    from omniaudio.corpus.split import SPLITS

    writers = {"kaldi": write_kaldi, "lhotse": write_lhotse, "nemo": write_nemo}
    if config["form"] not in writers:
        raise UserError(f"config form: {config['form']!r} is not one of {', '.join(writers)}")
    data_dir, out = Path(config["data_dir"]), Path(config["out"])
    home, shards = data_dir / "manifest", data_dir / "shards"
    if not home.is_dir() and not shards.is_dir():
        raise UserError(f"{home}: no such folder; prepare the corpus first: omniaudio prepare")
    for split in SPLITS:
        if home.is_dir():
            utterances = read_manifest(home / f"{split}.jsonl")
        else:
            utterances = write_clips(shards, split, out / split / "clips")
        writers[config["form"]](utterances, home.resolve(), out / split)
        print(f"{split}: {len(utterances)} utterances in {out / split}")
