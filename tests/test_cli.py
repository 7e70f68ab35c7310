import subprocess
import sys
from pathlib import Path

import pytest

from vbd.cli import main
from vbd.errors import InputError

ROOT = Path(__file__).parent.parent


def _exit_of(job, monkeypatch: pytest.MonkeyPatch, *args: str) -> object:
    monkeypatch.setattr(sys, "argv", ["job.py", *args])
    with pytest.raises(SystemExit) as stop:
        main(job)
    return stop.value.code


def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        raise InputError("train.csv:3: x_min 5 >= x_max 4; mend the row")

    assert _exit_of(job, monkeypatch) == 2
    assert capsys.readouterr().err == "error: train.csv:3: x_min 5 >= x_max 4; mend the row\n"


def test_a_mistake_found_by_a_worker_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        try:
            raise InputError("bad")
        except InputError as error:
            raise RuntimeError("a worker died") from error

    assert _exit_of(job, monkeypatch) == 2
    assert capsys.readouterr().err == "error: bad\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def job() -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(RuntimeError, match="ours"):
        main(job)


def test_a_job_may_return_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(*, code: int) -> int:
        return code

    assert _exit_of(job, monkeypatch, "--code", "3") == 3
    assert _exit_of(lambda: None, monkeypatch) == 0


def test_a_reader_who_has_seen_enough_gets_no_traceback() -> None:
    """As of `jobs/evaluate.py ... | head`."""
    job = (
        "from vbd.cli import main\ndef job() -> None:\n    for line in range(100_000):\n        print(line)\nmain(job)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["prepare.py", "--source", "/nowhere", "--output", "x"], "/nowhere"),
        (["prepare.py", "--source", "/nowhere", "--output", "x", "--image-size", "0"], "--image-size 0"),
        (
            ["prepare.py", "--source", "a", "--output", "b", "--policy", "Z"],
            "invalid choice 'Z' for argument '--policy'",
        ),
        (["prepare.py", "--source", "a", "--output", "b", "--imagesize", "9"], "Unrecognized options: --imagesize"),
        (["prepare.py"], "--source"),
        (["tune.py", "fast"], "fast"),
        (["tune.py", "smoke", "--data", "/nowhere"], "/nowhere"),
        (["tune.py", "study"], "--data"),
        (["tune.py", "smoke", "--steps", "0"], "--steps 0"),
        (["evaluate.py", "--predictions", "/nowhere.csv", "--data", "/nowhere"], "/nowhere"),
        (["ensemble.py", "--run", "/nowhere", "--data", "/nowhere"], "/nowhere"),
        (["report.py", "--run", "/nowhere", "--output", "x.html"], "/nowhere"),
        (["eda.py", "--data", "/nowhere", "--output", "x.html"], "/nowhere"),
        (["train.py", "--run", "/nowhere", "--data", "/nowhere", "--output", "x"], "/nowhere"),
        (["predict.py", "--checkpoint", "/nowhere", "--images", "/nowhere", "--output", "x"], "/nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_job_with_a_wrong_argument_exits_with_2_and_no_traceback(
    command: list[str], told: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / command[0]), *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
