"""What an online store on a server refuses, or fails at."""

from __future__ import annotations

from featurekit_dagster.errors.stores import StoreError, Unsupported


class OnlineStoreExtraMissing(Unsupported):
    """The client library of an online store is not installed."""

    def __init__(self, *, kind: str, extra: str) -> None:
        self.kind, self.extra = kind, extra
        super().__init__(
            f"an online store in {kind} needs a library that is not installed; "
            f"install it with: pip install 'featurekit_dagster[{extra}]'"
        )


class OnlineStoreUnnamed(Unsupported):
    """A `RedisConfig` names no server, and neither does the environment."""

    def __init__(self) -> None:
        super().__init__(
            "a RedisConfig without primary_endpoint means the server of FEATUREKIT_REDIS_URL, which is not set; "
            "set it, or give an endpoint"
        )


class OnlineStoreUnavailable(StoreError):
    """The server of an online store cannot be reached, or is too busy.

    Args:
        place: Host and port, or region; never a password.
        reason: Kind of the last error.
    """

    retryable = True

    def __init__(self, *, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(f"the online store at {place} does not answer ({reason}); start it, or try again later")


class OnlineStoreRefused(StoreError):
    """The server of an online store refused a call: a wrong password, no memory left, or no permission."""

    def __init__(self, *, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(f"the online store at {place} refused a call ({reason}); look at its settings and log")


class OnlineRecordTooLarge(StoreError):
    """What is stored of one join key is larger than the server takes."""

    def __init__(self, *, place: str, most_bytes: int) -> None:
        self.place, self.most_bytes = place, most_bytes
        super().__init__(
            f"the online store at {place} takes at most {most_bytes:,} bytes of one join key; choose a larger "
            "aggregation_interval or shorter windows, compact the view, or serve it from another store"
        )


class OnlineStoreContended(StoreError):
    """Others changed what a write had read each time it was tried."""

    retryable = True

    def __init__(self, *, place: str, tries: int) -> None:
        self.place, self.tries = place, tries
        super().__init__(
            f"the online store at {place}: others changed the same records during each of {tries} tries; "
            "try again later"
        )


class NothingToRefillFrom(Unsupported):
    """A view was to be refilled online that has no history offline."""

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(
            f"{view}: an online store is refilled from the offline store, so a view is needed that writes both; "
            "materialize a view without history anew, and ingest the rows of a feature table without history again"
        )
