from pathlib import Path
from typing import Any

import pytest

from vbd import storage
from vbd.training.folds.best import best_of, keep_if_best


def _checkpoint(folder: Path, step: int) -> Path:
    target = folder / f"made-{step}"
    target.mkdir(parents=True)
    (target / "model.pt").write_text(str(step))
    return target


def test_the_best_checkpoint_stays_and_a_copy_that_was_cut_off_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    assert best_of(run) is None
    for step, score in ((2, 0.1), (4, 0.3), (6, 0.3), (8, 0.2), (10, None), (12, float("nan"))):
        keep_if_best(run, _checkpoint(tmp_path, step), {"step": step, "score": score})
    best = best_of(run)
    assert best is not None
    assert (best.step, best.score, Path(best.folder, "model.pt").read_text()) == (4, 0.3, "4")
    assert storage.list_names(run) == ["best-00000004", "best.json"]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    made = _checkpoint(tmp_path, 14)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            keep_if_best(run, made, {"step": 14, "score": 0.9})
    assert best_of(run) == best
    assert Path(best.folder, "model.pt").read_text() == "4"
    keep_if_best(run, made, {"step": 14, "score": 0.9})
    assert storage.list_names(run) == ["best-00000014", "best.json"]
