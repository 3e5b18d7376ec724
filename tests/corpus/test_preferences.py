import json

import numpy as np
import pytest

import omniaudio
from omniaudio.corpus.preferences import write_given
from omniaudio.data.shards import ShardReader, load_npy
from omniaudio.dialogue.folder import layout_of, write_model
from omniaudio.errors import UserError
from omniaudio.frontend.audio import write_wav
from tests.dialogue.tiny_experiment import speech, write_experiment


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    exp_dir, _ = write_experiment(tmp_path_factory.mktemp("run"))
    stages = {"tokenizer": "tokenizer", "lm": "sft", "flow": "flow", "vocoder": "vocoder"}
    parts = {part: exp_dir / stage / "final" / part for part, stage in stages.items()}
    write_model(exp_dir / "model", parts, exp_dir / "text_lm/tokenizer.json", {})
    return exp_dir / "model"


def write(folder, lines):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_speech_codes_and_texts_become_pairs(model_dir, tmp_path):
    model = omniaudio.load(model_dir)
    codes, wav = np.array([[1, 2, 3], [15, 7, 7]]), speech(0.8, 16000, 0)
    np.save(tmp_path / "a.npy", codes)
    write_wav(tmp_path / "q.wav", wav, 16000)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"audio": "q.wav"}, {"text": "Again?"}]},
    ]
    path = write(
        tmp_path,
        [
            {
                "id": "both",
                "split": "train",
                "prompt": chat,
                "chosen": ["yes", {"codes": "a.npy"}],
                "rejected": "no",
            },
            {
                "language": "it",
                "split": "dev",
                "prompt": "Chi?",
                "chosen": "Io.",
                "rejected": [{"text": "Tu."}],
            },
        ],
    )
    told = write_given(path, model_dir, tmp_path / "pairs")
    assert told == {"train": {"prompts": 1, "pairs": 1}, "dev": {"prompts": 1, "pairs": 1}}
    train, dev = (ShardReader(tmp_path / "pairs", split) for split in ("train", "dev"))
    (entry,) = train.entries
    assert entry.key == "both" and train.fingerprint == layout_of(model)
    assert json.loads(entry.facts["prompt"]) == [["system", ["Be brief."]], ["user", [0, "Again?"]]]
    assert (json.loads(entry.facts["chosen"]), json.loads(entry.facts["rejected"])) == (["yes", 1], ["no"])
    heard = model.encode(wav, 16000).codes_BSK[0].numpy()
    assert entry.facts["sounds"] == [len(heard), 2]
    assert (load_npy(train.member(0, "codes.npy")) == np.concatenate([heard, codes])).all()
    (entry,) = dev.entries
    assert entry.facts["language"] == "it" and entry.key == "line-2" and not entry.facts["num_frames"]


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected: a NoneType, expected an object"),
        ({**GOOD, "chosen": " "}, "is empty"),
        ({**GOOD, "chosen": []}, "chosen: is empty"),
        ({**GOOD, "chosen": [{"codes": "nowhere.npy"}]}, "nowhere.npy"),
        ({**GOOD, "chosen": [{"codes": "wrong.npy"}]}, "outside the books"),
        ({**GOOD, "split": "test"}, "split is 'test', expected train or dev"),
        ({**GOOD, "prompt": [{"role": "assistant", "content": "a"}]}, "the role is 'assistant'"),
        ({**GOOD, "id": "first"}, "the id 'first' stands twice"),
    ],
)
def test_lines_that_cannot_be_used_are_named(model_dir, tmp_path, line, reason):
    np.save(tmp_path / "wrong.npy", np.full((2, 3), 99))
    path = write(tmp_path, [{**GOOD, "id": "first", "split": "train"}, line])
    told = write_given(path, model_dir, tmp_path / "pairs")
    assert told["train"]["pairs"] == 1 and not told["dev"].get("pairs")
    (found,) = [name for name in told["train"] if name.startswith("left out: ")]
    assert f"{path}:2" in found and reason in found


def test_without_a_split_some_prompts_are_held_out(model_dir, tmp_path):
    path = write(tmp_path, [{**GOOD, "prompt": f"question {i}"} for i in range(200)])
    told = write_given(path, model_dir, tmp_path / "pairs")
    assert told["train"]["pairs"] + told["dev"]["pairs"] == 200 and 2 <= told["dev"]["pairs"] <= 20
    with pytest.raises(UserError, match="expected an object"):
        write_given(write(tmp_path, [{"prompt": "a"}]), model_dir, tmp_path / "pairs")
