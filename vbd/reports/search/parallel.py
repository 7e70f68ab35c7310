"""The hyperparameters of a search as parallel coordinates: whatever field varied, and the score."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vbd.config import TrainConfig
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.reports.page import COLOUR_SCALE, Plot, Section, figure, label
from vbd.reports.search.figures import described, effective_strength, short
from vbd.search.kept.leaderboard import is_scored

_AXIS_LINE = {"color": "#6b7480", "width": 1}
# Fields that stand first, in this order; the others follow as they stand in TrainConfig.
_FIRST = ("detector", "variant", "image_size", "policy", "strength")
_ALWAYS = ("detector", "policy", "strength")
_PHASES = {"phase_strengths": "last strength", "phase_rates": "last rate"}
_MAX_TICKS = 8  # values of an axis that are told apart; numbers of more are drawn to scale
_LOG_RATIO = 20.0  # largest over smallest, above which numbers are drawn by their logarithms
_TICK_LETTERS = 16
_MANY_AXES = 8  # names of more axes are slanted


@dataclass(frozen=True)
class Axis:
    """Where each trial stands on one axis."""

    name: str
    places: list[float]  # of each trial, 0..1
    ticks: list[tuple[float, str]]


def parallel(trials: Sequence[Trial]) -> Section:
    """Parallel coordinates of the fields that vary, in plain lines; `trials` best first.

    Plotly's own need WebGL, which remote desktops often lack.
    """
    scored = [trial for trial in reversed(trials) if is_scored(trial)]  # the best are drawn last, on top
    if len(scored) < 2:
        return Section("Hyperparameters", ["With fewer than two scored trials there is nothing to compare."])
    columns, follow = varied([trial.config for trial in scored])
    axes = [axis_of(name, values) for name, values in columns.items()]
    axes.append(axis_of(SCORE, [trial.score for trial in scored]))
    caption = (
        "Each line is a trial; it crosses each axis at its value and ends at its score (yellow is best). "
        "Only what varied is shown."
    )
    if follow:
        caption += f" With the detector alone {'changes' if len(follow) == 1 else 'change'} {', '.join(follow)}."
    return Section("Hyperparameters", [Plot(_drawn(scored, axes), caption)])


def varied(configs: Sequence[TrainConfig]) -> tuple[dict[str, list[Any]], list[str]]:
    """The values of each field that varies, and the names of those that change with the detector alone."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    ordered = [*_FIRST, *(name for name in names if name not in (*_FIRST, "phase_steps"))]
    columns = {_PHASES.get(name, name): [_value(config, name) for config in configs] for name in ordered}
    columns = {name: values for name, values in columns.items() if len(set(values)) > 1}
    if columns.get("last strength") == columns.get("strength"):
        columns.pop("last strength", None)
    detectors = [config.detector for config in configs]
    follow = [name for name, values in columns.items() if name not in _ALWAYS and _follows(values, detectors)]
    return {name: values for name, values in columns.items() if name not in follow}, follow


def _follows(values: Sequence[Any], detectors: Sequence[str]) -> bool:
    """Whether a field has one value for each detector; with one trial of each that cannot be told."""
    return len(set(zip(detectors, values, strict=True))) == len(set(detectors)) < len(detectors)


def _value(config: TrainConfig, name: str) -> Any:
    """A field as it works; of a schedule what it ends with."""
    match name:
        case "strength":
            return effective_strength(config)
        case "phase_strengths":
            is_scheduled = config.phase_strengths and config.policy != "A"
            return config.phase_strengths[-1] if is_scheduled else effective_strength(config)
        case "phase_rates":
            return config.phase_rates[-1] if config.phase_rates else 1.0
    return getattr(config, name)


def axis_of(name: str, values: Sequence[Any]) -> Axis:
    """Where each value stands on an axis from 0 to 1: few values evenly, many numbers to scale, or by their logarithms."""
    distinct = sorted(set(values))
    is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not is_number or (len(distinct) <= _MAX_TICKS and name not in ("learning_rate", SCORE)):
        return _even(name, values, distinct)
    is_log = _is_log(name, distinct)
    scaled = np.log(values) if is_log else np.array(values, float)
    low, high = float(scaled.min()), float(scaled.max())
    if high == low:
        return Axis(name, [0.5] * len(values), [(0.5, f"{values[0]:.3g}")])
    middle = math.exp((low + high) / 2) if is_log else (low + high) / 2
    ticks = [(0.0, f"{distinct[0]:.3g}"), (0.5, f"{middle:.2g}"), (1.0, f"{distinct[-1]:.3g}")]
    return Axis(name, ((scaled - low) / (high - low)).tolist(), ticks)


def _is_log(name: str, distinct: Sequence[float]) -> bool:
    if name == SCORE or distinct[0] <= 0:
        return False
    return name == "learning_rate" or distinct[-1] / distinct[0] >= _LOG_RATIO


def _even(name: str, values: Sequence[Any], distinct: Sequence[Any]) -> Axis:
    steps = max(1, len(distinct) - 1)
    place = {value: i / steps for i, value in enumerate(distinct)}
    # Of many names every so many is written; the pointer tells the others.
    told = distinct[:: math.ceil(len(distinct) / (2 * _MAX_TICKS))]
    texts = [short(value) for value in told]
    texts = [text if len(text) <= _TICK_LETTERS else f"{text[: _TICK_LETTERS - 1]}…" for text in texts]
    return Axis(name, [place[v] for v in values], [(place[v], text) for v, text in zip(told, texts, strict=True)])


def _drawn(trials: Sequence[Trial], axes: Sequence[Axis]) -> Any:
    """The figure: a line for each trial, its names and ticks written beside the axes."""
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    colours = sample_colorscale(COLOUR_SCALE, axes[-1].places)
    lines = [
        go.Scatter(
            x=list(range(len(axes))),
            y=[round(axis.places[i], 4) for axis in axes],
            mode="lines",
            line={"color": colours[i], "width": 2 if len(trials) <= 100 else 1},
            name=label(trial.trial_id),
            hovertext=f"{label(trial.trial_id)}: {label(described(trial.config))}, {trial.score:.3f}",
            hoverinfo="text",
            showlegend=False,
        )
        for i, trial in enumerate(trials)
    ]
    is_slanted = len(axes) > _MANY_AXES
    return figure(
        *lines,
        height=500 + 60 * is_slanted,
        margin={"l": 30, "r": 30, "t": 50 + 60 * is_slanted, "b": 20},
        annotations=[_tick(i, place, text) for i, axis in enumerate(axes) for place, text in axis.ticks],
        shapes=[{"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": _AXIS_LINE} for i in range(len(axes))],
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": [axis.name for axis in axes],
            "tickangle": -25 if is_slanted else 0,
            "side": "top",
            "showgrid": False,
            "zeroline": False,
            "range": [-0.15, len(axes) - 0.45],
        },
        yaxis={"visible": False, "range": [-0.06, 1.06]},
    )


def _tick(axis: int, place: float, text: str) -> dict[str, Any]:
    look = {"xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,0.8)", "font": {"size": 11}}
    return {"x": axis, "y": place, "text": label(text), "showarrow": False} | look
