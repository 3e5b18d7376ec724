"""Miniatures of public corpora: the real names and forms of their files, around a second of tone each."""

import json
import tarfile

import soundfile

from tests.corpus.make_audio import make_asterisk, tone, write_audio
from tests.corpus.test_fotaq import bundle, dialogue

SECONDS, RATE = 1.6, 22_050


def _audio(path, number=0, seconds=SECONDS, rate_hz=16_000):
    return write_audio(path, tone(seconds, hz=200.0 + 30 * number, rate_hz=rate_hz), rate_hz)


def librispeech(folder):
    root = folder / "LibriSpeech"
    chapters = {"train-clean-100/103/1240": ["CHAPTER ONE", "MISSUS RACHEL LYNDE IS SURPRISED"]}
    chapters |= {
        "dev-clean/84/121123": ["GO DO YOU HEAR"],
        "test-clean/61/70968": ["HE BEGAN A CONFUSED COMPLAINT"],
    }
    for chapter, texts in chapters.items():
        stem = "-".join(chapter.split("/")[1:])
        lines = [f"{stem}-{i:04d} {text}" for i, text in enumerate(texts)]
        for i in range(len(texts)):
            _audio(root / chapter / f"{stem}-{i:04d}.flac", i)
        (root / chapter / f"{stem}.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text(
        "; ID |SEX| SUBSET |MINUTES| NAME\n103 | F | train-clean-100 | 25.13 | Karen\n"
    )
    return root


def libritts(folder):
    root = folder / "LibriTTS"
    places = {"train-clean-100/103/1241": 2, "dev-clean/84/121123": 1, "test-clean/61/70968": 1}
    for chapter, number in places.items():
        stem = "_".join(chapter.split("/")[1:])
        for i in range(1, number + 1):
            path = _audio(root / chapter / f"{stem}_000000_{i:06d}.wav", i, rate_hz=24_000)
            path.with_suffix(".normalized.txt").write_text(
                "matthew Cuthbert is surprised" if i == 1 else "He said so."
            )
            path.with_suffix(".original.txt").write_text("MATTHEW Cuthbert is surprised")
        (root / chapter / f"{stem}.trans.tsv").write_text(f"{stem}_000000_000001\ta\tb\n")
    return root


def ljspeech(folder):
    root = folder / "LJSpeech-1.1"
    texts = [("Printing, in the", "Printing, in the"), ("in the year 18", "in the year eighteen")]
    texts += [(f"line {i} of it", f"line number {i} of it") for i in range(30)]
    for i in range(len(texts)):
        _audio(root / "wavs" / f"LJ001-{i + 1:04d}.wav", i, seconds=1.0, rate_hz=22_050)
    lines = [f"LJ001-{i + 1:04d}|{raw}|{read}" for i, (raw, read) in enumerate(texts)]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    (root / "README").write_text("The LJ Speech Dataset\n")
    return root


def aishell1(folder):
    """As its archive leaves it: one more archive a speaker."""
    root = folder / "data_aishell"
    speakers = {"train/S0002": ["BAC009S0002W0122", "BAC009S0002W0123"], "dev/S0724": ["BAC009S0724W0121"]}
    speakers["test/S0764"] = ["BAC009S0764W0121"]
    for place, names in speakers.items():
        split, speaker = place.split("/")
        with tarfile.open(_made(root / "wav" / f"{speaker}.tar.gz"), "w:gz") as tar:
            for i, name in enumerate(names):
                path = _audio(folder / "scratch" / f"{name}.wav", i)
                tar.add(path, f"{split}/{speaker}/{name}.wav")
    texts = [
        "BAC009S0002W0122 而 对 楼市 成交",
        "BAC009S0002W0123 也 成为 地方",
        "BAC009S0724W0121 广州市 房地产",
    ]
    texts += ["BAC009S0764W0121 甚至 出现 交易", "BAC009S0002W9999 没有 录音"]
    _made(root / "transcript" / "aishell_transcript_v0.8.txt").write_text("\n".join(texts) + "\n", "utf-8")
    return root


def wenetspeech(folder):
    segments = [
        ("S00000", 0.2, 1.4, "怎么样这些日子住得还习惯吧", 1.0, ["S", "M", "L"]),
        ("S00001", 1.5, 2.6, "好的谢谢你", 0.9, ["W"]),
    ]
    audios = [_recording(folder, "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus", segments)]
    held_out = [
        ("S00000", 0.0, 1.2, "今天天气不错", 1.0, ["DEV"]),
        ("S00001", 1.3, 2.5, "我们走吧", 1.0, ["DEV"]),
    ]
    audios.append(_recording(folder, "audio/dev/youtube/B00000/Y0000000001_x.opus", held_out))
    audios.append(
        _recording(
            folder,
            "audio/test_net/B00000/T0000000001_x.opus",
            [("S00000", 0.0, 1.2, "再见", 1.0, ["TEST_NET"])],
        )
    )
    (folder / "WenetSpeech.json").write_text(json.dumps({"audios": audios}, ensure_ascii=False), "utf-8")
    return folder


