"""Ways to choose cases before any label, compared by a linear classifier on what the encoder of `starter` returns.

    python -m benchmarks.suggest.strategies FOLDER_OF_DATASETS --out benchmarks/suggest

A training takes minutes and this classifier milliseconds, so that many draws can be compared. It is ridge regression
from the encoder's output at each token to the share of each class in it, on the tokens of the chosen cases; classes are
weighted by one over the root of their frequency. Its Dice is that of tokens, far below a trained model's: only
differences mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from benchmarks.machine import machine
from benchmarks.runs import described
from benchmarks.suggest.run import CHOSEN, MODEL, TEST_CASES
from medsaga import files
from medsaga.data.dataset import read_dataset
from medsaga.data.items import read_item, read_mask
from medsaga.data.letterbox import letterbox, letterbox_labels
from medsaga.data.types import Dataset, to_class_indices
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained
from medsaga.suggest.coverage import choose, distances_between, standardised

Floats = npt.NDArray[np.float64]
SEEDS = 20
RANDOM_DRAWS = 4
RIDGE = 0.02
NEIGHBOURS = 20
"""Of TypiClust: typical is what lies near so many others of its cluster."""
COVERED = 0.15
"""Of ProbCover: the radius of a ball is this quantile of all distances."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the classifier needs of one image.

    Attributes:
        case: it belongs to.
        features: ``(tokens, d)``, standardised over all images of the dataset, and a column of ones.
        shares: ``(tokens, classes)``.
        mean: ``(d,)`` mean over the tokens of what the encoder returns.
    """

    case: str
    features: Floats
    shares: Floats
    mean: Floats


@torch.inference_mode()
def look_at(dataset: Dataset) -> list[Seen]:
    """Put all images, 8-bit and 2-D, through the encoder."""
    side = ENCODERS["lite"].image_size
    model = build_sam("lite", classes=2, image_size=side, in_channels=len(dataset.channels)).eval()
    load_pretrained(model, MODEL)
    token = model.image_encoder.strides[-1]
    tokens, shares = [], []
    for item in dataset.items:
        square, content = letterbox(read_item(item).astype(np.uint8), side)
        classes = letterbox_labels(to_class_indices(read_mask(item), dataset.label_values), side)
        rows, columns = (max(1, round(extent / token)) for extent in content)
        encoded = model.pack(model.encode(torch.from_numpy(square)[None].float()))[0, :, :rows, :columns]
        tokens.append(encoded.flatten(1).T.double().numpy())
        one_hot = F.one_hot(torch.from_numpy(classes).long(), len(dataset.labels)).permute(2, 0, 1).double()
        shares.append(F.avg_pool2d(one_hot[None], token)[0, :, :rows, :columns].flatten(1).T.numpy())
    every = np.concatenate(tokens)
    mean, spread = every.mean(axis=0), every.std(axis=0) + 1e-6
    return [
        Seen(item.case, np.c_[(seen - mean) / spread, np.ones(len(seen))], share, seen.mean(axis=0))
        for item, seen, share in zip(dataset.items, tokens, shares, strict=True)
    ]


def probe(train: Sequence[Seen], test: Sequence[Seen]) -> float:
    """Fit the classifier, and return its Dice, the mean over classes and then over images."""
    features, shares = (np.concatenate([getattr(seen, name) for seen in train]) for name in ("features", "shares"))
    sizes = shares.sum(axis=0)
    weights = shares @ np.divide(1, np.sqrt(sizes), out=np.zeros_like(sizes), where=sizes > 0)
    gram = (features * weights[:, None]).T @ features / weights.sum()
    wanted = (features * weights[:, None]).T @ shares / weights.sum()
    fitted = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), wanted)
    scores = []
    for seen in test:
        guess, truth = (seen.features @ fitted).argmax(axis=1), seen.shares.argmax(axis=1)
        dice = []
        for index in range(1, shares.shape[1]):
            ours, theirs = guess == index, truth == index
            if ours.any() or theirs.any():
                dice.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
        if dice:
            scores.append(np.mean(dice))
    return float(np.mean(scores))


def medoids(points: Floats) -> list[int]:
    """What `medsaga suggest` does."""
    nothing = np.zeros(len(points), bool)
    choices = choose(points, weights=np.ones(len(points)), labelled=nothing, count=CHOSEN)
    return [choice.index for choice in choices]


def squared_medoids(points: Floats) -> list[int]:
    """The same with squared distances."""
    squared, nearest = distances_between(points, points) ** 2, np.full(len(points), np.inf)
    chosen: list[int] = []
    for _ in range(CHOSEN):
        left = np.minimum(nearest[:, None], squared).sum(axis=0)
        left[chosen] = np.inf
        chosen.append(int(left.argmin()))
        nearest = np.minimum(nearest, squared[:, chosen[-1]])
    return chosen


def k_centre(points: Floats) -> list[int]:
    """CoreSet (arXiv 1708.00489): the most central case, then always the one that is furthest from all chosen."""
    between = distances_between(points, points)
    chosen = [int(between.sum(axis=0).argmin())]
    while len(chosen) < CHOSEN:
        chosen.append(int(between[:, chosen].min(axis=1).argmax()))
    return chosen


def typical(points: Floats) -> list[int]:
    """TypiClust (arXiv 2202.02794): of each cluster of k-means the case with the nearest neighbours."""
    between, clusters = distances_between(points, points), _clusters(points)
    chosen = []
    for index in range(CHOSEN):
        inside = np.flatnonzero(clusters == index)
        nearest = np.sort(between[np.ix_(inside, inside)], axis=1)[:, : NEIGHBOURS + 1]
        chosen.append(int(inside[nearest.mean(axis=1).argmin()]))
    return chosen


def balls(points: Floats) -> list[int]:
    """ProbCover (arXiv 2205.11320): always the case whose ball holds most cases that are in no ball yet."""
    between = distances_between(points, points)
    inside = between <= np.quantile(between[np.triu_indices(len(points), 1)], COVERED)
    left = np.ones(len(points), bool)
    chosen: list[int] = []
    for _ in range(CHOSEN):
        gain = (inside & left).sum(axis=1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        left &= ~inside[chosen[-1]]
    return chosen


def _clusters(points: Floats) -> npt.NDArray[np.int32]:
    """The best of ten k-means."""
    found = []
    for seed in range(10):
        centres, clusters = kmeans2(points, CHOSEN, minit="++", rng=np.random.default_rng(seed))
        if len(np.unique(clusters)) == CHOSEN:
            found.append((float(((points - centres[clusters]) ** 2).sum()), seed, clusters))
    return min(found)[2]


STRATEGIES: dict[str, Callable[[Floats], list[int]]] = {
    "k-medoids (ours)": medoids,
    "squared distances": squared_medoids,
    "k-centre": k_centre,
    "TypiClust": typical,
    "ProbCover": balls,
}


def measure(dataset: Dataset) -> dict[str, list[float]]:
    """Return the Dice of each strategy for each seed, and under ``random`` the mean of several draws."""
    seen = look_at(dataset)
    scores: dict[str, list[float]] = {name: [] for name in ("random", *STRATEGIES)}
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        order = [dataset.cases[index] for index in random.permutation(len(dataset.cases))]
        number = TEST_CASES[dataset.root.name]
        test, candidates = set(order[:number]), sorted(order[number:])
        tested = [each for each in seen if each.case in test]

        def score(rows: Sequence[int], names: list[str] = candidates, tested: list[Seen] = tested) -> float:
            chosen = {names[row] for row in rows}
            return probe([each for each in seen if each.case in chosen], tested)

        embedded = [[each.mean for each in seen if each.case == case] for case in candidates]
        points = standardised(np.stack([np.mean(means, axis=0) for means in embedded]))
        draws = [random.choice(len(candidates), CHOSEN, replace=False) for _ in range(RANDOM_DRAWS)]
        scores["random"].append(float(np.mean([score(draw.tolist()) for draw in draws])))
        for name, strategy in STRATEGIES.items():
            scores[name].append(score(strategy(points)))
    return scores


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Lay out the mean of random choices, and the mean difference to it of the others, with its standard error."""
    lines = [f"| choice | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    means = [f"{np.mean(scores['random']):.3f}" for scores in results.values()]
    lines.append(f"| random | {' | '.join(means)} |")
    for name in STRATEGIES:
        cells = []
        for scores in results.values():
            difference = np.array(scores[name]) - scores["random"]
            cells.append(f"{difference.mean():+.3f} ± {difference.std(ddof=1) / np.sqrt(len(difference)):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    results = {name: measure(read_dataset(arguments.datasets / name)) for name in TEST_CASES}
    document: dict[str, Any] = {"machine": machine(), "cases_chosen": CHOSEN, "seeds": SEEDS, "dice": results}
    files.write_json(arguments.out / "strategies.json", document)
    files.write_text(arguments.out / "strategies.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
