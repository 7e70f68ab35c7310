"""Which JSON files of a folder are its COCO documents, and what is wrong with the others."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vbd import storage
from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import SYNTHETIC_MARK, Listing, known_labels, list_folder
from vbd.errors import InputError

_IS_TEST = re.compile(r"(^|[^a-z])test")


@dataclass(frozen=True)
class Document:
    """A JSON file with images, categories and, except of a test part, annotations."""

    name: str  # relative to the folder
    split: Literal["train", "test"]
    images: list[Any]
    annotations: list[Any]
    categories: Mapping[Any, tuple[str, int | None]]  # category id -> its name, and our label where there is one


@dataclass(frozen=True)
class Documents:
    """The COCO documents of a folder, the test part's first."""

    documents: list[Document]
    listing: Listing
    texts: Mapping[str, bytes]  # of the JSON files, by name
    rejects: list[Reject]  # JSON files that are no COCO documents
    synthetic: bool
    is_single: bool  # whether one JSON file was asked for, out of a folder that may hold more


def find_documents(place: str) -> Documents:
    """Lists a folder and reads its JSON files, or reads one JSON file and lists the folder with its images."""
    is_single = place.endswith(".json")
    folder = _image_folder(place) if is_single else place
    listing = list_folder(folder, recursive=True)
    names = [place.removeprefix(f"{folder}/")] if is_single else _choose(list(listing.others))
    if not names:
        raise InputError(f"{folder}: no COCO JSON in it or in annotations/")
    texts = dict(zip(names, storage.read_many([storage.join(folder, name) for name in names]), strict=True))
    contents, faults = _parse(texts)
    documents = [
        _document(content, name, _split_of(name), where=storage.join(folder, name))
        for name, content in contents.items()
    ]
    if faults and not any(document.split == "train" for document in documents):
        name, fault = next(iter(faults.items()))
        raise InputError(f"{storage.join(folder, name)}: {fault}")
    documents.sort(key=lambda document: (document.split, document.name))
    infos = [content.get("info") for content in contents.values()]
    synthetic = any(isinstance(info, dict) and info.get("synthetic") for info in infos)
    return Documents(
        documents=documents,
        listing=listing,
        texts=texts,
        rejects=[reject(name, 0, fault) for name, fault in faults.items()],
        synthetic=synthetic or SYNTHETIC_MARK in listing.others,
        is_single=is_single,
    )


def _image_folder(file: str) -> str:
    """Where the images of a single JSON file are looked for."""
    above = file.rpartition("/")[0]
    return above.rpartition("/")[0] if above.endswith("/annotations") else above


def _choose(names: list[str]) -> list[str]:
    """The JSON files in annotations/, else in the folder itself, else one below (train/, valid/, test/)."""
    found = [name for name in names if name.endswith(".json") and not f"/{name}".endswith(f"/{SYNTHETIC_MARK}")]
    in_annotations = [name for name in found if name.startswith("annotations/") and name.count("/") == 1]
    levels = (in_annotations, *([name for name in found if name.count("/") == depth] for depth in (0, 1)))
    chosen = next((level for level in levels if level), [])
    by_base = {name.rsplit("/", 1)[-1]: name for name in chosen}
    if "instances_all.json" not in by_base:
        return chosen
    # Our own dataset: the other files hold parts of this one.
    tests = [by_base[base] for base in ("instances_test.json", "image_info_test.json") if base in by_base]
    return [by_base["instances_all.json"], *tests[:1]]


def _parse(texts: Mapping[str, bytes]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The content of each COCO document by name, and why the other files are none."""
    contents, faults = {}, {}
    for name, data in texts.items():
        needed = ("images", "categories", "annotations") if _split_of(name) == "train" else ("images", "categories")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            faults[name] = f"not valid JSON ({str(error)[:200]})"
            continue
        if not isinstance(content, dict):
            faults[name] = f"no COCO file: holds a {type(content).__name__}, want images, annotations and categories"
            continue
        missing = [key for key in needed if not isinstance(content.get(key), list)]
        if missing:
            faults[name] = f"no COCO file: no {missing[0]!r}; want lists of images, annotations and categories"
        else:
            contents[name] = content
    return contents, faults


def _split_of(name: str) -> Literal["train", "test"]:
    return "test" if _IS_TEST.search(name.lower()) else "train"


def _document(content: dict[str, Any], name: str, split: Literal["train", "test"], *, where: str) -> Document:
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
    except (KeyError, TypeError):
        raise InputError(f"{where}: a category without 'id' or 'name'") from None
    labels = known_labels(names, file=where)
    return Document(
        name=name,
        split=split,
        images=content["images"],
        annotations=content.get("annotations") or [],
        categories={number: (names[number], labels[number]) for number in names},
    )
