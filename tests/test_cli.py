import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.mistakes import interrupted_lock
from vbd import cli
from vbd.cli import Location, main
from vbd.console import last_line as summary
from vbd.console.last_line import tell
from vbd.errors import InputError, interruption_within

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


def _summary(text: str) -> dict[str, object]:
    line = text.splitlines()[-1]
    told = json.loads(line)
    assert line == json.dumps(told, sort_keys=True)
    assert told.pop("seconds") >= 0
    return told


def test_the_last_line_sums_the_job_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(*, output: str) -> None:
        tell(images=3, score=float("nan"))
        print(f"{output}: made")

    assert _exit_of(prepare, monkeypatch, "--output", "there") == 0
    out = capsys.readouterr().out
    assert out.startswith("there: made\n")
    assert _summary(out) == {"job": "prepare", "exit": 0, "output": "there", "images": 3, "score": None}
    assert _exit_of(lambda: 1, monkeypatch) == 1  # a defect that was found
    assert _summary(capsys.readouterr().out) == {"job": "<lambda>", "exit": 1}


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InputError("train.csv:3: mend the row"), 2, "train.csv:3: mend the row"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("ours\nand more"), 1, "RuntimeError: ours"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_so_it_does_when_it_fails(
    error: BaseException, code: int, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        tell(images=3)
        raise error

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises((SystemExit, RuntimeError)):
        main(job)
    assert _summary(capsys.readouterr().out) == {"job": "job", "exit": code, "images": 3, "reason": reason}


def test_so_it_does_when_it_is_terminated() -> None:
    job = (
        "from vbd.cli import main\nimport time\ndef job() -> None:\n    print('ready', flush=True)\n"
        "    time.sleep(600)\nmain(job)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert _summary(out) == {"job": "job", "exit": 143, "reason": "interrupted by SIGTERM"}
    assert err == "interrupted; the same command goes on from here\n"


@pytest.mark.parametrize(("signals", "code"), [([], 130), ([signal.SIGTERM], 143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_lock_is_an_interruption(
    signals: list[int], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        raise interrupted_lock(KeyboardInterrupt())

    monkeypatch.setattr(cli, "_terminated_by", signals)
    assert _exit_of(job, monkeypatch) == code
    told = capsys.readouterr()
    assert told.err == "interrupted; the same command goes on from here\n"
    assert _summary(told.out)["exit"] == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (interrupted_lock(KeyboardInterrupt()), KeyboardInterrupt),
        (interrupted_lock(SystemExit(1)), SystemExit),
        (interrupted_lock(ValueError("ours")), type(None)),
        (RuntimeError("release unlocked lock"), type(None)),
        (RuntimeError("ours"), type(None)),
    ],
    ids=repr,
)
def test_only_an_interrupted_lock_is_one(error: BaseException, kind: type) -> None:
    assert type(interruption_within(error)) is kind


def test_help_is_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_of(lambda: None, monkeypatch, "--help") == 0
    assert '"exit"' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("x", "/here/x"),
        ("../w/{fold}.pt", "/w/{fold}.pt"),
        ("~/x", "/home/me/x"),
        ("file:///a/b", "/a/b"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("", ""),
    ],
)
def test_a_job_gets_locations_absolute(
    given: str, wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(
        *, place: Location = "", other: Location | None = None, many: tuple[Location, ...] = (), text: str = ""
    ) -> None:
        tell(all=[place, other, *many, text])

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", f"{tmp_path}/home/me")
    _exit_of(job, monkeypatch, "--place", given, "--many", given, given, "--text", given)
    root = str(tmp_path) if wanted.startswith(("/here", "/w", "/home")) else ""
    assert summary._facts["all"] == [root + wanted, None, root + wanted, root + wanted, given]


def test_a_default_location_is_made_absolute_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def job(*, storage: Location = "runs", given: Location = "") -> None:
        tell(all=[storage, given])

    monkeypatch.chdir(tmp_path)
    _exit_of(job, monkeypatch)
    assert summary._facts["all"] == [f"{tmp_path}/runs", ""]


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_flag_that_names_a_place_is_a_location(job: Path) -> None:
    """A flag of text is no place: it is a name, a number, or settings."""
    function = runpy.run_path(str(job))[job.stem]
    plain = {name for name, hint in get_type_hints(function, include_extras=True).items() if hint in (str, str | None)}
    assert plain <= {"name", "part", "trial", "folds", "workers"}


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
