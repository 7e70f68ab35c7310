"""The whole way in one call: sample, prepare, search, ensemble, submission."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vbd import storage
from vbd.commands import job_command
from vbd.config import PrepareConfig, RunOptions, SearchConfig
from vbd.errors import InputError
from vbd.summary import tell

# The embedded dataset of the smoke preset: small enough for a laptop, large enough that detectors learn.
SAMPLE_IMAGES = 1_500
SAMPLE_TEST_IMAGES = 200
SAMPLE_SIZE = 320


def run_pipeline(
    search: SearchConfig,
    *,
    data: str | None,
    storage_root: str,
    name: str,
    options: RunOptions,
    extend: bool = False,
    price: float | None = None,
) -> None:
    """Runs a search and ensembles its best checkpoints; needs a Ray connection. Every finished stage is skipped.

    Without `data` it makes the synthetic dataset, which only the smoke preset may use.
    """
    from vbd.ensemble.build import build_ensemble
    from vbd.search.run import run_search

    if data is None:
        if search.preset != "smoke":
            prepare = job_command("prepare", "--source", "RAW", "--output", "DATA")
            raise InputError(f"preset {search.preset} needs --data, a prepared dataset; to make one, run: {prepare}")
        with _stage("sample and prepare"):
            data = _sample_dataset(search.candidates[0].base.image_size)
    with _stage("search"):
        run_search(search, data=data, storage_root=storage_root, name=name, options=options, extend=extend, price=price)
    run = storage.join(storage_root, name)
    with _stage("ensemble"):
        result = build_ensemble(run, data, options=options)
    tell(submission=result.output)
    print(result.summary)
    print(f"leaderboard  {storage.join(run, 'leaderboard.txt')}\ncheckpoints  {storage.join(run, 'best')}")
    print(f"reports      {job_command('report', '--run', run, '--data', data, '--output', 'report.html')}")
    print(f"             {job_command('ensemble', '--run', run, '--data', data, '--html', 'ensemble.html')}")


def _sample_dataset(image_size: int) -> str:
    """The phantom dataset in `data/`, made on the first call."""
    from vbd.data.phantom import write_phantom
    from vbd.data.prepare import prepare

    raw, prepared = "data/phantom", f"data/phantom-{image_size}"
    print(f"{raw}: {SAMPLE_IMAGES + SAMPLE_TEST_IMAGES} synthetic chest X-rays", flush=True)
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
