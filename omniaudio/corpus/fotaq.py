"""The dialogues of the freeware adventure "Flight of the Amazon Queen": acted English, question and reply.

All files of the game lie in one bundle, ``queen.1c``: a table of names and places, then their bytes. Voice clips
(``*.SB``) are MP3 at 11 kHz; the dialogues (``*.DOG``) hold the sentences of Joe and of the one he talks to. A sentence
is spoken in segments, parted by stage commands; every segment is a clip.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omniaudio.corpus.debian import fetch_packages
from omniaudio.corpus.items import Inventory, LeftOut, RawItem
from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole

PACKAGE = "flight-of-the-amazon-queen"
BUNDLE = Path("usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
SAMPLE_RATE_HZ, BAND_HZ = 11025, 4700  # above: silence, 50 dB below (mean spectrum of 25 clips)
MP3 = 1  # the bundle's mark of how its voices are stored
MAGIC, TABLE = b"QTBL", 13  # the table of files begins after magic, version and mark
ROW = struct.Struct(">12sBII")  # name, bundle, offset, size
DIALOGUE_HEAD = struct.Struct(
    ">11h3H"
)  # levels, key, talk key, Joe's and the other's counts, six; three places
FILE_HEAD, TREE, LEVEL = 20, 32, 96  # bytes: before a dialogue, before its tree, of one level of the tree
NODE, NODES, CHOICES = struct.Struct(">2xh2xh8x"), 6, range(1, 5)
"""A node of the tree: number of its sentence, and what it leads to; the first of a level is the other's."""
SENTENCE = struct.Struct(">Hh")  # unused, number
FIRST, NEXT = (
    "SSSS",
    "XXXX",
)  # in the names of clips: the first greeting (number 0), and that of the next meeting
AGAIN = -1  # its number
COMMAND = re.compile(r"\*(?:XY.{0,11}|.{0,2})", re.DOTALL)
"""A stage command and what it carries: a gesture, a glance, a walk to a place."""


@dataclass(frozen=True)
class Line:
    """A sentence of a dialogue.

    Attributes:
        by_joe: who says it.
        number: what is said to it, or what it is said to, has the same number.
        segments: clip's name (without ending) and text, in the order of speaking.
        place: when it is said: the greeting, the tree from its root on, what is in no tree, the next meeting.
    """

    by_joe: bool
    number: int
    segments: tuple[tuple[str, str], ...]
    place: int


class AmazonQueen:
    """3,983 acted lines by 30 characters.

    Args:
        name: of the prepared folder.
        bundle: the game's ``queen.1c`` (talkie version, compressed as MP3); null fetches Debian's package with apt.
    """

    def __init__(self, name: str = "fotaq", bundle: str | None = None) -> None:
        self.name = name
        self.bundle = Path(bundle) if bundle else None

    def fetch(self, folder: Path) -> None:
        """Bring the bundle, and write its voice clips as ``clips/*.mp3``."""
        if self.bundle is None:
            fetch_packages([PACKAGE], folder)
        files = Bundle(self.bundle or folder / BUNDLE)
        with user_os_errors(folder):
            for name in files.names(".SB"):
                path = _clip(folder, name.removesuffix(".SB"))
                if not path.is_file() or path.stat().st_size != files.size(name):
                    write_whole(path, files.read(name))

    def inventory(self, folder: Path) -> Inventory:
        files = Bundle(self.bundle or folder / BUNDLE)
        voices = set(files.names(".SB"))
        items: dict[str, RawItem] = {}
        left_out: list[LeftOut] = []
        for number, name in enumerate(files.names(".DOG")):
            lines = list(read_dialogue(files.read(name), f"{files.path}, {name}"))
            replies = {line.number: line for line in lines if not line.by_joe}
            character = re.sub(r"\d*\.DOG$", "", name).lower()
            for line in lines:
                spoken = [(clip, text) for clip, text in line.segments if f"{clip}.SB" in voices]
                for clip, _ in line.segments:
                    if f"{clip}.SB" not in voices:
                        left_out.append(LeftOut(name=f"{name}/{clip}", reason="text without a recording"))
                reply = replies.get(line.number) if line.by_joe else None
                for place, (clip, text) in enumerate(spoken):
                    last = place == len(spoken) - 1
                    item = RawItem(
                        key=clip,
                        path=_clip(folder, clip),
                        text=text,
                        language="en",
                        speaker="joe" if line.by_joe else character,
                        sample_rate_hz=SAMPLE_RATE_HZ,
                        band_hz=BAND_HZ,
                        response=tuple(t for _, t in reply.segments) if reply and last else (),
                        continuation="" if last else spoken[place + 1][1],
                        order=(number, line.place, line.number, int(not line.by_joe)),
                    )
                    if items.setdefault(clip, item).text != text:
                        left_out.append(
                            LeftOut(name=f"{name}/{clip}", reason="another text for one recording")
                        )
        for name in sorted(voices - {f"{clip}.SB" for clip in items}):
            left_out.append(LeftOut(name=name, reason="recording without a text"))
        return Inventory([items[clip] for clip in sorted(items)], left_out)

    def attribution(self) -> str:
        return (
            "Voices and dialogues of Flight of the Amazon Queen, (C) John Passfield and Steven Stamatiadis.\n"
            "  Freeware (usr/share/doc/flight-of-the-amazon-queen/copyright in the package): free to pass on and\n"
            "  to change, not to be sold; changed copies are marked. THIS IS A MODIFIED VERSION: voice clips alone,\n"
            "  decoded from MP3, resampled, stored as FLAC, stage commands removed from the texts."
        )


