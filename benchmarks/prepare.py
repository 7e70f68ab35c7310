"""How fast data become a dataset, each part against the plain way in the same run; all images are synthetic.

pool     raw films to prepared images, and prepared to augmented ones, against two processes that call the same functions
labels   the labels of a 15,000-image csv to a fused COCO dataset
yolo     a YOLO folder to COCO where no pixel has to change, against decoding and encoding every image
memory   1,000 and 15,000 images: memory of all processes, and time per image
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import tyro

from vbd.config import PrepareConfig

UNIQUE = 200  # different films; the others are hard links to them
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")


def main(*, part: str = "all", folder: str | None = None) -> None:
    """Runs one part, or all of them, in a temporary folder."""
    parts: dict[str, Callable[[Path], None]] = {"pool": pool, "labels": labels, "yolo": yolo, "memory": memory}
    for name in parts if part == "all" else [part]:
        with tempfile.TemporaryDirectory(dir=folder, prefix="vbd-bench-") as place:
            parts[name](Path(place))


def _connect() -> None:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def phantom(folder: Path, images: int, *, image_format: str, size: int) -> Path:
    """A raw folder of so many films, a few of them different."""
    from vbd.data.phantom.write import write_phantom

    raw, unique = folder / f"raw-{image_format}-{size}-{images}", min(images, UNIQUE)
    write_phantom(raw, images=unique, test_images=0, image_format=image_format, size=size, processes=2)  # type: ignore[arg-type]
    lines = (raw / "train.csv").read_text().splitlines()
    rows: dict[str, list[str]] = {}
    for line in lines[1:]:
        rows.setdefault(line.split(",", 1)[0], []).append(line.split(",", 1)[1])
    text = [lines[0]]
    for number in range(images):
        name = list(rows)[number % unique]
        text += [f"{number:05d}{name},{rest}" for rest in rows[name]]
        os.link(raw / "train" / f"{name}.{image_format}", raw / "train" / f"{number:05d}{name}.{image_format}")
    for name in rows:
        (raw / "train" / f"{name}.{image_format}").unlink()
    (raw / "train.csv").write_text("\n".join(text) + "\n")
    return raw


# ----------------------------------------------------------------------------------------------------------------- pool


def pool(folder: Path) -> None:
    """Steady state: from the first finished task to the last, so that starting Ray or the pool does not count."""
    from vbd.data.prepare import augmented as materialise
    from vbd.data.prepare import shards as prepare_shards
    from vbd.data.prepared import open_dataset

    _connect()
    print("| 2,000 images on two cores | pool of 2, pictures/s | Ray, pictures/s | ratio | in all |")
    print("|---|---|---|---|---|")
    for image_format, size in (("dicom", 1024), ("png", 1024)):
        raw = phantom(folder, 2_000, image_format=image_format, size=size)
        config = PrepareConfig(image_size=512)
        _compare(
            f"{image_format} of {size} px to 512 px PNG",
            _prepare_tasks(raw, config),
            prepare_shards._write_shard,
            folder,
        )
    base = folder / "base"
    from vbd.data.prepare.dataset import prepare

    prepare(str(raw), str(base), config)
    augmentation = materialise.Augmentation("C", None, 0)
    dataset = open_dataset(str(base))
    rows = materialise.read_rows(dataset, ["image_id", "fold", "labels"]).to_pylist()
    tasks = materialise._tasks(rows, {"dataset": dataset.fingerprint})
    options = {"location": dataset.location, "augmentation": augmentation}
    _compare("512 px PNG to policy C", (tasks, options), materialise._write_part, folder)


def _prepare_tasks(raw: Path, config: PrepareConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import json

    from vbd.data.prepare.shards import plan_shards
    from vbd.data.sources.read import read_source

    shards = plan_shards(read_source(str(raw)).images, 32)
    tasks = [{"shard": s.name, "rows": json.dumps(s.rows), "known": "[]"} for s in shards]
    return tasks, {"config": config, "suffix": ".png"}


def _compare(name: str, plan: tuple[list[dict[str, Any]], dict[str, Any]], worker: Callable, folder: Path) -> None:
    """Both ways in turns, twice; the median of each."""
    from vbd.cluster.tasks import spread

    tasks, options = plan
    rates: dict[str, list[float]] = {"pool": [], "ray": []}
    totals: dict[str, list[float]] = {"pool": [], "ray": []}
    for turn in range(4):
        way, output = ("pool", "ray")[turn % 2], str(folder / "out")
        shutil.rmtree(output, ignore_errors=True)
        started = time.perf_counter()
        times: list[tuple[float, int]] = []
        if way == "pool":
            with multiprocessing.get_context("spawn").Pool(2, cv2.setNumThreads, (0,)) as workers:
                for result in workers.imap_unordered(functools.partial(worker, output=output, **options), tasks):
                    times.append((time.perf_counter(), result.get("pictures", result["images"])))
        else:
            for result in spread(tasks, worker, output=output, **options).iter_rows():
                times.append((time.perf_counter(), result.get("pictures", result["images"])))
        rates[way].append(sum(n for _, n in times[2:]) / (times[-1][0] - times[1][0]))
        totals[way].append(time.perf_counter() - started)
    rate = {way: statistics.median(values) for way, values in rates.items()}
    total = {way: statistics.median(values) for way, values in totals.items()}
    print(
        f"| {name} | {rate['pool']:.1f} | {rate['ray']:.1f} | {rate['ray'] / rate['pool']:.2f} "
        f"| {total['pool']:.1f} s, {total['ray']:.1f} s |",
        flush=True,
    )


# --------------------------------------------------------------------------------------------------------------- labels


def labels(folder: Path) -> None:
    """From csv to COCO files. Where the real annotations are installed they are used, with made-up image sizes."""
    from vbd.data.labelling.label import ImageFacts, label_images, write_labels
    from vbd.data.sources.read import read_source

    raw, what = _label_folder(folder)
    config = PrepareConfig(image_size=512)
    print(f"| {what} | s |\n|---|---|")
    label_images_of_nothing(config)
    started = time.perf_counter()
    found = read_source(str(raw))
    read = time.perf_counter()
    facts = {
        image_id: ImageFacts(image_id, (round(height), round(width)), f"{number}", "")
        for number, (image_id, height, width) in enumerate(
            zip(found.images["image_id"], found.images["height"], found.images["width"], strict=True)
        )
    }
    labelling = label_images(found, facts, config)
    labelled = time.perf_counter()
    write_labels(labelling, found, str(folder / "out"), config, suffix=".png")
    written = time.perf_counter()
    boxes = sum(len(image.labels) for image in labelling.train)
    print(f"| read {len(found.readings)} boxes of {len(found.images)} images | {read - started:.2f} |")
    print(f"| fuse them to {boxes}, make folds | {labelled - read:.2f} |")
    print(f"| write COCO and tables | {written - labelled:.2f} |\n| in all | {written - started:.2f} |", flush=True)


def label_images_of_nothing(config: PrepareConfig) -> None:
    """Compiles the fusing kernel, whose code is kept on disk for every later run of this machine."""
    import pandas as pd

    from vbd.data.labelling.readers import fuse_readers

    row = {"image_id": "a", "rad_id": "R1", "label": 1, "x_min": 0.0, "y_min": 0.0, "x_max": 9.0, "y_max": 9.0}
    fuse_readers(pd.DataFrame([row]), method=config.fusion)


def _label_folder(folder: Path) -> tuple[Path, str]:
    """A competition folder with the real annotations (package torchxrayvision), else with as many synthetic ones."""
    import importlib.util

    import pandas as pd

    spec = importlib.util.find_spec("torchxrayvision")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        return phantom(folder, 15_000, image_format="png", size=64), "15,000 synthetic images"
    raw = folder / "labels"
    (raw / "train").mkdir(parents=True)
    table = pd.read_csv(Path(places[0], "data", "vinbigdata-train.csv.gz"))
    table.to_csv(raw / "train.csv", index=False)
    sizes = table.groupby("image_id")[["y_max", "x_max"]].max().fillna(0).add(50).clip(lower=2000).round().astype(int)
    sizes.rename(columns={"y_max": "dim0", "x_max": "dim1"}).reset_index().to_csv(raw / "train_meta.csv", index=False)
    first = raw / "train" / f"{sizes.index[0]}.png"
    first.write_bytes(cv2.imencode(".png", cv2.UMat(8, 8, cv2.CV_8U).get())[1].tobytes())
    for image_id in sizes.index[1:]:
        os.link(first, raw / "train" / f"{image_id}.png")
    return raw, "the competition's annotations, image sizes made up"


# ----------------------------------------------------------------------------------------------------------------- yolo


def yolo(folder: Path) -> None:
    """600 grey PNG of 1024 px with YOLO labels to a COCO dataset, against reading and writing every image by cv2."""
    from vbd.data.prepare.dataset import prepare

    _connect()
    source = _yolo_folder(folder, 600, 1024)
    (folder / "plain").mkdir()
    files = sorted((source / "images").iterdir())
    print("| 600 grey PNG of 1024 px with YOLO labels to COCO | s | ratio |\n|---|---|---|")
    cv2.setNumThreads(1)
    # As such scripts do it, which makes three equal channels; and as lean as it can be done.
    plain = {}
    for name, flag in (("as they are", cv2.IMREAD_COLOR), ("as grey", cv2.IMREAD_GRAYSCALE)):
        started = time.perf_counter()
        for path in files:
            cv2.imwrite(str(folder / "plain" / path.name), cv2.imread(str(path), flag))
        plain[name] = time.perf_counter() - started
        row = f"| cv2.imread and cv2.imwrite of each image {name}, without its labels | {plain[name]:.2f}"
        print(f"{row} | {plain['as they are'] / plain[name]:.1f} x |", flush=True)
    config = PrepareConfig(image_size=1024)
    prepare(str(source), str(folder / "warm"), config)  # starts Ray's workers
    for duplicates in ("exact", "near"):
        started = time.perf_counter()
        prepare(str(source), str(folder / duplicates), dataclasses.replace(config, duplicates=duplicates))  # type: ignore[arg-type]
        mine = time.perf_counter() - started
        print(f"| vbd, --duplicates {duplicates} | {mine:.2f} | {plain['as they are'] / mine:.1f} x |", flush=True)


def _yolo_folder(folder: Path, images: int, size: int) -> Path:
    """Square films with a label file each."""
    from vbd.data.images.prepare import decode_image, encode_image

    raw, source = phantom(folder, images, image_format="png", size=size), folder / "yolo"
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    made: dict[int, bytes] = {}
    for number, path in enumerate(sorted((raw / "train").iterdir())):
        inode = path.stat().st_ino
        if inode not in made:
            made[inode] = encode_image(cv2.resize(decode_image(path.read_bytes()), (size, size)), "png")
        (source / "images" / path.name).write_bytes(made[inode])
        (source / "labels" / f"{path.stem}.txt").write_text(f"{number % 14} 0.5 0.5 0.2 0.3\n")
    return source


# --------------------------------------------------------------------------------------------------------------- memory


def memory(folder: Path) -> None:
    """PSS of this process and all of Ray's, twice a second; each number of images in a process of its own.

    Time per image is that of the pixels alone, in two halves of the images: the first tenth, in which workers start, and
    publishing are left out.
    """
    columns = (
        "PNG of 512 px to 512 px",
        "peak of all processes, GB",
        "while the first half is made",
        "the second half",
    )
    print(
        f"| {' | '.join((*columns, 'ms per image, first half', 'second half', 'in all, s'))} |\n{'|---' * 7}|",
        flush=True,
    )
    for images in (1_000, 15_000):
        raw = phantom(folder, images, image_format="png", size=512)
        code = f"from benchmarks.prepare import _memory_of; _memory_of({str(raw)!r}, {str(folder / 'out')!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
        shutil.rmtree(folder / "out")
        shutil.rmtree(raw)


def _memory_of(raw: str, output: str) -> None:
    from vbd.cluster import tasks as prepare_tasks
    from vbd.data.prepare.dataset import prepare

    _connect()
    times: list[tuple[float, int]] = []  # when, and how many images were done
    plain = prepare_tasks.Progress.advance

    def advance(progress: Any, count: int, *, note: str = "") -> None:
        times.append((time.perf_counter(), count + (times[-1][1] if times else 0)))
        plain(progress, count, note=note)

    prepare_tasks.Progress.advance = advance  # type: ignore[method-assign]
    used: list[tuple[float, float]] = []  # when, and GB
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(used, stop))
    watcher.start()
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        dataset = prepare(raw, output, PrepareConfig(image_size=512))
    took = time.perf_counter() - started
    stop.set()
    watcher.join()
    total = times[-1][1]
    first, middle, last = (next(t for t in times if t[1] >= share * total) for share in (0.1, 0.55, 1))
    halves = ((first, middle), (middle, last))
    peaks = [max(gb for when, gb in used if begin[0] <= when <= end[0]) for begin, end in halves]
    rates = [1000 * (end[0] - begin[0]) / (end[1] - begin[1]) for begin, end in halves]
    numbers = (max(gb for _, gb in used), *peaks, *rates)
    images = dataset.counts["train_images"]
    print(f"| {images:,} images | {' | '.join(f'{number:.2f}' for number in numbers)} | {took:.0f} |", flush=True)


def _watch(used: list[tuple[float, float]], stop: threading.Event) -> None:
    import psutil

    me = psutil.Process()
    while not stop.wait(0.5):
        total = 0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        used.append((time.perf_counter(), total / 1e9))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    tyro.cli(main)
