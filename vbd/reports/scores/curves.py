"""The curves of the report on predictions: precision against recall, and findings against false boxes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.agreement import ReaderPoint
from vbd.evaluation.curves import PrecisionRecall
from vbd.evaluation.froc import FrocCurve
from vbd.reports.page import COLOURS, DASHES, Plot, figure, label
from vbd.reports.scores.figures import error_bars
from vbd.reports.scores.human import Human
from vbd.reports.scores.measure import Measures

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MAX_POINTS = 200  # of a line: more is not seen and makes the page heavy
_RATE_TICKS = {1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 1: "1", 2: "2", 4: "4", 8: "8"}
_LOWEST_RATE, _HIGHEST_RATE = 0.02, 16.0
_READER_COLOUR = COLOURS[1]
_MIN_NAMED = 0.1  # readers with at least this share of the boxes of the busiest are named at their points


def precision_recall(measures: Measures) -> Plot:
    """One curve for each class that has something to be found, the most frequent first."""
    import plotly.graph_objects as go

    known = {name: curve for name, curve in measures.curves.items() if curve.num_truths}
    names = sorted(known, key=lambda name: -known[name].num_truths)
    lines = []
    for place, name in enumerate(names):
        recall, envelope, scores = _thinned(known[name])
        ap = measures.scores.per_class[name]
        lines.append(
            go.Scatter(
                x=recall,
                y=envelope,
                mode="lines",
                line=_line(place) | {"shape": "vh"},  # so that the area is the average precision
                name=f"{name} ({ap:.2f})",
                customdata=scores,
                hovertemplate=f"{name}<br>recall %{{x:.3f}}, precision %{{y:.3f}}<br>score %{{customdata:.4f}} or more"
                "<extra></extra>",
            )
        )
    plot = figure(
        *lines,
        height=520,
        xaxis={"title": "recall", "range": [0, 1.01]},
        yaxis={"title": "precision at this recall or above", "range": [0, 1.03]},
        legend={"title": {"text": "class (AP)"}},
        showlegend=True,
    )
    caption = (
        "Precision against recall at IoU > 0.4; the area under a curve is the class's average precision. A click on a "
        "name hides its curve, a double click shows it alone; the pointer tells the score threshold of a point."
    )
    return Plot(plot, caption)


def froc_pooled(measures: Measures) -> Plot:
    """Sensitivity over all findings against false boxes per image, with the operating points."""
    import plotly.graph_objects as go

    curve = measures.froc.pooled
    known = [
        (rate, found, score)
        for rate, found, score in zip(
            curve.false_positives_per_image, curve.sensitivities, curve.score_thresholds, strict=True
        )
        # Beyond the last false box nothing happens any more.
        if not math.isnan(score) and not math.isnan(found) and rate <= max(curve.curve_false_positives_per_image)
    ]
    line = _detector_line(curve)
    spans = dict(zip(curve.false_positives_per_image, measures.froc_intervals, strict=False))
    points = go.Scatter(
        x=[rate for rate, _, _ in known],
        y=[found for _, found, _ in known],
        mode="markers+text",
        marker={"color": COLOURS[0], "size": 9},
        text=[f"{score:.3g}" for _, _, score in known],
        textposition="top left",
        textfont={"size": 11, "color": COLOURS[0]},
        error_y=error_bars(
            [found for _, found, _ in known],
            [(spans[rate].low, spans[rate].high) if rate in spans else None for rate, _, _ in known],
        ),
        name="operating points (score threshold)",
        hoverinfo="skip",
    )
    bars = " Bars are 95 % bootstrap intervals over images." if measures.froc_intervals else ""
    caption = (
        "Findings found against false boxes per image, all classes at one score threshold, which stands at each "
        f"operating point.{bars}"
    )
    return Plot(_froc_figure([line, points], height=480), caption)


def froc_by_class(measures: Measures) -> Plot:
    """The same, each class by itself."""
    import plotly.graph_objects as go

    per_class = measures.froc.per_class
    names = sorted((name for name in per_class if per_class[name].num_truths), key=lambda n: -per_class[n].num_truths)
    lines = []
    for place, name in enumerate(names):
        rates, sensitivities, scores = _froc_line(per_class[name])
        lines.append(
            go.Scatter(
                x=rates,
                y=sensitivities,
                mode="lines",
                line=_line(place) | {"shape": "hv"},
                name=f"{name} ({per_class[name].num_truths:,})",
                customdata=scores,
                hovertemplate=f"{name}<br>%{{x:.3f}} false boxes per image, sensitivity %{{y:.3f}}<br>"
                "score %{customdata:.4f} or more<extra></extra>",
            )
        )
    plot = _froc_figure(lines, height=520)
    plot.update_layout(legend={"title": {"text": "class (to find)"}})
    return Plot(plot, "Each class by itself: false boxes of that class per image. Numbers are findings to be found.")


def froc_beside_readers(human: Human) -> Plot:
    """The detector's curve on what the readers are held against, and where the readers stand."""
    import plotly.graph_objects as go

    line = _detector_line(human.detector.pooled, who="detector: ")
    readers = [point for point in human.reference.readers if not math.isnan(point.sensitivity)]
    pooled = [human.reference.pooled] if not math.isnan(human.reference.pooled.sensitivity) else []
    most = max((point.reference_boxes for point in readers), default=0)
    traces = [line]
    for name, points, symbol, size in (("a reader", readers, "diamond", 9), ("all readers", pooled, "star", 18)):
        traces.append(
            go.Scatter(
                x=[max(point.false_positives_per_image, _LOWEST_RATE) for point in points],
                y=[point.sensitivity for point in points],
                mode="markers+text" if name == "a reader" else "markers",
                # Points of readers of a few images lie on each other.
                text=[label(p.rad_id) if p.reference_boxes >= _MIN_NAMED * most else "" for p in points],
                textposition="bottom center",
                textfont={"size": 11, "color": _READER_COLOUR},
                marker={"color": _READER_COLOUR, "symbol": symbol, "size": size, "line": {"color": "#fff", "width": 1}},
                name=name,
                hovertext=[_told(point, name) for point in points],
                hoverinfo="text",
            )
        )
    caption = (
        "Each reader's boxes against the fused boxes of the other readers of the same images, and the detector against "
        "these same boxes: a curve above the star finds more than the readers find of each other at as many false boxes."
    )
    return Plot(_froc_figure(traces, height=480), caption)


