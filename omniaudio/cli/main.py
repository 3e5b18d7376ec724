"""omniaudio: train spoken language models, from raw speech to a model that listens and talks.

    omniaudio <verb> key=value ...      run a verb; keys are those of conf/<verb>.yaml
    omniaudio <verb> --help             what it reads and writes, its keys and their values
    omniaudio <verb> ... --print        the resolved config, without running
    omniaudio train ... --dry_run       what the training would need and read (omniaudio plan), without training
    omniaudio plan ... --show N         with N real samples of what it reads, and what is predicted where

verbs, in the order of a recipe:
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omniaudio.errors import REQUEUE, PreemptedError, UserError

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
VERBS = {
    "prepare": "fetch recordings, check them, split them, write audio shards",
    "build": "texts or recordings to segments with text and sound, by a pipeline of steps",
    "join": "several prepared or built folders as one, to train on together",
    "manifest": "the lists of a prepared corpus for Kaldi, Lhotse or NeMo",
    "plan": "what a training will need: parameters, memory on each device, days",
    "train": "train one stage: experiment=<system>/<stage>",
    "extract": "write the codes of every utterance, once, with the trained tokenizer",
    "pairs": "preference pairs: replies of the export that a recogniser hears best and worst, or given ones",
    "export": "gather the trained parts into one folder that omniaudio.load reads",
    "convert": "a released checkpoint to our parts, or our parts to the released names",
    "generate": "text -> speech, speech -> text, speech -> spoken reply, from the export",
    "evaluate": "score the export on held-out speech",
    "report": "one page with numbers, curves, pictures and sound",
    "doctor": "check this machine before a long run",
}

DRY_RUN = ("--dry_run", "--dry-run", "dry_run=true")
COMPOSES = ("train", "plan")
"""Verbs that compose a training from the config groups."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line. User mistakes end it with one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"{__doc__}" + "\n".join(f"    {verb:<9} {what}" for verb, what in VERBS.items()))
        return
    verb, *overrides = words
    if verb == "train" and any(word in DRY_RUN for word in overrides):
        verb, overrides = "plan", [word for word in overrides if word not in DRY_RUN]
    if verb == "plan":
        overrides = with_show(overrides)
    try:
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}; verbs are {', '.join(VERBS)}")
        module = importlib.import_module(f"omniaudio.cli.{verb}")
        if any(word in ("-h", "--help") for word in overrides):
            print(help_of(verb, module.__doc__ or ""))
            return
        config = compose(
            "plan_data" if verb == "plan" and only_data(overrides) else verb,
            [word for word in overrides if word != "--print"],
        )
        if "--print" in overrides:
            import yaml

            from omniaudio.secrets import redacted

            print(yaml.safe_dump(redacted(config), sort_keys=False, allow_unicode=True))
            return
        quiet_libraries()
        if launcher := config.get("trainer", {}).get("launcher") if verb == "train" else None:
            from omniaudio.config import build

            print(build(launcher, "trainer.launcher").submit(overrides, config))
            return
        module.main(config)
    except UserError as error:
        fail(str(error), 2)
    except PreemptedError as error:
        from omniaudio.stage import is_main_process

        if not is_main_process():  # Lightning kills the first process when another ends with an error
            sys.exit(0)
        fail(f"{error}; the same command goes on from here", REQUEUE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOTDIR):
            raise
        fail(
            f"{error.filename or 'disk'}: {error.strerror}; free space or choose another exp_dir=/data_dir=",
            3,
        )
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from here", 130)


def with_show(words: Sequence[str]) -> list[str]:
    """``--show N`` and ``--show=N`` as ``show=N``."""
    words = list(words)
    if "--show" in words:
        place = words.index("--show")
        words[place : place + 2] = ["=".join([*words[place : place + 2], ""][:2])]
    return [word.removeprefix("--") if word.startswith("--show") else word for word in words]


def only_data(overrides: Sequence[str]) -> bool:
    """Whether a plan names data and no training."""
    names = {word.partition("=")[0] for word in overrides}
    return bool(names & {"data", "data_dir"}) and "experiment" not in names


def compose(verb: str, overrides: Sequence[str], resolve: bool = True) -> dict[str, Any]:
    """The config of a verb: conf/<verb>.yaml with overrides; ``resolve`` replaces what refers to another key.

    Raises:
        UserError: an unknown key or group, a wrong value, a value that is missing.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not CONF_DIR.is_dir():
        raise UserError(f"{CONF_DIR} is missing; install from a checkout with: pip install -e .")
    # To a verb that composes no choice of a group, a key of its name is a plain one: system=NAME, vocoder=PATH.
    # What people write or call their files is not Hydra's grammar either.
    literal = {"text", "input", *groups()} - groups_of(verb)
    names = [word for word in overrides if word.split("=")[0] in literal]
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = hydra.compose(verb, overrides=[word for word in overrides if word not in names])
        for word in names:
            OmegaConf.update(composed, *word.split("=", 1), force_add=False)
        resolved = OmegaConf.to_container(composed, resolve=resolve, throw_on_missing=resolve)
    except (HydraException, OmegaConfBaseException) as error:
        parts = [str(e).strip() for e in (error, error.__cause__) if e is not None]
        message = " ".join(" ".join(part.split()) for part in dict.fromkeys(parts))
        raise UserError(f"config of {verb!r}: {message} (see: omniaudio {verb} --help)") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def groups() -> set[str]:
    """Names of all config groups."""
    return {path.name for path in CONF_DIR.iterdir() if path.is_dir()}


def groups_of(verb: str) -> set[str]:
    """Config groups of which a verb composes a choice: all, where it composes a training."""
    import yaml

    if verb in COMPOSES:
        return groups()
    defaults = yaml.safe_load((CONF_DIR / f"{verb}.yaml").read_text("utf-8")).get("defaults", [])
    return {name for entry in defaults if isinstance(entry, dict) for name in entry}


def help_of(verb: str, docstring: str) -> str:
    """Docstring of a verb, its keys with their defaults, and the choices of every group."""
    keys = (CONF_DIR / f"{verb}.yaml").read_text().strip()
    groups = sorted(p for p in CONF_DIR.iterdir() if p.is_dir())
    for group in groups if verb not in COMPOSES else ():
        files = list(group.glob("*.yaml"))
        if group.name in groups_of(verb) and len(files) == 1:  # no choice: keys of the verb
            keys += f"\n\nconf/{group.name}/{files[0].name}:\n\n{files[0].read_text().strip()}"
    choices = [
        f"    {group.name:<14} "
        + ", ".join(sorted(str(f.relative_to(group).with_suffix("")) for f in group.rglob("*.yaml")))
        for group in groups
    ]
    text = f"omniaudio {verb}: {VERBS[verb]}\n\n{docstring.strip()}\n\nconf/{verb}.yaml:\n\n{keys}"
    return text + ("\n\nconfig groups (group=choice):\n" + "\n".join(choices) if verb in COMPOSES else "")


def quiet_libraries() -> None:
    """Our own lines and errors should be readable: libraries speak up only when something is wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for module in ("lightning", "torch", "deepspeed"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")


def fail(message: str, code: int) -> None:
    """One line on stderr, then exit."""
    print(f"omniaudio: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
