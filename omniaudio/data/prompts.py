"""What the model is asked, by task and language. English serves languages that have no line of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from omniaudio.sequence.chat import Message, Segment
from omniaudio.sequence.vocab import TokenSpace

ANSWERS = {"asr": "text", "aqa": "response", "s2tt": "translation"}
"""Kind -> the fact of a clip that is its answer."""
WRITTEN = {**ANSWERS, "intlv": "continuation"}
"""The same with the text that follows a clip in an interleaved passage: all that one clip can ask for in writing."""

PROMPTS: dict[str, dict[str, tuple[str, ...]]] = {
    "asr": {
        "en": ("Write down what is said: ", "Transcribe the speech: "),
        "es": ("Escribe lo que se dice: ",),
        "fr": ("Écris ce qui est dit : ",),
        "it": ("Scrivi quello che viene detto: ",),
        "ru": ("Запиши, что сказано: ",),
        "zh": ("将语音转录为文本：",),
    },
    "aqa": {"en": ("Answer the question: ",), "zh": ("回答语音中的问题：",)},
    "s2tt": {"en": ("Translate the speech: ",), "zh": ("翻译这段语音：",)},
    "interleaved": {
        "en": ("Below is a segment of alternating speech and text content: ",),
        "zh": ("下面是一段语音和文本交错的内容：",),
    },
    "sft_transcribe": {
        "en": ("Please write down what you heard.", "What was said?"),
        "es": ("Por favor, escribe lo que has oído.",),
        "fr": ("Écris ce que tu as entendu, s'il te plaît.",),
        "it": ("Per favore, scrivi quello che hai sentito.",),
        "ru": ("Пожалуйста, запиши, что ты услышал.",),
        "zh": ("请写下你听到的内容。",),
    },
    "sft_repeat": {
        "en": ("Please repeat that.", "Say it again."),
        "es": ("Por favor, repítelo.",),
        "fr": ("Répète, s'il te plaît.",),
        "it": ("Ripeti, per favore.",),
        "ru": ("Пожалуйста, повтори.",),
        "zh": ("请重复一遍。",),
    },
    "sft_continue": {
        "en": ("Please go on.", "What comes next?"),
        "es": ("Por favor, continúa.",),
        "fr": ("Continue, s'il te plaît.",),
        "it": ("Continua, per favore.",),
        "ru": ("Пожалуйста, продолжай.",),
        "zh": ("请继续。",),
    },
    "sft_read": {
        "en": ("Please read this aloud: ", "Say these words: "),
        "es": ("Por favor, lee esto en voz alta: ",),
        "fr": ("Lis ceci à voix haute, s'il te plaît : ",),
        "it": ("Per favore, leggi questo ad alta voce: ",),
        "ru": ("Пожалуйста, прочитай это вслух: ",),
        "zh": ("请朗读：",),
    },
    "sft_language": {"en": ("Which language is this?", "Name the language that you heard.")},
}

VOICE = "You speak with this voice: {}."
"""The system message that chooses a voice by its name."""

LANGUAGE_NAMES = {
    "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pt": "Portuguese", "ru": "Russian", "zh": "Chinese",
}  # fmt: skip
"""ISO 639-1 -> English name."""


def prompt_for(task: str, language: str, rng: np.random.Generator | None = None) -> str:
    """One wording of a task: a random one, or the first without ``rng``."""
    wordings = PROMPTS[task].get(language, PROMPTS[task]["en"])
    return wordings[int(rng.integers(len(wordings)))] if rng is not None else wordings[0]


def to_read(text: str, language: str, rng: np.random.Generator | None = None) -> Message:
    """The user's turn that asks for a text to be read aloud, in writing."""
    return {"role": "user", "content": prompt_for("sft_read", language, rng) + text}


def written_prompt(kind: str, language: str) -> str:
    """The first wording of a kind of ``WRITTEN``."""
    return prompt_for("interleaved" if kind == "intlv" else kind, language)


def judges_prompt(
    space: TokenSpace, encode: Callable[[str], list[int]], kind: str, language: str, asked: bool
) -> list[int]:
    """What a text LLM reads before it hears speech: the beginning of every text and, if it is asked, the prompt."""
    return [*space.beginning, *(encode(written_prompt(kind, language)) if asked else [])]


def with_voice(messages: Sequence[Message], name: str) -> list[Message]:
    """The chat with the voice of its spoken replies named first of all in its system message; not empty."""
    words, own, rest = VOICE.format(name), list[Segment](), list(messages)
    if rest[0]["role"] == "system":
        content = rest.pop(0)["content"]
        own = list(content) if isinstance(content, list) else [content]
    if own and isinstance(own[0], str):
        words = f"{words} {own.pop(0)}"
    return [{"role": "system", "content": [words, *own]}, *rest]
