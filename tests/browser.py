"""A headless Chromium for tests that look at a page as its reader would."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.reports.reading import figures

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    # Nothing leaves the machine: the browser's own services are off and no host name has an address.
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND"),
    # Milliseconds of the page's own clock: its scripts and promises are done when they have passed.
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
)
_TIMEOUT_S = 120
_VOID_TAGS = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass(frozen=True)
class Opened:
    """What a browser made of a page."""

    dom: str  # HTML after the scripts ran
    console: list[str]  # what the page's scripts wrote there, and the browser about the page
    requests: list[str]  # addresses that the page asked for, itself excepted


@dataclass
class DrawnFigure:
    """What stands in the place of one figure of a page."""

    subplots: int = 0
    traces: int = 0
    text: str = ""


def find_browser() -> str:
    """Path of the browser. Without one the test is skipped, but fails where CI is set."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    reason = f"none of {', '.join(NAMES)} is installed; on Debian: apt-get install chromium"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def open_page(
    page: Path, profile: Path, *, screenshot: Path | None = None, hw: tuple[int, int] = (900, 1280)
) -> Opened:
    """Opens a file in a window of `hw` pixels with an empty profile; `screenshot` becomes a PNG of the window."""
    log = profile.with_name(f"{profile.name}.netlog")
    options = [f"--user-data-dir={profile}", f"--log-net-log={log}", f"--window-size={hw[1]},{hw[0]}", "--dump-dom"]
    options += [f"--screenshot={screenshot}"] if screenshot else []
    command = [find_browser(), *_FLAGS, *options, page.absolute().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode or "<html" not in done.stdout:
        pytest.fail(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Opened(
        dom=done.stdout,
        console=re.findall(r"CONSOLE(?::\d+|\(\d+\))?\] (.*)", done.stderr),
        requests=_requests(json.loads(log.read_text())),
    )


def _requests(log: dict) -> list[str]:
    """Addresses in a net log that a page asked for: the browser's own requests have no page as their initiator."""
    asked = [entry["params"] for entry in log["events"] if "initiator" in entry.get("params", {})]
    return [params["url"] for params in asked if params["initiator"] != "not an origin"]


def check_figures(opened: Opened) -> None:
    """Fails unless each figure of the page is drawn, with all its subplots and traces, and nothing went wrong."""
    assert opened.console == []
    assert opened.requests == []
    drawn = drawn_figures(opened.dom)
    assert [figure.text for figure in drawn if "could not be drawn" in figure.text] == []
    assert [(figure.subplots, figure.traces) for figure in drawn] == [
        _subplots_and_traces(spec["data"]) for spec in figures(opened.dom)
    ]
    assert drawn
    assert min(figure.traces for figure in drawn) > 0


def _subplots_and_traces(data: list[dict]) -> tuple[int, int]:
    return len({(trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in data}), len(data)


def drawn_figures(dom: str) -> list[DrawnFigure]:
    """What plotly drew into each `.plot` of a page."""
    reader = _PlotReader()
    reader.feed(dom)
    return reader.found


class _PlotReader(HTMLParser):
    """Counts what stands inside each `.plot`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[DrawnFigure] = []
        self._depth = 0  # of open elements from the `.plot` that is being read; 0 outside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = (dict(attrs).get("class") or "").split()
        if self._depth:
            self._depth += tag not in _VOID_TAGS
            self.found[-1].subplots += tag == "g" and "subplot" in names
            # So plotly names the group of a heat map, and of any other trace.
            self.found[-1].traces += tag == "g" and ("hm" in names or "trace" in names)
        elif "plot" in names:
            self.found.append(DrawnFigure())
            self._depth = 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID_TAGS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._depth and tag not in _VOID_TAGS:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.found[-1].text += data
