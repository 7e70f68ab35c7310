"""The figures of a search's report: learning curves, strengths, hyperparameters, and when the trials ran."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vbd.config import POLICIES, TrainConfig
from vbd.records import Trial
from vbd.reports.page import COLOUR_SCALE, COLOURS, DASHES, MARKERS, Plot, Section, figure, label

METRIC = "map_40_findings"
# Hyperparameters in the order of the parallel coordinates.
_FIELDS = (
    "detector",
    "variant",
    "image_size",
    "policy",
    "strength",
    "normal_share",
    "learning_rate",
    "batch_size",
    "seed",
)
_AXIS_LINE = {"color": "#6b7480", "width": 1}
Intervals = dict[str, tuple[float, float]]  # low and high of a score, by trial id


def effective_strength(config: TrainConfig) -> float:
    """Policy A changes nothing, whatever number stands in its config: its strength is 0."""
    return 0.0 if config.policy == "A" else config.strength


def is_scored(trial: Trial) -> bool:
    """Whether a trial ended with a score."""
    return not math.isnan(trial.score)


def is_complete(trial: Trial) -> bool:
    """Whether a trial ran all of its steps."""
    return trial.status == "finished" and is_scored(trial)


def described(config: TrainConfig) -> str:
    """What was trained, in one line."""
    strength = "" if config.policy == "A" else f" at strength {config.strength:g}"
    policy = f"policy {config.policy}{strength}"
    return f"{config.detector} {config.variant}, {policy}, learning rate {config.learning_rate:.3g}"


def families(trials: Sequence[Trial]) -> list[str]:
    """The detector families among some trials, sorted."""
    return sorted({trial.config.detector for trial in trials})


def short(value: Any) -> str:
    """A value in few characters; "-" for none."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def curves(trials: Sequence[Trial]) -> Section:
    """Score and loss over the steps, one column for each family."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = families(trials)
    if not any(trial.history for trial in trials):
        return Section("Learning curves", ["No trial reported anything."])
    grid = make_subplots(rows=2, cols=len(columns), subplot_titles=columns, shared_xaxes=True, vertical_spacing=0.08)
    named: set[str] = set()
    for trial in trials:
        policy = trial.config.policy
        for row, name in ((1, METRIC), (2, "loss")):
            points = [item for item in trial.history if item.get(name) is not None]
            style = POLICIES.index(policy)
            line = go.Scatter(
                x=[item["step"] for item in points],
                y=[item[name] for item in points],
                mode="lines+markers",
                marker={"symbol": MARKERS[style], "size": 5},
                line={"color": COLOURS[style], "dash": DASHES[style], "width": 1.5},
                name=f"policy {policy}",
                legendgroup=policy,
                legendrank=style,
                showlegend=policy not in named,
                hovertext=f"{label(trial.trial_id)}: {label(described(trial.config))}",
            )
            named.add(policy)
            grid.add_trace(line, row=row, col=columns.index(trial.config.detector) + 1)
    grid.update_layout(figure(height=620).layout)
    grid.update_yaxes(rangemode="tozero", row=1).update_yaxes(title_text=METRIC, row=1, col=1)
    grid.update_yaxes(title_text="loss", row=2, col=1)
    grid.update_xaxes(title_text="optimiser steps", row=2)
    caption = f"{METRIC} on the validation fold and training loss of each trial; a line that ends early was stopped."
    return Section("Learning curves", [Plot(grid, caption)])


def strengths(trials: Sequence[Trial], intervals: Intervals) -> Section:
    """Score against augmentation strength, by policy, one column for each family."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns, scored = families(trials), [trial for trial in trials if is_scored(trial)]
    if not scored:
        return Section("Augmentation strength", ["No trial ended with a score."])
    grid = make_subplots(rows=1, cols=len(columns), subplot_titles=columns, shared_yaxes=True)
    named: set[str] = set()
    for family, policy in itertools.product(columns, POLICIES):
        chosen = [t for t in scored if t.config.detector == family and t.config.policy == policy]
        if not chosen:
            continue
        style = POLICIES.index(policy)
        points = go.Scatter(
            x=[effective_strength(t.config) for t in chosen],
            y=[t.score for t in chosen],
            error_y=_error_bars(chosen, intervals),
            mode="markers",
            marker={
                "symbol": [MARKERS[style] + ("" if is_complete(t) else "-open") for t in chosen],
                "color": COLOURS[style],
                "size": 10,
            },
            name=f"policy {policy}",
            legendgroup=policy,
            legendrank=style,
            showlegend=policy not in named,
            hovertext=[f"{label(t.trial_id)}: {label(described(t.config))}" for t in chosen],
        )
        named.add(policy)
        grid.add_trace(points, row=1, col=columns.index(family) + 1)
    grid.update_layout(figure(height=440).layout)
    grid.update_xaxes(title_text="strength", range=[-0.08, 1.08]).update_yaxes(title_text=METRIC, row=1, col=1)
    caption = (
        "Score against augmentation strength; policy A, no augmentation, stands at 0. An open marker was stopped "
        "early, at fewer steps. Bars, where there are any, are 95 % bootstrap intervals over images."
    )
    return Section("Augmentation strength", [Plot(grid, caption)])


def _error_bars(trials: Sequence[Trial], intervals: Intervals) -> dict[str, Any] | None:
    if not any(trial.trial_id in intervals for trial in trials):
        return None
    spans = [intervals.get(trial.trial_id, (trial.score, trial.score)) for trial in trials]
    return {
        "symmetric": False,
        "array": [max(0.0, high - trial.score) for trial, (_, high) in zip(trials, spans, strict=True)],
        "arrayminus": [max(0.0, trial.score - low) for trial, (low, _) in zip(trials, spans, strict=True)],
    }


