"""The house: which rooms `vbd` has, in which order, and who imports whom. Writes the picture in ARCHITECTURE.md.

    .venv/bin/python tools/house.py            # rooms, arrows and circles
    .venv/bin/python tools/house.py --write    # the table and the picture in ARCHITECTURE.md

A room is a folder, or a file of the ground floor. `tests/test_imports.py` keeps the rule that is written here.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parent.parent

# The rule: a room imports from rooms that stand before it here, and from itself.
ROOMS = (
    *("vbd", "errors", "hashing", "commands", "interpreter", "caches", "storage", "labels", "console", "config"),
    *("cluster", "boxes", "records", "detections", "drawing", "fusion", "augment", "models", "data", "data.images"),
    *("evaluation", "data.sources", "data.labelling", "data.phantom", "data.batches", "data.prepare", "submission"),
    *("training", "training.folds", "predict", "ensemble.scores", "ensemble.choose", "ensemble.normal", "ensemble"),
    *("search.space", "search.kept", "search.propose", "search.tune", "search.stop", "search.cost", "search.watch"),
    *("search", "reports", "reports.eda", "reports.scores", "reports.ensemble", "reports.search", "pipeline", "cli"),
)
# Besides: a search and an ensemble do not know each other, though a report knows both.
STRANGERS = ("search", "ensemble")
# Which rooms import a vendor's library.
VENDORS: Mapping[str, tuple[str, ...]] = {
    "ray": (
        *("cluster", "data.batches", "training.folds", "predict"),
        *("search", "search.cost", "search.stop", "search.tune", "search.watch"),
    ),
    "torch": ("models", "data.batches", "training", "training.folds", "predict", "records"),  # records: a type alone
    "yolox": ("models",),
    "effdet": ("models",),
    "ensemble_boxes": (),
}
_BEGIN, _END = "<!-- house: written by tools/house.py -->", "<!-- house: end -->"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of `vbd` and their files."""
    found = {}
    for path in sorted((root / "vbd").rglob("*.py")):
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it, and for the type checker alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules of `vbd` that each module imports."""
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for imported in imports(path):
            module = imported if imported in files else imported.rpartition(".")[0]
            if module in files:
                found[name].add(module)
    return found


def room_of(module: str, files: Mapping[str, Path]) -> str:
    """`vbd.data.sources.yolo` -> `data.sources`; `vbd.errors` -> `errors`."""
    parts = module.split(".")[1:]
    if files[module].name == "__init__.py":
        return ".".join(parts) or "vbd"
    return ".".join(parts[:-1]) or parts[0]


def between_rooms(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """The other rooms that each room imports from."""
    found: dict[str, set[str]] = {room_of(name, files): set() for name in files}
    for name, imported in arrows(files).items():
        here = room_of(name, files)
        found[here] |= {room_of(module, files) for module in imported} - {here}
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of nodes that lead to each other (strongly connected components of more than one node), sorted."""
    edges = networkx.DiGraph([(node, other) for node, others in graph.items() for other in others])
    return sorted(sorted(group) for group in networkx.strongly_connected_components(edges) if len(group) > 1)


def purpose(file: Path) -> str:
    """The first paragraph of a file's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def picture() -> str:
    """The table of rooms, lowest first, and a graph of the folders in Mermaid's language."""
    files = modules()
    graph = between_rooms(files)
    rows = [f"| `{room}` | {purpose(files['vbd' if room == 'vbd' else f'vbd.{room}'])} |" for room in ROOMS]
    folders = sorted({room.split(".")[0] for room in ROOMS if (ROOT / "vbd" / room.split(".")[0]).is_dir()})
    edges = {(a.split(".")[0], b.split(".")[0]) for a, others in graph.items() for b in others}
    # What everybody uses would cover the picture with arrows.
    everywhere = {"storage", "config", "console", "cluster"}
    lines = [
        f"    {a} --> {b}" for a, b in sorted(edges) if a in folders and b in folders and a != b and b not in everywhere
    ]
    return "\n".join(
        [
            "| Room | What it is for |",
            "|---|---|",
            *rows,
            "",
            f"The folders, without the arrows into {', '.join(sorted(everywhere))}, which all use:",
            "",
            "```mermaid",
            "graph TD",
            *lines,
            "```",
        ]
    )


def with_picture(text: str) -> str:
    """ARCHITECTURE.md with the picture of today."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{picture()}\n{_END}{after}"


def main() -> None:
    """Prints what there is, or writes the picture."""
    files = modules()
    rooms = between_rooms(files)
    print(f"{len(files)} files, {len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows between rooms")
    print("circles of files:", circles(arrows(files)) or "none")
    print("circles of rooms:", circles(rooms) or "none")
    if "--write" in sys.argv[1:]:
        architecture = ROOT / "ARCHITECTURE.md"
        architecture.write_text(with_picture(architecture.read_text()))


if __name__ == "__main__":
    main()
