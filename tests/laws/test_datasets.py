"""One law: a dataset is what the read answers, however its spine is cut and wherever its job was interrupted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SOAK
from tests.laws.test_reads_agree import materialize
from tests.laws.worlds import SCHEMA, World, build, worlds
from tests.support.datasets import content, ended_by, made, make

EXAMPLES = 500 if SOAK else 2


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    world=worlds(),
    bucket_rows=st.integers(1, 16),
    interruptions=st.lists(st.integers(0, 4), max_size=2),
    from_source=st.booleans(),
)
def test_dataset_is_the_answer_however_it_was_cut_and_interrupted(
    world: World, bucket_rows: int, interruptions: list[int], from_source: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = build(world, Path(folder))
        materialize(workspace)
        spine = pl.DataFrame(world.spine, schema={name: SCHEMA[name] for name in ("user", "shop", "ts")})
        frame = workspace.get_feature_view("view").get_features_for_events(spine, from_source=from_source)
        job = frame.start_dataset_job("training", extra_config={"bucket_rows": bucket_rows})
        for buckets in sorted(interruptions):
            if not ended_by(lambda buckets=buckets: make(workspace, job, buckets)):
                break
        dataset = made(workspace, job)
        assert dataset.to_dataframe().to_arrow().num_rows == len(world.spine)
        assert dataset.manifest["content_sha256"] == content(frame.to_arrow())
        assert dataset.reproduce().is_equal
