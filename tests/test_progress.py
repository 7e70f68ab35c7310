import pytest

from vbd.console import progress
from vbd.console.progress import Progress


def test_the_last_line_tells_that_all_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("prepare", 10, unit="images") as bar:
        bar.advance(4)
        bar.advance(6, note="2 refused")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prepare: 10/10 images, ")
    assert lines[0].endswith("0 s left, 2 refused")


def test_lines_come_every_few_seconds_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("prepare", 100, unit="images") as bar:
        for _ in range(4):
            now[0] += 2
            bar.advance(10)
    assert capsys.readouterr().out.splitlines() == ["prepare: 30/100 images, 5 images/s, 14 s left"]
