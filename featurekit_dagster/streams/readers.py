"""The reader of a stream source, by the kind of its configuration.

A client library is imported when a stream of its kind is opened, so that nobody needs those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

from featurekit_dagster.domain.stream_sources import KafkaConfig, KinesisConfig, PushConfig, StreamSource
from featurekit_dagster.errors import StreamExtraMissing
from featurekit_dagster.streams.push_log import PushLogReader, push_log_path
from featurekit_dagster.streams.reading import StreamReader

_EXTRAS: Mapping[str, tuple[str, str]] = {
    "kafka": ("Kafka", "confluent_kafka"),
    "kinesis": ("Kinesis", "botocore"),
    "redis": ("Redis", "redis"),
}


def open_reader(source: StreamSource, home: Path, *, workspace: str) -> StreamReader:
    """Return a reader of a stream source; it follows nothing before its first `seek`.

    Args:
        source: The declared source.
        home: The home directory of the workspace, where the logs of its push sources are.
        workspace: Name of the workspace.

    Raises:
        StreamExtraMissing: The library that this kind of stream needs is not installed.
        StreamUnavailable: The stream cannot be reached.
    """
    config = source.stream_config
    if isinstance(config, PushConfig):
        return PushLogReader(push_log_path(home, workspace, source.name))
    if isinstance(config, KafkaConfig):
        return _opener(source, "kafka", "featurekit_dagster.streams.kafka", "KafkaReader")(source.name, config)
    if isinstance(config, KinesisConfig):
        return _opener(source, "kinesis", "featurekit_dagster.streams.kinesis", "KinesisReader")(source.name, config)
    return _opener(source, "redis", "featurekit_dagster.streams.redis_streams", "RedisReader")(source.name, config)


def _opener(source: StreamSource, extra: str, module: str, name: str) -> Callable[..., StreamReader]:
    """Return the class of a reader; its module needs the libraries of an extra."""
    kind, library = _EXTRAS[extra]
    try:
        import_module(library)
    except ImportError as error:
        raise StreamExtraMissing(source=source.name, kind=kind, extra=extra) from error
    return cast("Callable[..., StreamReader]", getattr(import_module(module), name))
