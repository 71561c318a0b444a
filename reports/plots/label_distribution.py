"""How positives are spread: instances of each label, by rank, and labels of each instance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fanin.datasets.tools.label_counts import TAIL, LabelCounts
from fanin.reports.plots import style
from fanin.reports.plots.plot import Plot

_COLOURS = ("#0072b2", "#d55e00")


def label_distribution(name: str, splits: Mapping[str, LabelCounts]) -> Plot:
    """Of each split of the data set `name`: a line of the left panel, bars of the right one."""
    with style.drawing():
        figure = style.new_figure(3.6)
        by_label, by_instance = figure.subplots(1, 2)
        for colour, (split, counts) in zip(_COLOURS, splits.items(), strict=False):
            _draw_ranks(by_label, counts, split, colour)
            _draw_shares(by_instance, counts, split, colour)
        dotted = {"color": style.GREY, "linewidth": 0.8, "linestyle": ":"}
        by_label.axhline(TAIL + 0.5, label=f"below: tail, up to {TAIL} instances", **dotted)
        by_label.set_xlabel("label, by rank")
        by_label.set_ylabel("instances of the label")
        by_label.set_title("Instances of each label")
        by_label.legend(loc="upper right")
        by_instance.set_xlabel("labels of an instance")
        by_instance.set_ylabel("share of the instances (%)")
        by_instance.xaxis.set_major_locator(MaxNLocator(integer=True))
        by_instance.set_title("Labels of each instance")
        style.set_heading(figure, f"{name}: how the positives are spread")
        parts = (
            f"{split}: {numbers.labels:,} labels, at most {numbers.most_instances_of_a_label:,} "
            f"instances of one, {numbers.tail_labels:,} labels with 1 to {TAIL}"
            for split, numbers in ((s, counts.summary()) for s, counts in splits.items())
        )
        alt = f"Instances of each label by rank, and labels of each instance. {'; '.join(parts)}."
        return style.finish(figure, "labels", "How the positives are spread", alt)


def _draw_ranks(axes: Axes, counts: LabelCounts, split: str, colour: str) -> None:
    used = np.sort(counts.by_label[counts.by_label > 0])[::-1]
    if not len(used):
        return
    # Points at which the line changes are enough, and a picture of millions of ranks stays small.
    starts = np.flatnonzero(np.diff(used, prepend=used[0] + 1))
    kept = np.union1d(starts, [*(starts[1:] - 1), len(used) - 1])
    axes.loglog(kept + 1, used[kept], color=colour, label=split, linewidth=1.6)


def _draw_shares(axes: Axes, counts: LabelCounts, split: str, colour: str) -> None:
    total = counts.by_instance.sum()
    if not total:
        return
    # What is rarer than one in a thousand at the long end is left out.
    shares = counts.by_instance / total
    end = int(np.searchsorted(np.cumsum(shares), 0.999)) + 1
    axes.step(
        np.arange(end + 1) - 0.5,
        100 * np.append(shares[:end], 0.0),
        where="post",
        color=colour,
        label=split,
        linewidth=1.6,
    )
