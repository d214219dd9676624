"""What counting alone recommends, for a recommender to be measured by: NDCG@10 and HR@10 with all items ranked.

python benchmarks/sequence_baselines.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from qdeploy.datasets.sequences import PADDING, Dataset
from qdeploy.metrics import hit_rate10, ndcg10

LENGTH, WINDOW, USERS = 10, 3, 1000
METRICS = {"NDCG@10": ndcg10.Metric(), "HR@10": hit_rate10.Metric()}


def followers(histories: NDArray[np.integer], targets: NDArray[np.integer], items: int, window: int) -> csr_array:
    """[items + 1, items + 1]: how often column came after row, 1 / n for an item n places before."""
    total = csr_array((items + 1, items + 1))
    for back in range(1, window + 1):
        seen = histories[:, -back] != PADDING
        places = (histories[seen, -back], targets[seen])
        total = total + csr_array((np.full(int(seen.sum()), 1 / back), places), shape=total.shape)
    return total


def hidden(scores: NDArray[np.float64], histories: NDArray[np.integer]) -> NDArray[np.float64]:
    """``scores`` [N, items + 1] without the items of the given histories, as in models/sasrec.py."""
    np.put_along_axis(scores, histories.astype(np.int64), -1.0, axis=1)
    return scores


def measure(name: str, scores: Iterator[NDArray[np.float64]], targets: NDArray[np.integer]) -> None:
    """Print the metrics of scores that come ``USERS`` rows at a time."""
    rows: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in METRICS}
    for start, batch in zip(range(0, len(targets), USERS), scores, strict=True):
        for label, metric in METRICS.items():
            rows[label].append(metric.prepare(batch, targets[start : start + USERS]))
    values = "  ".join(f"{label} {METRICS[label].value(np.concatenate(rows[label])):6.2%}" for label in METRICS)
    print(f"{name:35} {values}")  # noqa: T201


def main() -> None:
    """Counts of the training part, asked for the evaluation part's items."""
    data = Dataset(length=LENGTH)
    histories, bought = data.split("train")
    asked, targets = data.split("evaluation")
    # Popularity orders what was never seen together: less than one count, so it decides between equals only.
    popular = np.bincount(bought, minlength=data.items + 1) / (len(bought) + 1)
    starts = range(0, len(targets), USERS)

    tiled = (hidden(np.tile(popular, (len(asked[s : s + USERS]), 1)), asked[s : s + USERS]) for s in starts)
    measure("popularity", tiled, targets)
    for window in (1, WINDOW):
        counts = followers(histories, bought, data.items, window)
        raw = ((asked[s : s + USERS], counts[asked[s : s + USERS, -1]].toarray()) for s in starts)
        found = (hidden(scores + popular / window, histories) for histories, scores in raw)
        measure(f"what followed within {window} purchase{'s' * (window > 1)}", found, targets)


if __name__ == "__main__":
    main()