@dataclass(frozen=True)
class _Axis:
    name: str
    places: list[float]  # of each trial, 0..1
    ticks: list[tuple[float, str]]


def parallel(trials: Sequence[Trial]) -> Section:
    """Parallel coordinates of the hyperparameters, in plain lines.

    Plotly's own need WebGL, which remote desktops often lack.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    scored = [trial for trial in reversed(trials) if is_scored(trial)]  # the best are drawn last, on top
    if len(scored) < 2:
        return Section("Hyperparameters", ["With fewer than two scored trials there is nothing to compare."])
    fields = [name for name in _FIELDS if len({_value(t, name) for t in scored}) > 1]
    axes = [_axis(name, [_value(t, name) for t in scored]) for name in fields]
    axes.append(_axis(METRIC, [t.score for t in scored]))
    colours = sample_colorscale(COLOUR_SCALE, axes[-1].places)
    lines = [
        go.Scatter(
            x=list(range(len(axes))),
            y=[axis.places[i] for axis in axes],
            mode="lines",
            line={"color": colours[i], "width": 2},
            name=label(trial.trial_id),
            hovertext=f"{label(trial.trial_id)}: {label(described(trial.config))}, {trial.score:.3f}",
            hoverinfo="text",
            showlegend=False,
        )
        for i, trial in enumerate(scored)
    ]
    plot = figure(
        *lines,
        height=480,
        annotations=[_tick(i, place, text) for i, axis in enumerate(axes) for place, text in axis.ticks],
        shapes=[{"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": _AXIS_LINE} for i in range(len(axes))],
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": [axis.name for axis in axes],
            "side": "top",
            "showgrid": False,
            "range": [-0.1, len(axes) - 0.5],
        },
        yaxis={"visible": False, "range": [-0.06, 1.06]},
    )
    caption = (
        "Each line is a trial; it crosses each axis at its value and ends at its score (yellow is best). "
        "Only what varied is shown."
    )
    return Section("Hyperparameters", [Plot(plot, caption)])


def _tick(axis: int, place: float, text: str) -> dict[str, Any]:
    look = {"xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,0.8)", "font": {"size": 11}}
    return {"x": axis, "y": place, "text": label(text), "showarrow": False} | look


def _value(trial: Trial, name: str) -> Any:
    return effective_strength(trial.config) if name == "strength" else getattr(trial.config, name)


def _axis(name: str, values: Sequence[Any]) -> _Axis:
    """Where each value stands on an axis from 0 to 1: numbers to scale, learning rates by logarithm, names evenly."""
    distinct = sorted(set(values))
    if name not in ("learning_rate", METRIC):
        steps = max(1, len(distinct) - 1)
        place = {value: i / steps for i, value in enumerate(distinct)}
        return _Axis(name, [place[v] for v in values], [(place[v], short(v)) for v in distinct])
    scaled = np.log(np.array(values, float)) if name == "learning_rate" else np.array(values, float)
    low, high = float(scaled.min()), float(scaled.max())
    places = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    ticks = [(0.0, f"{min(values):.3g}"), (1.0, f"{max(values):.3g}")] if high > low else [(0.5, f"{values[0]:.3g}")]
    return _Axis(name, places.tolist(), ticks)


@dataclass(frozen=True)
class Span:
    """When a trial ran, in unix seconds."""

    trial: Trial
    start: float
    stop: float


def spans(trials: Sequence[Trial]) -> list[Span]:
    """When each trial ran, by its reports' times, in order of starting; trials that reported no time are left out."""
    found = []
    for trial in trials:
        times = [
            (item["timestamp"], item.get("seconds")) for item in trial.history if item.get("timestamp") is not None
        ]
        if times:
            # The first report comes `seconds` after the start.
            started = times[0][0] - (times[0][1] or 0)
            found.append(Span(trial, float(started), float(times[-1][0])))
    return sorted(found, key=lambda span: (span.start, span.trial.trial_id))


def busy_share(running: Sequence[Span]) -> tuple[int, float]:
    """Most trials at one time, and the share of that many devices' time that trials filled."""
    changes = sorted([(s.start, 1) for s in running] + [(s.stop, -1) for s in running])
    most = max(itertools.accumulate(change for _, change in changes))
    whole = most * (max(s.stop for s in running) - min(s.start for s in running))
    return most, sum(s.stop - s.start for s in running) / whole if whole else 1.0


def gantt(trials: Sequence[Trial]) -> Section:
    import plotly.graph_objects as go

    running = spans(trials)
    if not running:
        return Section("When the trials ran", ["The trials' reports carry no times."])
    first = running[0].start
    bars = []
    for i, family in enumerate(families(trials)):
        mine = [span for span in running if span.trial.config.detector == family]
        bars.append(
            go.Bar(
                y=[label(span.trial.trial_id) for span in mine],
                x=[(span.stop - span.start) / 60 for span in mine],
                base=[(span.start - first) / 60 for span in mine],
                orientation="h",
                name=family,
                marker={"color": COLOURS[i], "pattern": {"shape": ("", "/", ".")[i % 3]}},
                hovertext=[label(f"{described(s.trial.config)}: {s.trial.status}") for s in mine],
            )
        )
    order = [label(span.trial.trial_id) for span in reversed(running)]
    plot = figure(
        *bars, height=180 + 22 * len(running), barmode="overlay", xaxis_title="minutes since the first trial started",
        yaxis={"categoryorder": "array", "categoryarray": order, "automargin": True, "type": "category"},
    )  # fmt: skip
    most, busy = busy_share(running)
    caption = f"When each trial ran. At most {most} ran at once; they filled {busy:.0%} of that many devices' time."
    return Section("When the trials ran", [Plot(plot, caption)])
