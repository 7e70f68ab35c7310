"""docs/cluster.md as its reader takes it: commands that are typed as they stand, links that are followed."""

import re
import runpy
import shlex
import subprocess
import sys

import click
import pytest

from tests.deploy.files import ROOT, documents

PAGE = ROOT / "docs" / "cluster.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
# A command is whole when its lines are joined, and ends before what the shell is told of it.
COMMANDS = [
    re.split(r"\s+[&#]( |$)", line.strip())[0]
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line
]
SUBMITTED = [command for command in COMMANDS if command.startswith("ray job submit")]
RAY = [command for command in COMMANDS if command.startswith("ray ")]
RAY += [quoted for quoted in re.findall(r"`(ray [a-z][^`]*)`", TEXT) if "--" in quoted or ".yaml" in quoted]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_shell_understands_every_block(block: str) -> None:
    subprocess.run(["bash", "-n", "-c", block], check=True)


@pytest.mark.parametrize("command", sorted(set(RAY)))
def test_ray_has_such_a_command_with_such_flags(command: str) -> None:
    from ray.scripts.scripts import cli

    words = shlex.split(command)[1:]
    found: click.Command = cli
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    found.make_context(found.name, words)


def _jobs() -> list[str]:
    entrypoint = documents("rayjob.yaml")[0]["spec"]["entrypoint"].replace("/home/ray/vbd/", "")
    return sorted({command[command.index("python jobs/") :] for command in [*SUBMITTED, entrypoint]})


@pytest.mark.parametrize("command", _jobs())
def test_a_job_has_such_flags(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbd import cli

    words = shlex.split(command)[1:]
    given: list[object] = []
    monkeypatch.setattr(cli, "main", lambda job: given.append(cli._parsed(job)) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert stop.value.code == 0
    assert len(given) == 1


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("https://")]
    assert len(links) > 10
    for link in links:
        assert link in anchors or (PAGE.parent / link).is_file(), f"docs/cluster.md leads to {link}"


def test_tests_that_are_named_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_pictures_are_small_and_all_are_shown() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("dashboard-*.png"))
    assert pictures
    for picture in pictures:
        assert f"(images/{picture.name})" in TEXT
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 150_000
