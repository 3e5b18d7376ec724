import gzip

import pytest

from omniaudio.corpus.asterisk import AsteriskSounds, read_transcripts, strip_notes
from omniaudio.errors import UserError
from tests.corpus.make_audio import make_asterisk, tone

ITALIAN = {
    "activated": ("Attivato.", tone()),
    "letters/at": ("a [@]", tone()),
    "spy-iax2": ('IAX (nota: non dice "2")', tone()),
    "silence/1": ("(1 secondo di silenzio)", tone()),
    "beep": (None, tone()),
    "beeperr": ("[errore]", tone()),
    "tt-monkeys": ("[scimmie]", tone()),
    "confbridge-join": ("(beep)", tone()),
    "letters/space": ("[ ]", tone()),
    "letters/o": (None, tone()),
}


def test_lists_speech_and_says_what_it_leaves_out(tmp_path):
    make_asterisk(tmp_path, "it", ITALIAN, transcripts_only=["letters/O"], bom=True)
    inventory = AsteriskSounds(["it"]).inventory(tmp_path)
    found = [(item.key, item.text, item.language, item.speaker) for item in inventory.items]
    assert found == [
        ("it/activated", "Attivato.", "it", "carlo"),
        ("it/letters/at", "a", "it", "carlo"),
        ("it/spy-iax2", "IAX", "it", "carlo"),
    ]
    assert all(item.path.is_file() for item in inventory.items)
    assert {entry.name: entry.reason for entry in inventory.left_out} == {
        "it/silence/1": "silence, tone or noise",
        "it/beep": "silence, tone or noise",
        "it/beeperr": "silence, tone or noise",
        "it/tt-monkeys": "silence, tone or noise",
        "it/confbridge-join": "silence, tone or noise",
        "it/letters/space": "no words in the transcript",
        "it/letters/o": "recording without a transcript",
        "it/letters/O": "transcript without a recording",
    }


def test_languages_come_in_the_order_of_the_config(tmp_path):
    for language in ("en", "ru"):
        make_asterisk(tmp_path, language, {"yes": ("yes", tone())})
    keys = [item.key for item in AsteriskSounds(["ru", "en"]).inventory(tmp_path).items]
    assert keys == ["ru/yes", "en/yes"]


def test_root_is_read_in_place(tmp_path):
    make_asterisk(tmp_path / "unpacked", "en", {"yes": ("yes", tone())})
    corpus = AsteriskSounds(["en"], root=str(tmp_path / "unpacked"))
    corpus.fetch(tmp_path / "raw")
    assert len(corpus.inventory(tmp_path / "raw").items) == 1
    assert not (tmp_path / "raw").exists()


def test_every_voice_is_credited():
    lines = AsteriskSounds().attribution()
    for words in ("Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal", "CC-BY-SA-3.0", "CC-BY-3.0"):
        assert words in lines


def test_packages_hold_texts_and_recordings():
    assert AsteriskSounds(["fr"]).packages == ["asterisk-core-sounds-fr", "asterisk-core-sounds-fr-g722"]


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.languages: \['xx'\]; allowed are en, es, fr, it, ru"):
        AsteriskSounds(["en", "xx"])
    with pytest.raises(UserError, match="language 'en' are not there; run step=fetch"):
        AsteriskSounds(["en"]).inventory(tmp_path)
    broken = tmp_path / "t.txt.gz"
    broken.write_bytes(gzip.compress(b"a: text")[:-9])
    with pytest.raises(UserError, match="cannot read the transcripts"):
        read_transcripts(broken)


def test_transcripts_by_hand(tmp_path):
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress("\ufeff; a: comment\n\na: Dial: 1\nb:\na: again\nno colon\n".encode()))
    assert read_transcripts(path) == {"a": "Dial: 1", "b": ""}


def test_notes_are_stripped():
    assert strip_notes("[tentativo di] Parcheggio  (note) <beep> riuscito.") == "Parcheggio riuscito."
