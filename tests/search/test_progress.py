"""What a search tells while it runs, from the calls that Tune makes, with made-up reports and a clock of their own."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from rich.console import Console

from tests.search.histories import reports, trial_of
from tests.search.trials import RCNN, FakeTrials, config_of
from vbd.config import SearchConfig, TrainConfig
from vbd.search.cost.forecast import Devices
from vbd.search.cost.rates import Rate, combination_of
from vbd.search.kept.trial import trial_id_of
from vbd.search.propose.proposal import Proposal
from vbd.search.watch import progress as module
from vbd.search.watch.live_table import LiveTable, shown
from vbd.search.watch.progress import Plan, SearchProgress, in_brief

FIFO = SearchConfig(preset="mine", candidates=(), scheduler="fifo")
RATE = Rate(step=90.0, validation=0.0, start=0.0)  # forty steps take an hour
Told = list[tuple[dict[str, int], dict[str, float], float, float]]


class FakeMetrics:
    """Keeps what Ray's metrics would be told."""

    def __init__(self, run: str, told: Told):
        self.run, self.told = run, told

    def update(self, states: Any, best: Any, *, device_hours: float, forecast_device_hours: float) -> None:
        self.told.append((dict(states), dict(best), device_hours, forecast_device_hours))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found: Told = []
    monkeypatch.setattr(module, "SearchMetrics", lambda run: FakeMetrics(run, found))
    return found


Make = Callable[..., SearchProgress]


@pytest.fixture
def made(told: Told, tmp_path: Path) -> Make:
    """Makes the progress of a search in a folder of its own."""

    def make(configs: list[TrainConfig], *, price: float | None = None, **more: Any) -> SearchProgress:
        rates = {combination_of(config): RATE for config in configs}
        plan = Plan(FIFO, configs, total=len(configs), rates=rates, devices=lambda: Devices("GPU", 2, 1), price=price)
        return SearchProgress(plan, str(tmp_path / "run"), **more)

    return make


def of_tune(config: TrainConfig, number: int = 0) -> Any:
    """A trial as Tune hands it to its callbacks."""
    return SimpleNamespace(
        config={"proposal": dataclasses.asdict(Proposal(config, until=config.steps)) | {"number": number}}
    )


def report(step: int, score: float | None) -> dict[str, Any]:
    return {"step": step, "score": score, "loss": 1.25, "images_per_second": 71.4, "seconds": step * 90.0,
            "attempt_started": 1.0, "timestamp": 1.0 + step * 90.0, "host": "node", "device": "cuda:1"}  # fmt: skip


def results(progress: SearchProgress, config: TrainConfig, *found: dict[str, Any]) -> None:
    trial = of_tune(config)
    progress.on_trial_start(0, [], trial)
    for result in found:
        progress.on_trial_result(0, [], trial, result)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [re.sub(r"^\[ *\d+:\d\d\] ", "", line) for line in capsys.readouterr().out.splitlines()]


