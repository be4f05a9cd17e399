"""A frame that prints whole: `print(view.materialization_status())` leaves out no column and shortens nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd


class StatusFrame(pd.DataFrame):  # type: ignore[misc]  # pandas has no types
    """A pandas frame whose text has every column whole, and each row on one line."""

    @property
    def _constructor(self) -> Callable[..., Any]:
        """What selecting rows, sorting and the like return, so that these print whole, too."""
        return StatusFrame

    def __repr__(self) -> str:
        """Return the table as text, of many rows the first and the last, as pandas does."""
        if not len(self):
            return f"no rows of {', '.join(map(str, self.columns))}"
        return str(self.to_string(index=False, max_rows=pd.get_option("display.max_rows")))