def _told(point: ReaderPoint, name: str) -> str:
    who = label(point.rad_id) if name == "a reader" else "all readers"
    return (
        f"{who}: {point.false_positives_per_image:.3f} false boxes per image, sensitivity {point.sensitivity:.3f}, "
        f"{point.boxes:,} boxes on {point.images:,} images"
    )


def _froc_figure(traces: Sequence["go.Scatter"], *, height: int) -> "go.Figure":
    return figure(
        *(trace for trace in traces if trace.x),
        height=height,
        xaxis={
            "title": "false boxes per image",
            "type": "log",
            "range": [math.log10(_LOWEST_RATE * 0.85), math.log10(_HIGHEST_RATE)],
            "tickvals": [_LOWEST_RATE, *_RATE_TICKS],
            "ticktext": [f"≤ {_LOWEST_RATE:g}", *_RATE_TICKS.values()],
        },
        yaxis={"title": "sensitivity", "range": [0, 1.03]},
        showlegend=True,
    )


def _detector_line(curve: FrocCurve, *, who: str = "") -> "go.Scatter":
    """The detector's FROC curve; `who` begins what the pointer shows."""
    import plotly.graph_objects as go

    rates, sensitivities, scores = _froc_line(curve)
    return go.Scatter(
        x=rates,
        y=sensitivities,
        mode="lines",
        line={"color": COLOURS[0], "width": 3, "shape": "hv"},
        name="detector",
        customdata=scores,
        hovertemplate=who
        + "%{x:.3f} false boxes per image, sensitivity %{y:.3f}<br>score %{customdata:.4f} or more<extra></extra>",
    )


def _froc_line(curve: FrocCurve) -> tuple[list[float], list[float], list[float]]:
    """Points of a curve that a logarithmic axis can show; all that lies before it stands at its left edge."""
    rates, sensitivities = curve.curve_false_positives_per_image, curve.curve_sensitivities
    before = np.flatnonzero(rates <= _LOWEST_RATE)[-1:]
    rows = np.concatenate([before, _some(np.flatnonzero((rates > _LOWEST_RATE) & (rates <= _HIGHEST_RATE)))])
    x = np.maximum(rates[rows], _LOWEST_RATE)
    return x.round(5).tolist(), sensitivities[rows].round(5).tolist(), curve.curve_scores[rows].round(6).tolist()


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most _MAX_POINTS of some rows, denser at the start, the last one always: even steps of their logarithm."""
    if len(rows) <= _MAX_POINTS:
        return rows
    places = np.unique(np.geomspace(1, len(rows), _MAX_POINTS).round().astype(np.int64)) - 1
    return rows[places]


def _thinned(curve: PrecisionRecall) -> tuple[list[float], list[float], list[float]]:
    """The corners of an envelope, from recall 0 on."""
    if not len(curve.recall):
        return [0.0], [0.0], [1.0]
    # Only a true positive moves the recall; between two the envelope has one corner at most.
    rows = np.flatnonzero(np.diff(curve.recall, prepend=0) > 0)
    if not len(rows):
        return [0.0], [0.0], [float(curve.scores[0])]
    if len(rows) > _MAX_POINTS:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_POINTS).round().astype(np.int64))]
    recall = [0.0, *curve.recall[rows].round(5).tolist()]
    envelope, scores = curve.envelope[rows].round(5).tolist(), curve.scores[rows].round(6).tolist()
    return recall, [envelope[0], *envelope], [scores[0], *scores]


def _line(place: int) -> dict[str, object]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "dash": DASHES[(place // len(COLOURS)) % len(DASHES)],
        "width": 2,
    }
