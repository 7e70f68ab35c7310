"""How much augmentation is best: the arms of each family against their strength, and against each other."""

import math
from collections.abc import Sequence

from vbd.config import POLICIES
from vbd.evaluation.arms import differences
from vbd.evaluation.intervals import Interval
from vbd.evaluation.score import score_name
from vbd.reports.page import COLOURS, DASHES, MARKERS, Cell, Plot, Section, Table, figure
from vbd.reports.search.arms import Arm, Compared, Found, Study
from vbd.reports.search.study_text import listed

_PLAIN_COLOUR, _PLAIN_BAND = "#4D4D4D", "rgba(77,77,77,0.15)"
_APART = 0.012  # of strength, so that the bars of policies do not hide each other
_FROM, _TO = -0.03, 1.06  # of the axis of strength


def study_section(pairs: Sequence[tuple[Study, Found]]) -> list[Section]:
    """Curve and table of each family whose arms could be compared; no section where none could."""
    blocks: list[str | Plot | Table] = []
    for study, found in pairs:
        if isinstance(found, Compared):
            blocks += [_notes(study, found), strength_curve(study.family, found), _table(study.family, found)]
    return [Section("Which augmentation is best", [_method(), *blocks])] if blocks else []


def _method() -> str:
    return (
        "An arm is a policy at a strength; its trials differ in seed and fold alone, and all arms were trained for equal "
        "optimiser steps. Arms are compared within blocks, a seed on a fold, so that what makes a block easy for all of "
        "them does not count. An arm may be the best unless it is shown to be worse than the best mean; that the true "
        "best is wrongly left out happens at most once in twenty comparisons."
    )


def _notes(study: Study, found: Compared) -> str:
    """What the intervals cover, and what was left out."""
    notes = [f"{study.family}: {_counted(found)}", _covered(found)]
    if found.left_out:
        whole = "belong to no arm with two or more" if found.basis == "samples" else "belong to no block that is whole"
        notes.append(
            f"{found.left_out} of {sum(map(len, study.cells.values()))} finished trials are left out: they {whole}."
        )
    if found.missing:
        notes.append(f"Not compared, for too few of their trials finished: {listed([str(a) for a in found.missing])}.")
    if study.others:
        one = study.others == 1
        notes.append(
            f"{study.others} other finished trial{' is no arm: it also differs' if one else 's are no arms: they also differ'} "
            f"in {listed(study.varied)}."
        )
    return " ".join(notes)


def _counted(found: Compared) -> str:
    if found.basis == "samples":
        return f"{len(found.arms)} arms that share no seeds and folds."
    blocks = f"{len(found.blocks)} blocks" if len(found.blocks) > 1 else "1 block"
    return f"{len(found.arms)} arms in {blocks}."


def _covered(found: Compared) -> str:
    match found.basis, found.covers_images:
        case "images", _:
            return "Intervals are over redrawn images alone: what training again would give is not covered."
        case "blocks", True:
            return "Intervals cover what training again and other images would give."
        case "blocks", False:
            return (
                "Intervals cover what training again would give, but other images only as far as folds differ: the rest "
                "needs the dataset (--data) and the detections of all of these trials."
            )
    return "Each arm counts with its own spread over its trials: seeds and folds are part of the chance."


# -------------------------------------------------------------------------------------------------------------- figure