def test_a_report_is_a_line_of_what_runs_and_how_it_stands(made: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(0, policy="E", strength=0.5, learning_rate=2e-3)
    results(made([config, config_of(1)]), config, report(10, 0.2512))
    assert lines(capsys) == [
        f"0/2 trials | {trial_id_of(config)} yolox nano E x0.5 lr 0.002 | "
        "step 10/40  loss 1.250  map_40_findings 0.2512  71 images/s"
    ]
    assert in_brief(replace(config, policy="A")) == "yolox nano A lr 0.002"


def test_on_several_nodes_a_line_tells_the_host_and_leaves_out_what_makes_it_too_long(
    made: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_spread", lambda: True)
    config, long = config_of(0), config_of(1, detector="faster_rcnn", variant="mobilenet_v3_large_320")
    progress = made([config, long])
    results(progress, config, report(10, 0.2) | {"host": "ip-10-0-1-23.ec2.internal"})
    results(progress, long, report(10, 0.2) | {"host": "ip-10-0-1-23.ec2.internal"})
    progress.on_trial_recover(0, [], of_tune(long))
    progress.on_trial_result(0, [], of_tune(config), {"fault": "numpy 1.26.0", "hostname": "other"})
    short, told, died, fault = lines(capsys)
    assert short.startswith(f"0/2 trials | {trial_id_of(config)} {in_brief(config)} on ip-10-0-1-23 | step 10/40  ")
    where = f"0/2 trials | {trial_id_of(long)} faster_rcnn"
    brief = in_brief(long).removeprefix("faster_rcnn mobilenet_v3_large_320")
    assert told.startswith(f"{where}{brief} on ip-10-0-1-23 | step 10/40  loss 1.250  ")
    assert len(told) <= 140
    assert died.startswith(f"{where} mobilenet_v3_large_320{brief} on ip-10-0-1-23 | its process died; ")
    assert fault.endswith(" on other | failed: numpy 1.26.0")


def test_a_fold_without_findings_has_no_score_to_tell(made: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(0)
    progress = made([config])
    results(progress, config, report(10, None))
    assert "map_40_findings –" in lines(capsys)[0]
    assert progress.standing.startswith("best so far: none")


def test_the_end_of_a_trial_tells_the_best_of_each_family_and_what_is_spent_and_left(
    made: Make, prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)  # a forecast costs nothing, and is always new
    config, other = config_of(0), config_of(1, **RCNN)
    progress = made([config, other, config_of(2)], price=2.0)
    trials = FakeTrials(str(tmp_path / "run"), tmp_path, prepared)
    trials.begin(config)
    trials.report(config, step=40, score=0.4)
    results(progress, other, report(10, 0.3))
    results(progress, config, report(20, 0.5), report(40, 0.4))
    capsys.readouterr()
    trials.folder(config).finish()
    progress.on_trial_complete(0, [], of_tune(config))
    (line,) = lines(capsys)
    assert line == (
        f"1/3 trials | {trial_id_of(config)} {in_brief(config)} | done; best so far: faster_rcnn 0.3000  yolox 0.4000; "
        "0.25 of about 1.3 GPU-hours, 0.50 of about 2.50 spent; about 60 min left"
    )


def test_what_ended_a_trial_is_told_with_its_reason(
    made: Make, prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, waiting, died, failed = configs = [config_of(seed) for seed in range(4)]
    progress = made(configs)
    trials = FakeTrials(str(tmp_path / "run"), tmp_path, prepared)
    for config in configs:
        trials.begin(config)
        trials.report(config, step=10, score=0.1)
    trials.folder(stopped).stop("halving: below the cut")
    trials.folder(waiting).wait()
    trials.folder(died).lose("its process died 2 time(s)")
    trials.folder(failed).fail("loss is NaN at step 11")
    progress.on_trial_complete(0, [], of_tune(stopped))
    progress.on_trial_complete(0, [], of_tune(waiting))
    progress.on_trial_recover(0, [], of_tune(died))
    progress.on_trial_error(0, [], of_tune(died))
    progress.on_trial_result(0, [], of_tune(failed), {"step": 40, "failed": "loss is NaN at step 11"})
    progress.on_trial_complete(0, [], of_tune(failed))
    told = [line.split(" | ")[2].split(";")[0] for line in lines(capsys)]
    assert told == [
        "stopped (halving: below the cut)",
        "at the end of its generation",
        "its process died",
        "its process died 2 time(s)",
        "failed: loss is NaN at step 11",
    ]


def test_rays_metrics_hear_every_state_also_of_those_that_are_none(made: Make, told: Told) -> None:
    config, before = config_of(0), config_of(1)
    known = [trial_of(before, *reports(before, 40)), trial_of(config_of(2), status="running")]
    progress = made([config, before, config_of(2), config_of(3)], known=known)
    results(progress, config, report(10, 0.3), report(20, 0.2))
    states, best, _, _ = told[-1]
    assert states == {
        **{"running": 1, "waiting": 0, "pending": 1, "finished": 1, "stopped": 0, "failed": 0},
        "unfinished": 1,  # it does not run until Tune says so
    }
    assert best == {"yolox": 1.0}
    assert told[-1][2] > 0
    assert told[-1][3] > told[-1][2]


def test_a_report_after_a_restart_takes_the_place_of_those_it_repeats(made: Make) -> None:
    config = config_of(0)
    progress = made([config])
    results(progress, config, report(10, 0.3), report(20, 0.6), report(10, 0.3))
    assert "yolox 0.3000" in progress.standing  # the checkpoint of step 20 was lost


def drawn(progress: SearchProgress, *, columns: int, rows: int) -> list[str]:
    """The lines of the live table on a terminal of that size."""
    text = StringIO()
    Console(file=text, width=columns, height=rows, force_terminal=True, color_system=None).print(LiveTable(progress))
    return text.getvalue().splitlines()


def test_the_table_shows_families_and_what_runs_on_a_wide_terminal(made: Make) -> None:
    configs = [config_of(seed) for seed in range(14)]
    progress = made(configs)
    for config in configs:
        results(progress, config)
    results(progress, configs[0], report(10, 0.25))
    table = "\n".join(drawn(progress, columns=200, rows=50))
    assert table.splitlines()[1].startswith("0/14 trials | ")
    assert re.search(r"yolox +0 +14 +0\.2500 +\w{10} yolox nano ", table)
    assert re.search(r"10/40 +1\.250 +0\.2500 +71 +node cuda:1", table)
    assert table.count("0/40") == 12  # one of them is 10/40
    assert "and 2 more running" in table


def test_the_table_fits_a_terminal_of_80_columns_and_24_rows(made: Make) -> None:
    configs = [config_of(seed, **more) for seed in range(12) for more in ({}, RCNN)]
    progress = made(configs, price=2.0)
    for config in configs:
        results(progress, config, report(10, 0.25))
    table = drawn(progress, columns=80, rows=24)
    assert len(table) < 24
    assert max(map(len, table)) <= 80
    first = trial_id_of(configs[0])
    assert sum(re.search(rf"^{first}  yolox A lr 0.001 +10/40 +1.250 ", line) is not None for line in table) == 1
    assert table[-1] == "and 12 more running"
    assert drawn(progress, columns=80, rows=14)[-1] == "and 20 more running"


def test_what_tune_pickles_of_the_progress_is_plain_while_the_table_is_drawn(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    config = config_of(0)
    progress = made([config])
    with shown(progress):
        results(progress, config, report(10, 0.25))
        again = cloudpickle.loads(cloudpickle.dumps(progress))
    assert again.standing == progress.standing
    assert "yolox 0.2500" in again.standing


def test_a_terminal_gets_lines_above_its_table_for_what_ends_alone(
    made: Make, prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(0)
    trials = FakeTrials(str(tmp_path / "run"), tmp_path, prepared)
    trials.begin(config)
    trials.report(config, step=40, score=0.4)
    trials.folder(config).finish()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = made([config])
    with shown(progress):
        results(progress, config, report(10, 0.25))
        progress.on_trial_complete(0, [], of_tune(config))
    written = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|[\r\n]", " ", capsys.readouterr().out)  # without the terminal's commands
    assert " ".join(written.split()).count("| done; best so far: yolox 0.4000") == 1
    assert "step 10/40" not in written


def test_the_forecast_is_not_made_anew_for_every_report(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = module.forecast

    def slow(*args: Any, **more: Any) -> Any:
        asked.append(1)
        now[0] += 1.0
        return real(*args, **more)

    now = [0.0]
    monkeypatch.setattr(module, "forecast", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    config = config_of(0)
    progress = made([config])
    results(progress, config, report(10, 0.1), report(20, 0.2))
    assert len(asked) == 1
    now[0] += 60.0
    progress.on_trial_result(0, [], of_tune(config), report(30, 0.3))
    assert len(asked) == 2
