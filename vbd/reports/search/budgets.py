"""Equal steps against equal epochs: what of the gain of augmentation is only that it was trained for longer.

A policy that multiplies the data has longer epochs. Compared at equal epochs, as is often done, it is trained for more steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vbd.evaluation.arms import differences
from vbd.evaluation.intervals import Interval
from vbd.reports.page import COLOURS, MARKERS, Cell, Plot, Section, Table, figure
from vbd.reports.search.arms import Arm, Cells, Compared, Redrawn, Study, compare_arms
from vbd.reports.search.study import span
from vbd.reports.search.study_text import interval_in_words, listed

_TITLE = "Equal steps and equal epochs"
_ROW = 46  # pixels of an arm
_APART = 0.14  # of a row


@dataclass(frozen=True)
class Pair:
    """One arm at equal steps and at equal epochs."""

    arm: Arm  # at equal steps
    times: float  # as many steps at equal epochs
    at_steps: Interval  # above no augmentation
    at_epochs: Interval
    by_budget: Interval  # the second minus the first: what more steps alone give


def budgets(studies: Sequence[Study], redrawn: Redrawn) -> list[Section]:
    """The arms that were trained both ways, by family; no section where there are none."""
    blocks: list[str | Plot | Table] = []
    for study in studies:
        if not study.longer or study.plain is None:
            continue
        found = compare_arms(_cells(study), redrawn)
        pairs = pairs_of(study, found) if isinstance(found, Compared) else []
        if not isinstance(found, Compared) or not pairs:
            blocks.append(f"{study.family}: too few of these trials finished on the same seeds and folds to tell.")
            continue
        blocks += [
            difference_in_words(study.family, pairs, found),
            _drawn(study.family, pairs),
            _table(study.family, pairs),
        ]
    return [Section(_TITLE, [_method(), *blocks])] if blocks else []


def _method() -> str:
    return (
        "A policy that multiplies the data has longer epochs, so that a comparison at equal epochs, as it is often made, "
        "trains it for more steps than no augmentation gets. Here the same arms stand both ways beside no augmentation. "
        "What they gain at equal steps is what augmentation does; what they gain beyond that at equal epochs is what "
        "training them for longer does."
    )


def _cells(study: Study) -> Cells:
    """No augmentation, and each arm that was trained for equal epochs, both ways."""
    assert study.plain is not None
    shorter = {_shorter(arm, study.plain): study.cells[_shorter(arm, study.plain)] for arm in study.longer}
    return {study.plain: study.cells[study.plain]} | shorter | study.longer


def _shorter(arm: Arm, plain: Arm) -> Arm:
    return replace(arm, steps=plain.steps)


def pairs_of(study: Study, found: Compared) -> list[Pair]:
    """The arms that were compared both ways, all differences at 95 % at once; none without no augmentation."""
    place = {arm: i for i, arm in enumerate(found.arms)}
    plain = study.plain
    if plain is None or plain not in place:
        return []
    both = [arm for arm in found.arms if arm in study.longer and _shorter(arm, plain) in place]
    wanted = [
        pair
        for arm in both
        for shorter in [place[_shorter(arm, plain)]]
        for pair in ((shorter, place[plain]), (place[arm], place[plain]), (place[arm], shorter))
    ]
    if not wanted:
        return []
    found_differences = differences(found.means, found.errors, wanted)
    return [
        Pair(_shorter(arm, plain), arm.steps / plain.steps, *found_differences[3 * i : 3 * i + 3])
        for i, arm in enumerate(both)
    ]


def difference_in_words(family: str, pairs: Sequence[Pair], found: Compared) -> str:
    """What comparing at equal epochs does to the answer."""
    told = [f"{pair.arm.short} {pair.at_epochs.estimate:.3f} and {pair.at_steps.estimate:.3f}" for pair in pairs]
    gains = f"The gains on no augmentation at equal epochs, and at equal steps, are {'; '.join(told)}."
    return f"{family}: {gains} {_confounded(pairs)}{_chance(found)}"


def _confounded(pairs: Sequence[Pair]) -> str:
    sure = [pair for pair in pairs if pair.by_budget.low > 0]
    if not sure:
        return "Whether the additional steps themselves change the scores cannot be told."
    gains = [f"{interval_in_words(pair.by_budget)} for {pair.arm.short} with {pair.times:.3g} times" for pair in sure]
    steps = f"The additional steps alone give {listed(gains)}: at equal epochs that is mistaken for augmentation."
    rest = "" if len(sure) == len(pairs) else " For the others it cannot be told what they give."
    only = [pair.arm.short for pair in sure if pair.at_epochs.low > 0 >= pair.at_steps.low]
    looks = f" Only at equal epochs {listed(only)} would be told to be better than no augmentation." if only else ""
    return f"{steps}{rest}{looks}"


def _chance(found: Compared) -> str:
    seed, fold = found.blocks[0]
    return (
        f" All of it on seed {seed}, fold {fold} alone, without the chance of training."
        if found.basis == "images"
        else ""
    )


def _drawn(family: str, pairs: Sequence[Pair]) -> Plot:
    """Gains over no augmentation, an arm in a row."""
    import plotly.graph_objects as go

    rows = list(range(len(pairs)))
    traces = []
    for name, side, style in (("equal steps", -1, 0), ("equal epochs", 1, 1)):
        gains = [pair.at_epochs if side > 0 else pair.at_steps for pair in pairs]
        traces.append(
            go.Scatter(
                x=[gain.estimate for gain in gains],
                y=[row + side * _APART for row in rows],
                error_x={
                    "symmetric": False,
                    "array": [gain.high - gain.estimate for gain in gains],
                    "arrayminus": [gain.estimate - gain.low for gain in gains],
                    "thickness": 1.5,
                },
                mode="markers",
                marker={"color": COLOURS[style], "symbol": MARKERS[style], "size": 10},
                name=name,
                text=[
                    f"{pair.arm}, {name}: {span(gain, signed=True)}" for pair, gain in zip(pairs, gains, strict=True)
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    ticks = [f"{pair.arm.short},<br>×{pair.times:.2g} steps" for pair in pairs]
    plot = figure(
        *traces,
        height=190 + _ROW * len(pairs),
        margin={"l": 20, "r": 20, "t": 70, "b": 60},
        xaxis={"title": "gain on no augmentation", "zerolinecolor": "#1a1a1a", "zerolinewidth": 1.5},
        yaxis={"tickvals": rows, "ticktext": ticks, "range": [len(pairs) - 0.5, -0.5], "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    caption = (
        f"{family}: what augmentation gains on no augmentation at equal optimiser steps, and at equal epochs with the "
        "steps multiplied as told. Bars are 95 % intervals, for all of these differences at once."
    )
    return Plot(plot, caption)


def _table(family: str, pairs: Sequence[Pair]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            pair.arm.short,
            span(pair.at_steps, signed=True),
            span(pair.at_epochs, signed=True),
            f"{pair.times:.3g}",
            span(pair.by_budget, signed=True),
        )
        for pair in pairs
    ]
    columns = (
        *("policy, strength", "gain at equal steps", "gain at equal epochs", "times the steps"),
        "of that by the additional steps alone",
    )
    return Table(f"{family}: gains on no augmentation, with 95 % intervals", columns, rows)
