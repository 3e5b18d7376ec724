"""What a training is going to read, before it begins: hours, lengths, padding, epochs, and samples to look at.

Everything follows from the index and the plan; no audio is decoded.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group
from rich.table import Table
from rich.text import Text

from omniaudio.data.chats import HELD_OUT, count_held_out, held_out_line
from omniaudio.data.clip_mixture import WeightedClips
from omniaudio.data.document_steps import DocumentSteps, TextSteps
from omniaudio.data.index import text_number
from omniaudio.data.mixture import PlannedDocument, deal_all
from omniaudio.data.pairs import PairSteps
from omniaudio.data.planning import CHUNK, share_of
from omniaudio.data.prompts import WRITTEN, written_prompt
from omniaudio.data.shards import ShardReader
from omniaudio.data.steps import WaveSteps
from omniaudio.sequence.show import pieces_of

LOOKED_AT = 4000  # documents of a kind, to say how long all are
BAR = 30
SHOWN = 300  # characters of a long text
LEARNED, GIVEN, MARK = "bold green", "", "dim"

Source = WaveSteps | DocumentSteps | TextSteps | PairSteps


class Sample(list[tuple[str, str]]):
    """Parts of a line with their styles. Where nothing is coloured, what is learned stands in « »."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = Text()
        for style, parts in groupby(self, key=lambda part: part[1]):
            words = "".join(words for words, _ in parts)
            marked = style == LEARNED and words and not console.is_terminal
            line.append(f"«{words}»" if marked else words, style)
        yield line


LEGEND = Sample([("samples: given, ", GIVEN), ("learned", LEARNED), (", ", GIVEN), ("<special>", MARK)])


def preflight(
    source: Source, max_steps: int, num_parts: int = 1, num_planned: int = 200, show: int = 3
) -> Group:
    """All that is known of a training's data, for a terminal or a page.

    Args:
        source: of the training.
        max_steps: of the whole training.
        num_parts: processes x batches of a step.
        num_planned: steps that are planned to say what steps are like.
        show: samples to show.
    """
    planned = min(num_planned, max_steps)
    if not planned:
        return Group(Text("max_steps=0: no data is read, the model stays as it is"))
    if isinstance(source, WaveSteps):
        parts = [
            hours(source.reader),
            *_clips(source, max_steps, num_parts, planned),
            *_shown_clips(source, show),
        ]
    else:
        about = [] if isinstance(source, TextSteps) else [hours(source.reader)]
        parts = [*about, *_documents(source, max_steps, num_parts, planned), *_shown_documents(source, show)]
    return Group(*parts)


