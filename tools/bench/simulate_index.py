"""Plan an epoch's beginning, middle and resume over an index of 300 million utterances: time and memory of one process.

Only lengths exist (a mapped column, as in the index of shards). Prints one line a measurement.

    python tools/bench/simulate_index.py [NUM_UTTERANCES]
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from omniaudio.data.mixture import MixturePlan, OneByOne
from omniaudio.data.planning import PooledPlan

NUM = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000_000
CHUNK = 1 << 22
BATCH_SEC, TOKENS = 3600.0, 1 << 20  # an hour of audio, a million positions a step


class Positions:
    """LLM positions of a clip with its text, from the mapped column of seconds."""

    def __init__(self, seconds: np.ndarray) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, item: int) -> int:
        return 10 + int(16 * self.seconds[item])


def megabytes() -> float:
    """Memory of this process beyond what is mapped from files."""
    facts = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(facts["RssAnon"].split()[0]) / 1024


def measured(what: str, began: float) -> None:
    print(f"{what}: {time.perf_counter() - began:.2f} s, {megabytes():.0f} MB", flush=True)


with tempfile.TemporaryDirectory() as folder:
    path, rng = Path(folder) / "seconds.bin", np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, NUM, CHUNK):
            values = np.clip(rng.lognormal(1.9, 0.6, min(CHUNK, NUM - start)), 0.5, 30.0)
            file.write(values.astype(np.float32).tobytes())
    seconds = np.memmap(path, np.float32, mode="r")
    print(f"{NUM:,} utterances, {megabytes():.0f} MB before planning")
    for name, make in (
        ("audio", lambda: PooledPlan(seconds, BATCH_SEC, seed=0)),
        ("documents", lambda: MixturePlan(OneByOne(Positions(seconds)), {"asr": 3.0, "tts": 1.0}, TOKENS)),
    ):
        began = time.perf_counter()
        plan = make()
        plan[0]
        measured(f"{name}: first step", began)
        began = time.perf_counter()
        for step in range(1, 101):
            plan[step]
        measured(f"{name}: 100 more steps", began)
        memo = json.dumps(plan.memo(100))
        began = time.perf_counter()
        again = make()
        assert again.recall(json.loads(memo)) and again[100] == plan[100]
        measured(f"{name}: resume with the memo of the checkpoint ({len(memo)} bytes)", began)
    began = time.perf_counter()
    plan = PooledPlan(seconds, BATCH_SEC, seed=0)
    last = int(float(seconds[::1000].mean()) * NUM / BATCH_SEC * 0.9)
    plan[last]
    measured(f"audio: step {last:,} without a memo, all before it planned", began)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB with mapped pages")
