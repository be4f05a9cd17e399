"""Publishing: that the history of a view's full features is kept as a table of the warehouse too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishFeaturesConfig:
    """Says that a view's full features go to the warehouse after each materialization.

    Args:
        publish_start_time: From when on features are published, UTC; None is from their beginning.

    Source: Job Types, Feature Publish.
    """

    publish_start_time: datetime | None = None
