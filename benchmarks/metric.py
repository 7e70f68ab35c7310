"""The metric: ours against pycocotools, faster-coco-eval and hotcoco on the same boxes at IoU 0.4, in one run.

    python benchmarks/metric.py [--scale 0.1] [--cores 1] [--rounds 5]

3,000 images with 10,000 and with 500,000 detections, all of which count; each once from the records of the images to
the number, and once from whatever the library keeps in memory. Then COCO's ten thresholds, and 1,000 bootstrap
replicates.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from vbd.boxes import xyxy_to_xywh
from vbd.evaluation.average_precision import average_precisions, average_precisions_101, evaluate, mean_over_known
from vbd.evaluation.coco_metric import coco_scores
from vbd.evaluation.intervals import bootstrap
from vbd.evaluation.matching import FlatBoxes, flatten, match_flat
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

IMAGES, FINDINGS_PER_IMAGE = 3_000, 1.5
THRESHOLD = 0.4
EVERYTHING = 10**6  # detections per image and class: more than there are


def generate(num_images: int, num_detections: int, seed: int = 0) -> tuple[list[Detections], list[Truth]]:
    """Truths and detections, a third of which lie near a truth, with distinct scores."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    counts = rng.multinomial(num_detections, np.full(num_images, 1 / num_images))
    for i in range(num_images):
        n, k = int(rng.poisson(FINDINGS_PER_IMAGE)), int(counts[i])
        corner = rng.uniform(0, 1500, (n + k, 2))
        boxes = np.hstack([corner, corner + rng.uniform(30, 400, (n + k, 2))])
        labels = rng.integers(0, NUM_FINDINGS, n + k)
        truths.append(Truth(f"{i}", boxes[:n].astype(np.float32), labels[:n], np.ones(n, np.int64), (2000, 2000)))
        own, own_labels = boxes[n:], labels[n:]
        if n:
            near = np.flatnonzero(rng.uniform(size=k) < 1 / 3)
            place = rng.integers(0, n, len(near))
            own[near], own_labels[near] = boxes[place] + rng.normal(0, 10, (len(near), 4)), labels[place]
            # COCOeval passes over boxes turned inside out, the competition's metric counts them as false: make none.
            own[:, 2:] = np.maximum(own[:, 2:], own[:, :2] + 1)
        scores = np.sort(rng.uniform(0.001, 1, k))[::-1]
        detections.append(Detections(f"{i}", own.astype(np.float32), scores.astype(np.float32), own_labels))
    return detections, truths


@dataclass(frozen=True)
class Contender:
    """A way to the number: what it makes of flat boxes, and what it makes of that."""

    name: str
    build: Callable[[FlatBoxes, FlatBoxes, int], Any]
    score: Callable[[Any], float]
    is_slow: bool = False


def findings(flat: FlatBoxes) -> FlatBoxes:
    """Without class 14, which no library knows."""
    rows = flat.labels < NUM_FINDINGS
    return FlatBoxes(flat.images[rows], flat.labels[rows], flat.boxes[rows], flat.scores[rows])


