"""A synthetic data set in the layout of the VinBigData competition: films, three readers each, a hidden truth.

The frequencies of the findings are those of the competition's 4,394 abnormal images: how many classes an image holds,
how often each class occurs, how many boxes of it. Every film depends on (seed, part, index) alone.
"""

import hashlib
import math
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.config import checked
from vbd.config.checked import Count
from vbd.data.phantom.anatomy import expose
from vbd.data.phantom.files import ImageFormat, encode_film
from vbd.data.phantom.findings import draw_film
from vbd.data.sources.tables import SYNTHETIC_MARK
from vbd.errors import InputError
from vbd.labels import NO_FINDING, NUM_FINDINGS, name_of
from vbd.storage import deletion
from vbd.storage.ownership import others, own

VERSION = 1
# Written before train.csv, the last file. While a folder is unfinished it carries the other one.
MARKER, UNFINISHED = SYNTHETIC_MARK, "UNFINISHED.json"
_FILM_NAME = re.compile(r"[0-9a-f]{32}\.(dicom|png)")
_NOTE = (
    "SYNTHETIC images, drawn by a program. No patient, no radiologist. Scores on them say whether software works, "
    "nothing about medicine."
)

# Classes per abnormal image, 1 to 8, of the competition's images.
_CLASS_COUNT = np.array([329, 1189, 978, 773, 531, 360, 174, 60]) / 4394
# Weights for drawing that many different classes, fitted so that each class comes to its share of the abnormal images
# (aortic enlargement 70 %, cardiomegaly 52 %, pleural thickening 45 %, fibrosis 37 % .. pneumothorax 2 %).
_CLASS_WEIGHT = np.array([28.85, 0.8, 2.2, 16.04, 1.73, 1.77, 3.0, 7.41, 4.16, 5.95, 5.49, 12.81, 0.46, 9.34])
# Chance of one more box of a class that is there, again and again, up to four.
_ONE_MORE = np.array([0, 0, 0.15, 0, 0.05, 0.4, 0.1, 0.1, 0.45, 0.1, 0.15, 0.25, 0, 0.3])
_MOST_BOXES = np.array([1, 1, 4, 1, 2, 2, 4, 4, 4, 4, 2, 4, 1, 4])

# Chance that a reader sees a finding, beside the one reader who sees it in any case: about 0.7 for all three together.
_SEEN = np.array([0.67, 0.4, 0.48, 0.77, 0.48, 0.62, 0.48, 0.4, 0.48, 0.4, 0.62, 0.48, 0.77, 0.55])
# What a reader may call it instead.
_TAKEN_FOR = {
    **{1: (7, 4), 2: (8, 9), 4: (6, 7), 5: (13, 6), 6: (4, 7), 7: (6, 4), 8: (9, 2), 9: (8, 7)},
    **{10: (11,), 11: (10,), 13: (5, 7)},
}
_MISNAMED = 0.07
# Three readers see nearly all abnormal images and few normal ones.
_TRIO = (8, 9, 10)
_OTHERS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17)
_TRIO_READS_ABNORMAL, _TRIO_READS_NORMAL = 0.944, 0.13

_TRAIN_HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
_TRUTH_HEADER = "image_id,class_name,class_id,x_min,y_min,x_max,y_max"


@dataclass(frozen=True)
class PhantomOptions:
    """What decides every byte of the data set."""

    images: int
    test_images: int
    image_format: ImageFormat
    size: int
    abnormal_share: float
    seed: int


@dataclass(frozen=True)
class PhantomCounts:
    """What was written: images of the train part, how many of them hold findings, and rows with a box in train.csv."""

    images: Count
    test_images: Count
    abnormal: Count
    readings: Count


@dataclass(frozen=True)
class _Marker:
    counts: PhantomCounts | None = None


@dataclass(frozen=True)
class _Task:
    output: str
    part: Literal["train", "test"]
    index: int
    options: PhantomOptions


@dataclass(frozen=True)
class _Film:
    """One image's rows: boxes (n, 4) in its own pixels, labels (n,)."""

    image_id: str
    boxes: NDArray[np.float32]
    labels: list[int]
    readings: list[str]  # lines of train.csv


