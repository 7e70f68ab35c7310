"""What a search found: every trial with its proof, best first, and the checkpoints that are kept."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vbd import storage
from vbd.config import Family, TrainConfig, config_hash, train_config_from
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.training.checkpoint import read_info
from vbd.training.members import Member, write_members

SCHEMA = 1


@dataclass(frozen=True)
class Leaderboard:
    """The trials of a run, best first; those without a score come last."""

    preset: str
    dataset: str  # fingerprint
    synthetic: bool
    trials: tuple[Trial, ...]


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Best score first; failed trials, which have none, last."""
    return tuple(sorted(trials, key=lambda t: (math.isnan(t.score), -t.score if t.score == t.score else 0, t.trial_id)))


def prove(trial: Trial) -> Trial:
    """The trial, or the trial refused: its checkpoint must carry the very config, step and score that it reports."""
    if not trial.checkpoint or trial.status == "failed":
        return trial
    try:
        info = read_info(trial.checkpoint)
    except InputError as error:
        return _refused(trial, str(error))
    if info.config_hash != trial.config_hash or config_hash(trial.config) != trial.config_hash:
        return _refused(trial, f"its checkpoint was trained with config {info.config_hash}, not {trial.config_hash}")
    if info.step != trial.steps or info.metrics.get("map_40_findings") != trial.score:
        return _refused(trial, f"its checkpoint is of step {info.step}, the score of step {trial.steps}")
    return trial


def _refused(trial: Trial, reason: str) -> Trial:
    return dataclasses.replace(trial, status="refused", reason=reason, score=math.nan)


def write_leaderboard(run: str, board: Leaderboard) -> None:
    """`leaderboard.json` for programs and `leaderboard.txt` for people."""
    content = {
        "schema": SCHEMA,
        "preset": board.preset,
        "dataset": board.dataset,
        "synthetic": board.synthetic,
        "trials": [dataclasses.asdict(trial) for trial in board.trials],
    }
    storage.write_json(storage.join(run, "leaderboard.json"), content)
    storage.write_bytes(storage.join(run, "leaderboard.txt"), (format_leaderboard(board) + "\n").encode())


def read_leaderboard(run: str) -> Leaderboard:
    """The leaderboard of a run folder; raises InputError when there is none."""
    location = storage.join(run, "leaderboard.json")
    if not storage.exists(location):
        raise InputError(f"{run}: no leaderboard.json; give the folder of a finished search (jobs/tune.py)")
    content = storage.read_object(location)
    if content.get("schema") != SCHEMA:
        raise InputError(f"{location}: schema {content.get('schema')!r}, want {SCHEMA}; run the search again")
    try:
        trials = tuple(_trial_from(values, location) for values in content["trials"])
        return Leaderboard(content["preset"], content["dataset"], content["synthetic"], trials)
    except (KeyError, TypeError) as error:
        raise InputError(f"{location}: field {error} is missing or wrong; run the search again") from None


def _trial_from(values: dict[str, Any], where: str) -> Trial:
    config = train_config_from(values["config"], where=where)
    return Trial(**values | {"config": config, "score": _number(values["score"])})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def format_leaderboard(board: Leaderboard) -> str:
    """A table for people, one line per trial."""
    columns = (
        "trial",
        "detector",
        "variant",
        "policy",
        "strength",
        "learning_rate",
        "steps",
        "map_40_findings",
        "status",
    )
    rows = [_cells(trial) for trial in board.trials]
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    title = f"{board.preset} search on dataset {board.dataset}" + (" (synthetic)" if board.synthetic else "")
    return "\n".join(line.rstrip() for line in (title, *lines))


def _cells(trial: Trial) -> tuple[str, ...]:
    config = trial.config
    score = "-" if math.isnan(trial.score) else f"{trial.score:.4f}"
    return (
        trial.trial_id,
        config.detector,
        config.variant,
        config.policy,
        "-" if config.policy == "A" else f"{config.strength:g}",
        f"{config.learning_rate:.3g}",
        f"{trial.steps}/{config.steps}",
        score,
        f"{trial.status}: {trial.reason}" if trial.reason else trial.status,
    )


def keep_best(run: str, board: Leaderboard, *, per_family: int) -> list[Member]:
    """Copies the best checkpoints of each family to `best/`, and writes the manifest that the ensemble reads."""
    best = storage.join(run, "best")
    storage.delete_folder(best)  # with its manifest: it never names what is not there
    kept: list[Member] = []
    for trial in board.trials:
        rank = 1 + sum(member.name.startswith(f"{trial.config.detector}-") for member in kept)
        if math.isnan(trial.score) or not trial.checkpoint or rank > per_family:
            continue
        name = f"{trial.config.detector}-{rank}"
        storage.copy_folder(trial.checkpoint, storage.join(best, name))
        kept.append(Member(name, trial.trial_id, trial.score, (storage.join(best, name),)))
    if not kept:
        raise InputError(f"{run}: no trial of the search ended with a score; see leaderboard.txt for the reasons")
    write_members(best, kept, board.dataset, synthetic=board.synthetic)
    return kept


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
        if not math.isnan(trial.score) and not same and rank <= top:
            chosen[f"{config.detector}-{rank}"] = config
    if not chosen:
        raise InputError(f"{run}: no trial has a score; see leaderboard.txt for the reasons")
    return chosen
