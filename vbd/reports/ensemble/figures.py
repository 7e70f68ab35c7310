"""The figures of the report on an ensemble."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vbd.ensemble.choose.diversity import Diversity
from vbd.ensemble.normal.gates import Gate, Kind, Worth
from vbd.ensemble.scores.reliability import Reliability
from vbd.evaluation.intervals import Interval, Intervals
from vbd.labels import NO_FINDING_NAME
from vbd.reports.ensemble.measure import Bins
from vbd.reports.page import COLOURS, DASHES, MARKERS, Plot, figure, label, matrix
from vbd.reports.scores.figures import error_bars

_GREY = "#8a939e"
_AXES = {
    "damp": "exponent a of score x (1 - p)^a",
    "replace": "p from which boxes go",
    "quota": "share of images whose boxes go",
}
_COLUMNS = 3  # panels beside each other


def scores_by_class(intervals: Mapping[str, Intervals]) -> Plot:
    """Average precision of each class that a model has an opinion of; the last model on top of the others."""
    import plotly.graph_objects as go

    known = [
        name
        for name in next(iter(intervals.values())).per_class
        if not all(math.isnan(each.per_class[name].estimate) for each in intervals.values())
    ]
    traces = []
    for place, (model, each) in enumerate(intervals.items()):
        items = [each.per_class[name] if _is_told(each, name) else _UNKNOWN for name in known]
        offset = 0.6 * (place - (len(intervals) - 1) / 2) / max(1, len(intervals))
        values = [item.estimate for item in items]
        traces.append(
            go.Scatter(
                x=values,
                y=[i - offset for i in range(len(known))],
                mode="markers",
                name=label(model),
                marker={
                    "color": COLOURS[place % len(COLOURS)],
                    "symbol": MARKERS[place % len(MARKERS)],
                    "size": 9,
                },
                error_x=error_bars(values, [(item.low, item.high) for item in items]),
                hovertext=[
                    f"{name}, {label(model)}: {_spanned(item)}" for name, item in zip(known, items, strict=True)
                ],
                hoverinfo="text",
            )
        )
    plot = figure(
        *traces,
        height=160 + (22 + 12 * len(intervals)) * max(1, len(known)),
        xaxis={"title": "average precision at IoU > 0.4", "range": [0, 1.02]},
        yaxis={
            "tickvals": list(range(len(known))),
            "ticktext": known,
            "range": [len(known) - 0.4, -0.6],
            "automargin": True,
            "zeroline": False,
        },
        legend=_LEGEND,
        showlegend=True,
    )
    return Plot(plot, "Average precision of each class with 95 % bootstrap intervals over images.")


def _is_told(intervals: Intervals, name: str) -> bool:
    """Detectors alone say nothing of normal images: all of their replicates are 0."""
    return name != NO_FINDING_NAME or intervals.per_class[name].estimate > 0


_UNKNOWN = Interval(math.nan, math.nan, math.nan)
_LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}


def _spanned(item: Interval) -> str:
    return f"{item.estimate:.4f} ({item.low:.4f} to {item.high:.4f})"


def reliability_diagrams(before: Mapping[str, Reliability], after: Mapping[str, Reliability]) -> Plot:
    """Of each model the share of true boxes at each score, raw and calibrated."""
    import plotly.graph_objects as go

    plot = _panels([label(name) for name in after], height=330)
    for place, (name, each) in enumerate(after.items()):
        at = _at(place)
        plot.add_trace(
            go.Scatter(
                x=[0, 1], y=[0, 1], mode="lines", line={"color": _GREY, "width": 1}, hoverinfo="skip", showlegend=False
            ),
            **at,
        )
        drawn = {"raw": before[name], "calibrated": each} if name in before else {"calibrated": each}
        for kind, values in drawn.items():
            is_raw = kind == "raw"
            plot.add_trace(
                go.Scatter(
                    x=_known(values.mean_scores, values.counts),
                    y=_known(values.hit_shares, values.counts),
                    mode="lines+markers",
                    name=kind,
                    legendgroup=kind,
                    showlegend=place == 0,
                    line={"color": COLOURS[1 if is_raw else 0], "dash": DASHES[1 if is_raw else 0]},
                    marker={"symbol": MARKERS[1 if is_raw else 0], "size": 8},
                    hovertext=[
                        f"{kind}: score {score:.2f}, {share:.0%} true, {count:,} boxes"
                        for score, share, count in zip(
                            values.mean_scores, values.hit_shares, values.counts, strict=True
                        )
                        if count
                    ],
                    hoverinfo="text",
                ),
                **at,
            )
    plot.update_xaxes(range=[-0.02, 1.02], title_text="mean score of a bin", title_standoff=4)
    plot.update_yaxes(range=[-0.04, 1.04])
    plot.update_layout(yaxis_title="share that is true", legend=_LEGEND | {"y": 1.12})
    return Plot(
        plot,
        "Boxes in bins by score, and how many of them are true: scores that keep their word lie on the grey line. Calibrated "
        "scores are told by a fit without the image.",
    )


def _known(values: Sequence[float], counts: Sequence[int]) -> list[float]:
    return [value for value, count in zip(values, counts, strict=True) if count]


def _panels(titles: Sequence[str], *, height: int, shared: bool = True):  # type: ignore[no-untyped-def]  # plotly is imported here only
    from plotly.subplots import make_subplots

    columns = min(_COLUMNS, max(1, len(titles)))
    rows = -(-len(titles) // columns)
    panels = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        shared_yaxes=shared,
        horizontal_spacing=0.06,
        vertical_spacing=0.28 / rows,
    )
    common = figure(height=height * rows + 60).layout
    panels.update_layout(template=common.template, height=common.height, font=common.font, colorway=COLOURS)
    panels.update_layout(margin={"l": 70, "r": 30, "t": 90, "b": 60})
    panels.update_annotations(font_size=13)
    return panels


def _at(place: int) -> dict[str, int]:
    return {"row": place // _COLUMNS + 1, "col": place % _COLUMNS + 1}


def normal_reliability(bins: Bins) -> Plot:
    """P(no finding) against the share of normal images."""
    import plotly.graph_objects as go

    known = bins.counts > 0
    line = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": _GREY, "width": 1}, hoverinfo="skip")
    dots = go.Scatter(
        x=bins.mean_p[known].tolist(),
        y=bins.shares[known].tolist(),
        mode="lines+markers",
        marker={"size": 9, "color": COLOURS[0]},
        hovertext=[
            f"P {p:.2f}: {share:.0%} normal of {count:,} images"
            for p, share, count in zip(bins.mean_p[known], bins.shares[known], bins.counts[known], strict=True)
        ],
        hoverinfo="text",
    )
    plot = figure(
        line,
        dots,
        height=380,
        xaxis={"title": "P(no finding)", "range": [-0.02, 1.02]},
        yaxis={"title": "share of normal images", "range": [-0.04, 1.04]},
        showlegend=False,
    )
    return Plot(
        plot, "Images in bins by P(no finding), and how many of them are normal; each told by a fit without it."
    )


def diversity_map(found: Diversity) -> Plot:
    """What each pair of detectors found; what each found on the diagonal."""
    names = list(found.found)
    both = {(pair.first, pair.second): pair for pair in found.pairs}
    shares = np.full((len(names), len(names)), np.nan)
    hovers = [[""] * len(names) for _ in names]
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if i == j:
                shares[i, j] = found.found[first]
                hovers[i][j] = f"{label(first)} found {shares[i, j]:.1%}"
                continue
            pair = both.get((first, second)) or both[second, first]
            shares[i, j] = pair.both
            alone = pair.first_only if pair.first == first else pair.second_only
            hovers[i][j] = (
                f"{label(first)} and {label(second)}: both {pair.both:.1%}, {label(first)} alone {alone:.1%}, neither "
                f"{pair.neither:.1%}, rank correlation of scores {pair.score_correlation:.2f}"
            )
    texts = [["-" if math.isnan(value) else f"{value:.0%}" for value in row] for row in shares]
    labels = [label(name) for name in names]
    plot = matrix(shares, labels, labels, texts=texts, hovers=hovers)
    plot.update_layout(width=260 + 90 * len(names))
    return Plot(
        plot,
        f"Share of the {found.num_findings:,} findings that both found, at {found.false_per_image:g} false box per image "
        "each; on the diagonal what one found. Fusing gains where two rows differ.",
    )


def gate_curves(worths: Mapping[Kind, Worth]) -> Plot:
    """map_40 against the parameter of each gate."""
    import plotly.graph_objects as go

    kinds = [kind for kind in worths if kind != "append"]
    plot = _panels([str(kind) for kind in kinds], height=330)
    lines = {"all images, out of fold": (0, "known_scores"), "fixed, mean over unseen parts": (1, "unseen_scores")}
    for place, kind in enumerate(kinds):
        worth = worths[kind]
        for name, (style, scores) in lines.items():
            plot.add_trace(
                go.Scatter(
                    x=list(worth.grid),
                    y=list(getattr(worth, scores)),
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=place == 0,
                    line={"color": COLOURS[style], "dash": DASHES[style]},
                    marker={"symbol": MARKERS[style], "size": 7},
                    hovertemplate="%{x:g}: map_40 %{y:.4f}<extra></extra>",
                ),
                **_at(place),
            )
        plot.add_vline(x=worth.parameter, line={"color": _GREY, "dash": "dot"}, **_at(place))
        # Strict gates on the right, as those that damp more are.
        span = [min(worth.grid), max(worth.grid)]
        margin = 0.04 * (span[1] - span[0])
        turned = (
            [span[1] + margin, span[0] - margin]
            if Gate(kind).kind == "replace"
            else [span[0] - margin, span[1] + margin]
        )
        plot.update_xaxes(title_text=_AXES[kind], range=turned, title_standoff=4, **_at(place))
    plot.update_layout(yaxis_title="map_40", legend=_LEGEND | {"y": 1.12})
    return Plot(
        plot,
        "Score against the parameter of each gate, which is milder to the left; the dotted line is the parameter that is best "
        "on all images. The gate's worth in the table is that of a parameter tuned without the images that it is scored on.",
    )
