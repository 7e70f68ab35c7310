"""A real terminal for the jobs: a pseudo-terminal that a program runs on, what it shows, and what is typed into it."""

import errno
import fcntl
import os
import pty
import re
import runpy
import select
import shlex
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent
CTRL_C = b"\x03"


@dataclass(frozen=True)
class Shown:
    """What a program left on its terminal."""

    exit_code: int  # as a shell reports it: 128 + the signal for a program that a signal ended
    raw: str  # all that was written, escape sequences included
    lines: list[str]  # what a user can scroll through at the end

    @property
    def plain(self) -> str:
        """All that was written, without the commands to the terminal: lines that it wraps are whole."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.raw).replace("\r\n", "\n")


class Terminal:
    """A program on a terminal of its own, of which it is the foreground job: Ctrl-C reaches it as from a keyboard."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        columns: int = 80,
        rows: int = 24,
    ):
        self.screen = pyte.HistoryScreen(columns, rows, history=20_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self._raw = bytearray()
        self.pid, self._master = pty.fork()
        if self.pid == 0:  # the program
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.chdir(cwd)
                own = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}  # the real size
                os.execvpe(command[0], list(command), {**own, "TERM": "xterm-256color"})
            finally:
                os._exit(127)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the program if it still runs."""
        if self._master >= 0:
            os.killpg(self.pid, signal.SIGKILL)
            self.finish(timeout=30)

    def wait_for(self, text: str, *, timeout: float = 120) -> None:
        """Returns when the program has written `text`; raises AssertionError when it ends or the time is over."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._raw:
            assert time.monotonic() < deadline, f"not shown within {timeout:.0f} s: {text!r}\n{self._written}"
            assert self._read(), f"ended without showing {text!r}\n{self._written}"

    def type(self, keys: bytes) -> None:
        """As typed on the keyboard."""
        os.write(self._master, keys)

    def finish(self, *, timeout: float = 300) -> Shown:
        """Waits for the end of the program."""
        deadline = time.monotonic() + timeout
        while self._read():
            assert time.monotonic() < deadline, f"still running after {timeout:.0f} s\n{self._written}"
        _, status = os.waitpid(self.pid, 0)
        os.close(self._master)
        self._master = -1
        code = os.waitstatus_to_exitcode(status)
        return Shown(code if code >= 0 else 128 - code, self._written, self.lines())

    def lines(self) -> list[str]:
        """What can be scrolled back to, and the screen."""
        columns = range(self.screen.columns)
        above = ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]
        return [*above, *(line.rstrip() for line in self.screen.display)]

    @property
    def _written(self) -> str:
        return self._raw.decode(errors="replace")

    def _read(self) -> bool:
        """Takes what the program has written, for at most half a second; False when nobody can write any more."""
        poll = select.poll()  # unlike select it knows descriptors above 1023, of which a session of tests has many
        poll.register(self._master, select.POLLIN)
        ready = poll.poll(500)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # so Linux reports that the last writer has closed it
                raise
            data = b""
        self._raw += data
        self._stream.feed(data)
        return bool(data)


def all_in_one(commands: Sequence[str]) -> list[str]:
    """One program that runs several jobs, so that imports, Ray and its workers are paid for once; see `run_jobs`."""
    places = [str(ROOT), str(ROOT / "jobs")]
    code = f"import sys; sys.path[:0] = {places!r}; from tests.terminal import run_jobs; run_jobs({list(commands)!r})"
    return [sys.executable, "-c", code]


def run_jobs(commands: Sequence[str]) -> None:
    """Runs jobs one after the other, and prints the exit code of each: `exit 0: eda --data data --output eda.html`."""
    for command in commands:
        job, *flags = shlex.split(command)
        sys.argv = [f"jobs/{job}.py", *flags]
        try:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        except SystemExit as stop:
            print(f"exit {stop.code or 0}: {command}", flush=True)
