"""What the figures of a search's report share: how a trial is named in words; and its learning curves."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from vbd.config import POLICIES, TrainConfig
from vbd.evaluation.score import SCORE, score_name
from vbd.records import Trial
from vbd.reports.page import COLOURS, DASHES, MARKERS, Plot, Section, figure, label
from vbd.search.kept.leaderboard import is_scored

Intervals = dict[str, tuple[float, float]]  # low and high of a score, by trial id

_MAX_CURVES = 60  # trials whose curves are drawn: of more, the lines hide each other
_MAX_POINTS = 100  # of a line: more is not seen and makes the page heavy


def effective_strength(config: TrainConfig) -> float:
    """Policy A changes nothing, whatever number stands in its config: its strength is 0."""
    return 0.0 if config.policy == "A" else config.strength


def is_complete(trial: Trial) -> bool:
    """Whether a trial ran all of its steps."""
    return trial.status == "finished" and is_scored(trial)


def strength_in_words(config: TrainConfig) -> str:
    """The strength of the augmentation, or its schedule: `0.3, from 200: 0.5`."""
    phases = [] if config.policy == "A" else zip(config.phase_steps, config.phase_strengths, strict=True)
    return ", ".join([f"{effective_strength(config):g}", *(f"from {step:,}: {value:.3g}" for step, value in phases)])


def rate_in_words(config: TrainConfig) -> str:
    """The learning rate, or its schedule: `0.001, from 200: x0.8`."""
    phases = zip(config.phase_steps, config.phase_rates, strict=True)
    return ", ".join([f"{config.learning_rate:.3g}", *(f"from {step:,}: ×{value:.3g}" for step, value in phases)])


def described(config: TrainConfig) -> str:
    """What was trained, in one line."""
    strength = "" if config.policy == "A" else f" at strength {strength_in_words(config)}"
    policy = f"policy {config.policy}{strength}"
    return f"{config.detector} {config.variant}, {policy}, learning rate {rate_in_words(config)}"


def families(trials: Sequence[Trial]) -> list[str]:
    """The detector families among some trials, sorted."""
    return sorted({trial.config.detector for trial in trials})


def short(value: Any) -> str:
    """A value in few characters; "-" for none."""
    if isinstance(value, tuple):
        return ", ".join(map(short, value)) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None or value == "" else str(value)


def thinned(points: Sequence[Any], most: int) -> list[Any]:
    """At most so many of some points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curves(trials: Sequence[Trial]) -> Section:
    """Score and loss over the steps, one column for each family; `trials` best first."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    reporting = [trial for trial in trials if trial.history]
    if not reporting:
        return Section("Learning curves", ["No trial reported anything."])
    shown, columns = reporting[:_MAX_CURVES], families(reporting[:_MAX_CURVES])
    grid = make_subplots(
        rows=2,
        cols=len(columns),
        subplot_titles=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.08,
        horizontal_spacing=0.03,
    )
    named: set[str] = set()
    score = score_name(trial.config.detector for trial in shown)
    for trial in reversed(shown):  # the best are drawn last, on top
        for row, name in ((1, SCORE), (2, "loss")):
            line = _curve(trial, name)
            if not line["x"]:
                continue
            is_new = trial.config.policy not in named
            named.add(trial.config.policy)
            place = columns.index(trial.config.detector) + 1
            grid.add_trace(go.Scatter(line | {"showlegend": is_new}), row=row, col=place)
    grid.update_layout(figure(height=620).layout)
    grid.update_layout(hovermode="closest", legend={"title": {"text": "policy"}})
    grid.update_yaxes(rangemode="tozero", row=1).update_yaxes(title_text=score, row=1, col=1)
    grid.update_yaxes(title_text="loss", row=2, col=1)
    grid.update_xaxes(title_text="optimiser steps", row=2)
    some = f"the best {len(shown)} of {len(reporting)} trials" if len(shown) < len(reporting) else "each trial"
    caption = (
        f"{score} on the validation fold and training loss of {some}; a line that ends early was stopped, failed or "
        "still runs. A click on a policy hides its lines, a double click shows it alone."
    )
    return Section("Learning curves", [Plot(grid, caption)])


def _curve(trial: Trial, name: str) -> dict[str, Any]:
    """One line of a trial: `name` over its steps, where it was reported."""
    known = [item for item in trial.history if item.get(name) is not None and not math.isnan(item[name])]
    points = thinned(known, _MAX_POINTS)
    style = POLICIES.index(trial.config.policy)
    return {
        "x": [item["step"] for item in points],
        "y": [item[name] for item in points],
        "mode": "lines+markers",
        "marker": {"symbol": MARKERS[style], "size": 5},
        "line": {"color": COLOURS[style], "dash": DASHES[style], "width": 1.5},
        "name": trial.config.policy,
        "legendgroup": trial.config.policy,
        "legendrank": style + 1,
        "text": f"{label(trial.trial_id)}: {label(described(trial.config))}",
        "hovertemplate": f"%{{text}}<br>step %{{x:,}}: {name} %{{y:.4g}}<extra></extra>",
    }


def strengths(trials: Sequence[Trial], intervals: Intervals) -> list[Section]:
    """Score against augmentation strength, by policy, one column for each family; no section without trials that have one.

    For families whose trials form no arms: those are told by their means.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    scored = [trial for trial in trials if is_scored(trial)]
    columns = families(scored)
    if not scored:
        return []
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
    grid.update_xaxes(title_text="strength", range=[-0.08, 1.08]).update_yaxes(
        title_text=score_name(t.config.detector for t in scored), row=1, col=1
    )
    caption = (
        "Score against augmentation strength; policy A, no augmentation, stands at 0. An open marker was stopped "
        "early, at fewer steps. Bars, where there are any, are 95 % bootstrap intervals over images."
    )
    return [Section("Augmentation strength", [Plot(grid, caption)])]


def _error_bars(trials: Sequence[Trial], intervals: Intervals) -> dict[str, Any] | None:
    if not any(trial.trial_id in intervals for trial in trials):
        return None
    spans = [intervals.get(trial.trial_id, (trial.score, trial.score)) for trial in trials]
    return {
        "symmetric": False,
        "array": [max(0.0, high - trial.score) for trial, (_, high) in zip(trials, spans, strict=True)],
        "arrayminus": [max(0.0, trial.score - low) for trial, (low, _) in zip(trials, spans, strict=True)],
    }
