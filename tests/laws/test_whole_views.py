"""Views whose arguments mostly fit together: what is accepted is consistent in itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from featurekit_dagster.domain import aggregation_functions
from featurekit_dagster.domain.declarations import batch_feature_view, stream_feature_view
from featurekit_dagster.domain.feature_view import Aggregation, FeatureView, StreamProcessingMode
from featurekit_dagster.domain.schema import Field, String
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import to_us
from tests.laws.test_declarations_never_crash import (
    BARE_PUSH,
    KAFKA,
    PUSH,
    check_refusal,
    check_view,
    stream_arguments,
    with_one,
)
from tests.unit.domain.declared import DAY, SCHEMA, START, plain_arguments

HOURS = st.integers(1, 60).map(lambda hours: timedelta(hours=hours))
PLAUSIBLE_WINDOWS = st.one_of(
    HOURS,
    st.builds(TimeWindow, HOURS, HOURS.map(lambda length: -length)),
    st.builds(
        TimeWindowSeries,
        series_start=st.integers(-20, -4).map(lambda days: timedelta(days=days)),
        window_size=HOURS,
        step_size=st.one_of(st.none(), HOURS),
        series_end=st.integers(-1, 0).map(lambda days: timedelta(days=days)),
    ),
    st.just(LifetimeWindow()),
)
PLAUSIBLE_FUNCTIONS = st.sampled_from(
    [
        ("amount", "sum"),
        ("amount", "stddev"),
        ("page", "last"),
        ("page", aggregation_functions.last(2)),
        ("amount", aggregation_functions.first_distinct(3)),
        ("user_id", aggregation_functions.approx_count_distinct()),
        ("amount", aggregation_functions.approx_percentile(0.5, 50)),
        ("timestamp", "count"),
    ]
)
PLAUSIBLE: Mapping[str, st.SearchStrategy[Any]] = {
    "aggregations": st.lists(
        st.builds(lambda f, window: Aggregation(*f, window), PLAUSIBLE_FUNCTIONS, PLAUSIBLE_WINDOWS),
        min_size=1,
        max_size=4,
    ),
    "aggregation_interval": st.sampled_from([None, timedelta(minutes=10), timedelta(hours=1), DAY]),
    "batch_schedule": st.sampled_from([None, timedelta(hours=1), DAY]),
    "aggregation_secondary_key": st.sampled_from([None, None, "page", "amount"]),
    "lifetime_start_time": st.sampled_from([None, START, START - 400 * DAY]),
    "compaction_enabled": st.sampled_from([None, None, True]),
    "online": st.just(False),
    "timestamp_field": st.just("timestamp"),
}


@st.composite
def plausible_views(draw: st.DrawFn) -> FeatureView:
    """Draw views whose arguments mostly fit together; the others are left out."""
    given_ = {name: draw(values) for name, values in PLAUSIBLE.items()}
    given_["schema"] = [*SCHEMA, Field("page", String)]
    if not any(isinstance(a.time_window, LifetimeWindow) for a in given_["aggregations"]):
        given_["lifetime_start_time"] = None
    mode = draw(st.sampled_from([None, *StreamProcessingMode]))
    if mode is StreamProcessingMode.CONTINUOUS:
        given_["aggregation_interval"] = None
    is_stream = draw(st.booleans())
    try:
        if not is_stream:
            return batch_feature_view(**plain_arguments(**given_))(with_one)
        source = draw(st.sampled_from([PUSH, BARE_PUSH, KAFKA]))
        arguments = stream_arguments(**given_, mode=None, name="v", source=source, stream_processing_mode=mode)
        return stream_feature_view(**arguments)
    except DeclarationError as refused:
        check_refusal(refused)
        reject()


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(plausible_views())
def test_whatever_fits_together_is_a_whole_view(view: FeatureView) -> None:
    check_view(view)
    names = [*view.tile_keys, view.timestamp_field]
    assert not {name.lower() for name in names} & {partial.name.lower() for partial in view.partials}
    for feature in view.aggregates:
        assert all(span.begin_us is None or span.begin_us < span.end_us <= 0 for span in feature.spans)
        tile_us = view.tile_us or 1
        edges = [e for span in feature.spans for e in (span.begin_us, span.end_us, span.since_us) if e is not None]
        assert all(edge % tile_us == 0 for edge in edges)
        assert view.materialization_start is not None
        first = to_us(view.materialization_start)
        assert view.feature_start_time is not None
        since = (
            s.since_us if s.begin_us is None else to_us(view.feature_start_time) + s.begin_us for s in feature.spans
        )
        assert all(begin is not None and first <= begin for begin in since)
