"""The figures of the report on predictions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vbd import storage
from vbd.evaluation.average_precision import Scores
from vbd.evaluation.confusion import Confusion
from vbd.evaluation.intervals import Interval
from vbd.labels import NO_FINDING_NAME
from vbd.reports.page import COLOURS, MARKERS, Plot, figure, matrix
from vbd.reports.scores.measure import Comparison, Measures, findings_of, named_differences, verdict

_VERDICT_COLOURS = {"better": COLOURS[2], "worse": COLOURS[1], "cannot tell": "#8a939e"}
_VERDICT_MARKERS = {"better": MARKERS[3], "worse": MARKERS[1], "cannot tell": MARKERS[0]}


def class_bars(measures: Measures) -> Plot:
    """Average precision of each class that has something to be found, best on top."""
    import plotly.graph_objects as go

    scores = measures.scores
    known = sorted((value, name) for name, value in scores.per_class.items() if not math.isnan(value))
    names, values = [name for _, name in known], [value for value, _ in known]
    bars = go.Bar(
        y=names,
        x=values,
        orientation="h",
        marker={"color": ["#8a939e" if name == NO_FINDING_NAME else COLOURS[5] for name in names]},
        error_x=error_bars(values, [measures.intervals.get(name) for name in names]),
        hovertext=[
            f"{name}: AP {value:.4f}, {scores.num_truths[name]:,} to find, {scores.num_detections[name]:,} predicted"
            for value, name in known
        ],
        hoverinfo="text",
        showlegend=False,
    )
    counts = [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": name,
            "text": f"n = {scores.num_truths[name]:,}",
            "showarrow": False,
            "font": {"size": 11, "color": "#454b54"},
        }
        for name in names
    ]
    plot = figure(
        bars,
        height=120 + 28 * max(1, len(names)),
        annotations=counts,
        margin={"l": 70, "r": 90, "t": 20, "b": 60},
        xaxis={"title": "average precision at IoU > 0.4", "range": [0, 1.02]},
        yaxis={"automargin": True, "type": "category"},
    )
    lines = " with 95 % bootstrap intervals over images" if measures.intervals else ""
    caption = f"Average precision of each class{lines}; n is how many there are to find. Grey: the whole-image class."
    return Plot(plot, caption)


def headlines(values: dict[str, float], intervals: dict[str, tuple[float, float]]) -> Plot:
    """The main scores as points on one line each."""
    import plotly.graph_objects as go

    names = list(reversed(values))
    numbers = [values[name] for name in names]
    dots = go.Scatter(
        x=numbers,
        y=names,
        mode="markers+text",
        text=[f"<b>{number:.3f}</b>" for number in numbers],
        textposition="top center",
        textfont={"size": 15},
        marker={"color": COLOURS[0], "size": 13},
        error_x=error_bars(numbers, [intervals.get(name) for name in names], thickness=3),
        hovertext=[f"{name}: {number:.4f}" for name, number in zip(names, numbers, strict=True)],
        hoverinfo="text",
        showlegend=False,
    )
    plot = figure(
        dots,
        height=90 + 46 * len(names),
        xaxis={"range": [0, 1.02], "zeroline": False},
        yaxis={"automargin": True, "type": "category", "range": [-0.6, len(names) - 0.3]},
        margin={"l": 70, "r": 30, "t": 10, "b": 40},
    )
    bars = "; bars are 95 % bootstrap intervals over images" if intervals else ""
    return Plot(plot, f"The main scores, from 0 to 1{bars}.")


def differences(comparison: Comparison) -> Plot:
    """How much better than other predictions: headlines on top, then the classes."""
    import plotly.graph_objects as go

    items = named_differences(comparison)
    traces = []
    for kind, colour in _VERDICT_COLOURS.items():
        chosen = {name: item for name, item in items.items() if verdict(item) == kind}
        values = [item.estimate for item in chosen.values()]
        traces.append(
            go.Scatter(
                x=values,
                y=list(chosen),
                mode="markers",
                marker={"color": colour, "size": 11, "symbol": _VERDICT_MARKERS[kind]},
                error_x=error_bars(values, [_pair(item) for item in chosen.values()]),
                name=kind,
                hovertext=[
                    f"{name}: {item.estimate:+.4f} ({item.low:+.4f} to {item.high:+.4f}), {kind}"
                    for name, item in chosen.items()
                ],
                hoverinfo="text",
            )
        )
    plot = figure(
        *[trace for trace in traces if trace.x],
        height=140 + 26 * len(items),
        xaxis={
            "title": "difference in average precision",
            "zeroline": True,
            "zerolinewidth": 2,
            "zerolinecolor": "#6b7480",
        },
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": list(reversed(items)),
            "automargin": True,
        },
        showlegend=True,
    )
    return Plot(
        plot,
        f"These predictions minus {storage.shown(comparison.other)}; an interval that holds 0 does not tell which is better.",
    )


def subset_bars(subsets: dict[str, tuple[Scores, tuple[float, float]]]) -> Plot:
    """`map_40_findings` on parts of the truth, with its interval where there is one."""
    import plotly.graph_objects as go

    known = {name: pair for name, pair in subsets.items() if not math.isnan(pair[0].map_40_findings)}
    values = [scores.map_40_findings for scores, _ in known.values()]
    spans = [span for _, span in known.values()]
    bars = go.Bar(
        x=list(known),
        y=values,
        marker={"color": [COLOURS[4] if name.endswith("size") else COLOURS[5] for name in known]},
        error_y=error_bars(values, spans),
        hoverinfo="x+y",
        width=0.6,
        showlegend=False,
    )
    tops = [max(value, 0 if math.isnan(high) else high) for value, (_, high) in zip(values, spans, strict=True)]
    counts = [
        {
            "x": name,
            "y": top,
            "yshift": 20,
            "showarrow": False,
            "text": f"<b>{value:.3f}</b><br>n = {findings_of(pair[0]):,}",
        }
        for (name, pair), value, top in zip(known.items(), values, tops, strict=True)
    ]
    plot = figure(
        bars,
        height=380,
        annotations=counts,
        xaxis={"type": "category", "automargin": True},
        yaxis={"title": "map_40_findings", "range": [0, 1.2 * max([*tops, 0.05])]},
    )
    return Plot(
        plot, "map_40_findings on a part of the findings; the others are ignored: neither to be found, nor false."
    )


def confusion_map(found: Confusion) -> Plot:
    """Which class is taken for which, as shares of each row."""
    counts = found.matrix
    is_used = counts.sum(1) > 0
    is_used[-1] = True
    columns = (counts.sum(0) > 0) | is_used
    rows = [name for name, used in zip(found.rows, is_used, strict=True) if used]
    names = [name for name, used in zip(found.columns, columns, strict=True) if used]
    shown = counts[np.ix_(is_used, columns)].astype(float)
    sums = shown.sum(1, keepdims=True)
    shares = np.divide(shown, sums, out=np.full(shown.shape, np.nan), where=sums > 0)
    # Nothing is both absent and missed.
    shares[-1, -1] = np.nan
    texts = [[f"{int(count):,}" if count else "" for count in row] for row in shown]
    hovers = [
        [f"{rows[i]} → {names[j]}: {int(shown[i, j]):,} ({shares[i, j]:.0%})" for j in range(len(names))]
        for i in range(len(rows))
    ]
    plot = matrix(shares, rows, names, texts=texts, hovers=hovers)
    plot.update_xaxes(title_text="detected as", title_standoff=4)
    plot.update_yaxes(title_text="truth")
    plot.update_layout(height=plot.layout.height + 30)
    caption = (
        f"Boxes with a score of {found.score_threshold:.3g} or more by the finding that they lie on (IoU > "
        f"{found.iou_threshold:g}), whatever its class; numbers are boxes, colours shares of the row. The last column "
        "holds findings that no box took, the last row boxes that lie on nothing."
    )
    return Plot(plot, caption)


def error_bars(
    values: Sequence[float], intervals: Sequence[tuple[float, float] | None], *, thickness: float = 1.5
) -> dict[str, Any] | None:
    """Plotly's bars of some intervals around their values; None when there are none."""
    if not any(interval and not math.isnan(interval[0]) for interval in intervals):
        return None
    known = [interval or (math.nan, math.nan) for interval in intervals]
    return {
        "symmetric": False,
        # NaN draws nothing; 0 would draw the ends of a bar without length.
        "array": [high - value for value, (_, high) in zip(values, known, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, known, strict=True)],
        "thickness": thickness,
        "color": "#1a1a1a",
    }


def _pair(item: Interval) -> tuple[float, float]:
    return item.low, item.high
