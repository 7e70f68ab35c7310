"""The main job: the search, and from its best checkpoints to a submission."""

from typing import Annotated, Literal

import tyro

from vbd.cli import connect, main


def tune(
    preset: Annotated[Literal["smoke", "study", "search"], tyro.conf.Positional] = "smoke",
    *,
    data: str | None = None,
    storage: str = "runs",
    name: str | None = None,
    steps: int | None = None,
    trials: int | None = None,
    seed: int = 0,
    gpus_per_trial: float | None = None,
    loader_workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Search detectors, augmentation and hyperparameters; ensemble the best; write a submission. Run again to resume.

    Args:
        preset: smoke (minutes on a laptop), study (augmentation A-E at equal steps) or search (the full space).
        data: Prepared dataset; left out, smoke makes the synthetic phantom dataset in data/.
        storage: Folder or URI (s3://...) of all runs.
        name: Name of this run in the storage; by default the preset's.
        steps: Optimiser steps of each trial, instead of the preset's.
        trials: Trials of each detector family, instead of the preset's.
        seed: Seed of the draws and of every trial.
        gpus_per_trial: GPUs of each trial, 0.5 to share one; by default 1 if the cluster has any at the start.
        loader_workers: Processes beside each trial that decode and augment.
        device: Where trials run.
    """
    from vbd.config import RunOptions
    from vbd.pipeline import run_pipeline
    from vbd.presets import override, preset_of

    search = override(preset_of(preset), steps=steps, trials=trials, seed=seed, gpus_per_trial=gpus_per_trial)
    options = RunOptions(device=device, loader_workers=loader_workers)
    connect()
    run_pipeline(search, data=data, storage_root=storage, name=name or preset, options=options)


if __name__ == "__main__":
    main(tune)