class Bundle:
    """Random access to the files in ``queen.1c``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); run step=fetch first") from error
        if self._content[:4] != MAGIC or len(self._content) < TABLE + 2:
            raise UserError(f"{path}: not a data file of the game (it begins with QTBL)")
        if self._content[TABLE - 1] != MP3:
            raise UserError(f"{path}: its voices are not MP3; Debian's package {PACKAGE} has the right file")
        (count,) = struct.unpack_from(">H", self._content, TABLE)
        self._places: dict[str, tuple[int, int]] = {}
        for row in range(count):
            try:
                raw, _, offset, size = ROW.unpack_from(self._content, TABLE + 2 + row * ROW.size)
            except struct.error as error:
                raise UserError(f"{path}: the table of files is cut off at row {row} of {count}") from error
            self._places[raw.split(b"\0")[0].decode("latin-1").strip()] = (offset, size)

    def names(self, ending: str) -> list[str]:
        """Files of a kind, sorted."""
        return sorted(name for name in self._places if name.endswith(ending))

    def size(self, name: str) -> int:
        return self._places[name][1]

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        content = self._content[offset : offset + size]
        if len(content) < size:
            raise UserError(f"{self.path}: {name} is cut off ({len(content)} of {size} bytes)")
        return content


def read_dialogue(content: bytes, where: str) -> Iterator[Line]:
    """The sentences of a ``.DOG`` file: Joe's, the other's, and what they say when they meet again."""
    body = content[FILE_HEAD:]
    try:
        levels, _, talk_key, num_joe, num_other, *_, others, _, again = DIALOGUE_HEAD.unpack_from(body)
        places = {number: place for place, number in enumerate([0, *_tree(body, abs(levels))])}
        for by_joe, count, offset in (
            (True, num_joe, TREE + abs(levels) * LEVEL),
            (False, num_other, others),
        ):
            for _ in range(count):
                _, number = SENTENCE.unpack_from(body, offset)
                sentence, offset = _string(body, offset + SENTENCE.size, align=4)
                name = f"{number:04X}" if number else FIRST
                if by_joe or number:  # the other's number 0 is Joe's greeting of the next meeting once more
                    segments = tuple(_segments(sentence, talk_key, name, by_joe))
                    yield Line(by_joe, number, segments, places.get(number, len(places)))
        for by_joe in (False, True):
            sentence, again = _string(body, again, align=2)
            segments = tuple(_segments(sentence, talk_key, NEXT, by_joe))
            yield Line(by_joe, AGAIN, segments, len(places) + 1)
    except (struct.error, IndexError) as error:
        raise UserError(f"{where}: the dialogue is cut off") from error


def _tree(body: bytes, num_levels: int) -> list[int]:
    """Numbers of the sentences in the order of the tree: each choice of Joe's with all that it leads to.

    The game goes on at the level that begins with the sentence chosen, else at the last one that has the sentence
    which the choice leads to.
    """
    nodes = [NODE.unpack_from(body, TREE + i * NODE.size) for i in range(num_levels * NODES)]
    levels = [nodes[i : i + NODES] for i in range(0, len(nodes), NODES)]
    found: dict[int, None] = {}
    visited: set[int] = set()

    def visit(level: int) -> None:
        visited.add(level)
        found[levels[level][0][0]] = None
        choices = [levels[level][choice] for choice in reversed(CHOICES)]
        while choices:
            number, leads_to = choices.pop()
            if number <= 0:
                continue
            found[number] = None
            own = [i for i, nodes in enumerate(levels) if nodes[0][0] == number]
            further = [i for i, nodes in enumerate(levels) if any(leads_to == head for head, _ in nodes)]
            following = (own or (further if leads_to > 0 else []))[-1:]
            if following and following[0] not in visited:
                visit(following[0])
                if own:  # once it is over there is another choice in the place of this one
                    choices.append((levels[following[0]][0][1], leads_to))

    if levels:
        visit(0)
    return [number for number in found if number > 0]


def _string(body: bytes, offset: int, align: int) -> tuple[str, int]:
    """A text with its length before it, and where the next thing begins."""
    begin = offset + 1
    end = begin + body[offset]
    if end > len(body):
        raise IndexError(end)
    return body[begin:end].decode("latin-1"), -(-end // align) * align


def _segments(sentence: str, talk_key: int, name: str, by_joe: bool) -> Iterator[tuple[str, str]]:
    """Names of the clips and their texts; a segment without words has none."""
    stem = f"{talk_key:02d}{name}{'J' if by_joe else 'P'}"
    for place, segment in enumerate(COMMAND.split(sentence), 1):
        text = " ".join(segment.split())
        if any(char.isalpha() for char in text):
            yield f"{stem}{place:X}", text


def _clip(folder: Path, clip: str) -> Path:
    return folder / "clips" / f"{clip}.mp3"
