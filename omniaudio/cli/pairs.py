"""Preference pairs for the DPO stage: of the export's own replies, of recordings, or given ones.

of=replies: asks the export what the clips and chats of the code shards ask (kinds=), num_replies= times each, lets a
recogniser hear every reply, and keeps the best and the worst where they differ by margin=. The reward of a reply is
minus the error rate of what is heard (against=, unit=). Writes ${exp_dir}/pairs/<split>-*.tar; how many prompts have
no pair, and why, is told. Prompts are done in jobs; one that is done stays done, whoever is killed, and the same
command ends in the same bytes. executor=local executor.num_workers=8 and executor=ray share them out.

    omniaudio pairs system=NAME scale=mini asr_judge=openai/whisper-base

of=recordings: pairs of the clips of the code shards, without export and recogniser. The prompt is a clip's text, to be
read aloud as in documents of the kind tts; chosen are its codes, rejected those of another clip of the same speaker and
language with other words, for which in turn the first is rejected. same_length=true: of about its length, or else the
length of a text tells something. At most num_prompts= a split, train pairs of train clips and dev pairs of dev clips;
the same seed= gives the same pairs.

    omniaudio pairs system=NAME scale=mini of=recordings 'num_prompts={train: 5000, dev: 300}'

With path=FILE.jsonl: pairs that somebody gives, a line each, of speech or of text alone:

    {"id": "a1", "language": "en", "split": "train",
     "prompt": CONTENT or [{"role": "system" | "user" | "assistant", "content": CONTENT}, ...],
     "chosen": CONTENT, "rejected": CONTENT}

where CONTENT is a text, or a list of {"text": ...}, {"codes": FILE.npy} (frames x books, of this tokenizer) and
{"audio": FILE} (any rate; becomes codes here); relative files begin at the folder of the list. id, language and split
(train or dev; else by the prompt, one in twenty held out) may miss. A line that cannot be used is left out and named.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omniaudio.cli.export import made_by
from omniaudio.errors import UserError, check_choice
from omniaudio.stage import Stage, stage, without

ADVICE = {
    "path": "name a split in some lines",
    "recordings": "two clips of one speaker and language with texts are needed in each split: see the counts above",
    "replies": "lower margin, or raise num_replies or num_prompts",
}
"""What to do when there are no pairs, by where they were to come from."""


def main(config: dict[str, Any]) -> None:
    """Make pairs, or take given ones, unless it is done."""
    of = origin(config)
    exports = [] if of == "recordings" else [made_by(Path(config["model_dir"]))]
    inputs = [*exports, config["path"] or config["codes_dir"]]
    decisive = without(config, {"executor", "device"})  # another machine may go on
    folder = Path(config["exp_dir"]) / "pairs"
    with stage(folder, config=config, inputs=inputs, decisive=decisive) as run:
        if run.done:
            return
        if of == "path":
            from omniaudio.corpus.preferences import write_given

            told = write_given(config["path"], config["model_dir"], folder, config["device"])
        elif of == "recordings":
            from omniaudio.corpus.recorded_pairs import write_recorded

            names = ("num_prompts", "seed", "same_length")
            told = write_recorded(config["codes_dir"], folder, **{name: config[name] for name in names})
        else:
            told = make(config, folder)
        for split, counts in told.items():
            tell(run, split, counts)
        if empty := [split for split, counts in told.items() if not counts.get("pairs")]:
            raise UserError(f"{folder}: no pairs for {' and '.join(empty)}; {ADVICE[of]}")
    shutil.rmtree(folder / "jobs", ignore_errors=True)  # its shards have other names now


def origin(config: dict[str, Any]) -> str:
    """Where the pairs come from: ``path``, ``recordings`` or ``replies``."""
    of: str = check_choice("config of", config["of"], ("replies", "recordings"))
    if config["path"] and of == "recordings":
        raise UserError(
            f"config of=recordings path={config['path']}: pairs are of one or the other; leave one out"
        )
    return "path" if config["path"] else of


def make(config: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Pairs of the export's own replies into ``folder``; counts by split."""
    from omniaudio.config import build
    from omniaudio.corpus.build.pipeline import DONE
    from omniaudio.data.extraction import join_shards
    from omniaudio.dialogue.pairs import jobs_of

    if not config["asr_judge"]:
        raise UserError(
            "config asr_judge: null; the replies need a recogniser that hears them, a Whisper by name or folder"
        )
    jobs = jobs_of(config["num_prompts"], config["kinds"], config["prompts_per_job"])
    todo = [job for job in jobs if not (folder / "jobs" / job.name / DONE).is_file()]
    names = ("num_replies", "against", "unit", "margin", "seed", "judge_dtype", "device", "num_threads")
    node = {
        "_target_": "omniaudio.dialogue.pairs.PairMaker",
        "model": str(Path(config["model_dir"]).resolve()),
        "judge": config["asr_judge"],
        "codes_dir": str(Path(config["codes_dir"]).resolve()),
        **{name: config[name] for name in names},
    }
    if todo:
        build(config["executor"], "executor").run(node, folder.resolve(), todo)
    return join_shards(folder, jobs, {split: {} for split in config["num_prompts"]})


def tell(run: Stage, split: str, counts: dict[str, Any]) -> None:
    """How many pairs there are, and why there are not more."""
    reward, replies = counts.pop("reward", 0.0), counts.get("replies")
    rate = {"error_rate": round(-reward / replies, 4)} if replies else {}
    run.metrics({"split": split, **counts, **rate})
    said = f", heard with an error rate of {rate['error_rate']:.1%}" if rate else ""
    run.log(f"{split}: {counts.get('pairs', 0)} pairs of {counts.get('prompts', 0)} prompts{said}")
    for reason in sorted(name for name in counts if ":" in name):
        run.log(f"  {counts[reason]} x {reason}")
