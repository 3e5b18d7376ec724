"""Written chats, to be spoken: choices of the config group ``chat_source``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omniaudio.corpus.items import LeftOut
from omniaudio.corpus.json_manifests import Fields, LineError, read_json_lines, read_lines
from omniaudio.corpus.texts import chitchat_attribution, chitchat_conversations
from omniaudio.data.chats import ROLES
from omniaudio.errors import UserError

Chat = list[tuple[str, str]]
"""Role and text of every message."""


@runtime_checkable
class ChatSource(Protocol):
    """A list of chats."""

    def chats(self) -> Sequence[Chat | LeftOut]:
        """All, in a fixed order; what is no chat in its place."""
        ...

    def attribution(self) -> str:
        """Who made them and under which licence."""
        ...


class ChitchatChats:
    """Conversations of the python package ``chitchat-dataset``: who begins is the user, the other the assistant.

    Args:
        max_turns: messages of a chat; the rest of a longer conversation is left out.
        max_chars: a conversation with a longer message ends before it.
    """

    def __init__(self, max_turns: int = 6, max_chars: int = 200) -> None:
        self.max_turns, self.max_chars = max_turns, max_chars

    def chats(self) -> list[Chat]:
        found = [self._chat(conversation) for conversation in chitchat_conversations()]
        return [chat for chat in found if len(chat) > 1]

    def attribution(self) -> str:
        return chitchat_attribution()

    def _chat(self, conversation: dict[str, Any]) -> Chat:
        chat: Chat = []
        for turn in conversation["messages"][: self.max_turns]:
            written = " ".join(" ".join(part["text"] for part in turn).split())
            text = "".join(char for char in written if char.isprintable())
            if not text or len(text) > self.max_chars:
                break
            chat.append((ROLES[1 + len(chat) % 2], text))
        return chat if len(chat) % 2 == 0 else chat[:-1]


class ChatFile:
    """A user's own chats, a line each: ``{"messages": [{"role": ..., "content": TEXT}, ...]}`` as OpenAI's interface
    takes them, or an instruction with its answer, ``{"instruction": ..., "input": ..., "output": ...}``. A line that is
    neither is left out.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def chats(self) -> list[Chat | LeftOut]:
        if not self.path.is_file():
            raise UserError(f"chat_source.path {self.path}: no such file")
        return read_lines(read_json_lines(self.path), lambda line, where: [_read(line, where)])

    def attribution(self) -> str:
        return f"Chats of {self.path.name}: the user's own."


def _read(line: dict[str, Any], where: str) -> Chat:
    field = Fields(line, where)
    if "messages" not in line:
        asked = [field("instruction", str), field("input", str, "")]
        return [("user", "\n".join(filter(None, asked))), ("assistant", field("output", str))]
    chat: Chat = []
    for place, message in enumerate(field("messages", list)):
        told = Fields(message, f"{where}: message {place}")
        role, content = told("role", str), told("content", str)
        if role not in ROLES or (role == "system" and place):
            expected = "system (the first only), user, assistant"
            raise LineError(told.where, f"the role is {role!r}, expected {expected}", "unknown role")
        chat.append((role, content))
    return chat
