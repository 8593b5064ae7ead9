"""Pictures of an evaluation, each as PNG bytes."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stream.evaluation.metrics import BINS, Array, Reliability
from stream.evaluation.streams import HeadStream

MOST_LABELS = 40  # of a picture; the commonest ones
WRITTEN_LABELS = 20  # up to so many, numbers are written into the squares
ROW_S, MOST_ROWS = 60.0, 20  # of a timeline
TRUTH, RIGHT, WRONG = "#4c72b0", "#55a868", "#c44e52"


def confusion(labels: Sequence[str], counts_KK: Array) -> bytes:
    """Truth by answer, rows as shares; the commonest labels where there are many."""
    counts_KK = np.asarray(counts_KK)
    seen_K = counts_KK.sum(axis=1) + counts_KK.sum(axis=0)
    keep = np.sort(np.argsort(-seen_K, kind="stable")[:min(MOST_LABELS, int((seen_K > 0).sum()))])
    table = counts_KK[np.ix_(keep, keep)]
    shares = table / np.maximum(counts_KK[keep].sum(axis=1, keepdims=True), 1)
    names = [labels[k] for k in keep]
    side = 2.0 + 0.34 * len(keep)
    figure, (axes,) = _subplots(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(keep)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(keep)), names)
    axes.set(xlabel="answer", ylabel="truth")
    if len(keep) <= WRITTEN_LABELS:
        for i, j in np.argwhere(table):
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=8,
                      color="white" if shares[i, j] > 0.6 else "black")
    return _png(figure)


def bars(values: Mapping[str, float], what: str) -> bytes:
    """A bar for each label, the worst on top; the worst ones where there are many."""
    worst = dict(sorted(values.items(), key=lambda pair: pair[1])[:MOST_LABELS][::-1])
    figure, (axes,) = _subplots(5.0, 1.2 + 0.26 * len(worst))
    axes.bar_label(axes.barh(list(worst), list(worst.values()), color=TRUTH), fmt="%.2f", padding=2, fontsize=8)
    axes.set(xlim=(0, 1.12), xlabel=what)
    return _png(figure)


def reliability(curves: Mapping[str, Reliability]) -> bytes:
    """Accuracy against confidence for each curve, with the number of clips in each bin."""
    figure, columns = _subplots(3.8 * len(curves), 3.8, len(curves))
    middles = (np.arange(BINS) + 0.5) / BINS
    for axes, (name, curve) in zip(columns, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        axes.bar(middles, np.nan_to_num(curve.accuracy), width=0.9 / BINS, color=TRUTH)
        axes.plot(curve.confidence, curve.accuracy, "o", color=WRONG, markersize=3)
        for middle, count in zip(middles, curve.counts, strict=True):
            if count:
                axes.text(middle, 1.03, str(count), ha="center", fontsize=6)
        axes.set_title(f"{name}: ECE {curve.ece:.3f}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1.1), xlabel="confidence", ylabel="accuracy")
    return _png(figure)


def timeline(stream: HeadStream) -> bytes:
    """Truth above, events below: right ones green, wrong ones red. The first rows where the stream is long."""
    right = {j for _, j in stream.pairs}
    stretches = ([(one, 0.55, TRUTH) for one in stream.truths]
                 + [(one, 0.1, RIGHT if j in right else WRONG) for j, one in enumerate(stream.events)])
    end = max([stream.seconds, *(one.ended_at for one, _, _ in stretches)])
    rows = max(1, min(MOST_ROWS, int(np.ceil(end / ROW_S))))
    figure, (axes,) = _subplots(11.0, 0.9 + 0.55 * rows)
    for one, height, colour in stretches:
        for row in range(int(one.started_at // ROW_S), min(rows - 1, int(one.ended_at // ROW_S)) + 1):
            first, last = max(one.started_at - row * ROW_S, 0.0), min(one.ended_at - row * ROW_S, ROW_S)
            axes.broken_barh([(first, last - first)], (row + 0.9 - height - 0.35, 0.35), color=colour, alpha=0.5)
            if first > 0 or row == one.started_at // ROW_S:
                axes.text(first + 0.1, row + 0.9 - height - 0.17, one.label[:10], fontsize=6, va="center", clip_on=True)
    axes.set_yticks([row + 0.45 for row in range(rows)], [f"{row * ROW_S / 60:g} min" for row in range(rows)])
    axes.set(xlim=(0, ROW_S), ylim=(rows, -0.1), xlabel="seconds")
    return _png(figure)


def delays(stream: HeadStream) -> bytes:
    """How long after the true start an event was reported, and after the true end that it was closed."""
    figure, (axes,) = _subplots(6.0, 3.0)
    edges = np.histogram_bin_edges(stream.start_delays_s + stream.delays_s, bins=30)
    for name, part, colour in (("start", stream.start_delays_s, TRUTH), ("end", stream.delays_s, RIGHT)):
        axes.hist(part, bins=list(edges), alpha=0.7, label=f"after the true {name}", color=colour)
    axes.set(xlabel="delay in seconds", ylabel="events")
    axes.legend(fontsize=8)
    return _png(figure)


def _subplots(wide: float, high: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(wide, high), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _png(figure: Figure) -> bytes:
    raw = BytesIO()
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    figure.savefig(raw, format="png", dpi=110, metadata={"Software": None})  # the same bytes with any version
    return raw.getvalue()
