"""The whole way in one call: sample, prepare, search, ensemble, submission."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vbd import storage
from vbd.commands import job_command
from vbd.config import PrepareConfig, RunOptions, SearchConfig
from vbd.console.last_line import tell
from vbd.ensemble.summary import summary_of
from vbd.errors import InputError
from vbd.storage.outputs import Kind, check_outputs
from vbd.storage.ownership import own

# The embedded dataset of the smoke preset: small enough for a laptop, large enough that detectors learn.
SAMPLE_IMAGES = 1_500
SAMPLE_TEST_IMAGES = 200
SAMPLE_SIZE = 320
_SAMPLE = "data"  # folder of the raw and the prepared sample


def run_pipeline(
    search: SearchConfig,
    *,
    data: str | None,
    storage_root: str,
    name: str,
    options: RunOptions,
    extend: bool = False,
    price: float | None = None,
    connect: Callable[[], object] = lambda: None,
) -> None:
    """Runs a search and ensembles its best checkpoints; `connect` is called before Ray is needed.

    Every finished stage is skipped. Without `data` it makes the synthetic dataset, which only the smoke preset may use. Raises
    InputError when another job works in the run's folder.
    """
    from vbd.search.space.settings import run_folder

    check_pipeline(search, data=data, storage_root=storage_root, name=name)
    with own(run_folder(storage_root, name), "tune"):
        connect()
        _run_stages(search, data, storage_root, name, options, extend=extend, price=price)


def _run_stages(
    search: SearchConfig,
    data: str | None,
    storage_root: str,
    name: str,
    options: RunOptions,
    *,
    extend: bool,
    price: float | None,
) -> None:
    from vbd.ensemble.build import build_ensemble
    from vbd.search.run import run_search
    from vbd.search.tune.tuner import needs_of

    needs_of(search, options)  # what the cluster can never place is refused before the sample is made
    if data is None:
        with _stage("sample and prepare"):
            data = _sample_dataset(search.candidates[0].base.image_size)
    with _stage("search"):
        run_search(search, data=data, storage_root=storage_root, name=name, options=options, extend=extend, price=price)
    run = storage.join(storage_root, name)
    with _stage("ensemble"):
        result = build_ensemble(run, data, options=options)
    tell(submission=result.output)
    print(summary_of(result))
    run, data = storage.shown(run), storage.shown(data)
    print(f"leaderboard  {storage.join(run, 'leaderboard.txt')}\ncheckpoints  {storage.join(run, 'best')}")
    print(f"reports      {job_command('report', '--run', run, '--data', data, '--output', 'report.html')}")
    print(f"             {job_command('ensemble', '--run', run, '--data', data, '--html', 'ensemble.html')}")


def check_pipeline(search: SearchConfig, *, data: str | None, storage_root: str, name: str) -> None:
    """Raises InputError for what can be seen to be wrong with a search before anything is made for it; needs no Ray."""
    from vbd.data.prepared import open_dataset
    from vbd.search.kept.leaderboard import read_leaderboard
    from vbd.search.space.settings import run_folder

    if data is None and search.preset != "smoke":
        prepare = job_command("prepare", "--source", "RAW", "--output", "DATA")
        raise InputError(f"preset {search.preset} needs --data, a prepared dataset; to make one, run: {prepare}")
    places: dict[str, tuple[str | None, Kind]] = {"--storage": (run_folder(storage_root, name), "folder")}
    if data is None:
        places["the sample"] = (_SAMPLE, "folder")
    else:
        open_dataset(data)
    check_outputs(places, reads={"--data": data}, beside={"--warm-start": search.warm_start})
    if search.warm_start:
        read_leaderboard(search.warm_start)


def _sample_dataset(image_size: int) -> str:
    """The prepared phantom dataset, made on the first call."""
    from vbd.data.phantom.write import write_phantom
    from vbd.data.prepare.dataset import prepare

    raw, prepared = (storage.absolute(f"{_SAMPLE}/{name}") for name in ("phantom", f"phantom-{image_size}"))
    print(f"{storage.shown(raw)}: {SAMPLE_IMAGES + SAMPLE_TEST_IMAGES} synthetic chest X-rays", flush=True)
    write_phantom(
        raw,
        images=SAMPLE_IMAGES,
        test_images=SAMPLE_TEST_IMAGES,
        image_format="dicom",
        size=SAMPLE_SIZE,
        processes=os.cpu_count() or 1,
    )
    # What an older version made of the sample is made anew.
    prepare(raw, prepared, PrepareConfig(image_size=image_size), overwrite=True)
    return prepared


@contextmanager
def _stage(name: str) -> Iterator[None]:
    print(f"== {name}", flush=True)
    tell(stage=name)  # in which the job ends, if it does not come to the next
    started = time.monotonic()
    yield
    print(f"== {name} took {time.monotonic() - started:.0f} s", flush=True)
