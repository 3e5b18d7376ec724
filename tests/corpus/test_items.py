import pytest

from omniaudio.corpus.asterisk import AsteriskSounds
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import MAX_KEY, Corpus, clean_key, short_key
from omniaudio.data.shards import KEY, check_member_name


@pytest.mark.parametrize(
    "name, key", [("en/digits/1", "en/digits/1"), ("a b/u.x", "a_b/u_x"), ("v1.2-final", "v1_2-final")]
)
def test_clean_key(name, key):
    assert clean_key(name) == key and KEY.fullmatch(key)


def test_long_names_and_names_of_other_scripts_have_keys_of_their_own():
    long = "/data/" + "a long folder/" * 20
    names = ["第一集", "第二集", "a b/ü.x", "a b/ö.x", f"{long}1", f"{long}2", "half \ud83d"]
    keys = [clean_key(name) for name in names]
    assert len(set(keys)) == len(names) and keys == [clean_key(name) for name in names]
    for key in keys:
        assert clean_key(key) == key, "a key that is read back from a list is the same"
        check_member_name(f"{key}.codes.npy", "here")
    longest = "k" * MAX_KEY
    assert clean_key(longest) == longest and check_member_name(f"{longest}.codes.npy", "here")
    assert clean_key(f"{longest}k") != f"{longest}k" and clean_key(longest, MAX_KEY - 1) != longest


def test_every_name_has_a_short_key_of_its_own():
    names = ["a/b.wav", "a-b.wav", "第一集.mp3", "第二集.mp3", "x" * 90, "x" * 91, "plain"]
    keys = [short_key(name) for name in names]
    assert len(set(keys)) == len(names) and all(len(key) < 60 for key in keys) and keys[-1] == "plain"


def test_the_corpora_are_corpora(tmp_path):
    assert isinstance(AsteriskSounds(["en"]), Corpus)
    assert isinstance(AudioFolder(str(tmp_path), "en"), Corpus)
