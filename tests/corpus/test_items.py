import pytest

from omniaudio.corpus.asterisk import AsteriskSounds
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import Corpus, clean_key
from omniaudio.data.shards import KEY


@pytest.mark.parametrize(
    "name, key", [("en/digits/1", "en/digits/1"), ("a b/ü.x", "a_b/__x"), ("v1.2-final", "v1_2-final")]
)
def test_clean_key(name, key):
    assert clean_key(name) == key and KEY.fullmatch(key)


def test_the_corpora_are_corpora(tmp_path):
    assert isinstance(AsteriskSounds(["en"]), Corpus)
    assert isinstance(AudioFolder(str(tmp_path), "en"), Corpus)
