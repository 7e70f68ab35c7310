"""The loop on the workers of a Ray Train run, one run for each fold."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbd import storage
from vbd.config import RunOptions, TrainConfig, train_config_from
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.records import Detections
from vbd.training.loop import Ranks, TrainingError, train
from vbd.training.members import Member, write_members

METRIC = "map_40_findings"


def check_gpus(wanted: bool) -> None:
    """Raises InputError when GPUs are wanted of a cluster that has none and does not grow: it would wait for ever."""
    import ray

    resources = ray.cluster_resources()
    # A head that works itself is a cluster of fixed size; an autoscaled one starts with no cores at all.
    if wanted and not resources.get("GPU") and resources.get("CPU"):
        raise InputError("a GPU is asked for and the cluster has none; use --device cpu, or start Ray with --num-gpus")


def train_folds(
    configs: dict[str, TrainConfig],
    data: str,
    *,
    folds: Sequence[int],
    output: str,
    workers: int,
    use_gpu: bool,
    options: RunOptions,
) -> list[Member]:
    """Trains every configuration on every fold with Ray Train, and writes the manifest that the ensemble reads.

    `configs` maps the name of a member to its configuration. Runs that are finished are not run again.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: want 1 or more")
    check_gpus(use_gpu)
    dataset = open_dataset(data)
    root = storage.absolute(output)
    members = []
    for name, config in configs.items():
        results = [
            _train_fold(
                dataclasses.replace(config, fold=fold), dataset, f"{name}-fold{fold}", root, workers, use_gpu, options
            )
            for fold in folds
        ]
        score = sum(score for _, score in results) / len(results)
        members.append(Member(name, name, score, tuple(folder for folder, _ in results)))
    write_members(root, members, dataset.fingerprint, synthetic=dataset.synthetic)
    return members


def parse_folds(text: str, data: str) -> list[int]:
    """`all`, or fold numbers separated by commas, of a prepared dataset."""
    known = list(range(open_dataset(data).options.num_folds))
    if text == "all":
        return known
    folds = [int(item) if item.strip().isdecimal() else -1 for item in text.split(",")]
    if not set(folds) <= set(known) or len(set(folds)) < len(folds):
        raise InputError(f"--folds {text}: want all, or some of {', '.join(map(str, known))}")
    return folds


def _train_fold(
    config: TrainConfig,
    dataset: PreparedDataset,
    name: str,
    root: str,
    workers: int,
    use_gpu: bool,
    options: RunOptions,
) -> tuple[str, float]:
    """One Ray Train run; returns the folder of its best checkpoint, copied to `<root>/<name>`, and the score."""
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": dataclasses.asdict(config),
            "location": dataset.location,
            "options": dataclasses.asdict(options),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": options.threads + options.loader_workers} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage.join(root, "runs"),
            failure_config=ray.train.FailureConfig(max_failures=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=METRIC),
        ),
    )
    result = trainer.fit()
    best = max(result.best_checkpoints or [], key=lambda pair: pair[1][METRIC], default=None)
    if best is None:
        raise InputError(f"{name}: {result.return_value or result.error}; mend that, or choose another --output")
    folder = storage.join(root, name)
    with best[0].as_directory() as local:
        storage.copy_folder(local, folder)
    print(f"{name}: {METRIC} {best[1][METRIC]:.4f} at step {best[1]['step']}", flush=True)
    return folder, float(best[1][METRIC])


def _train_worker(task: dict[str, Any]) -> str:
    """The loop on one worker of a Ray Train run; every rank reports the one score. Returns why it could not go on, if so."""
    import ray.train
    from ray.train.torch import get_device

    config = train_config_from(task["config"])
    options = RunOptions(**task["options"])
    if options.device == "auto":
        options = dataclasses.replace(options, device=get_device().type)

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        if folder is None:
            ray.train.report(metrics)
            return
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))

    earlier = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory(prefix="vbd-") as parent:
        resume_from = earlier.to_directory(str(Path(parent) / "resume")) if earlier else None
        try:
            train(
                config,
                open_dataset(task["location"]),
                options=options,
                report=report,
                resume_from=resume_from,
                ranks=_ranks(),
            )
        except (TrainingError, InputError) as error:
            return str(error)
    return ""


def _ranks() -> Ranks:
    """This worker among the others of its Ray Train run."""
    import ray.train
    import torch.distributed
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    world = context.get_world_size()
    if world == 1:
        return Ranks()

    def gather(found: list[Detections]) -> list[Detections]:
        shares: list[list[Detections]] = [[] for _ in range(world)]
        torch.distributed.all_gather_object(shares, found)
        return [item for share in shares for item in share]

    return Ranks(context.get_world_rank(), world, gather, lambda model: prepare_model(model, move_to_device=False))
