"""What a search tells of augmentation, in words: which kind and strength is best, by how much, and how sure that is."""

from collections.abc import Sequence
from typing import assert_never

from vbd.evaluation.arms import more_seeds
from vbd.evaluation.intervals import Interval
from vbd.reports.search.arms import Arm, Compared, Found, Obstacle, Study

# A difference that is worth more training to tell it.
WORTH = 0.01
_MOST_SEEDS = 100  # more is no advice
_MOST_NAMED = 4  # arms in a sentence
_SEED = 0


def in_words(study: Study, found: Found, *, has_images: bool) -> str:
    """Which augmentation is best for a detector, or why it cannot be told; `has_images`: the dataset is at hand."""
    if not isinstance(found, Compared):
        why = _obstacle(study, found, has_images=has_images)
        return f"{study.family}: which augmentation is best cannot be told: {why}"
    sentences = [f"{study.family}: {_best(found)}", _against_plain(found), _advice(found)]
    return " ".join(sentence for sentence in sentences if sentence)


def _obstacle(study: Study, obstacle: Obstacle, *, has_images: bool) -> str:
    finished = sum(map(len, study.cells.values())) + study.others
    varied = listed(study.varied)
    others = f" Its {_several(study.others, 'other finished trial')} also differ in {varied}." if study.others else ""
    match obstacle:
        case "one arm" if finished == 0:
            return "no trial of it finished."
        case "one arm" if finished == 1:
            return "only one trial of it finished."
        case "one arm":
            also = f"; they also differ in {varied}" if varied else ""
            return f"of its {finished} finished trials no two differ in policy and strength alone{also}."
        case "one block":
            given = "kept detections" if has_images else "the dataset (--data)"
            return (
                f"its {len(study.cells)} arms share one seed and fold only, and without {given} nothing tells how far "
                f"a score may be off by chance.{others}"
            )
        case "no common block":
            return f"its {len(study.cells)} arms were trained once each, on different seeds or folds.{others}"
        case _:
            assert_never(obstacle)


def _best(found: Compared) -> str:
    best, others, rivals = found.best, len(found.arms) - 1, found.rivals
    mean = f"score {_mean(found)}"
    if found.basis == "images":
        seed, fold = found.blocks[0]
        text = (
            "which augmentation is best cannot be told from one seed on one fold, for nothing tells how much training "
            f"varies by chance. Of its {len(found.arms)} models of seed {seed}, fold {fold}, that with {best} scores "
            f"best, {mean} over images alone"
        )
        if not rivals:
            return f"{text}; on these images {_counted(others, 'other')} shown to be worse."
        return f"{text}; {_named(rivals)} may be as good on other images."
    if not rivals:
        return f"{best} is best, {mean}, {_basis(found)}; {_next(found)}"
    if len(rivals) == others:
        which = "the other" if others == 1 else f"none of the other {others}"
        verb = "is not" if others == 1 else "is"
        return (
            f"which augmentation is best cannot be told: {best} has the best mean, {mean}, {_basis(found)}, but {which} "
            f"{verb} shown to be worse."
        )
    return (
        f"which augmentation is best cannot be told for sure: {best} has the best mean, {mean}, {_basis(found)}, but "
        f"{_named(rivals)} may be as good; {_counted(others - len(rivals), 'other')} shown to be worse."
    )


def _counted(count: int, name: str) -> str:
    return f"the {name} is" if count == 1 else f"all {count} {name}s are"


def _basis(found: Compared) -> str:
    seeds, folds = ({block[i] for block in found.blocks} for i in (0, 1))
    if found.basis == "samples":
        return f"over trials that share no seeds and folds ({_several(len(seeds), 'seed')}, {_several(len(folds), 'fold')})"
    return f"over {len(found.blocks)} blocks of {_several(len(seeds), 'seed')} on {_several(len(folds), 'fold')}"


def _next(found: Compared) -> str:
    gaps = {arm: gap for arm, gap in zip(found.arms, found.comparison.behind, strict=True) if arm != found.best}
    arm, gap = min(gaps.items(), key=lambda pair: pair[1].estimate)
    if len(gaps) == 1:
        return f"{arm} is worse by {interval_in_words(gap)}."
    return f"all {len(gaps)} others are worse, the next, {arm}, by {interval_in_words(gap)}."


def _against_plain(found: Compared) -> str:
    plain = next((i for i, arm in enumerate(found.arms) if arm.policy == "A"), None)
    if plain is None:
        return "No augmentation (policy A) is not among what is compared."
    if plain == found.comparison.best:
        return ""
    gap = found.comparison.behind[plain]
    if len(found.arms) == 2 and found.basis != "images" and gap.low > 0:
        return ""  # it is the next one, and told
    subject = "That model" if found.basis == "images" else found.best
    if gap.low > 0:
        return f"{_capital(str(subject))} beats no augmentation by {interval_in_words(gap)}."
    return f"Whether it beats no augmentation cannot be told: its lead is {interval_in_words(gap)}."


def _advice(found: Compared) -> str:
    """How many more seeds would tell those apart that may be the best."""
    if found.basis == "images":
        return "Train the same arms with one more seed at least."
    if not found.rivals:
        return ""
    folds = len({fold for _, fold in found.blocks}) if found.basis == "blocks" else 1
    arms = [found.arms.index(arm) for arm in (found.best, *found.rivals)]
    seeds = more_seeds(found.spread, arms, difference=WORTH, folds=folds, most=_MOST_SEEDS, seed=_SEED)
    if seeds is None:
        why = "; what the choice of images leaves open, other folds must tell" if found.covers_images else ""
        return f"Even {_MOST_SEEDS} more seeds would not tell differences of {WORTH:g} between them{why}."
    if seeds == 0:
        return f"A difference of {WORTH:g} would mostly have been told: between them it is likely smaller."
    where = "" if found.basis == "samples" else f" on {'its fold' if folds == 1 else f'each of the {folds} folds'}"
    more = f"{seeds} more trial{'' if seeds == 1 else 's'} of each" if found.basis == "samples" else ""
    more = more or f"{seeds} more seed{'' if seeds == 1 else 's'}{where}"
    return f"About {more} would tell a difference of {WORTH:g} between them, four times in five."


def _mean(found: Compared) -> str:
    mean = found.comparison.means[found.comparison.best]
    return f"{mean.estimate:.3f} (95 % interval {mean.low:.3f} to {mean.high:.3f})"


def interval_in_words(interval: Interval) -> str:
    """A difference with its interval."""
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _named(arms: Sequence[Arm]) -> str:
    """Some arms in a sentence: of many the first few."""
    names = [str(arm) for arm in arms[:_MOST_NAMED]]
    if len(arms) > _MOST_NAMED:
        names.append(f"{len(arms) - _MOST_NAMED} more")
    return listed(names)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _several(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
