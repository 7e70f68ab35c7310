import dataclasses

import pytest

from tests.reports.searches import BASES, history_of, trial_of
from vbd.records import Trial
from vbd.reports.page import Plot, Table
from vbd.reports.search.devices import HALT_S, devices, lanes_of, running_at, spans, use_of

SHORT = dataclasses.replace(BASES[0], steps=400, report_every=200)  # 50 seconds for each report


def ran(seed: int, *starts: float, place: int = 0) -> Trial:
    """A trial of an attempt at each start, each of 50 seconds."""
    config = dataclasses.replace(SHORT, seed=seed)
    history = []
    for attempt, start in enumerate(starts):
        steps = 200 * (attempt + 1)
        history += history_of(config, 0.3, start=start, steps=steps, place=place, attempt=attempt, first=steps - 200)
    return trial_of(config, 0.3, history=history)


def test_a_resumed_trial_has_a_bar_for_each_attempt() -> None:
    found = spans([ran(1, 1_000, 1_100), ran(2, 1_020, place=1)])
    assert [(span.attempt, span.device, span.start, span.stop) for span in found] == [
        (0, "gpu-node-1 cuda:0", 1_000, 1_050),
        (0, "gpu-node-1 cuda:1", 1_020, 1_070),
        (1, "gpu-node-1 cuda:0", 1_100, 1_150),
    ]


def test_trials_that_share_a_device_at_a_time_have_lanes_of_their_own() -> None:
    lanes = lanes_of(spans([ran(1, 1_000), ran(2, 1_020), ran(3, 1_050), ran(4, 1_000, place=2)]))
    assert [(lane.name, [span.start for span in lane.spans]) for lane in lanes] == [
        ("gpu-node-1 cuda:0 (1)", [1_000, 1_050]),
        ("gpu-node-1 cuda:0 (2)", [1_020]),
        ("gpu-node-2 cuda:0", [1_000]),
    ]
    assert [lane.busy for lane in lanes] == [100, 50, 50]


def test_how_many_run_is_counted_at_each_change() -> None:
    assert running_at(spans([ran(1, 1_000), ran(2, 1_020), ran(3, 1_050)])) == [
        (1_000, 1),
        (1_020, 2),
        (1_050, 2),  # one ends as another starts
        (1_070, 1),
        (1_100, 0),
    ]


def test_the_idle_share_leaves_out_the_time_in_which_the_search_was_stopped() -> None:
    use = use_of([ran(1, 1_000, 1_100 + HALT_S), ran(2, 1_000, place=1)])
    assert use is not None
    assert (use.halted, use.running, use.busy, use.whole) == (HALT_S + 50, 100, 150, 200)
    section = devices([ran(1, 1_000, 1_100 + HALT_S), ran(2, 1_000, place=1)])
    text, _, table, _ = section.blocks
    assert isinstance(text, str)
    assert "2 places for a trial over 2 min, of whose time 75.0% was filled" in text
    assert "11 min in which it was stopped" in text
    assert isinstance(table, Table)
    assert [tuple(row) for row in table.rows] == [
        ("gpu-node-1 cuda:0", 1, 1, "2 min", "0.0%"),
        ("gpu-node-1 cuda:1", 1, 0, "50 s", "50.0%"),
    ]


def test_a_short_gap_is_idle_time() -> None:
    use = use_of([ran(1, 1_000), ran(2, 1_150)])
    assert use is not None
    assert (use.halted, use.running, use.busy) == (0, 200, 100)


def test_bars_and_the_area_below_them_stand_at_their_times() -> None:
    trials = [ran(1, 1_000), ran(2, 1_030, place=1)]
    plot = devices(trials).blocks[1]
    assert isinstance(plot, Plot)
    bars, area = plot.figure.data
    assert list(bars.y) == ["gpu-node-1 cuda:0", "gpu-node-1 cuda:1"]
    assert list(bars.base) == [0, 0.5]  # minutes
    assert list(bars.x) == [pytest.approx(5 / 6, abs=1e-4)] * 2
    assert list(area.y) == [1, 2, 1, 0]
    assert plot.figure.layout.xaxis2.title.text == "minutes since the first trial started"
    assert trials[0].trial_id in bars.hovertext[0]


def test_the_time_of_each_family_is_told_by_how_its_trials_ended() -> None:
    stopped = dataclasses.replace(ran(2, 1_000), status="stopped")
    table = devices([ran(1, 1_000, 2_000), stopped]).blocks[3]
    assert isinstance(table, Table)
    assert table.columns == ("detector", "trials", "time of finished trials", "time of stopped trials")
    assert [tuple(row) for row in table.rows] == [("yolox", 2, "2 min", "50 s")]


@pytest.mark.parametrize("history", [[], [{"step": 10, "loss": 1.0}]])
def test_without_times_it_says_so(history: list[dict]) -> None:
    assert use_of([trial_of(SHORT, 0.3, history=[]), Trial("x", SHORT, "x", 0.3, 0, "", history=history)]) is None
    assert devices([]).blocks == ["The trials' reports carry no times."]
