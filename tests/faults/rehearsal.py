"""A rehearsal of what is done in a cloud, on this machine: `python -m tests.faults.rehearsal` prints a transcript.

A cluster of two nodes, jobs submitted with `ray job submit`, an S3 server for all that is kept, SYNTHETIC films. Once
undisturbed, and once with a node killed in the middle of each job: both end with the same submission, byte for byte.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.nodes import RAY, ROOT, Nodes, free_port, wait_until
from tests.stores import environment_of, s3_server
from vbd import storage

# What is small here: 60 films of 64 pixels, two trials of 60 steps.
_SIZE = ("--image-size", "64", "--folds", "3")
_SEARCH = ("--families", "yolox", "--trials", "2", "--steps", "60", "--device", "cpu")
_TRIAL = ("image_size=64", "batch_size=4", "report_every=10", "scheduler=fifo")
_FILES = ("submission.csv", "ensemble.json", "best/manifest.json")


@dataclass(frozen=True)
class Submitted:
    """A job, what it is called, and when it is in the middle: what has to be in the store, or in its log."""

    name: str
    command: tuple[str, ...]
    is_amidst: Callable[["Submitted", str], bool]

    def log(self, dashboard: str) -> str:
        """What it has printed so far."""
        return str(_get(f"{dashboard}/api/jobs/{self.name}/logs").get("logs", ""))

    def status(self, dashboard: str) -> str:
        """As Ray tells it."""
        return str(_get(f"{dashboard}/api/jobs/{self.name}").get("status"))


def jobs_of(raw: str, root: str) -> list[Submitted]:
    """The way from raw films to a submission, all of it in a folder of a store."""
    data, run = f"{root}/data", f"{root}/runs/run"
    sets = [f"--set={each}" for each in _TRIAL]
    search = ("smoke", "--data", data, "--storage", f"{root}/runs", "--name", "run", *_SEARCH, *sets)
    return [
        Submitted(
            "prepare",
            ("jobs/prepare.py", "--source", raw, "--output", data, *_SIZE),
            lambda job, dashboard: "images" in job.log(dashboard),
        ),
        Submitted(
            "tune",
            ("jobs/tune.py", *search),
            lambda _, __: any(name.endswith("/config.json") for name in _files_below(f"{run}/trials")),
        ),
        Submitted(
            "ensemble",
            ("jobs/ensemble.py", "--run", run, "--data", data, "--output", f"{run}/submission.csv", "--device", "cpu"),
            lambda job, dashboard: "predicting" in job.log(dashboard),
        ),
    ]


def rehearse(raw: str, root: str, *, killing: bool, say: Callable[[str], None] = print) -> dict[str, bytes]:
    """Submits the jobs one after the other; returns the files that must not depend on what befell them."""
    with Nodes() as nodes:
        for _ in range(2):
            nodes.add(cpus=1)
        for job in jobs_of(raw, root):
            name = f"{job.name}-rough" if killing else f"{job.name}-calm"
            job = Submitted(name, job.command, job.is_amidst)
            say(f"$ ray job submit --working-dir . -- python {' '.join(job.command)}")
            started = time.monotonic()
            _submit(nodes, job)
            if killing:
                _wait(nodes, job, lambda job=job: job.is_amidst(job, nodes.dashboard))
                lost = nodes.nodes[-1]
                lost.kill()
                say(f"    {lost.name} killed after {time.monotonic() - started:.1f} s; a new node takes its place")
                nodes.add(cpus=1)
            _wait(nodes, job, lambda job=job: job.status(nodes.dashboard) in ("SUCCEEDED", "FAILED", "STOPPED"))
            log, status = job.log(nodes.dashboard), job.status(nodes.dashboard)
            say(f"    {status} after {time.monotonic() - started:.1f} s: {_last_line(log)}")
            if status != "SUCCEEDED":
                raise AssertionError(log)
    return {name: storage.read_bytes(f"{root}/runs/run/{name}") for name in _FILES}


def _submit(nodes: Nodes, job: Submitted) -> None:
    where = ("--address", nodes.dashboard, "--submission-id", job.name, "--no-wait", "--working-dir", ".")
    subprocess.run(
        [RAY, "job", "submit", *where, "--", "python", *job.command],
        cwd=ROOT,
        env=nodes.environment,
        check=True,
        capture_output=True,
    )


def _wait(nodes: Nodes, job: Submitted, is_so: Callable[[], bool]) -> None:
    """Returns when something is so, or when the job has ended."""
    ended = ("SUCCEEDED", "FAILED", "STOPPED")
    wait_until(lambda: is_so() or job.status(nodes.dashboard) in ended, lambda: job.log(nodes.dashboard), seconds=600)


def _get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _files_below(location: str) -> Sequence[str]:
    return list(storage.list_files(location, recursive=True))


def _last_line(log: str) -> str:
    return next((line for line in reversed(log.splitlines()) if line.strip()), "")[:200]


def main() -> None:
    """Both, and whether they ended alike."""
    from vbd.data.phantom.write import write_phantom

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no node outlives this process
    port = free_port()
    os.environ |= environment_of(port)
    with s3_server(port, "rehearsal") as bucket, tempfile.TemporaryDirectory() as folder:
        films = Path(folder) / "raw"
        write_phantom(films, images=60, test_images=12, image_format="dicom", size=160, abnormal_share=0.7, seed=5)
        storage.copy_folder(str(films), f"{bucket}/raw")
        print("72 SYNTHETIC films; two nodes of one core; everything on S3\n\nundisturbed:")
        calm = rehearse(f"{bucket}/raw", f"{bucket}/calm", killing=False)
        print("\na node killed in the middle of each job:")
        rough = rehearse(f"{bucket}/raw", f"{bucket}/rough", killing=True)
    for name in _FILES:
        print(f"{name}: {'the same bytes' if calm[name] == rough[name] else 'DIFFERENT'} ({len(calm[name]):,})")
    if calm["submission.csv"] != rough["submission.csv"]:
        sys.exit("the submissions differ")


if __name__ == "__main__":
    main()
