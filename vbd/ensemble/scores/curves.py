"""One rising curve from a detector's scores to the probability of a true positive, of whichever kind predicts best.

Isotonic regression: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
2002. Beta: Kull, Silva Filho and Flach, "Beta calibration: a well-founded and easily implemented improvement on logistic
calibration for binary classifiers", 2017. Rank: a score counts only by its quantile, so that any distortion of the scores
that keeps their order comes to the same; the quantile is then calibrated by beta.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from vbd.config.checked import Number, Seconds, Share

# The steadiest first.
Kind = Literal["beta", "rank", "isotonic"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Share of the raw score in a calibrated one: keeps the curve rising where a fit is flat, so that no ranking is lost to ties, at
# the price of at most this much bias.
_SLOPE = 0.01
# Beta takes logarithms of scores, and losses those of probabilities: what is nearer to 0 or 1 counts as this.
_EDGE = 1e-6
# Knots of the quantile function, more of them near both ends.
_KNOTS = 129
# Weight of the coefficients' squared distance from the identity; only steadies fits on few boxes.
_RIDGE = 0.1
# What a beta is fitted on at most: boxes of neighbouring scores are taken together.
_POINTS = 2048


@dataclass(frozen=True)
class Losses:
    """How well probabilities predict true positives, on boxes that they were not fitted on."""

    log_loss: Seconds
    brier: Share  # mean squared error


@dataclass(frozen=True)
class Curve:
    """A strictly rising function of the score."""

    kind: Kind
    scores: tuple[Share, ...] = ()  # knots of isotonic and rank
    values: tuple[Share, ...] = ()  # there: probabilities of isotonic, quantiles of rank
    coefficients: tuple[Number, ...] = ()  # a, b, c of beta and rank: logit p = a ln s - b ln(1 - s) + c
    losses: dict[Kind, Losses] = field(
        default_factory=dict
    )  # out of fold, of every kind; empty when there was no choice

    def __post_init__(self) -> None:
        knots, coefficients = len(self.scores), len(self.coefficients)
        if knots != len(self.values) or (self.kind != "beta" and not knots) or list(self.scores) != sorted(self.scores):
            raise ValueError(
                f"{self.kind}: {knots} scores and {len(self.values)} values; want rising scores with a value each"
            )
        if coefficients != (0 if self.kind == "isotonic" else 3):
            raise ValueError(f"{self.kind}: {coefficients} coefficients; want {0 if self.kind == 'isotonic' else 3}")

    def __call__(self, scores: NDArray) -> NDArray[np.float64]:
        """Probabilities of scores (n,) in 0..1 -> (n,)."""
        raw = np.asarray(scores, np.float64)
        return (1 - _SLOPE) * self._probabilities(raw) + _SLOPE * raw

    def _probabilities(self, raw: NDArray) -> NDArray[np.float64]:
        match self.kind:
            case "isotonic":
                return np.interp(raw, self.scores, self.values)
            case "beta":
                return _sigmoid(_beta_features(raw) @ np.array(self.coefficients))
            case "rank":
                quantiles = np.interp(raw, self.scores, self.values)
                return _sigmoid(_beta_features(quantiles) @ np.array(self.coefficients))
            case _:
                assert_never(self.kind)


def fit_best(scores: NDArray, hits: NDArray[np.bool_], parts: NDArray[np.int64]) -> Curve:
    """The curve of the kind that predicts best out of fold, fitted on all boxes.

    scores, hits, parts (n,): a box's probability is told by a fit on the boxes of all other parts. Boxes of one image
    must share a part. Best is the first of KINDS whose log loss is within a standard error of the least (Breiman et al.,
    "Classification and regression trees", 1984): a kind that changes with a few boxes would disorder what is calibrated in
    parts. Without true and false boxes in two parts it is beta.
    """
    known = [np.unique(parts[hits]), np.unique(parts[~hits])]
    if min(len(each) for each in known) < 2:
        return fit_curve("beta", scores, hits)
    told = {kind: out_of_fold(kind, scores, hits, parts) for kind in KINDS}
    by_box = {kind: log_losses(probabilities, hits) for kind, probabilities in told.items()}
    least = min(by_box.values(), key=np.mean)
    excess = {kind: losses - least for kind, losses in by_box.items()}
    best = next(kind for kind in KINDS if excess[kind].mean() <= excess[kind].std() / np.sqrt(len(scores)))
    losses = {kind: losses_of(probabilities, hits) for kind, probabilities in told.items()}
    return dataclasses.replace(fit_curve(best, scores, hits), losses=losses)


def out_of_fold(kind: Kind, scores: NDArray, hits: NDArray[np.bool_], parts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each box's probability by a fit on the other parts: (n,), (n,), (n,) -> (n,)."""
    probabilities = np.empty(len(scores))
    for part in np.unique(parts):
        rows = parts == part
        probabilities[rows] = fit_curve(kind, scores[~rows], hits[~rows])(scores[rows])
    return probabilities


def losses_of(probabilities: NDArray, hits: NDArray[np.bool_]) -> Losses:
    """Mean log loss and Brier score: (n,), (n,)."""
    log_loss = log_losses(probabilities, hits).mean()
    return Losses(log_loss=float(log_loss), brier=float(((probabilities - hits) ** 2).mean()))


