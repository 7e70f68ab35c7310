"""Which images of a YOLO folder are the training and which the test part, and what its classes are called.

Parts are told by the data yaml (`path`, `train`, `val`, `test`) or by train.txt, val.txt and test.txt, classes by
classes.txt or the yaml's `names`. `train` and `val` are both training images: folds are made anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vbd import storage
from vbd.config.difference import shortened
from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import IN_BOTH_PARTS, LIST_FILES, Listing, PathIndex, decode_text, known_labels
from vbd.errors import InputError
from vbd.labels import NO_FINDING, name_of

Split = Literal["train", "test"]
Classes = Mapping[int, tuple[str, int | None]]  # a file's class number -> its name, and our label where there is one

_CLASSES = "classes.txt"
_LARGEST_YAML = 1_000_000  # bytes; its pure Python parser reads about as many in ten seconds
_YAML_SUFFIXES = (".yaml", ".yml")
_YAML_PARTS: dict[str, Split] = {"train": "train", "val": "train", "test": "test"}
_YAML_KEYS = ("names", "nc", *_YAML_PARTS)


@dataclass(frozen=True)
class _Part:
    """Where one set of images is told: in a list of paths, or by the folder that holds them."""

    split: Split
    told: str  # for messages
    list_file: str | None
    folder: str


@dataclass(frozen=True)
class YoloSetup:
    """What the files beside images and labels tell."""

    classes: Classes
    parts: Sequence[_Part]
    texts: Mapping[str, bytes]  # of the files that were read, by name relative to the folder
    rejects: list[Reject]


def read_setup(folder: str, listing: Listing) -> YoloSetup:
    """Reads the data yaml, the class names and the lists of images."""
    yaml_name, document = _data_yaml(folder, listing)
    parts, rejects = _yaml_parts(document, yaml_name, listing)
    if not any(document.get(key) for key in _YAML_PARTS):
        parts = [_Part(split, name, name, "") for name, split in LIST_FILES.items() if name in listing.others]
    class_files = [name for name in listing.others if f"/{name}".endswith(f"/{_CLASSES}")]
    class_file = min(class_files, key=lambda name: (name.count("/"), name), default="")
    wanted = [yaml_name, class_file, *(part.list_file for part in parts)]
    names = [name for name in dict.fromkeys(wanted) if name]
    texts = dict(zip(names, storage.read_many([storage.join(folder, name) for name in names]), strict=True))
    if class_file:
        where = storage.join(folder, class_file)
        lines = [line.strip() for line in decode_text(texts[class_file], file=where).splitlines()]
        classes = _classes(dict(enumerate(line for line in lines if line)), where)
    elif yaml_name:
        where = storage.join(folder, yaml_name)
        classes = _classes(_yaml_names(document.get("names"), where), where)
    else:  # the numbers are our labels
        classes = {label: (name_of(label), label) for label in range(NO_FINDING + 1)}
    return YoloSetup(classes, parts, texts, rejects)


def _data_yaml(folder: str, listing: Listing) -> tuple[str, dict[str, Any]]:
    """The name and content of the first yaml file that tells of a dataset; empty ones when there is none."""
    names = [name for name in listing.others if "/" not in name and name.lower().endswith(_YAML_SUFFIXES)]
    for name in sorted(names, key=lambda name: (not name.startswith("data"), name)):
        file = storage.join(folder, name)
        document = _read_yaml(file)
        if isinstance(document, dict) and any(key in document for key in _YAML_KEYS):
            return name, document
    return "", {}


def _read_yaml(file: str) -> Any:
    """The content of a yaml file; raises InputError for one with aliases, ten lines of which can stand for gigabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Loads plain values and no aliases."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise InputError(
                    f"{file}:{event.start_mark.line + 1}: the alias *{event.anchor}; write the values out instead of naming them"
                )
            return super().compose_node(parent, index)

    data = storage.read_bytes(file)
    if len(data) > _LARGEST_YAML:
        raise InputError(
            f"{file}: {len(data):,} bytes, want at most {_LARGEST_YAML:,}; put lists of images into text files"
        )
    try:
        return Loader(data).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid YAML ({(str(error).splitlines() or [''])[0][:200]})") from None


def _classes(names: Mapping[int, str], file: str) -> Classes:
    if not names:
        raise InputError(f"{file}: holds no class names; add them in the order of their numbers")
    labels = known_labels(names, file=file)
    return {number: (name, labels[number]) for number, name in names.items()}


