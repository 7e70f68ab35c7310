"""What a search found: every trial with its proof, best first, and the checkpoints that are kept."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vbd import storage
from vbd.config import Family, TrainConfig, check_train_config, checked, finds_boxes
from vbd.console.words import table_lines
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.evaluation.score import SCORE, score_name
from vbd.records import Trial

SCHEMA = 2
_PATHS = ("checkpoint", "detections")


@dataclass(frozen=True)
class Leaderboard:
    """The trials of a run, best first; those without a score come last."""

    preset: str
    dataset: str  # fingerprint
    synthetic: bool
    trials: tuple[Trial, ...]


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Best score first, equal ones by id; classifiers after the detectors, since theirs is another; without a score last."""

    def place(trial: Trial) -> tuple[bool, bool, float, str]:
        is_known = is_scored(trial)
        return not is_known, not finds_boxes(trial.config.detector), -trial.score if is_known else 0.0, trial.trial_id

    return tuple(sorted(trials, key=place))


def is_scored(trial: Trial) -> bool:
    """Whether a trial has a score that counts: one that failed or was refused has none."""
    return not math.isnan(trial.score) and trial.status not in ("failed", "refused")


def write_leaderboard(run: str, board: Leaderboard) -> None:
    """`leaderboard.json` for programs, its paths relative to the run folder, and `leaderboard.txt` for people."""
    prefix = run.rstrip("/") + "/"
    content = {
        "schema": SCHEMA,
        "preset": board.preset,
        "dataset": board.dataset,
        "synthetic": board.synthetic,
        "trials": [
            dataclasses.asdict(trial) | {name: getattr(trial, name).removeprefix(prefix) for name in _PATHS}
            for trial in board.trials
        ],
    }
    storage.write_json(storage.join(run, "leaderboard.json"), content)
    storage.write_bytes(storage.join(run, "leaderboard.txt"), (format_leaderboard(board) + "\n").encode())


def read_leaderboard(run: str) -> Leaderboard:
    """The leaderboard of a run folder; raises InputError when there is none."""
    location = storage.join(run, "leaderboard.json")
    if not storage.exists(location):
        raise InputError(f"{run}: no leaderboard.json; give the folder of a finished search (jobs/tune.py)")
    board = checked.read(location, Leaderboard, schema=SCHEMA, again="run the search again under another --name")
    for i, trial in enumerate(board.trials):
        check_train_config(trial.config, where=f"{location}: trials[{i}].config")
    return replace(board, trials=tuple(_located(trial, run) for trial in board.trials))


def _located(trial: Trial, run: str) -> Trial:
    """The trial with its paths, which the file has relative to the run folder, as they are."""
    places = {name: getattr(trial, name) for name in _PATHS}
    inside: dict[str, Any] = {name: storage.join(run, place) if place else "" for name, place in places.items()}
    return replace(trial, **inside)


# -------------------------------------------------------------------------------------------------------------- people


def format_leaderboard(board: Leaderboard) -> str:
    """A table for people, one line per trial."""
    score = score_name(trial.config.detector for trial in board.trials)
    rows = [_cells(trial) | {score: f"{trial.score:.4f}" if is_scored(trial) else "-"} for trial in board.trials]
    names = ("trial", "detector", "variant", "size", "policy", "strength", "learning_rate", score, "steps", "time")
    columns = [*names, *(["host"] if len({trial.host for trial in board.trials}) > 1 else []), "status"]
    table = [columns, *([row[name] for name in columns] for row in rows)]
    title = f"{board.preset} search on dataset {board.dataset}" + (" (synthetic)" if board.synthetic else "")
    return "\n".join([title, *table_lines(table, numbers=False), *_explained(score)])


def _explained(score: str) -> list[str]:
    """What the scores are, where they are not all the same."""
    if score != SCORE:
        return []
    return [f"score: {score_name(['yolox'])} of detectors, {score_name(['classifier'])} of classifiers"]


def _cells(trial: Trial) -> dict[str, str]:
    config = trial.config
    rates = (config.learning_rate, *(config.learning_rate * factor for factor in config.phase_rates))
    return {
        "trial": trial.trial_id,
        "detector": config.detector,
        "variant": config.variant,
        "size": str(config.image_size),
        "policy": config.policy,
        "strength": "-" if config.policy == "A" else _in_phases((config.strength, *config.phase_strengths)),
        "learning_rate": _in_phases(rates),
        "steps": _how_far(trial),
        "time": f"{trial.seconds:.0f} s" if trial.seconds < 120 else f"{trial.seconds / 60:.1f} min",
        "host": trial.host or "-",
        "status": f"{trial.status}: {trial.reason}" if trial.reason else trial.status,
    }


def _in_phases(values: Sequence[float]) -> str:
    """A schedule, such as 0.3>0.36>0.29: the first value, and the one of each phase."""
    return ">".join(f"{value:.3g}" for value in values)


def _how_far(trial: Trial) -> str:
    """The step of the best checkpoint, which is the score's, and the last one that was reported."""
    last = max((report["step"] for report in trial.history), default=trial.steps)
    ran = f"ran {last} of {trial.config.steps}"
    return f"best at {trial.steps}, {ran}" if is_scored(trial) else ran


def best_configs(
    run: str,
    data: str,
    *,
    top: int,
    families: Sequence[Family] = (),
) -> dict[str, TrainConfig]:
    """The best `top` configurations of each family by `<family>-<rank>`, to be trained again on every fold.

    Trials that differ in their seed alone are one configuration.
    """
    if top < 1:
        raise InputError(f"--top {top}: want 1 or more")
    board, dataset = read_leaderboard(run), open_dataset(data)
    if board.dataset != dataset.fingerprint:
        raise InputError(f"{run}: a search on dataset {board.dataset}, but {data} is {dataset.fingerprint}")
    if any(trial.status == "unfinished" for trial in board.trials):
        raise InputError(f"{run}: the search was stopped; run it to its end first")
    chosen: dict[str, TrainConfig] = {}
    for trial in board.trials:
        config = trial.config
        if families and config.detector not in families:
            continue
        same = [other for other in chosen.values() if replace(other, seed=config.seed) == config]
        rank = 1 + sum(name.startswith(f"{config.detector}-") for name in chosen)
        if is_scored(trial) and not same and rank <= top:
            chosen[f"{config.detector}-{rank}"] = config
    if not chosen:
        raise InputError(f"{run}: no trial has a score; see leaderboard.txt for the reasons")
    return chosen