def log_losses(probabilities: NDArray, hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log loss of each box: (n,), (n,) -> (n,)."""
    p = np.clip(probabilities, _EDGE, 1 - _EDGE)
    return -np.where(hits, np.log(p), np.log1p(-p))


def fit_curve(kind: Kind, scores: NDArray, hits: NDArray[np.bool_]) -> Curve:
    """One kind of curve on all boxes (n,), (n,); the identity without any."""
    if not len(scores):
        return Curve("isotonic", (0.0, 1.0), (0.0, 1.0))
    values = np.asarray(scores, np.float64)
    match kind:
        case "isotonic":
            return _isotonic(values, hits)
        case "beta":
            return Curve("beta", coefficients=_fit_beta(values, hits))
        case "rank":
            knots, quantiles = _quantiles(values)
            coefficients = _fit_beta(np.interp(values, knots, quantiles), hits)
            return Curve("rank", tuple(knots.tolist()), tuple(quantiles.tolist()), coefficients)
        case _:
            assert_never(kind)


def _isotonic(scores: NDArray, hits: NDArray[np.bool_]) -> Curve:
    """Isotonic regression of hits on scores, its steps joined at their middles: a rising line instead of stairs."""
    from sklearn.isotonic import isotonic_regression  # 1 s: kept out of --help

    # Equal scores are one point: their boxes cannot be told apart.
    knots, point, weight = np.unique(scores, return_inverse=True, return_counts=True)
    shares = np.bincount(point, weights=hits) / weight
    steps = isotonic_regression(shares, sample_weight=weight.astype(np.float64))
    _, step = np.unique(steps, return_inverse=True)
    size = np.bincount(step, weights=weight)
    middle = np.bincount(step, weights=knots * weight) / size
    positives = np.bincount(step, weights=shares * weight)
    # One more box of the average kind in each step: two lucky boxes are no certainty. The running maximum keeps order.
    average = (hits.sum() + 0.5) / (len(hits) + 1)
    probabilities = np.maximum.accumulate((positives + average) / (size + 1))
    is_first = np.append(True, np.diff(middle) > 0)
    return Curve("isotonic", tuple(middle[is_first].tolist()), tuple(probabilities[is_first].tolist()))


def _quantiles(scores: NDArray) -> tuple[NDArray, NDArray]:
    """Knots of the scores' distribution: distinct scores ascending, and their quantiles strictly within 0..1."""
    n = len(scores)
    edge = 0.5 / n
    at = (
        _sigmoid(np.linspace(np.log(edge / (1 - edge)), np.log((1 - edge) / edge), _KNOTS))
        if n > 1
        else np.array([0.5])
    )
    knots, first = np.unique(np.quantile(scores, at), return_index=True)
    # The middle of the quantiles that share a score.
    last = np.append(first[1:], len(at)) - 1
    return knots, (at[first] + at[last]) / 2


def _fit_beta(scores: NDArray, hits: NDArray[np.bool_]) -> tuple[float, ...]:
    """a, b and c of beta calibration with a, b >= 0; one that would fall below is 0 and the others are fitted again."""
    points = _grouped(scores, hits)
    coefficients = _logistic(points, np.array([True, True, True]))
    for k in (0, 1):
        if coefficients[k] < 0:
            used = np.array([True, True, True])
            used[k] = False
            coefficients = _logistic(points, used)
    if coefficients[:2].min() < 0:
        coefficients = _logistic(points, np.array([False, False, True]))
    return tuple(coefficients.tolist())


@dataclass(frozen=True)
class _Points:
    """Boxes of about the same score as one."""

    features: NDArray[np.float64]  # (m, 3) of the mean box
    hits: NDArray[np.float64]  # (m,)
    counts: NDArray[np.float64]  # (m,)


def _grouped(scores: NDArray, hits: NDArray[np.bool_]) -> _Points:
    """Neighbours by score, equally many in each point: the fit costs the same for any number of boxes."""
    n = len(scores)
    features = _beta_features(scores)
    if n <= _POINTS:
        return _Points(features, hits.astype(np.float64), np.ones(n))
    order = np.argsort(scores, kind="stable")
    starts = np.arange(_POINTS) * n // _POINTS
    counts = np.diff(np.append(starts, n)).astype(np.float64)
    means = np.add.reduceat(features[order], starts) / counts[:, None]
    return _Points(means, np.add.reduceat(hits[order].astype(np.float64), starts), counts)


def _logistic(points: _Points, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logistic regression by Newton's method, drawn lightly to the identity: (3,) -> (3,)."""
    columns, prior = points.features[:, used], np.array([1.0, 1.0, 0.0])[used]

    def penalised(coefficients: NDArray) -> float:
        logits, distance = columns @ coefficients, coefficients - prior
        loss = (points.counts * np.logaddexp(0, logits) - points.hits * logits).sum()
        return float(loss + _RIDGE / 2 * distance @ distance)

    coefficients = prior
    loss = penalised(coefficients)
    for _ in range(50):
        p = _sigmoid(columns @ coefficients)
        slope = columns.T @ (points.counts * p - points.hits) + _RIDGE * (coefficients - prior)
        curvature = (columns * (points.counts * p * (1 - p))[:, None]).T @ columns + _RIDGE * np.eye(len(prior))
        step = np.linalg.solve(curvature, slope)
        new_loss = penalised(coefficients - step)
        while new_loss > loss + 1e-9 * abs(loss) and np.abs(step).max() > 1e-9:
            step /= 2
            new_loss = penalised(coefficients - step)
        coefficients, loss = coefficients - step, new_loss
        if np.abs(step).max() < 1e-5:
            break
    result = np.zeros(len(used))
    result[used] = coefficients
    return result


def _beta_features(scores: NDArray) -> NDArray[np.float64]:
    """ln s, -ln(1 - s) and 1: (n,) -> (n, 3)."""
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.stack([np.log(clipped), -np.log1p(-clipped), np.ones(len(clipped))], axis=1)


def _sigmoid(logits: NDArray) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