def gigaspeech(folder):
    segments = [
        ("S0000000", 0.2, 1.4, "MCGRAY IS OUR GUIDE <COMMA> TODAY <PERIOD>", None, ["{XS}", "{XL}"]),
        ("S0000001", 1.5, 2.6, "<MUSIC>", None, ["{XL}"]),
    ]
    audios = [_recording(folder, "audio/podcast/P0000/POD0000000000.opus", segments)]
    for subset, name in (("{DEV}", "POD0000000001"), ("{TEST}", "YOU0000000002")):
        held_out = [("S0000000", 0.0, 1.2, f"AND THIS IS {name[:3]} <QUESTIONMARK>", None, [subset])]
        audios.append(_recording(folder, f"audio/podcast/P0000/{name}.opus", held_out))
    (folder / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": audios}))
    return folder


def _recording(folder, path, segments):
    import soundfile

    target = _made(folder / path)
    soundfile.write(target, tone(3.0, rate_hz=16_000), 16_000, format="OGG", subtype="OPUS")
    aid = path.rpartition("/")[2].removesuffix(".opus")
    return {
        "aid": aid, "path": path, "duration": 3.0, "md5": "", "source": "youtube",
        "segments": [
            {
                "sid": f"{aid}_{name}", "begin_time": begin, "end_time": end, "subsets": subsets,
                **({"text_tn": text} if confidence is None else {"text": text, "confidence": confidence}),
            }
            for name, begin, end, text, confidence, subsets in segments
        ],
    }  # fmt: skip


def covost2(folder):
    """Common Voice's folder of German, and beside it the table of translations."""
    names = [f"common_voice_de_1730000{i}.mp3" for i in range(5)]
    for i, name in enumerate(names):
        _audio(folder / "clips" / name, i, rate_hz=32_000)
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
    rows = [f"client{i % 2}\t{name}\tEin Satz Nummer {i}.\t2\t0\t\t\t" for i, name in enumerate(names)]
    rows[1] = rows[1].replace("Ein Satz", 'Ein \\"Satz\\"')
    (folder / "validated.tsv").write_text("\n".join([head, *rows]) + "\n")
    splits = ["train", "train_covost", "dev", "test", "other"]
    lines = [f"{name}\tA sentence, number {i}.\t{splits[i]}\tclient" for i, name in enumerate(names)]
    lines.append("common_voice_de_9.mp3\tGone.\ttrain\tclient")
    (folder / "covost_v2.de_en.tsv").write_text(
        "\n".join(["path\ttranslation\tsplit\tclient_id", *lines]) + "\n"
    )
    return folder


def voice_assistant(folder, number=30):
    import pyarrow as pa
    from pyarrow import parquet

    from omniaudio.frontend.audio import encode_audio

    rows = [
        {
            "split_name": "identity", "index": f"identity-0-{i}", "round": "None",
            "question": f"What is your name, number {i}?",
            "question_audio": {"bytes": encode_audio(tone(2.0, hz=200 + i, rate_hz=RATE), RATE, "WAV"), "path": None},
            "answer": f"I am assistant {i}.", "answer_snac": "# 1 2 3",
        }
        for i in range(number)
    ]  # fmt: skip
    rows[3]["question_audio"] = {"bytes": None, "path": "gone.wav"}
    path = _made(folder / "data" / "train-00000-of-00325.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return folder


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def asterisk(folder):
    texts = {f"digits/{i}": (f"Il numero {i}, prego.", tone(SECONDS)) for i in range(24)}
    return make_asterisk(folder, "it", {**texts, "beep": (None, tone(SECONDS))})


def fotaq(folder):
    """A talk of Joe with another one in 24 lines, as the game's bundle holds it."""
    path = folder / "clip.mp3"
    soundfile.write(path, tone(SECONDS, rate_hz=11_025), 11_025)
    lines = [(number, f"Line number {number}, said aloud.*02") for number in range(1, 13)]
    replies = [(number, f"Reply number {number}, said aloud.") for number in range(1, 11)]
    talk = dialogue(7, joe=lines, other=replies, again=["Hello again, Joe.*04", "*15Hello again to you."])
    spoken = [f"07{number:04X}J1" for number in range(1, 13)] + [
        f"07{number:04X}P1" for number in range(1, 11)
    ]
    files = {f"{name}.SB": path.read_bytes() for name in (*spoken, "07XXXXP1", "07XXXXJ2")}
    return bundle(folder / "queen.1c", {"BOB2.DOG": talk, **files})
