"""A model of lateness, trained with and without the features, to show what they are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

LABEL = "late"
TIME = "prediction_time"
BASE = ("hour", "weekday", "month", "carrier", "origin", "dest", "distance")
# Columns of the spine that a model must not see: names of rows, the label, and an aircraft's name (4,000 categories).
_NOT_FEATURES = ("flight_id", "tailnum", LABEL, TIME, *BASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How well two models tell late flights from others, as areas under the ROC curve (0.5 is guessing).

    Args:
        base: AUC of the model that knows the schedule only.
        full: AUC of the model that knows the features too.
        train_rows: Number of flights trained on, the earlier ones.
        test_rows: Number of flights judged on, the later ones.
        features: Names of the feature columns.
    """

    base: float
    full: float
    train_rows: int
    test_rows: int
    features: tuple[str, ...]

    @property
    def gain(self) -> float:
        """What the features add."""
        return self.full - self.base


def compare(training_set: pd.DataFrame, *, train_share: float = 0.75) -> Comparison:
    """Train on the earlier flights, judge on the later ones, with and without the features.

    Args:
        training_set: One row per flight: the columns of the spine, any others are features.
        train_share: Share of the flights, in order of `prediction_time`, to train on.
    """
    ordered = training_set.sort_values(TIME, kind="stable", ignore_index=True)
    features = [name for name in ordered.columns if name not in _NOT_FEATURES]
    train_rows = int(len(ordered) * train_share)
    return Comparison(
        base=_auc(ordered, BASE, train_rows),
        full=_auc(ordered, (*BASE, *features), train_rows),
        train_rows=train_rows,
        test_rows=len(ordered) - train_rows,
        features=tuple(features),
    )


def _auc(flights: pd.DataFrame, columns: Sequence[str], train_rows: int) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    known = flights[list(columns)].astype(dict.fromkeys(("carrier", "origin", "dest"), "category"))
    label = flights[LABEL].astype(bool)
    model = HistGradientBoostingClassifier(
        categorical_features="from_dtype", max_iter=100, early_stopping=False, random_state=0
    )
    model.fit(known.iloc[:train_rows], label.iloc[:train_rows])
    likely = model.predict_proba(known.iloc[train_rows:])[:, 1]
    return float(roc_auc_score(label.iloc[train_rows:], likely))
