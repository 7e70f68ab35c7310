"""The main job: the search, and from its best checkpoints to a submission."""

import _environment  # noqa: F401 # isort: skip

from typing import Annotated, Literal

import tyro

from vbd.cli import Location, main
from vbd.cluster.connect import connect
from vbd.config import Device, Family, LoaderWorkers, Seed, Steps, Trials
from vbd.config.checked import SafeName, between


def tune(
    preset: Annotated[Literal["smoke", "study", "search"], tyro.conf.Positional] = "smoke",
    *,
    data: Location | None = None,
    storage: Location = "runs",
    name: SafeName | None = None,
    steps: Steps | None = None,
    trials: Trials | None = None,
    seed: Seed = 0,
    families: tuple[Family, ...] = (),
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    warm_start: Location = "",
    extend: bool = False,
    price: Annotated[float, between(0, 1e6)] | None = None,
    device: Device = "auto",
    loader_workers: LoaderWorkers = 0,
) -> None:
    """Search detectors, augmentation and hyperparameters; ensemble the best; write a submission. Run again to resume.

    A NAME of --set or --vary is a field of vbd/config/fields.py, of all families that have it, or with FAMILY.NAME of one.

    Args:
        preset: smoke (minutes on a laptop), study (augmentation A-E at equal steps) or search (the full space).
        data: Prepared dataset; left out, smoke makes the synthetic phantom dataset in data/.
        storage: Folder or URI (s3://...) of all runs.
        name: Name of this run in the storage; by default the preset's.
        steps: Optimiser steps of each trial, instead of the preset's.
        trials: Trials of each detector family, instead of the preset's.
        seed: Seed of the draws and of every trial.
        families: Only these detector families of the preset.
        set: NAME=VALUE: how to search (searcher, scheduler, gpus_per_trial ...), how trials run (threads ...), or a field of
            all of them, varied no more (batch_size=8). May be given again.
        vary: NAME=VALUE,VALUE or NAME=LOW..HIGH: vary a field. May be given again.
        warm_start: A finished run that tells this one where to look first.
        extend: Let the run of this name grow by what is new, instead of refusing another search in its folder.
        price: Of a device for an hour, in any currency: the forecast tells what the search will cost.
        device: Where trials run.
        loader_workers: Processes beside each trial that decode and augment.
    """
    from vbd.config.presets import preset_of
    from vbd.pipeline import run_pipeline
    from vbd.search.space.settings import options_from, search_from

    search = search_from(
        preset_of(preset),
        steps=steps,
        trials=trials,
        seed=seed,
        families=families,
        set=set,
        vary=vary,
        warm_start=warm_start,
    )
    options = options_from(set, device=device, loader_workers=loader_workers)
    run_pipeline(
        search,
        data=data,
        storage_root=storage,
        name=name or preset,
        options=options,
        extend=extend,
        price=price,
        connect=connect,
    )


if __name__ == "__main__":
    main(tune)