def strength_curve(family: str, found: Compared) -> Plot:
    """Mean score against strength, a line for each policy; no augmentation is a band."""
    import plotly.graph_objects as go

    own = dict(zip(found.arms, found.comparison.means, strict=True))
    policies = [policy for policy in POLICIES if policy != "A" and any(arm.policy == policy for arm in own)]
    traces = _band(next((mean for arm, mean in own.items() if arm.policy == "A"), None))
    for place, policy in enumerate(policies):
        arms = [arm for arm in found.arms if arm.policy == policy]
        style, shift = POLICIES.index(policy), (place - (len(policies) - 1) / 2) * _APART
        traces.append(
            go.Scatter(
                x=[arm.strength + shift for arm in arms],
                y=[own[arm].estimate for arm in arms],
                error_y=_bars([own[arm] for arm in arms]),
                mode="lines+markers",
                line={"color": COLOURS[style], "dash": DASHES[style], "width": 2},
                marker={"symbol": [_marker(arm, found) for arm in arms], "size": 9},
                name=policy,
                text=[_hover(arm, own[arm]) for arm in arms],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    plot = figure(
        *traces,
        height=480,
        margin={"l": 70, "r": 20, "t": 90, "b": 60},  # the legend's two rows stand clear of the buttons
        xaxis={"title": "strength", "range": [_FROM, _TO]},
        yaxis={"title": score_name([family])},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "title": {"text": "policy"}},
    )
    caption = (
        f"{family}: mean score by policy and strength, with each mean's own 95 % interval. Filled markers may be the "
        "best, open ones are shown to be worse. Arms share seeds, folds and images, so that differences are surer than "
        "the bars look; the table tells them."
    )
    return Plot(plot, caption)


def _band(plain: Interval | None) -> list[object]:
    """No augmentation, across all strengths."""
    import plotly.graph_objects as go

    if plain is None:
        return []
    band = go.Scatter(
        x=[_FROM, _TO, _TO, _FROM],
        y=[plain.low, plain.low, plain.high, plain.high],
        fill="toself",
        fillcolor=_PLAIN_BAND,
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup="A",
    )
    line = go.Scatter(
        x=[_FROM, _TO],
        y=[plain.estimate, plain.estimate],
        mode="lines",
        line={"color": _PLAIN_COLOUR, "width": 2},
        name="A (none)",
        legendgroup="A",
        text=[f"no augmentation<br>{plain.estimate:.3f} ({plain.low:.3f} to {plain.high:.3f})"] * 2,
        hovertemplate="%{text}<extra></extra>",
    )
    return [band, line]


def _bars(intervals: Sequence[Interval]) -> dict[str, object]:
    return {
        "symmetric": False,
        "array": [each.high - each.estimate for each in intervals],
        "arrayminus": [each.estimate - each.low for each in intervals],
        "thickness": 1.2,
        "width": 3,
    }


def _marker(arm: Arm, found: Compared) -> str:
    symbol = MARKERS[POLICIES.index(arm.policy)]
    return symbol if found.comparison.may_be_best[found.arms.index(arm)] else f"{symbol}-open"


def _hover(arm: Arm, own: Interval) -> str:
    return f"{arm}<br>{own.estimate:.3f} ({own.low:.3f} to {own.high:.3f})"


# --------------------------------------------------------------------------------------------------------------- table


def _table(family: str, found: Compared) -> Table:
    """The arms, best mean first, each beside no augmentation and beside the best."""
    lead = _leads(found)
    order = sorted(range(len(found.arms)), key=lambda i: -found.means[i])
    rows: list[tuple[Cell, ...]] = [
        (
            found.arms[i].short,
            span(found.comparison.means[i]),
            span(lead[i], signed=True) if i in lead else "-",
            "-" if i == found.comparison.best else span(found.comparison.behind[i]),
            "yes" if found.comparison.may_be_best[i] else "no",
        )
        for i in order
    ]
    columns = (
        "policy, strength",
        score_name([family]),
        "above no augmentation",
        "behind the best mean",
        "may be the best",
    )
    return Table(f"{family}: the arms, best mean first, with 95 % intervals", columns, rows)


def _leads(found: Compared) -> dict[int, Interval]:
    """What each arm gains on no augmentation, by its place; at 95 % for all of them at once."""
    plain = next((i for i, arm in enumerate(found.arms) if arm.policy == "A"), None)
    if plain is None:
        return {}
    others = [i for i in range(len(found.arms)) if i != plain]
    gains = differences(found.means, found.errors, [(i, plain) for i in others])
    return dict(zip(others, gains, strict=True))


def span(interval: Interval, *, signed: bool = False) -> str:
    """An estimate and its interval in a cell."""
    if math.isnan(interval.low):
        return f"{interval.estimate:.3f}"
    sign = "+" if signed else ""
    # Adding 0 makes a plain 0 of what rounds to -0.
    estimate, low, high = (
        f"{round(value, 3) + 0.0:{sign}.3f}" for value in (interval.estimate, interval.low, interval.high)
    )
    return f"{estimate} ({low} to {high})"
