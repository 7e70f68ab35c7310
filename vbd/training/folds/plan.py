"""What one call of jobs/train.py trains, and the `train.json` that says so in its output folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from vbd import storage
from vbd.commands import job_command
from vbd.config import Kept, Processes, RunOptions, TrainConfig, check_train_config, checked, stage_two
from vbd.config.checked import Rule, SafeName, between
from vbd.config.difference import first_difference
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.storage.ownership import others
from vbd.training.members import read_members
from vbd.training.microbatches import check_micro_batch
from vbd.training.settings import Settings, changed, changed_options, config_from_file

SCHEMA = 1
# Stands for the number of the fold in `weights`, so that each fold may start from a file of its own.
FOLD_MARK = "{fold}"


def _are_ordered(workers: tuple[int, int]) -> bool:
    return workers[0] <= workers[1]


@dataclass(frozen=True)
class TrainingPlan:
    """Configurations, each trained on some folds of a dataset, and how that is carried out."""

    configs: Annotated[dict[SafeName, TrainConfig], Rule("at least one config", len)]  # by member, <family>-<rank>
    data: str
    folds: Annotated[tuple[Annotated[int, between(0, 99)], ...], Rule("at least one fold", len)]
    options: RunOptions = field(default_factory=RunOptions)
    workers: Annotated[tuple[Processes, Processes], Rule("at least and at most", _are_ordered)] = (1, 1)
    keep: Kept = 2  # the newest checkpoints that stay beside the best

    def config_of(self, member: str, fold: int) -> TrainConfig:
        """The configuration of a member's run on a fold."""
        config = self.configs[member]
        return replace(config, fold=fold, weights=config.weights.replace(FOLD_MARK, str(fold)))


@dataclass(frozen=True)
class _OnDataset:
    """What train.json holds beside the plan."""

    dataset: str  # fingerprint


def run_name(member: str, fold: int) -> str:
    """The name of the run of a member on a fold, and of the folder of its checkpoint."""
    return f"{member}-fold{fold}"


def make_plan(
    configs: dict[str, TrainConfig],
    settings: Settings,
    *,
    output: str,
    data: str,
    folds: str,
    workers: str,
    options: RunOptions,
    keep: int,
) -> TrainingPlan:
    """A checked plan from the flags of jobs/train.py; raises InputError that names the flag."""
    plan = TrainingPlan(
        configs={name: changed(config, settings) for name, config in configs.items()},
        data=data,
        folds=parse_folds(folds, data),
        options=changed_options(options, settings),
        workers=parse_workers(workers),
        keep=keep,
    )
    for member, config in plan.configs.items():
        if config.batch_size < plan.workers[1]:
            raise InputError(
                f"--workers {workers}: more than the {config.batch_size} images of a batch of {member}, which they share"
            )
        for count in range(plan.workers[0], plan.workers[1] + 1):
            check_micro_batch(
                config,
                workers=count,
                sync_batchnorm=plan.options.sync_batchnorm,
                where=f"--workers {workers}: {member}",
            )
        for fold in plan.folds:
            weights = plan.config_of(member, fold).weights
            if weights and not storage.exists(weights):
                raise InputError(
                    f"fold {fold}: weights {weights}: no such file or folder; give another, or --folds that have one"
                )
    return joined(output, plan, open_dataset(data))  # a mistake is told before Ray is started


def parse_folds(text: str, data: str) -> tuple[int, ...]:
    """`all`, or fold numbers separated by commas, of a prepared dataset."""
    known = tuple(range(open_dataset(data).options.num_folds))
    if text == "all":
        return known
    folds = tuple(int(item) if item.strip().isdecimal() and len(item) < 10 else -1 for item in text.split(","))
    if not set(folds) <= set(known) or len(set(folds)) < len(folds):
        raise InputError(f"--folds {text}: want all, or some of {', '.join(map(str, known))}")
    return folds


def parse_workers(text: str) -> tuple[int, int]:
    """`4`, or `2-8` for as many as there is room for."""
    least, dash, most = text.partition("-")
    numbers = [
        int(part) if part.strip().isdecimal() and len(part) < 10 else 0 for part in (least, most if dash else least)
    ]
    if not 1 <= numbers[0] <= numbers[1] <= 1024:
        raise InputError(f"--workers {text}: want a number, or two such as 1-4: at least and at most, up to 1024")
    return numbers[0], numbers[1]


