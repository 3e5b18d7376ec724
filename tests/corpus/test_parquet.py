import pytest

from omniaudio.corpus.parquet import ParquetAudio
from omniaudio.data.chats import chat_facts, to_messages
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio
from tests.corpus.make_trees import voice_assistant

COLUMNS = {"audio_column": "question_audio", "text_column": "question", "response_column": "answer"}


def test_recordings_are_taken_out_once(tmp_path):
    root = voice_assistant(tmp_path / "hub")
    corpus = ParquetAudio("en", root=str(root), **COLUMNS)
    corpus.fetch(tmp_path / "raw")
    found = corpus.inventory(tmp_path / "raw")
    first = found.items[0]
    assert (first.key, first.text, first.response, first.speaker) == (
        "data__train-00000-of-00325/000000", "What is your name, number 0?", ("I am assistant 0.",), "parquet",
    )  # fmt: skip
    assert len(read_audio(first.path)) == 44_100 and len(found.items) == 29
    assert [entry.name for entry in found.left_out] == ["data__train-00000-of-00325/000003"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*.wav")}
    corpus.fetch(tmp_path / "raw")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*.wav")}


def test_a_question_with_its_answer_is_a_chat(tmp_path):
    root = voice_assistant(tmp_path / "hub", 4)
    corpus = ParquetAudio("en", root=str(root), chats=True, **COLUMNS)
    corpus.fetch(tmp_path / "raw")
    items = corpus.inventory(tmp_path / "raw").items
    facts = [chat_facts(item.chat, item.key) for item in items]
    assert [found["passage"] for found in facts] == [item.key for item in items], "each is a chat of its own"
    sound = range(3)
    told = {"text": items[1].text, "language": "en"}
    assert to_messages([({**facts[1], **told}, sound)], speech=False) == [
        {"role": "user", "content": [sound]},
        {"role": "assistant", "content": ["I am assistant 1."]},
    ]
    plain = ParquetAudio("en", root=str(root), **COLUMNS).inventory(tmp_path / "raw").items
    assert not any(item.chat for item in plain)
    (listing,) = (tmp_path / "raw").rglob("rows.jsonl")
    listing.write_text(listing.read_text().replace('"I am assistant 0."', '""'))
    chats = [item.chat for item in corpus.inventory(tmp_path / "raw").items]
    assert not chats[0] and all(chats[1:]), "nobody learns from an empty reply"


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    for place, number in (("en", 4), ("de", 5)):
        voice_assistant(tmp_path / "hub" / place, number)
    corpus = ParquetAudio("en", root=str(tmp_path / "hub"), **COLUMNS)
    corpus.fetch(tmp_path / "raw")
    assert len(corpus.inventory(tmp_path / "raw").items) == 3 + 4
    few = ParquetAudio("en", root=str(tmp_path / "hub"), pattern="en/**/*.parquet", **COLUMNS)
    assert len(few.inventory(tmp_path / "raw").items) == 3, "and what another pattern took out stays out"


def test_a_stop_in_the_middle_takes_the_file_out_again(tmp_path, monkeypatch):
    root = voice_assistant(tmp_path / "hub")
    corpus = ParquetAudio("en", root=str(root), **COLUMNS)
    take = ParquetAudio._taken_out

    def stop(self, row, number, folder):
        if number == 7:
            raise KeyboardInterrupt
        return take(self, row, number, folder)

    monkeypatch.setattr(ParquetAudio, "_taken_out", stop)
    with pytest.raises(KeyboardInterrupt):
        corpus.fetch(tmp_path / "raw")
    with pytest.raises(UserError, match="run step=fetch first"):
        corpus.inventory(tmp_path / "raw")
    monkeypatch.undo()
    corpus.fetch(tmp_path / "raw")
    assert len(corpus.inventory(tmp_path / "raw").items) == 29


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="give one of them"):
        ParquetAudio("en")
    with pytest.raises(UserError, match="no such folder"):
        ParquetAudio("en", root=str(tmp_path / "none")).fetch(tmp_path)
    with pytest.raises(UserError, match=r"no files \*\*/\*\.parquet"):
        ParquetAudio("en", root=str(tmp_path)).fetch(tmp_path)
    root = voice_assistant(tmp_path / "hub", number=4)
    with pytest.raises(UserError, match="no column audio, text; there are split_name, index"):
        ParquetAudio("en", root=str(root)).fetch(tmp_path / "raw")
    next(root.rglob("*.parquet")).write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a parquet file that can be read"):
        ParquetAudio("en", root=str(root)).fetch(tmp_path / "raw")