def images_and_categories(num_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images = [{"id": i, "width": 2000, "height": 2000} for i in range(num_images)]
    return images, [{"id": label + 1, "name": str(label)} for label in range(NUM_FINDINGS)]


def rows_of(flat: FlatBoxes) -> list[dict[str, Any]]:
    """The list of dicts that pycocotools wants."""
    boxes = xyxy_to_xywh(flat.boxes).tolist()
    columns = zip(flat.images.tolist(), flat.labels.tolist(), boxes, flat.scores.tolist(), strict=True)
    return [
        {
            "id": k,
            "image_id": i,
            "category_id": label + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": s,
        }
        for k, (i, label, box, s) in enumerate(columns, 1)
    ]


def results_of(flat: FlatBoxes) -> np.ndarray:
    """The table (n, 7) that the other two take as well."""
    return np.column_stack([flat.images, xyxy_to_xywh(flat.boxes), flat.scores, flat.labels + 1])


def build_pycocotools(found: FlatBoxes, wanted: FlatBoxes, num_images: int) -> Any:
    from pycocotools.coco import COCO

    images, categories = images_and_categories(num_images)
    both = COCO(), COCO()
    for coco, flat in zip(both, (wanted, found), strict=True):
        coco.dataset = {"images": images, "categories": categories, "annotations": rows_of(flat)}
        coco.createIndex()
    return both


def score_pycocotools(both: Any) -> float:
    from pycocotools.cocoeval import COCOeval

    return camel_case_score(COCOeval(*both, "bbox"))


def build_faster(found: FlatBoxes, wanted: FlatBoxes, num_images: int) -> Any:
    from faster_coco_eval import COCO

    images, categories = images_and_categories(num_images)
    truth = COCO({"images": images, "categories": categories, "annotations": rows_of(wanted)})
    return truth, truth.loadRes(results_of(found))


def score_faster(both: Any) -> float:
    from faster_coco_eval import COCOeval_faster

    return camel_case_score(COCOeval_faster(*both, "bbox"))


def build_hotcoco(found: FlatBoxes, wanted: FlatBoxes, num_images: int) -> Any:
    import hotcoco

    boxes = xyxy_to_xywh(wanted.boxes)
    truth = hotcoco.COCO.from_arrays(*images_and_categories(num_images), wanted.images, wanted.labels + 1, boxes)
    return truth, truth.load_res(results_of(found))


def score_hotcoco(both: Any) -> float:
    import hotcoco

    return camel_case_score(hotcoco.COCOeval(*both, "bbox"))


def camel_case_score(scorer: Any) -> float:
    """At one threshold, all areas and all detections; the three share COCOeval's names."""
    scorer.params.iouThrs, scorer.params.maxDets = np.array([THRESHOLD]), [EVERYTHING]
    scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
    scorer.evaluate()
    scorer.accumulate()
    precision = np.asarray(scorer.eval["precision"])
    return float(precision[precision > -1].mean())


def score_ours(flat: tuple[FlatBoxes, FlatBoxes, int], *, coco: bool) -> float:
    matches = match_flat(*flat, iou_threshold=THRESHOLD, coco=coco)
    return mean_over_known((average_precisions_101 if coco else average_precisions)(matches)[:NUM_FINDINGS])


CONTENDERS = (
    Contender("pycocotools", build_pycocotools, score_pycocotools, is_slow=True),
    Contender("faster-coco-eval", build_faster, score_faster, is_slow=True),
    Contender("hotcoco", build_hotcoco, score_hotcoco),
    Contender("vbd, COCO's form", lambda *flat: flat, lambda flat: score_ours(flat, coco=True)),
    Contender("vbd, VOC's form", lambda *flat: flat, lambda flat: score_ours(flat, coco=False)),
)


def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Result and seconds."""
    with redirect_stdout(StringIO()):
        started = time.perf_counter()
        result = call(*args, **kwargs)
        return result, time.perf_counter() - started


def compare(detections: list[Detections], truths: list[Truth], rounds: int) -> None:
    """All contenders in turns, the best time of each."""
    whole = {contender.name: np.inf for contender in CONTENDERS}
    scoring, values, both_forms = dict(whole), dict.fromkeys(whole, 0.0), np.inf
    for turn in range(rounds):
        for contender in CONTENDERS:
            if contender.is_slow and turn >= min(rounds, 2):
                continue
            flat, flattening = quietly(lambda: [findings(each) for each in flatten(detections, truths)])
            built, building = quietly(contender.build, *flat, len(truths))
            values[contender.name], seconds = quietly(contender.score, built)
            scoring[contender.name] = min(scoring[contender.name], seconds)
            whole[contender.name] = min(whole[contender.name], flattening + building + seconds)
            del built
        both_forms = min(both_forms, quietly(evaluate, detections, truths)[1])
    fastest = min(whole[name] for name in whole if not name.startswith("vbd"))
    fastest_scoring = min(scoring[name] for name in scoring if not name.startswith("vbd"))
    for name in whole:
        print(
            f"| {name} | {1e3 * whole[name]:,.1f} | {fastest / whole[name]:.2f} x | {1e3 * scoring[name]:,.1f} "
            f"| {fastest_scoring / scoring[name]:.2f} x | {values[name]:.12f} |"
        )
    print(
        f"| vbd, `evaluate`: both forms and class 14 | {1e3 * both_forms:,.1f} | {fastest / both_forms:.2f} x | | | |"
    )


def compare_all_thresholds(detections: list[Detections], truths: list[Truth]) -> None:
    """What `coco_scores` gives by hotcoco, and what it costs by pycocotools."""
    from pycocotools.cocoeval import COCOeval

    def plain() -> float:
        found, wanted = (findings(each) for each in flatten(detections, truths))
        scorer = COCOeval(*build_pycocotools(found, wanted, len(truths)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        precision = scorer.eval["precision"][:, :, :, 0, 2]
        return float(precision[precision > -1].mean())

    (value, seconds), (scores, ours) = (
        quietly(plain),
        min((quietly(coco_scores, detections, truths) for _ in range(3)), key=lambda pair: pair[1]),
    )
    print(f"| `coco_scores`, ten thresholds and sizes | {1e3 * ours:,.1f} | {scores.ap:.12f} |")
    print(f"| - pycocotools | {1e3 * seconds:,.1f} | {value:.12f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images and boxes, 0..1")
    parser.add_argument("--cores", type=int, default=1, help="cores that everyone may use")
    parser.add_argument("--rounds", type=int, default=5, help="turns, of which each contender's best counts")
    args = parser.parse_args()
    # Before any library starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    os.environ["RAYON_NUM_THREADS"] = str(args.cores)
    for count in (10_000, 500_000):
        detections, truths = generate(round(IMAGES * args.scale), round(count * args.scale))
        evaluate(detections[:2], truths[:2])  # compiles
        print(f"\n{len(truths):,} images, {round(count * args.scale):,} detections, {args.cores} core(s)\n")
        print(
            "| | records to number, ms | against the fastest library | scoring alone, ms | against the fastest library | mAP |"
        )
        print("|---|---|---|---|---|---|")
        compare(detections, truths, args.rounds)
        print("\n| | ms | AP |\n|---|---|---|")
        compare_all_thresholds(detections, truths)
        _, seconds = quietly(bootstrap, detections, truths, seed=0, replicates=1_000)
        print(f"| 1,000 bootstrap replicates | {1e3 * seconds:,.1f} | |", flush=True)


if __name__ == "__main__":
    main()