def write_phantom(
    output: str | Path,
    *,
    images: int,
    test_images: int,
    image_format: ImageFormat = "dicom",
    size: int = 512,
    abnormal_share: float = 0.3,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomCounts:
    """Writes the data set into `output`, and does nothing when exactly this one is there already.

    `size` is the median height in pixels; `progress` is called with (done, all). A folder with other things in it is
    refused, an older or unfinished phantom replaced. The bytes do not depend on `processes`.
    """
    folder = str(output)
    options = PhantomOptions(images, test_images, image_format, size, abnormal_share, seed)
    _check(options)
    told = {"synthetic": True, "note": _NOTE, "generator": "vbd.data.phantom", "version": VERSION}
    told["options"] = asdict(options)
    known = _known(folder, told)
    if known is not None:
        return known
    with own(folder, "sample") as owner:
        _clear(folder, told)
        return _write(folder, told, options, processes=processes, progress=progress, check=owner.check)


def _write(
    folder: str,
    told: dict,
    options: PhantomOptions,
    *,
    processes: int,
    progress: Callable[[int, int], None] | None,
    check: Callable[[], None],
) -> PhantomCounts:
    """All of it; `check` is called before the files that make it whole."""
    images, test_images = options.images, options.test_images
    tasks = [_Task(folder, "train", k, options) for k in range(images)]
    tasks += [_Task(folder, "test", k, options) for k in range(test_images)]
    films = []
    for film in _make_all(tasks, processes):
        films.append(film)
        if progress:
            progress(len(films), len(tasks))
    train, test = films[:images], films[images:]
    counts = PhantomCounts(
        images=images,
        test_images=test_images,
        abnormal=sum(bool(film.labels) for film in train),
        readings=sum(len(film.readings) for film in train if film.labels),
    )
    check()
    storage.write_json(storage.join(folder, MARKER), told | {"counts": asdict(counts)})
    _write_tables(folder, train, test)
    storage.delete_file(storage.join(folder, UNFINISHED))
    return counts


def _check(options: PhantomOptions) -> None:
    rules = (
        ("images", options.images >= 1, "1 or more"),
        ("test_images", options.test_images >= 0, "0 or more"),
        ("image_format", options.image_format in ("dicom", "png"), "dicom or png"),
        ("size", 64 <= options.size <= 8192, "64 to 8192 pixels"),
        ("abnormal_share", 0 <= options.abnormal_share <= 1, "between 0 and 1"),
        ("seed", options.seed >= 0, "0 or more"),
    )
    for name, is_good, wanted in rules:
        if not is_good:
            raise InputError(f"phantom: {name} is {getattr(options, name)!r}; want {wanted}")


def _known(folder: str, told: dict) -> PhantomCounts | None:
    """The counts of the data set when it is there already, whole; raises InputError for a folder of other things."""
    names = others(storage.list_names(folder))
    if not names:
        return None
    for name in names:
        if storage.is_link(storage.join(folder, name)):
            raise InputError(f"{folder}/{name}: a link to another place, which would be written over; remove it")
    if MARKER not in names and UNFINISHED not in names:
        raise InputError(f"{folder}: not empty, and no synthetic data set; choose a new folder")
    if UNFINISHED not in names and "train.csv" in names:
        marker = storage.join(folder, MARKER)
        found = checked.read(marker, _Marker, again="choose a new folder")
        if found.counts is not None and storage.read_object(marker) == told | {"counts": asdict(found.counts)}:
            return found.counts
    return None


def _clear(folder: str, told: dict) -> None:
    """Makes room for the data set."""
    storage.write_json(storage.join(folder, UNFINISHED), told)
    for part in ("train", "test"):
        deletion.delete_folder(storage.join(folder, part), _FILM_NAME.fullmatch)
    for name in (MARKER, "train.csv", "test_truth.csv", "sample_submission.csv"):
        storage.delete_file(storage.join(folder, name))


def _make_all(tasks: list[_Task], processes: int) -> Iterator[_Film]:
    """Films in the order of their tasks."""
    if processes <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(0)
        try:
            yield from map(_make, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(_make, tasks, chunksize=4)


def _make(task: _Task) -> _Film:
    """Draws, reads and writes one image."""
    options = task.options
    rng = np.random.default_rng([options.seed, int(task.part == "test"), task.index])
    image_id = hashlib.blake2b(f"{options.seed}/{task.part}/{task.index}".encode(), digest_size=16).hexdigest()
    height = round(options.size * rng.uniform(0.85, 1.15))
    hw = (height, round(height * float(np.clip(rng.normal(0.85, 0.06), 0.72, 1.1))))
    labels = _draw_labels(rng) if _is_abnormal(task.index, options.abnormal_share) else []
    film, boxes = draw_film(rng, hw, labels)
    # The readers have a generator of their own: a change of theirs leaves the pictures alone.
    readings = _read(np.random.default_rng([options.seed, 2, task.index]), image_id, hw, boxes, labels)
    data = encode_film(rng, expose(rng, film), options.image_format, name=image_id)
    storage.write_bytes(storage.join(task.output, task.part, f"{image_id}.{options.image_format}"), data)
    return _Film(image_id, boxes, labels, readings)


def _is_abnormal(index: int, share: float) -> bool:
    """Spreads the abnormal images evenly, so that small data sets have their share too."""
    return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)


def _draw_labels(rng: np.random.Generator) -> list[int]:
    """The findings of an abnormal image: different classes, some of them several times."""
    count = 1 + rng.choice(len(_CLASS_COUNT), p=_CLASS_COUNT)
    chosen = rng.choice(NUM_FINDINGS, count, replace=False, p=_CLASS_WEIGHT / _CLASS_WEIGHT.sum())
    labels = []
    for label in sorted(chosen.tolist()):
        boxes = 1
        while boxes < _MOST_BOXES[label] and rng.random() < _ONE_MORE[label]:
            boxes += 1
        labels += [label] * boxes
    return labels


def _read(
    rng: np.random.Generator, image_id: str, hw: tuple[int, int], boxes: NDArray[np.float32], labels: list[int]
) -> list[str]:
    """Lines of train.csv: what three readers say of one image."""
    trio = rng.random() < (_TRIO_READS_ABNORMAL if labels else _TRIO_READS_NORMAL)
    panel = _TRIO if trio else tuple(int(rad) for rad in rng.choice(_OTHERS, 3, replace=False))
    if not labels:
        return [f"{image_id},{name_of(NO_FINDING)},{NO_FINDING},R{rad},,,," for rad in panel]
    seen = rng.random((3, len(labels))) < _SEEN[labels]
    sure = rng.integers(3, size=len(labels))  # who sees it in any case: nothing is missed by all three
    seen[sure, np.arange(len(labels))] = True
    # As in the competition, nobody calls an image normal that another reader does not.
    biggest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    seen[~seen.any(1), biggest] = True
    lines = []
    for reader, rad in enumerate(panel):
        for k in np.flatnonzero(seen[reader]):
            label, others = labels[k], _TAKEN_FOR.get(labels[k], ())
            if others and reader != sure[k] and rng.random() < _MISNAMED:
                label = int(rng.choice(others))
            x_min, y_min, x_max, y_max = _jitter(rng, boxes[k], hw)
            lines.append(f"{image_id},{name_of(label)},{label},R{rad},{x_min}.0,{y_min}.0,{x_max}.0,{y_max}.0")
    return lines


def _jitter(rng: np.random.Generator, box: NDArray[np.float32], hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """A reader's version of a box: whole pixels, inside the image, never without area."""
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    x_min, y_min, x_max, y_max = np.round(box + rng.normal(0, 0.06, 4).clip(-0.15, 0.15) * sides).astype(int).tolist()
    x_min, y_min = min(max(x_min, 0), hw[1] - 2), min(max(y_min, 0), hw[0] - 2)
    return x_min, y_min, min(max(x_max, x_min + 2), hw[1]), min(max(y_max, y_min + 2), hw[0])


def _write_tables(folder: str, train: list[_Film], test: list[_Film]) -> None:
    """The csv files; train.csv comes last, so that a folder which has it is whole."""
    truth = [line for film in test for line in _truth_lines(film)]
    submission = sorted(f"{film.image_id},14 1 0 0 1 1" for film in test)
    _write_csv(folder, "test_truth.csv", _TRUTH_HEADER, truth)
    _write_csv(folder, "sample_submission.csv", "image_id,PredictionString", submission)
    _write_csv(folder, "train.csv", _TRAIN_HEADER, (line for film in train for line in film.readings))


def _truth_lines(film: _Film) -> list[str]:
    if not film.labels:
        return [f"{film.image_id},{name_of(NO_FINDING)},{NO_FINDING},,,,"]
    return [
        f"{film.image_id},{name_of(label)},{label}," + ",".join(f"{value:.1f}" for value in box)
        for label, box in zip(film.labels, film.boxes.tolist(), strict=True)
    ]


def _write_csv(folder: str, name: str, header: str, lines: Iterable[str]) -> None:
    storage.write_bytes(storage.join(folder, name), ("\n".join([header, *lines]) + "\n").encode())
