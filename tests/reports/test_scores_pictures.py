import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.reports.conftest import ATELECTASIS, BIG, CARDIOMEGALY, HW, NODULE, SMALL
from tests.reports.predictions import BIG_ONES, found
from vbd.boxes import as_boxes
from vbd.data.prepared import open_dataset, read_truths
from vbd.records import Truth
from vbd.reports.page import Picture, render_page
from vbd.reports.scores.pictures import case_sections, most_confident_false, webp_uri, worst_misses

OTHER = (0, 0, 30, 30)


def truth(image_id: str, *boxes: tuple[tuple[float, ...], int, int]) -> Truth:
    return Truth(
        image_id,
        as_boxes([box for box, _, _ in boxes]),
        np.array([label for _, label, _ in boxes], np.int64),
        np.array([readers for _, _, readers in boxes], np.int64),
        HW,
    )


def test_findings_that_most_readers_drew_come_first_and_what_is_found_last() -> None:
    truths = [
        truth("a", (SMALL, NODULE, 1)),
        truth("b", (SMALL, NODULE, 3)),
        truth("c", (BIG, CARDIOMEGALY, 3)),
        truth("d", (BIG, CARDIOMEGALY, 3)),
        truth("e"),
    ]
    cases = worst_misses([found("c", (BIG, CARDIOMEGALY, 0.02)), found("d", (BIG, NODULE, 0.9))], truths, limit=9)
    assert [case.image_id for case in cases] == ["d", "b", "a", "c"]
    assert cases[0].reason == "no box of its class touches it"  # a box of another class finds nothing
    assert cases[-1].reason == "found at score 0.02 only"
    assert [case.image_id for case in worst_misses([], truths, limit=2)] == ["c", "b"]


def test_classes_have_their_turn_among_equals() -> None:
    truths = [truth(name, (BIG, CARDIOMEGALY, 3)) for name in "abc"] + [truth("z", (SMALL, NODULE, 3))]
    assert [case.image_id for case in worst_misses([], truths, limit=9)] == ["a", "z", "b", "c"]


def test_an_image_is_shown_once() -> None:
    truths = [truth("a", (BIG, CARDIOMEGALY, 3), (SMALL, NODULE, 2)), truth("b", (SMALL, NODULE, 1))]
    assert [case.image_id for case in worst_misses([], truths, limit=9)] == ["a", "b"]


def test_a_near_miss_tells_how_near() -> None:
    (case,) = worst_misses(
        [found("a", ((40, 20, 200, 50), CARDIOMEGALY, 0.9))], [truth("a", (BIG, CARDIOMEGALY, 3))], limit=9
    )
    assert case.reason == "the nearest box of its class has IoU 0.38"


def test_false_boxes_tell_why_they_are_false() -> None:
    truths = [truth("a", (BIG, CARDIOMEGALY, 3)), truth("b"), truth("c", (BIG, CARDIOMEGALY, 1)), truth("d")]
    truths.append(truth("e", (SMALL, NODULE, 1)))
    detections = [
        found("a", (BIG, CARDIOMEGALY, 0.95), (BIG, CARDIOMEGALY, 0.9), (OTHER, NODULE, 0.85)),
        found("b", (OTHER, NODULE, 0.5), no_finding=0.99),  # a wrong P(normal) is no box
        found("c", (BIG, ATELECTASIS, 0.7)),
        found("d"),
        found("e", (OTHER, NODULE, 0.6)),
    ]
    cases = most_confident_false(detections, truths, limit=9)
    assert [(case.image_id, round(case.score, 3)) for case in cases] == [("a", 0.9), ("c", 0.7), ("e", 0.6), ("b", 0.5)]
    assert [case.reason for case in cases] == [
        "a second box on a finding that was found",
        "the truth there is Cardiomegaly",
        "nothing of its class is there",
        "the image is normal",
    ]
    assert [case.label for case in cases] == [CARDIOMEGALY, ATELECTASIS, NODULE, NODULE]
    assert len(most_confident_false(detections, truths, limit=1)) == 1


def opened(picture: Picture) -> np.ndarray:
    kind, _, data = picture.data_uri.partition(";base64,")
    assert kind == "data:image/webp"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have about this colour: WebP blurs it."""
    return int((np.abs(pixels - colour).max(axis=-1) <= 60).sum())


PINK, YELLOW, BLUE = (0xFF, 0x5C, 0xA8), (0xF0, 0xE4, 0x42), (0x56, 0xB4, 0xE9)


def test_truth_and_boxes_are_drawn_where_they_are(dataset: str) -> None:
    """The nodule of image a is missed, beside a cardiomegaly that is found."""
    misses, false = case_sections(
        open_dataset(dataset), BIG_ONES, read_truths(open_dataset(dataset), "train"), score_threshold=0.85
    )
    text, first, *_ = misses.blocks
    assert "score of 0.85 or more" in str(text)
    assert isinstance(first, Picture)
    assert first.caption == "Nodule/Mass, drawn by 1 reader: no box of its class touches it. a."
    pixels = opened(first)
    assert pixels.shape == (512, 512, 3)
    # SMALL is 100 50 112 58 in 256 x 128: 200 200 224 232 on the picture.
    assert near(pixels[192:240, 192:232], PINK) > 50
    # The upper edge of BIG, 80 80 400 400, is its own truth and detection, one above the other.
    edge = pixels[76:86, 100:380]
    assert near(edge, BLUE) > 80
    assert near(edge, YELLOW) > 20
    assert false.blocks == ["There are none."]


def test_an_image_that_cannot_be_read_leaves_an_empty_picture_that_says_why(dataset: str) -> None:
    Path(f"{dataset}/images/a.png").unlink()
    Path(f"{dataset}/images/b.png").write_bytes(b"no picture")
    misses, _ = case_sections(
        open_dataset(dataset), [], read_truths(open_dataset(dataset), "train"), score_threshold=0.5
    )
    captions = [block.caption for block in misses.blocks if isinstance(block, Picture)]
    assert "The image could not be read: " in captions[0]
    assert "images/a.png: no such file" in captions[0]
    assert "images/b.png: " in captions[1]
    assert opened(misses.blocks[1]).shape == (512, 512, 3)  # type: ignore[arg-type]


def test_an_image_id_is_text_and_not_markup(dataset: str) -> None:
    """No image has such an id here: its picture is empty, and its caption is escaped."""
    truths = [truth("<b>x", (BIG, CARDIOMEGALY, 2))]
    page = render_page("t", case_sections(open_dataset(dataset), [], truths, score_threshold=0.5), synthetic=True)
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page


def test_a_noisy_film_stays_small() -> None:
    noise = np.random.default_rng(0).normal(120, 6, (512, 512, 1)).clip(0, 255).astype(np.uint8)
    assert len(webp_uri(np.repeat(noise, 3, axis=2))) < 150_000
