"""The state of a search while it runs, in lines for a log and in Ray's metrics; `live_table` draws it on a terminal."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from vbd.cluster.nodes import is_spread
from vbd.config import SearchConfig, TrainConfig, config_hash
from vbd.console.words import in_hours, in_time
from vbd.errors import StoreError
from vbd.evaluation.score import SCORE, score_name
from vbd.records import Trial
from vbd.search.cost.forecast import Devices, Forecast, forecast
from vbd.search.cost.rates import Rates
from vbd.search.kept.leaderboard import is_scored, ranked
from vbd.search.kept.trial import ENDED, TrialFolder, trial_id_of
from vbd.search.tune.handed_over import proposal_of
from vbd.search.tune.metrics import SearchMetrics

# In a report's line, beyond which it leaves the variant out: the trial's id tells it.
_MOST_CHARACTERS = 140
# With thousands of trials a forecast takes a while: this share of the time at most.
_SHARE_FORECASTING = 0.02


@dataclass(frozen=True)
class Plan:
    """What a search means to do: its draws, how many trials they become, how fast they train, and on what."""

    search: SearchConfig
    configs: Sequence[TrainConfig]
    total: int
    rates: Rates
    devices: Callable[[], Devices]  # of the cluster as it is now
    price: float | None = None


class SearchProgress(tune.Callback):
    """Prints every report and how each trial ends. Holds plain data only, since Tune pickles its callbacks."""

    def __init__(self, plan: Plan, run: str, *, known: Iterable[Trial] = ()):
        self.has_table = False  # a live table shows the reports: they are not printed as lines
        self._plan, self._run = plan, run
        self._trials = {trial.trial_id: _at_rest(trial) for trial in known}
        self._started = time.monotonic()
        self._told_faults: set[str] = set()  # trials whose attempt has told why it ends
        self._metrics = SearchMetrics(run.rstrip("/").rpartition("/")[2])
        self._expected: Forecast | None = None
        self._expected_until = -math.inf  # when it is old

    # ------------------------------------------------------------------------------------------------ called by Tune

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has got its devices."""
        proposal, number = proposal_of(trial.config)
        ours = trial_id_of(proposal.config)
        there = self._trials.get(ours) or _new(proposal.config, number)
        self._trials[ours] = replace(there, status="running")
        self._tell_metrics()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial has come to its next report, or failed."""
        there = self._of(trial)
        if result.get("failed") or result.get("fault"):
            self._say(there, f"failed: {result.get('failed') or result['fault']}", host=result.get("hostname", ""))
            self._told_faults |= {there.trial_id} if result.get("fault") else set()
            return
        history = [*(report for report in there.history if report["step"] < result["step"]), result]
        scores = [report.get(SCORE) for report in history]
        best = max((score for score in scores if score is not None and score == score), default=math.nan)
        self._trials[there.trial_id] = replace(
            there, status="running", history=history, metrics=result, steps=result["step"], score=best
        )
        if not self.has_table:
            self._say(there, _report_in_words(result, there.config), host=result.get("host", ""), is_report=True)
        self._tell_metrics()

    def add_failed(self, trial: Trial) -> None:
        """A trial has failed before it was started."""
        self._trials[trial.trial_id] = trial
        self._say(trial, f"failed: {trial.reason}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended, by itself or stopped."""
        found = self._read(trial)
        if found.status == "failed":
            return  # told with its reason already
        told = {"finished": "done", "waiting": "at the end of its generation"}.get(found.status, found.status)
        told += f" ({found.reason})" if found.reason else ""
        self._tell_metrics()
        self._say(found, f"{told}; {self.standing}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's process has died; Tune tries again."""
        there = self._of(trial)
        why = "" if there.trial_id in self._told_faults else "its process died; "
        self._told_faults.discard(there.trial_id)
        self._say(there, f"{why}it is tried again from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's last attempt has failed."""
        found = self._read(trial)
        if found.status == "died":
            self._say(found, found.reason)

    # ------------------------------------------------------------------------------------------------------ in words

    @property
    def trials(self) -> list[Trial]:
        """What is known of every trial that has begun. A copy: the live table is drawn in a thread of its own."""
        return list(self._trials.values())

    @property
    def title(self) -> str:
        """How many trials have ended, the time since the start, and what has been spent."""
        elapsed = in_time(time.monotonic() - self._started)
        return " | ".join([f"{self._ended}/{self._plan.total} trials", f"{elapsed} so far", *self._cost()])

    @property
    def standing(self) -> str:
        """The best of each family so far, what has been spent, and the time left."""
        best = best_of_families(self.trials)
        told = [f"{family} {trial.score:.4f}" for family, trial in best.items()]
        return "; ".join(["best so far: " + ("  ".join(told) or "none"), *self._cost()])

    def _cost(self) -> list[str]:
        found = self._expected
        if found is None or not found.is_known:
            return []
        kind = found.devices.kind
        told = [f"{in_hours(found.spent)} of about {in_hours(found.expected)} {kind}-hours"]
        if found.price is not None:
            told[0] += f", {found.spent * found.price:.2f} of about {found.expected * found.price:.2f} spent"
        return [*told, f"about {in_time(found.seconds_left)} left"] if found.seconds_left > 0 else told

    def _say(self, trial: Trial, text: str, *, host: str = "", is_report: bool = False) -> None:
        """A line about a trial; `host` is that of its process now, by default of its last report."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        stand = f"[{minutes:3d}:{seconds:02d}] {self._ended}/{self._plan.total} trials"
        host = (host or (trial.history[-1].get("host", "") if trial.history else "")) if is_spread() else ""
        on_host = f" on {host.partition('.')[0]}" if host else ""
        line = f"{stand} | {trial.trial_id} {in_brief(trial.config)}{on_host} | {text}"
        if is_report and len(line) > _MOST_CHARACTERS:
            line = f"{stand} | {trial.trial_id} {in_brief(trial.config, variant=False)}{on_host} | {text}"
        print(line, flush=True)

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def _ended(self) -> int:
        return sum(trial.status in ENDED for trial in self.trials)

    def _of(self, trial: Any) -> Trial:
        """What is known of a trial of Tune's."""
        proposal, number = proposal_of(trial.config)
        ours = trial_id_of(proposal.config)
        return self._trials.get(ours) or _new(proposal.config, number)

    def _read(self, trial: Any) -> Trial:
        """What its folder tells of a trial that has ended."""
        there = self._of(trial)
        try:
            found = TrialFolder(self._run, there.trial_id).read() or there
        except StoreError:
            found = there  # those wait for the store who must
        self._trials[found.trial_id] = found
        return found

    def _tell_metrics(self) -> None:
        trials = self.trials
        now = time.monotonic()
        if now >= self._expected_until:
            plan = self._plan
            self._expected = forecast(
                plan.configs, trials, plan.rates, search=plan.search, devices=plan.devices(), price=plan.price
            )
            took = time.monotonic() - now
            self._expected_until = now + took / _SHARE_FORECASTING
        expected = self._expected
        assert expected is not None
        states = Counter(trial.status for trial in trials) + Counter(pending=max(0, self._plan.total - len(trials)))
        for status in ("running", "waiting", "pending", *ENDED):
            states.setdefault(status, 0)  # a gauge keeps its last value until it is told another
        self._metrics.update(
            states,
            {family: trial.score for family, trial in best_of_families(trials).items()},
            device_hours=expected.spent,
            forecast_device_hours=expected.expected,
        )


def in_brief(config: TrainConfig, *, variant: bool = True) -> str:
    """A trial in few words, as in `yolox nano E x0.3 lr 0.002`; without the `nano` when it is not to tell the variant."""
    strength = "" if config.policy == "A" else f" x{config.strength:g}"
    model = f"{config.detector} {config.variant}" if variant else config.detector
    return f"{model} {config.policy}{strength} lr {config.learning_rate:.2g}"


def _new(config: TrainConfig, number: int) -> Trial:
    return Trial(
        trial_id_of(config), config, config_hash(config), score=math.nan, steps=0, checkpoint="", status="running",
        number=number,
    )  # fmt: skip


def _at_rest(trial: Trial) -> Trial:
    """A trial of an earlier session, which does not run until Tune says so."""
    return replace(trial, status="unfinished") if trial.status == "running" else trial


def best_of_families(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trial with the best score of each family, families in alphabetical order."""
    best: dict[str, Trial] = {}
    for trial in ranked(list(trials)):
        if is_scored(trial):
            best.setdefault(trial.config.detector, trial)
    return dict(sorted(best.items()))


def _report_in_words(result: Mapping[str, Any], config: TrainConfig) -> str:
    name = score_name([config.detector])
    return (
        f"step {result['step']}/{config.steps}  loss {result['loss']:.3f}  {name} {in_digits(result.get(SCORE))}  "
        f"{result['images_per_second']:.0f} images/s"
    )


def in_digits(score: float | None) -> str:
    """A score with four digits, or a dash: a fold without findings has none."""
    return "–" if score is None or score != score else f"{score:.4f}"
