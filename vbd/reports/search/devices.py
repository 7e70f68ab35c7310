"""How a search used its devices: what ran where and when, and how much of the time nothing did."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vbd.console.words import in_time
from vbd.records import Trial
from vbd.reports.page import COLOURS, Cell, Plot, Section, Table, figure, label, share
from vbd.reports.search.figures import described, families, thinned
from vbd.search.cost.rates import attempts_of

_PATTERNS = ("", "/", ".", "x", "-")  # of the bars, so that families differ not by colour alone
_MAX_POINTS = 2_000  # of the line of running trials
_HOUR_S, _MINUTE_S = 3600.0, 60.0
# When for longer nothing ran anywhere, the search had been stopped, and its devices were others'.
HALT_S = 600.0


@dataclass(frozen=True)
class Span:
    """One attempt at a trial: from its start to its last report, in unix seconds."""

    trial: Trial
    attempt: int  # 0..; a trial that was resumed has several
    device: str  # host and device
    start: float
    stop: float


@dataclass(frozen=True)
class Lane:
    """One place where trials ran one after the other: a device, or a share of one that several used at once."""

    name: str
    spans: list[Span]

    @property
    def busy(self) -> float:
        """Seconds in which a trial ran."""
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True)
class Use:
    """The lanes of a search, and when it ran."""

    lanes: list[Lane]
    start: float
    stop: float
    halted: float  # seconds between start and stop in which the search itself did not run

    @property
    def running(self) -> float:
        """Seconds in which the search ran."""
        return self.stop - self.start - self.halted

    @property
    def busy(self) -> float:
        """Seconds of all lanes in which a trial ran."""
        return sum(lane.busy for lane in self.lanes)

    @property
    def whole(self) -> float:
        """Seconds that the lanes offered while the search ran."""
        return len(self.lanes) * self.running


def spans(trials: Sequence[Trial]) -> list[Span]:
    """The attempts at all trials in order of starting; reports that do not tell their time are left out."""
    found = []
    for trial in trials:
        for attempt, reports in enumerate(attempts_of(trial)):
            last = reports[-1]
            device = f"{last.get('host') or ''} {last.get('device') or ''}".strip() or "unknown"
            found.append(Span(trial, attempt, device, last["attempt_started"], last["timestamp"]))
    return sorted(found, key=lambda span: (span.start, span.trial.trial_id))


def lanes_of(attempts: Sequence[Span]) -> list[Lane]:
    """Attempts by device; of those that ran on one device at a time each goes to the first lane that is free."""
    lanes: dict[str, list[list[Span]]] = {}
    for span in attempts:
        mine = lanes.setdefault(span.device, [])
        free = next((lane for lane in mine if lane[-1].stop <= span.start), None)
        if free is None:
            mine.append([span])
        else:
            free.append(span)
    return [
        Lane(device if len(mine) == 1 else f"{device} ({place})", lane)
        for device, mine in sorted(lanes.items())
        for place, lane in enumerate(mine, start=1)
    ]


def running_at(attempts: Sequence[Span]) -> list[tuple[float, int]]:
    """How many trials ran from each moment at which that changed, in order of time."""
    changes: dict[float, int] = {}
    for span in attempts:
        changes[span.start] = changes.get(span.start, 0) + 1
        changes[span.stop] = changes.get(span.stop, 0) - 1
    times = sorted(changes)
    return list(zip(times, itertools.accumulate(changes[time] for time in times), strict=True))


def use_of(trials: Sequence[Trial]) -> Use | None:
    """How the trials used their devices; None when no report tells its time."""
    attempts = spans(trials)
    if not attempts:
        return None
    counts = running_at(attempts)
    gaps = [later - earlier for (earlier, count), (later, _) in itertools.pairwise(counts) if count == 0]
    halted = sum(gap for gap in gaps if gap > HALT_S)
    return Use(lanes_of(attempts), attempts[0].start, max(span.stop for span in attempts), halted)


# -------------------------------------------------------------------------------------------------------------- section


def devices(trials: Sequence[Trial]) -> Section:
    """The bars of all trials by device, how many ran, and the idle share of each device."""
    use = use_of(trials)
    if use is None:
        return Section("Use of the devices", ["The trials' reports carry no times."])
    return Section("Use of the devices", [_told(use), _gantt(use, trials), _lane_table(use), _where_it_went(trials)])


def _told(use: Use) -> str:
    places = f"{len(use.lanes)} place{'s' if len(use.lanes) > 1 else ''} for a trial"
    halted = (
        f"; {in_time(use.halted)} in which it was stopped, or waited for a device, do not count" if use.halted else ""
    )
    return (
        f"The search used {places} over {in_time(use.running)}, of whose time {share(use.busy, use.whole)} was filled by "
        f"trials up to their last report{halted}. A trial's start, and what it did after its last report, count as idle."
    )


def _gantt(use: Use, trials: Sequence[Trial]) -> Plot:
    """A lane for each place, a bar for each attempt; below it how many trials ran."""
    from plotly.subplots import make_subplots

    unit, name = (_HOUR_S, "hours") if use.stop - use.start > 3 * _HOUR_S else (_MINUTE_S, "minutes")
    height = 24 * len(use.lanes) + 40
    grid = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=50 / (height + 170), row_heights=[height, 120],
    )  # fmt: skip
    for bar in _bars(use, trials, unit):
        grid.add_trace(bar, row=1, col=1)
    grid.add_trace(_area(use, unit), row=2, col=1)
    grid.update_layout(figure(height=height + 270).layout)
    grid.update_layout(barmode="overlay", bargap=0.15, legend={"title": {"text": "detector"}}, showlegend=True)
    order = [label(lane.name) for lane in reversed(use.lanes)]
    grid.update_yaxes(
        row=1, categoryorder="array", categoryarray=order, automargin=True, type="category", showgrid=False,
    )  # fmt: skip
    grid.update_yaxes(row=2, title_text="running", rangemode="tozero", range=[0, 1.1 * len(use.lanes)])
    grid.add_hline(y=len(use.lanes), row=2, col=1, line={"dash": "dot", "color": "#6b7480", "width": 1.5})
    grid.update_xaxes(row=2, title_text=f"{name} since the first trial started")
    caption = (
        "Above, each bar is one attempt at a trial, from its start to its last report; a trial that was resumed has "
        "several. Below, how many ran at a time; what is white up to the dotted line was idle."
    )
    return Plot(grid, caption)


def _bars(use: Use, trials: Sequence[Trial], unit: float) -> list[object]:
    import plotly.graph_objects as go

    bars: list[object] = []
    for i, family in enumerate(families(trials)):
        mine = [(lane, span) for lane in use.lanes for span in lane.spans if span.trial.config.detector == family]
        bars.append(
            go.Bar(
                y=[label(lane.name) for lane, _ in mine],
                x=[round((span.stop - span.start) / unit, 4) for _, span in mine],
                base=[round((span.start - use.start) / unit, 4) for _, span in mine],
                orientation="h",
                name=family,
                marker={
                    "color": COLOURS[i % len(COLOURS)],
                    "pattern": {"shape": _PATTERNS[i % len(_PATTERNS)], "fgcolor": "#ffffff", "fgopacity": 0.5},
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertext=[_hover(span) for _, span in mine],
                hoverinfo="text",
            )
        )
    return bars


def _hover(span: Span) -> str:
    attempt = f", attempt {span.attempt + 1}" if span.attempt else ""
    return label(
        f"{span.trial.trial_id}{attempt}: {described(span.trial.config)}; {span.trial.status}, "
        f"{in_time(span.stop - span.start)}"
    )


def _area(use: Use, unit: float) -> object:
    import plotly.graph_objects as go

    shown = thinned(running_at([span for lane in use.lanes for span in lane.spans]), _MAX_POINTS)
    return go.Scatter(
        x=[round((time - use.start) / unit, 4) for time, _ in shown],
        y=[count for _, count in shown],
        mode="lines",
        line={"shape": "hv", "color": COLOURS[6], "width": 1},
        fill="tozeroy",
        fillcolor="rgba(86,180,233,0.45)",
        name="running trials",
        hovertemplate="from %{x:.2f}: %{y} running<extra></extra>",
        showlegend=False,
    )


def _lane_table(use: Use) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            lane.name,
            len({span.trial.trial_id for span in lane.spans}),
            sum(span.attempt > 0 for span in lane.spans),
            in_time(lane.busy),
            share(use.running - lane.busy, use.running),
        )
        for lane in use.lanes
    ]
    return Table("Each place for a trial", ("host and device", "trials", "resumed", "busy", "idle"), rows)


def _where_it_went(trials: Sequence[Trial]) -> Table:
    """Device time by family and by how the trials ended."""
    states = [state for state, _ in itertools.groupby(sorted(trial.status for trial in trials))]
    rows: list[tuple[Cell, ...]] = []
    for family in families(trials):
        mine = [trial for trial in trials if trial.config.detector == family]
        of_state = [sum(trial.seconds for trial in mine if trial.status == state) for state in states]
        rows.append((family, len(mine), *(in_time(seconds) if seconds else "-" for seconds in of_state)))
    columns = ("detector", "trials", *(f"time of {state} trials" for state in states))
    return Table("Where the time of the devices went", columns, rows)