def as_html(group: Group, width: int = 110) -> str:
    """The same as a fragment of a page."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(group)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def hours(reader: ShardReader) -> Table:
    """Clips and hours by corpus and language, and how many can be asked for what."""
    facts = [name for name in dict.fromkeys(WRITTEN.values()) if name in reader.listing.kinds]
    rows: dict[tuple[int, int], Counter[str]] = {}
    first: dict[tuple[int, int], int] = {}
    for items in _chunks(len(reader)):
        names = np.stack([reader.column(name)[items] for name in ("corpus", "language")], axis=1)
        pairs, place, group_of = np.unique(names, axis=0, return_index=True, return_inverse=True)
        seconds = _seconds(reader, items)
        for number, pair in enumerate(pairs.tolist()):
            chosen = group_of.reshape(-1) == number
            row = rows.setdefault((pair[0], pair[1]), Counter())
            first.setdefault((pair[0], pair[1]), int(items[place[number]]))
            row.update(clips=int(chosen.sum()), milliseconds=round(1000 * seconds[chosen].sum()))
            row.update({name: int((reader.column(name)[items][chosen] != 0).sum()) for name in facts})
    table = Table(title=f"{reader.folder}, {reader.split}", title_justify="left")
    for name in ("corpus", "language", "clips", "hours", *(f"with {name}" for name in facts)):
        table.add_column(name, justify="left" if name in ("corpus", "language") else "right")
    for pair in sorted(rows, key=lambda pair: -rows[pair]["milliseconds"]):
        known, row = reader.entries[first[pair]].facts, rows[pair]
        counts = [f"{row[name]:,}" for name in facts]
        told = f"{row['milliseconds'] / 3.6e6:,.2f}"
        table.add_row(
            str(known.get("corpus", "")), str(known["language"]), f"{row['clips']:,}", told, *counts
        )
    if len(rows) > 1:
        every = sum(rows.values(), Counter())
        told = f"{every['milliseconds'] / 3.6e6:,.2f}"
        table.add_row("all", "", f"{every['clips']:,}", told, *(f"{every[name]:,}" for name in facts))
    return table


def contents(reader: ShardReader) -> Group:
    """What a split holds: hours, lengths of its clips, and how many may not be learned as they are."""
    counts, refused, edges = np.zeros(7, np.int64), 0, (0, 1, 2, 4, 8, 16, 30)
    for items in _chunks(len(reader)):
        counts += np.histogram(_seconds(reader, items), [*edges, np.inf])[0]
        refused += int((np.asarray(reader.column("only")[items]) != 0).sum())
    parts: list[Any] = [hours(reader), bars(counts.tolist(), "s", edges), *_held_out(reader)]
    if refused:
        parts.append(Text(f"  {refused:,} clips are for one kind of document alone, or for none"))
    return Group(*parts)


def histogram(values: Sequence[float], unit: str, edges: Sequence[float]) -> Text:
    """Counts between the edges as bars."""
    return bars(np.histogram(values, [*edges, np.inf])[0].tolist(), unit, edges)


def bars(counts: Sequence[int], unit: str, edges: Sequence[float]) -> Text:
    """A line for each count: between which edges it lies, a bar, and the number."""
    lines = []
    for i, count in enumerate(counts):
        above = f"{edges[i]:>5g} to {edges[i + 1]:<5g}" if i + 1 < len(edges) else f"{edges[i]:>5g} and up"
        bar = "█" * round(BAR * count / max(1, *counts))
        lines.append(f"  {above:<14} {unit:<9} {bar:<{BAR}} {count:,}")
    while lines and lines[-1].endswith(" 0"):
        lines.pop()
    return Text("\n".join(lines))


def _clips(source: WaveSteps, max_steps: int, num_parts: int, planned: int) -> Iterator[Any]:
    plan, lengths = source.plan, source.lengths
    narrow, elsewhere, total_sec, edges = 0, 0, 0.0, (0, 1, 2, 4, 8, 16, 30)
    counts = np.zeros(len(edges), np.int64)
    for items in _chunks(len(lengths)):
        part = lengths[items]
        only = np.asarray(source.reader.column("only")[items])
        elsewhere += int(((only != 0) & (only != text_number(HELD_OUT))).sum())
        narrow += int((np.isnan(part) & (only == 0)).sum())
        total_sec += float(np.nansum(part))
        counts += np.histogram(part[~np.isnan(part)], [*edges, np.inf])[0]
    yield Text(f"clips as they are cropped (at most {source.crop_sec:g} s)")
    yield bars(counts.tolist(), "s", edges)
    if narrow:
        yield Text(f"  {narrow:,} clips are left out: their sound ends too low (min_band_hz)")
    if elsewhere:
        yield Text(f"  {elsewhere:,} clips are left out: only a language model is to learn from them")
    yield from _held_out(source.reader)
    steps = [plan[step] for step in range(planned)]
    seconds = [lengths[np.array(step)].tolist() for step in steps]
    costs = np.array([max(step) * len(step) for step in seconds])
    real = np.array([sum(step) for step in seconds])
    sizes = [len(step) for step in steps]
    shares = [share_of(step, part, num_parts) for step in seconds for part in range(num_parts)]
    parts = [max(share) * len(share) for share in shares]
    yield Text(
        f"steps: {np.mean(sizes):.1f} clips ({min(sizes)} to {max(sizes)}), {costs.mean():.1f} s with padding, of "
        f"{plan.budget:g} allowed; {1 - real.sum() / costs.sum():.1%} are padding\n"
        f"  largest batch of one of {num_parts} parts: {max(parts):.1f} s"
    )
    if isinstance(plan, WeightedClips):
        if plan.unheard:
            yield Text(f"  nothing of {', '.join(plan.unheard)} is heard, though it has a share: see above")
        yield _corpora(plan, real.mean() * max_steps, planned)
    else:
        epoch = total_sec / real.mean()
        yield Text(
            f"  an epoch has about {epoch:,.0f} steps; {max_steps:,} steps are {max_steps / epoch:.3g} epochs"
        )


def _corpora(plan: WeightedClips, total_sec: float, planned: int) -> Table:
    """Shares of the corpora in the seconds of a training, and how often their clips are heard."""
    table = Table(title="clips by corpus", title_justify="left")
    for name in ("corpus", "share wanted at first", "realised", "an epoch: hours", "epochs in all steps"):
        table.add_column(name, justify="left" if name == "corpus" else "right")
    realised, wanted = plan.planned(), plan.shares_at(0)
    for corpus in sorted(wanted):
        share, epoch = realised[f"share/{corpus}"], max(1.0, plan.epoch_sec(corpus, LOOKED_AT))
        cells = (f"{wanted[corpus]:.1%}", f"{share:.1%}", f"{epoch / 3600:,.2f}")
        table.add_row(corpus, *cells, f"{total_sec * share / epoch:.3g}")
    return table


def _documents(
    source: DocumentSteps | TextSteps | PairSteps, max_steps: int, num_parts: int, planned: int
) -> Iterator[Any]:
    plan = source.plan
    steps = [plan[step] for step in range(planned)]
    tokens, documents = Counter[str](), Counter[str]()
    seconds: defaultdict[str, float] = defaultdict(float)
    for document in (document for step in steps for document in step):
        tokens[document.kind] += document.num_tokens
        documents[document.kind] += 1
        seconds[document.kind] += seconds_of(source, document)
    wanted, total = plan.shares_at(0), sum(tokens.values())
    table = Table(title=f"documents by kind, {planned} steps planned", title_justify="left")
    for name in (
        "kind",
        "share wanted",
        "realised",
        "an epoch: documents",
        "positions",
        "hours",
        "epochs in all steps",
    ):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in plan.kinds:
        number, positions = plan.epoch_size(kind, LOOKED_AT)
        share = tokens[kind] / total
        epochs = max_steps * plan.tokens_per_step * share / max(1.0, positions)
        spoken = number * seconds[kind] / max(1, documents[kind]) / 3600
        cells = (f"{wanted[kind]:.1%}", f"{share:.1%}", f"{number:,}", f"{positions:,.0f}", f"{spoken:,.2f}")
        table.add_row(kind, *cells, f"{epochs:.3g}")
    yield table
    yield Text("lengths of documents")
    lengths = [document.num_tokens for step in steps for document in step]
    yield histogram(lengths, "positions", (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192))
    filled = [sum(document.num_tokens for document in step) for step in steps]
    parts = [sum(d.num_tokens for d in part) for step in steps for part in deal_all(step, num_parts)]
    left_out = {name: round(n) for name, n in plan.planned().items() if name.startswith("too_long/")}
    yield Text(
        f"steps: {np.mean(filled):,.0f} positions of {plan.tokens_per_step:,}; "
        f"{1 - np.mean(filled) / plan.tokens_per_step:.2%} are unused\n"
        f"  largest batch of one of {num_parts} parts: {max(parts):,} positions; no padding\n"
        f"  longer than {plan.longest:,} positions, left out: {left_out or 'none'}"
    )
    if isinstance(source, DocumentSteps):
        yield from _held_out(source.reader)


def _held_out(reader: ShardReader) -> Iterator[Text]:
    if told := held_out_line(count_held_out(reader, range(len(reader)))):
        yield Text(f"  {told} of a folder that was joined")


def seconds_of(source: DocumentSteps | TextSteps | PairSteps, document: PlannedDocument) -> float:
    """Seconds of speech of the clips of a document."""
    if isinstance(source, TextSteps) or document.kind == "text":
        return 0.0
    return float(_seconds(source.reader, np.array(document.item_ids)).sum())


def _shown_clips(source: WaveSteps, show: int) -> Iterator[Any]:
    items = [item for step in range(show) for item in source.plan[step][:1]][:show]
    if items:
        yield LEGEND
    for step, item in enumerate(items):
        facts = source.reader.entries[item].facts
        kind = source.kind_of(step, item)
        answer = facts.get(WRITTEN[kind], "")
        yield Sample(
            [
                (f"{source.reader.entries[item].key} [{kind}] ", MARK),
                (written_prompt(kind, facts["language"]), GIVEN),
                (f"<{float(source.lengths[np.array([item])][0]):.1f} s of audio>", MARK),
                (str(answer), LEARNED),
            ]
        )


def _shown_documents(source: DocumentSteps | TextSteps | PairSteps, show: int) -> Iterator[Any]:
    if not show:
        return
    yield LEGEND
    seen: set[str] = set()
    first: list[Any] = []
    more: list[Any] = []  # one of each kind comes before a second of any
    for document in source.plan[0]:
        (more if document.kind in seen else first).append(document)
        seen.add(document.kind)
    for document in [*first, *more][:show]:
        for composed in (
            source.documents(document) if isinstance(source, PairSteps) else [source.document(document)]
        ):
            sample = Sample([(f"{composed.key} [{document.kind}] ", MARK)])
            for piece, learned in pieces_of(composed, source.token_space, source.decode):
                special = piece.startswith("<") and piece.endswith(">")
                sample.append((_shortened(piece), LEARNED if learned else MARK if special else GIVEN))
            yield sample


def _shortened(text: str) -> str:
    left_out = len(text) - SHOWN
    return text if left_out <= 0 else f"{text[: SHOWN // 2]} [{left_out} more] {text[-SHOWN // 2 :]}"


def _chunks(num_items: int) -> Iterator[np.ndarray]:
    for start in range(0, num_items, CHUNK):
        yield np.arange(start, min(start + CHUNK, num_items))


def _seconds(reader: ShardReader, items: np.ndarray) -> np.ndarray:
    """Duration of clips, of audio or of codes."""
    if "num_frames" in reader.listing.kinds:
        return np.asarray(reader.column("num_frames")[items] / float(reader.fingerprint["code_rate_hz"]))
    return np.asarray(reader.column("num_samples")[items] / reader.column("sample_rate_hz")[items])
