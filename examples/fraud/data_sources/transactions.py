"""Made-up payments, the same on every machine, in the two spellings that the listings expect.

They fall into two spans, one for each page: 1 October to 10 November 2020, and 31 January to 1 June 2022.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from featurekit_dagster import BatchSource, FileConfig

HOME = Path(os.environ.get("FEATUREKIT_HOME") or Path(__file__).resolve().parents[3] / ".featurekit")
SPANS = (
    (datetime(2020, 10, 1, tzinfo=UTC), datetime(2020, 11, 10, tzinfo=UTC)),
    (datetime(2022, 1, 31, tzinfo=UTC), datetime(2022, 6, 1, tzinfo=UTC)),
)
# Part of the folder's name: files of another layout are not taken for these.
LAYOUT = "transactions-1"
_USERS, _MERCHANTS, _PER_DAY = 40, 25, 60


def made_transactions() -> pd.DataFrame:
    """Return the payments in order of time: `USER_ID`, `MERCHANT`, `AMOUNT`, `TIMESTAMP` (naive UTC, microseconds).

    A few lie exactly on midnight or one microsecond before it.
    """
    chance = random.Random(2020)
    rows = []
    for start, end in SPANS:
        for day in range((end - start).days):
            offsets = [timedelta(seconds=chance.randrange(86_400)) for _ in range(_PER_DAY)]
            offsets[:2] = [timedelta(0), timedelta(days=1, microseconds=-1)]
            for offset in offsets:
                user = f"user_{int(chance.triangular(0, _USERS, 0)):03d}"
                merchant = f"merchant_{chance.randrange(_MERCHANTS):02d}"
                amount = round(chance.lognormvariate(3, 1), 2)
                rows.append((user, merchant, amount, start + timedelta(days=day) + offset))
    frame = pd.DataFrame(rows, columns=["USER_ID", "MERCHANT", "AMOUNT", "TIMESTAMP"])
    frame["TIMESTAMP"] = frame["TIMESTAMP"].dt.tz_localize(None).astype("datetime64[us]")
    return frame.sort_values("TIMESTAMP", kind="stable", ignore_index=True)


def data_dir(home: Path | None = None) -> Path:
    """Return the folder with `warehouse.parquet` and `lake.parquet`, made on the first call.

    Several processes may call it at once: the folder appears complete or not at all.

    Args:
        home: Where workspaces keep their files; `FEATUREKIT_HOME`, or `.featurekit` beside pyproject.toml, by default.
    """
    folder = (home or HOME) / "data" / LAYOUT
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{LAYOUT}-", dir=folder.parent))
    try:
        frame = made_transactions()
        frame.to_parquet(draft / "warehouse.parquet", index=False)
        frame.rename(columns=str.lower).to_parquet(draft / "lake.parquet", index=False)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker; both made the same
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


transactions = BatchSource(
    name="transactions",
    description="Payments, with the warehouse's column names in capitals.",
    batch_config=FileConfig(
        uri=str(data_dir() / "warehouse.parquet"), file_format="parquet", timestamp_field="TIMESTAMP"
    ),
)
transactions_batch = BatchSource(
    name="transactions_batch",
    description="The same payments, with column names in small letters.",
    batch_config=FileConfig(uri=str(data_dir() / "lake.parquet"), file_format="parquet", timestamp_field="timestamp"),
)
