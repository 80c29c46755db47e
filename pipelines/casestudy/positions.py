"""Can a few token positions tell a class from all others?

For every class, a small decision tree on "position t holds token v" is grown with m leaves
beyond the first, hence at most m positions, and judged by stratified cross-validation on
genomes it has not seen. The positions may be any, or only those where the attention that
tokens receive differs most between the class and the rest; the latter are chosen anew from
the training genomes of every fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertgeom.analysis.cohorts import Moments
from bertgeom.analysis.contrasts import rounding, welch

#: Splits of a tree, at most: how many positions it can look at.
SPLITS = (1, 2, 3, 5)
#: Positions that attention may propose.
CANDIDATES = 10
_FOLDS = 5


@dataclass(frozen=True)
class FewPositions:
    """How well few positions tell a class from the others.

    Attributes:
        name: of the class. n: its genomes.
        by: "tokens" (any position) or "attention" (those that differ in attention received).
        splits: positions at most. f1: of the class, cross-validated. mcc: likewise.
        positions: token positions of the tree grown on all genomes, by falling importance.
    """

    name: str
    n: int
    by: str
    splits: int
    f1: float
    mcc: float
    positions: tuple[int, ...]


def one_versus_all(
    ids: np.ndarray,
    codes: np.ndarray,
    names: list[str],
    received: np.ndarray | None = None,
    *,
    dtype: str = "float32",
    seed: int = 0,
) -> list[FewPositions]:
    """Cross-validated trees for every class with at least two genomes inside and outside.

    Args:
        ids: int (S, N), tokens; -1 beyond a genome's last token.
        codes: int (S,), classes; -1 for none, left out.
        names: of the classes.
        received: (S, N) attention received by every token, NaN beyond the last one.
        dtype: of the computation that gave `received`, see `bertgeom.analysis.contrasts.rounding`.

    Returns:
        One entry for every class, way of choosing, and number of splits.
    """
    kept = codes >= 0
    ids, codes = ids[kept], codes[kept]
    received = None if received is None else received[kept]
    found = []
    for code, name in enumerate(names):
        inside = codes == code
        n = int(inside.sum())
        if min(n, len(codes) - n) < 2:
            continue
        features = _Features.of(ids, inside)
        for by in ("tokens", "attention")[: 1 if received is None else 2]:
            for splits in SPLITS:
                chosen_by = received if by == "attention" else None
                f1, mcc = _judged(features, inside, splits, chosen_by, dtype, seed)
                tree, allowed = _grown(features, inside, splits, chosen_by, dtype, seed)
                found.append(
                    FewPositions(name, n, by, splits, f1, mcc, _used(tree, features, allowed))
                )
    return found


@dataclass(frozen=True)
class _Features:
    """values (S, F) uint8: whether `position[f]` holds one certain token."""

    values: np.ndarray
    position: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, inside: np.ndarray) -> _Features:
        """For every position, its two most frequent tokens in the class and outside of it."""
        columns, position = [], []
        for t in range(ids.shape[1]):
            frequent = {v for rows in (ids[inside, t], ids[~inside, t]) for v in _most(rows)}
            for v in sorted(frequent):
                column = ids[:, t] == v
                if v >= 0 and 0 < column.sum() < len(column):
                    columns.append(column)
                    position.append(t)
        if not columns:
            return cls(np.zeros((len(ids), 1), np.uint8), np.zeros(1, np.int64))
        return cls(np.stack(columns, axis=1).astype(np.uint8), np.array(position))


def _most(values: np.ndarray) -> list[int]:
    found, counts = np.unique(values, return_counts=True)
    return [int(v) for v in found[np.argsort(-counts, kind="stable")[:2]]]


def _grown(
    features: _Features,
    inside: np.ndarray,
    splits: int,
    received: np.ndarray | None,
    dtype: str,
    seed: int,
) -> tuple[object, np.ndarray]:
    """A tree and the columns it may use; proposals come from these genomes alone."""
    from sklearn.tree import DecisionTreeClassifier

    allowed = np.arange(features.values.shape[1])
    if received is not None:
        proposed = proposed_positions(received, inside, dtype)
        allowed = np.flatnonzero(np.isin(features.position, proposed))
    least = 2
    if not len(allowed):
        # A tree needs a column; this one may not split on it, and gives everyone one answer.
        allowed, least = np.arange(1), len(inside) + 1
    tree = DecisionTreeClassifier(
        max_leaf_nodes=splits + 1,
        min_samples_split=least,
        class_weight="balanced",
        random_state=seed,
    )
    return tree.fit(features.values[:, allowed], inside), allowed


def proposed_positions(received: np.ndarray, inside: np.ndarray, dtype: str) -> np.ndarray:
    """Positions whose attention received differs most, by |Cohen's d|.

    None where the class or the rest has fewer than 2 genomes with a token there, nor where
    nothing but rounding varies.
    """
    moments = Moments.of(received, np.where(inside, 0, 1), 2)
    least = rounding("attention_received", moments, dtype)
    size = np.abs(welch(moments, 0, 1, least)["cohens_d"])
    known = np.flatnonzero(np.isfinite(size))
    return known[np.argsort(-size[known], kind="stable")[:CANDIDATES]]


def _judged(
    features: _Features,
    inside: np.ndarray,
    splits: int,
    received: np.ndarray | None,
    dtype: str,
    seed: int,
) -> tuple[float, float]:
    from sklearn.metrics import f1_score, matthews_corrcoef
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(inside.sum()), int((~inside).sum()))
    answer = np.zeros(len(inside), dtype=bool)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in parts.split(features.values, inside):
        part = _Features(features.values[train], features.position)
        seen = None if received is None else received[train]
        tree, allowed = _grown(part, inside[train], splits, seen, dtype, seed)
        answer[test] = tree.predict(features.values[np.ix_(test, allowed)])  # type: ignore[attr-defined]
    return (
        float(f1_score(inside, answer, zero_division=0.0)),
        float(matthews_corrcoef(inside, answer)),
    )


def _used(tree: object, features: _Features, allowed: np.ndarray) -> tuple[int, ...]:
    weight = tree.feature_importances_  # type: ignore[attr-defined]
    order = [f for f in np.argsort(-weight, kind="stable") if weight[f] > 0]
    return tuple(dict.fromkeys(int(features.position[allowed[f]]) for f in order))
