"""The losses of all batches as a histogram for each epoch, as numbers and as a figure.

Source: gangasingh7058/Learned-Attention, its figures of every epoch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from svf_rl.evaluate.figures import COLOURS, png
from svf_rl.studies.training import History

BINS = 20


def histograms(history: History) -> list[dict[str, Any]]:
    """For each epoch how many batches had a loss within each of BINS ranges, the same for all epochs."""
    epochs = np.split(np.array(history.losses), len(history.valid))
    edges = np.histogram_bin_edges(history.losses, BINS)
    return [
        {"epoch": epoch, "from": float(low), "to": float(high), "batches": int(count)}
        for epoch, losses in enumerate(epochs, 1)
        for low, high, count in zip(edges, edges[1:], np.histogram(losses, edges)[0], strict=False)
    ]


def draw(rows: Sequence[Mapping[str, Any]], history: History) -> bytes:
    """The histograms, one below the other, with each epoch's mean as a line."""
    plot = Plot(figsize=(6, 1 + 1.4 * len(history.valid)), layout="constrained")
    epochs = np.split(np.array(history.losses), len(history.valid))
    for epoch, axes in enumerate(plot.subplots(len(epochs), 1, sharex=True, squeeze=False)[:, 0], 1):
        own = [row for row in rows if row["epoch"] == epoch]
        widths = [row["to"] - row["from"] for row in own]
        axes.bar([row["from"] for row in own], [row["batches"] for row in own], widths, align="edge", color=COLOURS[0])
        axes.axvline(float(epochs[epoch - 1].mean()), color=COLOURS[1])
        axes.set_ylabel(f"epoch {epoch}: batches")
    axes.set_xlabel("loss of a batch, nats per token")
    return png(plot)