# -------------------------------------------------------------------------------------------------- where configs come from


def check_sources(data: str, **sources: str) -> None:
    """Raises InputError when configurations are asked for from two places, or the dataset is not named."""
    given = [f"--{name.replace('_', '-')}" for name, value in sources.items() if value]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]}: configurations come from one of them")
    if not data and not sources.get("second_stage"):
        raise InputError("--data: give the prepared dataset to train on")


def configs_from(
    config: str, second_stage: str, settings: Settings, *, data: str
) -> tuple[dict[str, TrainConfig], str]:
    """The configurations of `--config`, of `--second-stage` or the defaults, before the settings; and where the data are."""
    if second_stage:
        return second_stage_of(second_stage, settings, data=data)
    found = config_from_file(config) if config else TrainConfig()
    return {f"{changed(found, settings).detector}-1": found}, data


def second_stage_of(output: str, settings: Settings, *, data: str) -> tuple[dict[str, TrainConfig], str]:
    """For each member of a finished training the second stage, in which a fold starts from that fold's best checkpoint."""
    first = read_plan(output)
    data = data or first.data
    finished = {member.name: set(member.folders) for member in read_members(output, open_dataset(data))}
    configs = {}
    for name, config in first.configs.items():
        if finished.get(name) != {storage.join(output, run_name(name, fold)) for fold in first.folds}:
            resume = job_command("train", "--output", output, "--resume")
            raise InputError(f"{output}: {name} is not trained on all of its folds yet; to finish it, run: {resume}")
        configs[name] = stage_two(
            config,
            weights=storage.join(output, f"{name}-fold{FOLD_MARK}"),
            steps=max(1, settings.config.get("steps", config.steps // 10)),
        )
    return configs, data


# -------------------------------------------------------------------------------------------------------------- train.json


def claim_output(output: str, plan: TrainingPlan, dataset: PreparedDataset) -> TrainingPlan:
    """Writes `train.json`; returns the plan with the folds that were asked for in this folder before.

    Raises InputError when the folder belongs to other configurations or to another dataset. How a plan is carried out may change.
    """
    plan = joined(output, plan, dataset)
    content = dataclasses.asdict(plan) | {"schema": SCHEMA, "dataset": dataset.fingerprint}
    storage.write_json(storage.join(output, "train.json"), content)
    return plan


def joined(output: str, plan: TrainingPlan, dataset: PreparedDataset) -> TrainingPlan:
    """What `claim_output` returns and raises, and nothing is written."""
    if not storage.exists(storage.join(output, "train.json")):
        if others(storage.list_names(output)):
            raise InputError(f"{output}: the folder is not empty and holds no training; choose another --output")
        return plan
    theirs, fingerprint = _read(output)
    if fingerprint != dataset.fingerprint:
        raise InputError(
            f"{output}: trained on dataset {fingerprint}, {plan.data} is {dataset.fingerprint}; choose another --output"
        )
    before, now = ({name: dataclasses.asdict(config) for name, config in of.configs.items()} for of in (theirs, plan))
    if before != now:
        raise InputError(f"{output}: another training ({first_difference(before, now)}); choose another --output")
    return replace(plan, folds=tuple(sorted({*theirs.folds, *plan.folds})))


def read_plan(output: str) -> TrainingPlan:
    """The plan of an output folder; raises InputError when there is none."""
    return _read(output)[0]


def resume_plan(output: str, flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> TrainingPlan:
    """The plan of an output folder; raises InputError when a flag that it would ignore was given."""
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value != defaults[name]]
    if given:
        raise InputError(
            f"--resume goes on with what {output} holds, without {given[0]}; give the whole command instead to change how"
        )
    return read_plan(output)


def _read(output: str) -> tuple[TrainingPlan, str]:
    location = storage.join(output, "train.json")
    if not storage.exists(location):
        raise InputError(f"{output}: no train.json; give the output folder of a jobs/train.py that was started")
    data = storage.read_bytes(location)
    again = "choose another --output"
    plan = checked.parse(data, TrainingPlan, where=location, schema=SCHEMA, again=again)
    dataset = checked.parse(data, _OnDataset, where=location, again=again)
    for name, config in plan.configs.items():
        check_train_config(config, where=f"{location}: configs.{name}")
    return plan, dataset.dataset
