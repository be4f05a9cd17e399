"""The answer of an online read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from featurekit_dagster.intervals import from_us

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class FeatureStatus(Enum):
    """Whether a feature's value was found.

    PRESENT: the keys are known and the value is alive. MISSING_DATA: nothing is stored for the keys, or it has
    expired; the value is the feature's default. UNKNOWN: intervals that the value needs are not materialized; it is
    NULL.
    """

    PRESENT = "PRESENT"
    MISSING_DATA = "MISSING_DATA"
    UNKNOWN = "UNKNOWN"


PRESENT, MISSING_DATA, UNKNOWN = FeatureStatus.PRESENT, FeatureStatus.MISSING_DATA, FeatureStatus.UNKNOWN


class FeatureVector:
    """Feature values of one entity.

    Args:
        names: Feature names, in order; join keys first when they were asked for.
        values: Their values.
        statuses: Their statuses.
        effective_us: Per value, the time up to which its data are complete, in microseconds; None where nothing is
            materialized. A spine row at this time, plus the data delay if there is one, gets the same value offline.

    Source: SDK page, get_online_features.
    """

    __slots__ = ("_effective_us", "_names", "_statuses", "_values")

    def __init__(
        self,
        names: Sequence[str],
        values: Sequence[Any],
        statuses: Sequence[FeatureStatus],
        effective_us: Sequence[int | None],
    ) -> None:
        self._names, self._values, self._statuses, self._effective_us = names, values, statuses, effective_us

    @classmethod
    def joined(cls, vectors: Sequence[FeatureVector]) -> FeatureVector:
        """Return the vectors one after another as one."""
        return cls(
            [n for v in vectors for n in v._names],
            [x for v in vectors for x in v._values],
            [s for v in vectors for s in v._statuses],
            [t for v in vectors for t in v._effective_us],
        )

    def to_dict(self, return_effective_times: bool = False) -> dict[str, Any]:
        """Return name to value, or with times name to `{"value": ..., "effective_time": ...}`."""
        if not return_effective_times:
            return dict(zip(self._names, self._values, strict=True))
        return {
            name: {"value": value, "effective_time": time}
            for name, value, time in zip(self._names, self._values, self.effective_times, strict=True)
        }

    def to_pandas(self, return_effective_times: bool = False) -> pd.DataFrame:
        """Return one row of values, or with times one row per feature: name, value, effective_time."""
        import pandas as pd  # noqa: PLC0415 - loaded when asked for

        if not return_effective_times:
            return pd.DataFrame([list(self._values)], columns=list(self._names))
        columns = {"name": list(self._names), "value": list(self._values), "effective_time": self.effective_times}
        return pd.DataFrame(columns)

    def to_numpy(self, return_effective_times: bool = False) -> np.ndarray:
        """Return the values, or with times an array of (value, effective time) pairs."""
        import numpy as np  # noqa: PLC0415 - loaded when asked for

        # filled cell by cell: NumPy would make lists of equal length into one more dimension
        values = np.empty(len(self._values), dtype=object)
        for place, value in enumerate(self._values):
            values[place] = value
        if not return_effective_times:
            return values
        return np.stack([values, np.array(self.effective_times, dtype=object)], axis=1)

    @property
    def statuses(self) -> dict[str, FeatureStatus]:
        """Name to status."""
        return dict(zip(self._names, self._statuses, strict=True))

    @property
    def effective_times(self) -> list[datetime | None]:
        """Per value, the time up to which its data are complete, aware UTC."""
        return [None if us is None else from_us(us) for us in self._effective_us]

    @property
    def slo_info(self) -> dict[str, Any]:
        """What is known about how the vector was served: number of features per status."""
        return {status.name: sum(s is status for s in self._statuses) for status in FeatureStatus}

    def __repr__(self) -> str:
        return f"FeatureVector({self.to_dict()!r})"
