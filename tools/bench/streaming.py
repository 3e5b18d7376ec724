"""First audio and real-time factor of an exported model by size of chunk: python tools/bench/streaming.py FOLDER.

CPU time of one thread. The text is read aloud again and again until there are enough codes of one stretch.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch

import omniaudio
from omniaudio.dialogue.latency import latency_rows, latency_table, written_codes

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="what `omniaudio export` wrote")
parser.add_argument("--text", default="please hold the line while we connect you")
parser.add_argument("--seconds", type=float, default=10.0, help="of speech")
parser.add_argument("--chunks", type=int, nargs="+", default=[4, 6, 12, 25, 50], help="code frames")
parser.add_argument("--first", type=int, help="code frames of the first chunk; default: the model's setting")
parser.add_argument("--context", type=int, help="code frames of the past; default: the model's setting")
parser.add_argument("--vocoder_look_ahead", type=int, help="mel frames; default: the model's setting")
words = parser.parse_args()
torch.set_num_threads(1)
model = omniaudio.load(words.folder)
changes = {
    "first_frames": words.first,
    "context_frames": words.context,
    "vocoder_look_ahead": words.vocoder_look_ahead,
}
given = {name: value for name, value in changes.items() if value is not None}
stream = dataclasses.replace(model.settings.stream, **given)
model.settings = dataclasses.replace(model.settings, stream=stream)
rate_hz = model.tokenizer.code_rate_hz
codes_SK, frame_sec = written_codes(model, words.text, round(words.seconds * rate_hz), time.process_time)
rows = latency_rows(model, codes_SK, frame_sec, words.chunks, time.process_time)
head, *lines = latency_table(rows, 1 / rate_hz)
for line in (head, ["---"] * len(head), *lines):
    print(f"| {' | '.join(line)} |")