def _yaml_names(listed: Any, file: str) -> dict[int, str]:
    if not isinstance(listed, dict | list):
        raise InputError(f"{file}: no list called 'names'; add the class names in the order of their numbers")
    numbered = list(listed.items() if isinstance(listed, dict) else enumerate(listed))
    for number, name in numbered:
        if isinstance(name, dict | list | set | tuple):
            raise InputError(
                f"{file}: 'names' has {shortened(name)} for {shortened(number)}; want 0: name, 1: name, ..."
            )
    try:
        return {int(number): str(name) for number, name in numbered}
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{file}: 'names' has a key that is no number; want 0: name, 1: name, ...") from None


def _yaml_parts(document: Mapping[str, Any], yaml_name: str, listing: Listing) -> tuple[list[_Part], list[Reject]]:
    """The parts that the data yaml tells and the folder holds; what it does not hold is refused."""
    parts, rejects = [], []
    lists = PathIndex(name for name in listing.others if name.endswith(".txt"))
    steps = [name.split("/")[:-1] for name in listing.images["name"]]
    folders = {"/".join(path[:depth]) for path in steps for depth in range(1, len(path) + 1)}
    for key, split in _YAML_PARTS.items():
        value = document.get(key)
        for entry in value if isinstance(value, list) else [value] if value else []:
            list_file = lists.find(str(entry)) if str(entry).endswith(".txt") else None
            folder = _folder_of(str(document.get("path") or ""), str(entry), folders)
            if list_file is None and folder is None:
                reason = f"{key}: neither a folder with images nor a list: {str(entry)!r}"
                rejects.append(reject(yaml_name, 0, reason))
            else:
                parts.append(_Part(split, list_file or f"{yaml_name} ({key})", list_file, folder or ""))
    return parts, rejects


def _folder_of(base: str, entry: str, folders: set[str]) -> str | None:
    """The folder that is the longest trailing part of a path on another machine; "" stands for the source itself."""
    above, below = (
        [step for step in path.replace("\\", "/").split("/") if step not in ("", ".", "..")] for path in (base, entry)
    )
    path = [*above, *below]
    tails = ("/".join(path[start:]) for start in range(len(path)))
    return next((tail for tail in tails if tail in folders), None if below else "")


def assign_parts(
    setup: YoloSetup, folder: str, names: Sequence[str], listing: Listing
) -> tuple[dict[str, Split], list[Reject]]:
    """The part of each of the images `names` that belongs to one.

    Where parts are told, an image in none of them is refused, unless a folder called `test` holds it; an image that is told
    to be in both is a test image. Where none are told, the images below a folder called `test` are the test part.
    """
    if not setup.parts:
        return {name: _folder_split(name) for name in names}, []
    index, known = PathIndex(listing.images["name"]), set(names)
    splits: dict[str, Split] = {}
    rejects = []
    for part in sorted(setup.parts, key=lambda part: part.split):  # test first
        named, refused = _named(part, setup.texts, index, known)
        rejects += refused
        for name, line in named.items():
            if line and part.split == "train" and splits.get(name) == "test":
                rejects.append(reject(part.told, line, IN_BOTH_PARTS))
            splits.setdefault(name, part.split)
    told = ", ".join(dict.fromkeys(part.told for part in setup.parts))
    for name in names:
        if name not in splits and _folder_split(name) == "test":
            splits[name] = "test"
        elif name not in splits:
            rejects.append(reject(storage.join(folder, name), 0, f"listed in none of {told}"))
    return splits, rejects


def _folder_split(name: str) -> Split:
    return "test" if "test" in name.lower().split("/")[:-1] else "train"


def _named(
    part: _Part, texts: Mapping[str, bytes], index: PathIndex, known: set[str]
) -> tuple[dict[str, int], list[Reject]]:
    """The images of a part with the line that names them (0 for those of a folder), and lines without an image."""
    if part.list_file is None:
        return {name: 0 for name in sorted(known) if not part.folder or name.startswith(f"{part.folder}/")}, []
    found: dict[str, int] = {}
    rejects = []
    text = decode_text(texts[part.list_file], file=part.list_file)
    for line, path in enumerate(map(str.strip, text.splitlines()), start=1):
        name = index.find(path) if path else None
        if name in found:
            rejects.append(reject(part.list_file, line, f"{path!r} is listed twice"))
        elif path and name not in known:
            rejects.append(reject(part.list_file, line, f"no usable image file {path!r}"))
        elif name is not None:
            found[name] = line
    return found, rejects
