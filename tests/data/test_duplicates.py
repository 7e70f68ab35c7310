from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.data.images.duplicates import HASH_BYTES, MAX_DISTANCE, near_duplicate_groups, perceptual_hash
from vbd.data.phantom.write import write_phantom

Film = np.ndarray


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Film]:
    """Twenty-five synthetic films, grey, some 700 pixels high."""
    folder = tmp_path_factory.mktemp("films") / "raw"
    write_phantom(folder, images=25, test_images=1, image_format="png", size=700, seed=6)
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(Path(folder, "train").iterdir())]


def hashed(film: Film) -> bytes:
    """As it is prepared: at 256 pixels, stretched."""
    return perceptual_hash(cv2.resize(film, (256, 256), interpolation=cv2.INTER_AREA))


def distance(first: bytes, second: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)).sum())


def clipped(film: Film) -> Film:
    return np.clip(film, 0, 255).astype(np.uint8)


def jpeg(film: Film, quality: int) -> Film:
    return cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


SAME_FILM = {
    "JPEG at quality 50": lambda film: jpeg(film, 50),
    "JPEG at quality 95": lambda film: jpeg(film, 95),
    "half the size": lambda film: cv2.resize(film, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "four fifths of the size": lambda film: cv2.resize(film, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR),
    "squeezed to a square": lambda film: cv2.resize(film, (512, 512), interpolation=cv2.INTER_AREA),
    "brighter": lambda film: clipped(film + 25.0),
    "more contrast": lambda film: clipped((film - 128.0) * 1.1 + 128),
    "less contrast": lambda film: clipped((film - 128.0) * 0.9 + 128),
    "blurred": lambda film: cv2.GaussianBlur(film, (0, 0), 2),
    "noisy": lambda film: clipped(film + np.random.default_rng(0).normal(0, 4, film.shape)),
    "from 16 bits": lambda film: ((film.astype(np.uint16) * 257 + 90) / 256).astype(np.uint8),
}


@pytest.mark.parametrize("change", SAME_FILM.values(), ids=SAME_FILM)
def test_a_film_is_known_again(films: list[Film], change) -> None:
    hashes = {f"film{number}": hashed(film) for number, film in enumerate(films)}
    again = {f"again{number}": hashed(change(film)) for number, film in enumerate(films)}
    groups = near_duplicate_groups(hashes | again, {})
    for number in range(len(films)):
        assert groups[f"film{number}"] == groups[f"again{number}"] == f"again{number}"


def test_different_films_are_far_apart(films: list[Film]) -> None:
    hashes = [hashed(film) for film in films]
    assert {len(one) for one in hashes} == {HASH_BYTES}
    nearest = min(distance(one, other) for row, one in enumerate(hashes) for other in hashes[:row])
    assert nearest > 2 * MAX_DISTANCE


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.rot90], ids=["mirrored", "upside down", "turned"])
def test_a_turned_film_is_another(films: list[Film], turn) -> None:
    for film in films:
        assert distance(hashed(film), hashed(np.ascontiguousarray(turn(film)))) > 5 * MAX_DISTANCE


def test_bits_are_low_frequencies_against_their_median(films: list[Film]) -> None:
    """Against a cosine transform written out, on a film that needs no resizing."""
    film = cv2.resize(films[0], (64, 64), interpolation=cv2.INTER_AREA)
    frequency, place = np.arange(16)[:, None], np.arange(64)[None, :]
    basis = np.cos(np.pi * frequency * (2 * place + 1) / 128) * np.where(frequency == 0, np.sqrt(0.5), 1)
    low = basis @ film.astype(float) @ basis.T
    expected = np.packbits(low > np.median(low)).tobytes()
    assert distance(perceptual_hash(film), expected) <= 2  # single precision may decide the two in the middle


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("noise", [0, 3])
def test_blank_images_have_no_hash(level: int, noise: int) -> None:
    blank = clipped(level + np.random.default_rng(1).normal(0, 1, (256, 256)) * noise)
    assert perceptual_hash(blank) == b""


def test_blank_images_stay_alone() -> None:
    groups = near_duplicate_groups(dict.fromkeys("abc", b""), {"a": "1", "b": "2", "c": "3"})
    assert groups == {"a": "a", "b": "b", "c": "c"}


def bits(*places: int) -> bytes:
    """A hash in which these of 256 bits are set."""
    flags = np.zeros(256, np.uint8)
    flags[list(places)] = 1
    return np.packbits(flags).tobytes()


def test_distance_decides_and_links_go_through_others() -> None:
    hashes = {"d": bits(), "c": bits(0, 100), "b": bits(0, 100, 200, 255), "a": bits(0, 100, 200, 255, 5, 6, 7)}
    assert near_duplicate_groups(hashes, {}, max_distance=2) == {"a": "a", "b": "b", "c": "b", "d": "b"}
    assert near_duplicate_groups(hashes, {}, max_distance=1) == {name: name for name in "abcd"}
    assert set(near_duplicate_groups(hashes, {}, max_distance=3).values()) == {"a"}


def test_equal_files_are_one_group_whatever_their_hash() -> None:
    contents = {"c": "same", "b": "same", "a": "other", "d": "third"}
    assert near_duplicate_groups({}, contents) == {"a": "a", "b": "b", "c": "b", "d": "d"}
    # a looks like c, whose bytes are those of b.
    hashes = {"a": bits(1), "b": b"", "c": bits(1, 2), "d": bits(*range(60))}
    assert near_duplicate_groups(hashes, contents) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_no_images_have_no_groups() -> None:
    assert near_duplicate_groups({}, {}) == {}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_groups_are_the_connected_images_in_any_order(seed: int) -> None:
    """Against links followed one by one."""
    rng = np.random.default_rng(seed)
    names = [f"i{number}" for number in range(20)]
    hashes = {name: bits(*rng.integers(0, 12, rng.integers(0, 9))) for name in names if rng.random() < 0.9}
    hashes |= {name: b"" for name in names if rng.random() < 0.1}
    contents = {name: str(rng.integers(0, 40)) for name in names}
    groups = near_duplicate_groups(hashes, contents, max_distance=2)

    def linked(one: str, other: str) -> bool:
        both = hashes.get(one), hashes.get(other)
        return contents[one] == contents[other] or (all(both) and distance(*both) <= 2)

    links = np.array([[linked(one, other) for other in names] for one in names])
    reached = np.linalg.matrix_power(links.astype(float), len(names)) > 0
    first = {name: min(np.array(names)[row]) for name, row in zip(names, reached, strict=True)}
    assert groups == first
    shuffled = [names[row] for row in rng.permutation(len(names))]
    in_another_order = {name: hashes[name] for name in shuffled if name in hashes}
    again = near_duplicate_groups(in_another_order, {name: contents[name] for name in shuffled}, max_distance=2)
    assert again == groups
    assert list(again) == sorted(names)
