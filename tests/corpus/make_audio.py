"""Small real recordings for the tests of this folder."""

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(seconds=1.0, amplitude=0.3, hz=300.0, rate_hz=RATE_HZ):
    """wav_N of a sine."""
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(
        np.float32
    )


def write_audio(path, wav=None, rate_hz=RATE_HZ):
    """Write a WAV (16 bit) or, by its ending, a raw G.722; a second of tone unless given."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = tone() if wav is None else wav
    if path.suffix == ".g722":
        _write_g722(path, wav)
    else:
        soundfile.write(path, wav, rate_hz)
    return path


def _write_g722(path, wav_N):
    import av

    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.round(wav_N * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def make_asterisk(root, language, texts, transcripts_only=(), bom=False):
    """The layout of the unpacked packages: recordings of ``texts`` (name -> (text or None, wav))."""
    import gzip

    from omniaudio.corpus.asterisk import VOICES

    share = Path(root) / "usr" / "share"
    lines = [f"; Core sounds in {language}", ""]
    for name, (text, wav) in texts.items():
        write_audio(share / "asterisk" / "sounds" / VOICES[language].folder / f"{name}.g722", wav)
        if text is not None:
            lines.append(f"{name}: {text}")
    lines += [f"{name}: without a recording" for name in transcripts_only]
    doc = share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
    doc.parent.mkdir(parents=True, exist_ok=True)
    doc.write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig" if bom else "utf-8")))
    return Path(root)
