from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.flights import data
from examples.flights.model import compare


def test_a_feature_that_tells_the_label_shows_in_the_gain(tmp_path: Path) -> None:
    spine = data.spine(4_000, home=tmp_path)
    noise = np.random.default_rng(0).normal(size=len(spine))
    told = compare(spine.assign(carrier_delays__hint=spine["late"] + 0.1 * noise))
    untold = compare(spine.assign(carrier_delays__hint=noise))
    assert told.features == ("carrier_delays__hint",)
    assert (told.train_rows, told.test_rows) == (3_000, 1_000)
    assert told.full > 0.99
    assert told.gain > 0.2 > untold.gain
    assert told.base == untold.base
