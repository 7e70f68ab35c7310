"""Which fields mattered in a search: the share of the scores' variance that each explains by itself, by family."""

from collections.abc import Sequence

from vbd.evaluation.score import score_name
from vbd.records import Trial
from vbd.reports.page import COLOURS, Plot, Section, figure
from vbd.reports.search.fanova import MIN_TRIALS, Share, Weighed, shares_of, weighed
from vbd.reports.search.figures import families
from vbd.reports.search.study_text import listed

_MAX_FIELDS = 20
_ROW = 26  # pixels of a bar
_BY_CHANCE_COLOUR = "#B8BEC6"


def importance(trials: Sequence[Trial]) -> list[Section]:
    """Bars of each family that has trials enough, and a sentence for the others; no section without trials."""
    compared = {
        family: weighed([trial for trial in trials if trial.config.detector == family]) for family in families(trials)
    }
    enough = {family: each for family, each in compared.items() if each.is_enough}
    few = {family: len(each.configs) for family, each in compared.items() if not each.is_enough}
    blocks = [block for family, each in enough.items() for block in _of_family(family, each)]
    blocks += [_too_few(few)] if few else []
    return [Section("Importance of the fields", blocks)] if blocks else []


def _too_few(counts: dict[str, int]) -> str:
    told = ", ".join(f"{family} {count}" for family, count in counts.items())
    return (
        f"Which fields mattered cannot be told from so few trials with a score at a step that all of them reached ({told}); "
        f"about {MIN_TRIALS} of a detector are the least that tell."
    )


def _of_family(family: str, compared: Weighed) -> list[str | Plot]:
    shares = shares_of(compared)
    if not shares:
        return [f"{family}: no field varied among its {len(compared.configs)} trials, or no score differed."]
    return [_told(family, shares), Plot(_drawn(shares[:_MAX_FIELDS]), _caption(family, compared, shares))]


def _told(family: str, shares: Sequence[Share]) -> str:
    sure = [share for share in shares if share.is_beyond_chance]
    if not sure:
        return f"{family}: no field is shown to matter more than one without any bearing on the scores would seem to."
    named = listed([f"{each.name} ({each.estimate:.0%}, {each.low:.0%} to {each.high:.0%})" for each in sure])
    chance = " Seed and fold are no settings: their shares are chance in training and ease of folds."
    return f"{family}: what mattered beyond chance is {named}.{chance if {s.name for s in sure} & {'seed', 'fold'} else ''}"


def _caption(family: str, compared: Weighed, shares: Sequence[Share]) -> str:
    stopped = f", {compared.stopped} of them stopped early," if compared.stopped else ""
    name = score_name([config.detector for config in compared.configs])
    when = (
        f"by their best {name} up to step {compared.step:,}, the last that all of them reached"
        if compared.stopped
        else f"by their best {name}"
    )
    most = f" Of {len(shares)} fields the first {_MAX_FIELDS}." if len(shares) > _MAX_FIELDS else ""
    return (
        f"{family}: share of the scores' variance that each field explains by itself (functional analysis of variance of "
        f"a random forest), from {len(compared.configs)} trials{stopped} compared {when}. Lines are the middle 80 % over "
        "trials drawn again; a cross is what a field without any bearing reached by chance, and a grey bar is not shown "
        f"to be more than that. What fields do together is in no bar.{most}"
    )


def _drawn(shares: Sequence[Share]) -> object:
    import plotly.graph_objects as go

    rows = list(range(len(shares)))
    bars = go.Bar(
        x=[share.estimate for share in shares],
        y=rows,
        orientation="h",
        marker={"color": [COLOURS[0] if share.is_beyond_chance else _BY_CHANCE_COLOUR for share in shares]},
        # The forest of all trials may lie outside of those of fewer different ones.
        error_x={
            "symmetric": False,
            "array": [max(0.0, share.high - share.estimate) for share in shares],
            "arrayminus": [max(0.0, share.estimate - share.low) for share in shares],
            "thickness": 1.5,
            "color": "#1a1a1a",
        },
        name="share",
        text=[_hover(share) for share in shares],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )
    chance = go.Scatter(
        x=[share.chance for share in shares],
        y=rows,
        mode="markers",
        marker={"symbol": "x-thin", "size": 9, "line": {"color": COLOURS[1], "width": 2}},
        name="by chance",
        hovertemplate="by chance %{x:.1%}<extra></extra>",
    )
    return figure(
        bars,
        chance,
        height=170 + _ROW * len(shares),
        margin={"l": 20, "r": 20, "t": 70, "b": 60},
        xaxis={"title": "share of the variance", "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={
            "tickvals": rows,
            "ticktext": [share.name.replace(", ", ",<br>") for share in shares],
            "range": [len(shares) - 0.4, -0.6],
            "automargin": True,
            "ticksuffix": " ",
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )


def _hover(share: Share) -> str:
    return f"{share.name}: {share.estimate:.1%} ({share.low:.1%} to {share.high:.1%}), by chance {share.chance:.1%}"
