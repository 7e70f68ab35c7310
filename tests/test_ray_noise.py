"""Lines of Ray's that look like failures: exactly those are left out, and their causes are removed."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle

from vbd.cluster import ray_noise

ROOT = Path(__file__).parent.parent
# As Ray 2.60 prints them.
_ARGUMENTS = (
    "and ID: 'b0b09e22095d463867afa1a401000000' has constructor arguments in the object store and max_restarts > 0. If the "
    "arguments in the object store go out of scope or are lost, the actor restart will fail. See "
    "https://github.com/ray-project/ray/issues/53727 for more details."
)
_AT = "[2026-11-29 23:55:51,910 E 32664 726] core_worker.cc:2465:"
WORKER = f"\x1b[36m(TrainController pid=32664)\x1b[0m {_AT} Actor with class name: 'PreemptionWatcher' {_ARGUMENTS}"
DRIVER = f"{_AT} Actor with class name: 'MapWorker(Map(_Detect))' {_ARGUMENTS}"
REPEATED = f"{WORKER.replace('pid=32664', 'pid=32664, ip=10.0.0.7')}\x1b[32m [repeated 2x across cluster]\x1b[0m"


@pytest.mark.parametrize("line", [WORKER, DRIVER, REPEATED], ids=["worker", "driver", "repeated"])
def test_a_harmless_line_is_left_out(line: str) -> None:
    assert _filtered(f"before\n{line}\nafter\n") == "before\nafter\n"
    assert _filtered(line) == ""


@pytest.mark.parametrize(
    "text",
    [
        DRIVER.replace("MapWorker(Map(_Detect))", "Trainer") + "\n",
        f"{_AT} The raylet is dead.\n",
        DRIVER.replace("the actor restart will fail", "the actor restart failed") + "\n",
        "error: out: no manifest.json\n",
        "an unfinished line",
        "\n\n",
        "ü\x00\r 50 %\r",
        "",
    ],
)
def test_all_else_gets_through_as_it_is(text: str) -> None:
    assert _filtered(text) == text


def _filtered(text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", ray_noise.__file__], input=text.encode(), stderr=subprocess.PIPE, check=True
    )
    return done.stderr.decode()


def test_all_is_written_when_the_filter_has_stopped() -> None:
    code = f"""
import os, sys
from vbd.cluster import ray_noise
ray_noise.start_filter()
ray_noise.start_filter()
os.write(2, {DRIVER.encode()!r} + b"\\n")
print({WORKER!r}, file=sys.stderr)
print("error: one", file=sys.stderr)
os.write(2, b"two")
ray_noise.stop_filter()
ray_noise.stop_filter()
print("last", flush=True)
print({DRIVER!r}, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],  # unbuffered: a line and its end are written one after the other
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    assert done.stdout == f"error: one\ntwolast\n{DRIVER}\n"


def test_a_job_without_standard_error_has_no_filter() -> None:
    code = "from vbd.cluster import ray_noise; ray_noise.start_filter(); ray_noise.stop_filter(); print('done')"
    command = ["bash", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "done\n"


def test_nothing_is_lost_when_the_process_crashes() -> None:
    code = (
        "import os; from vbd.cluster import ray_noise; ray_noise.start_filter(); os.write(2, b'a crash\\n'); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode < 0
    assert done.stderr == "a crash\n"


def test_a_worker_knows_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ray_noise.worker_setup()()
        warnings.warn("`ExecutionOptions.exclude_resources` is deprecated and ...", DeprecationWarning, stacklevel=1)
        warnings.warn("`ExecutionOptions.something` is deprecated", DeprecationWarning, stacklevel=1)
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert [str(each.message) for each in caught] == ["`ExecutionOptions.something` is deprecated"]


def test_the_setup_needs_no_vbd_on_the_node(tmp_path: Path) -> None:
    (tmp_path / "setup.pickle").write_bytes(cloudpickle.dumps(ray_noise.worker_setup()))
    code = "import pickle, sys; sys.modules['vbd'] = None; print(callable(pickle.load(open('setup.pickle', 'rb'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert pickle.loads((tmp_path / "setup.pickle").read_bytes()).__name__ == "set_up"
