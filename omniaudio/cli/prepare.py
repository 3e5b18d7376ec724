"""``omniaudio prepare``: a corpus to checked, split and sharded training data.

The data go to ``data_dir``, which experiments share; the resolved config, log and metrics to ``record_dir``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omniaudio.config import build
from omniaudio.errors import UserError
from omniaudio.stage import Stage

STEPS = ("all", "fetch", "shards")


def main(cfg: dict[str, Any]) -> None:
    """Fetch and prepare; what an earlier run made of the same files with the same config stays.

    Args:
        cfg: the resolved conf/prepare.yaml.
    """
    from omniaudio.files import user_os_errors

    if cfg["step"] not in STEPS:
        raise UserError(f"config step: {cfg['step']!r} is not one of {', '.join(STEPS)}")
    folder = Path(cfg["record_dir"])
    with user_os_errors(folder):
        record = Stage(folder, cfg, inputs=[], decisive={})  # one record of both steps, whatever the config
        record.begin()
    run(cfg, record)
    record.finish()


def run(cfg: dict[str, Any], record: Stage) -> None:
    """Take the steps of ``cfg['step']`` that are not done yet."""
    from omniaudio.corpus.prepare import Plan, fetch, inventory_key, is_prepared, prepare
    from omniaudio.fingerprint import digest

    folder = Path(cfg["data_dir"])
    corpus = build(cfg["corpus"], "corpus")
    makes = ("corpus", "text_source", "checks", "split", "text_dev_share", "max_shard_mb")
    if cfg["step"] in ("all", "fetch"):
        fetch(corpus, folder)
        record.log(f"fetched into {folder / 'raw'}")
        record.metrics({"step": "fetch", "seconds": round(record.seconds, 1)})
    if cfg["step"] == "fetch":
        return
    key = digest([{name: cfg[name] for name in makes}, inventory_key(corpus.inventory(folder / "raw"))])
    if is_prepared(folder, key):
        record.log(f"{folder} is prepared already")
        record.metrics({"step": "shards", **numbers(json.loads((folder / "checks.json").read_text("utf-8")))})
        return
    plan = Plan(
        checks=build(cfg["checks"], "checks"),
        split=cfg["split"],
        text_source=build(cfg["text_source"], "text_source"),
        text_dev_share=cfg["text_dev_share"],
        max_shard_bytes=int(cfg["max_shard_mb"] * 2**20),
        num_workers=cfg["num_workers"],
        key=key,
    )
    report = prepare(corpus, folder, plan)
    record.log(summary(report))
    record.metrics({"step": "shards", "seconds": round(record.seconds, 1), **numbers(report)})


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What ``metrics.jsonl`` keeps of checks.json."""
    return {name: report[name] for name in ("num_items", "num_good", "bad", "left_out", "clips", "hours")}


def summary(report: dict[str, Any]) -> str:
    """The lines that a user reads at the end: clips and minutes by language and split, what was refused."""
    lines = []
    for language in sorted(report["clips"]):
        clips, hours = report["clips"][language], report["hours"][language]
        parts = [
            f"{split} {clips[split]} ({60 * hours[split]:.1f} min)" for split in sorted(clips, reverse=True)
        ]
        lines.append(f"  {language}: {', '.join(parts)}")
    total_min = 60 * sum(sum(hours.values()) for hours in report["hours"].values())
    lines.append(
        f"  {report['num_good']} of {report['num_items']} recordings are good, {total_min:.1f} min in all"
    )
    if "chats" in report:
        chats = ", ".join(f"{number} {kind}" for kind, number in report["chats"].items())
        lines.append(f"  chats: {chats}")
    for title in ("bad", "left_out"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in report[title].items())
        lines.append(f"  {title.replace('_', ' ')}: {reasons or 'none'}")
    return "\n".join(lines)
