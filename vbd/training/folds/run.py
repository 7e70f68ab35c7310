"""Configurations on folds with Ray Train, one run for each fold."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbd import storage
from vbd.cluster.placement import Selector, check_workers, selector_for, told_while_waiting, what_is_held
from vbd.config import TrainConfig, checked
from vbd.config.checked import Count, Share
from vbd.console.last_line import tell
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError, StoreError, input_error_within
from vbd.storage import deletion
from vbd.storage.ownership import Owner, own
from vbd.training.folds.best import best_of
from vbd.training.folds.outcome import Outcome, format_outcomes, member_of, summary
from vbd.training.folds.plan import TrainingPlan, claim_output, run_name
from vbd.training.members import Member, delete_checkpoint, write_members
from vbd.training.recurrence import forget

if TYPE_CHECKING:
    from ray.train import Result

# Attempts at a run whose process or machine died, beside those that memory takes to be enough.
_MAX_FAILURES = 3


def train_plan(plan: TrainingPlan, output: str, *, connect: Callable[[], object] = lambda: None) -> list[Member]:
    """Trains every configuration on every fold and writes the manifest that the ensemble reads.

    `connect` is called before Ray is needed. Runs that are finished are not run again. A run that cannot go on lets the others
    end first; then InputError is raised, as it is when another job works in `output`.
    """
    dataset = open_dataset(plan.data)
    with own(output, "train") as owner:
        connect()
        return _train_plan(plan, dataset, output, owner)


def _train_plan(plan: TrainingPlan, dataset: PreparedDataset, output: str, owner: Owner) -> list[Member]:
    beside, each, selector = 1 if plan.options.input == "ray" else 0, resources_of(plan), _selector_of(plan)
    check_workers(plan.workers[0], each, beside=beside, selector=selector)
    plan = claim_output(output, plan, dataset)
    deletion.remove_leftovers(output)
    if waiting := what_is_held(plan.workers[0], each):
        print(waiting, flush=True)
    with told_while_waiting(each, selector):
        outcomes = [_trained(plan, member, fold, dataset, output) for member in plan.configs for fold in plan.folds]
    members, summaries = [], []
    for name in plan.configs:
        mine = [outcome for outcome in outcomes if outcome.member == name]
        if not any(outcome.reason for outcome in mine):
            members.append(member_of(name, mine))
            summaries.append(summary(members[-1], mine, dataset))
    owner.check()
    if members:
        write_members(output, members, dataset.fingerprint, synthetic=dataset.synthetic)
    failed_folds = sum(bool(outcome.reason) for outcome in outcomes)
    tell(output=output, members=len(members), folds=len(outcomes) - failed_folds, failed_folds=failed_folds)
    print("\n".join([format_outcomes(outcomes), *summaries]), flush=True)
    for failed in (outcome for outcome in outcomes if outcome.reason):
        raise InputError(
            f"{run_name(failed.member, failed.fold)}: {failed.reason}; mend that, or choose another --output"
        )
    return members


def resources_of(plan: TrainingPlan) -> dict[str, float]:
    """What each worker asks of Ray; tasks of Ray Data ask for their own."""
    cpus = plan.options.threads + (plan.options.loader_workers if plan.options.input == "loader" else 0)
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if plan.options.device == "cuda" else {})


def _selector_of(plan: TrainingPlan) -> Selector:
    """The labels of the nodes that its workers belong on."""
    return selector_for("training", gpu=plan.options.device == "cuda")


@dataclass(frozen=True)
class _Finished:
    """What `finished.json` of a run holds, besides its last number of workers."""

    score: Share
    step: Count


def _trained(plan: TrainingPlan, member: str, fold: int, dataset: PreparedDataset, root: str) -> Outcome:
    """Trains a member on a fold unless that is done; its best checkpoint lies in `<root>/<member>-fold<fold>` then."""
    name = run_name(member, fold)
    run, folder = storage.join(root, "runs", name), storage.join(root, name)
    finished = storage.join(run, "finished.json")
    if storage.exists(finished):
        told = checked.read(finished, _Finished, again=f"remove {run} to train the fold again")
        if not storage.exists(storage.join(folder, "config.json")):
            raise InputError(
                f"{folder}: the checkpoint of a finished fold is gone; put it back, or remove {run} to start anew"
            )
        print(f"{name}: finished before", flush=True)
        return Outcome(member, fold, folder, told.score, told.step)
    _make_ready(run)
    result = _fit(plan, plan.config_of(member, fold), dataset, storage.join(root, "runs"), name)
    best = best_of(run)
    if result.return_value or best is None:
        return Outcome(member, fold, reason=str(result.return_value or result.error or "no checkpoint was written"))
    storage.copy_folder(best.folder, folder)
    workers = (result.metrics or {}).get("workers")  # those of its end
    storage.write_json(finished, {"score": best.score, "step": best.step, "workers": workers})  # the copy is whole now
    _tidy(run, result)
    print(f"{name}: best {best.score:.4f} at step {best.step} of {plan.configs[member].steps}", flush=True)
    return Outcome(member, fold, folder, best.score, best.step)


def _fit(plan: TrainingPlan, config: TrainConfig, dataset: PreparedDataset, runs: str, name: str) -> "Result":
    """One Ray Train run, which goes on with what its folder holds."""
    import ray.train
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.torch import TorchTrainer

    from vbd.training.folds.worker import train_worker

    least, most = plan.workers
    # Each time that memory runs out with several workers costs an attempt, and halves what goes through at a time.
    halvings = config.batch_size.bit_length() if most > 1 else 0
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": dataclasses.asdict(config),
            "options": dataclasses.asdict(plan.options),
            "data": dataset.location,
            "run": storage.join(runs, name),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=plan.options.device == "cuda",
            resources_per_worker=resources_of(plan),
            label_selector=dict(_selector_of(plan)) or None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=runs,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES + halvings),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=plan.keep),
            # Our own lines say more, and without the traceback of each worker that is lost; Ray's files keep all.
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    for attempt in range(1 + _MAX_FAILURES):
        try:
            return trainer.fit()
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if cause := input_error_within(failure):
                    raise cause from error
            raise
        except (RayActorError, OutOfMemoryError):
            # Ray's controller of the run, a process beside this one, which Ray starts once.
            if attempt == _MAX_FAILURES:
                raise
            print(f"{name}: the process that watches over its workers died; tried again", flush=True)
            _make_ready(storage.join(runs, name))
    raise AssertionError("unreachable")


def _make_ready(run: str) -> None:
    """Removes what would end the next attempt at once: the reason why the last one stopped and the errors of earlier ones,
    whose causes may be removed by now, and Ray's list of checkpoints when only a part of it was written; a worker then looks
    for itself.
    """
    forget(run)
    storage.delete_file(storage.join(run, "stop.json"))
    snapshot = storage.join(run, "checkpoint_manager_snapshot.json")
    if storage.exists(snapshot):
        try:
            listed = storage.read_object(snapshot)["checkpoint_results"]
            is_whole = {item["checkpoint_dir_name"] for item in listed} <= set(storage.list_names(run))
        except StoreError:
            raise
        except (InputError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            storage.delete_file(snapshot)


def _tidy(run: str, result: "Result") -> None:
    """Removes the best checkpoint, which has been copied, and what a killed worker uploaded and did not report."""
    kept = {checkpoint.path.rstrip("/").rpartition("/")[2] for checkpoint, _ in result.best_checkpoints or []}
    for name in storage.list_names(run):
        is_left = name.startswith("checkpoint_") and not name.endswith(".json") and name not in kept
        if is_left or name.startswith("best-"):
            delete_checkpoint(storage.join(run, name))
