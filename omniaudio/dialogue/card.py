"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import omniaudio
from omniaudio.dialogue.folder import CARD, num_parameters
from omniaudio.dialogue.model import PARTS, SpokenLanguageModel
from omniaudio.files import write_whole

WHAT = {
    "tokenizer": "speech to codes, and codes to a coarse mel",
    "lm": "reads and writes text and codes",
    "flow": "codes' hidden states to the mel of the vocoder",
    "vocoder": "mel to waveform",
}


def write_card(
    folder: Path,
    model: SpokenLanguageModel,
    *,
    title: str,
    attribution: str,
    numbers: Mapping[str, str] | None = None,
) -> None:
    """Write ``README.md`` of an exported folder.

    Args:
        folder: of the export.
        model: what it holds.
        title: name of the run.
        attribution: who made the training data, under which licence; the text of ATTRIBUTION.
        numbers: measure -> value as printed; None before the evaluation.
    """
    write_whole(folder / CARD, model_card(folder, model, title, attribution, numbers or {}))


def model_card(
    folder: Path, model: SpokenLanguageModel, title: str, attribution: str, numbers: Mapping[str, str]
) -> str:
    """The text of the card."""
    tokenizer = model.tokenizer
    sizes = [f"| {name} | {WHAT[name]} | {num_parameters(model.get_submodule(name)):,} |" for name in PARTS]
    books = " + ".join(str(size) for size in tokenizer.codebook_sizes)
    listen, speak = tokenizer.sample_rate_hz, model.sample_rate_hz
    measured = [f"| {name} | {value} |" for name, value in numbers.items()]
    lines = [
        f"# {title}",
        "",
        f"A spoken language model, trained with OmniAudio {omniaudio.__version__}: it hears speech at {listen} Hz, "
        f"writes and reads text, and speaks at {speak} Hz.",
        "",
        "## Load",
        "```python",
        "import omniaudio, soundfile",
        f'model = omniaudio.load("{folder}")',
        'reply = model.speak("please hold the line")',
        'soundfile.write("reply.wav", reply["wav"], reply["sample_rate_hz"])',
        "print(model.transcribe(*soundfile.read('reply.wav', dtype='float32')))",
        "```",
        "",
        "## Parts",
        "| part | what it does | numbers |",
        "| --- | --- | --- |",
        *sizes,
        "",
        f"Speech is {len(tokenizer.codebook_sizes)} codebooks of {books} codes at {tokenizer.code_rate_hz:g} Hz; "
        f"text has {model.text_tokenizer.vocab_size:,} pieces.",
        "",
        "## Numbers",
        *(["| on held-out speech | |", "| --- | --- |", *measured] if measured else ["Not evaluated yet."]),
        "",
        "## Data and licences",
        "```",
        attribution.strip() or "unknown: no ATTRIBUTION was found beside the data",
        "```",
        "The weights were learned from these recordings and texts; mind their licences when you pass them on.",
        "",
    ]
    return "\n".join(lines)


def read_attribution(data_dir: Path) -> str:
    """Text of ``data_dir``/ATTRIBUTION, or empty."""
    path = data_dir / "ATTRIBUTION"
    return path.read_text("utf-8") if path.is_file() else ""
