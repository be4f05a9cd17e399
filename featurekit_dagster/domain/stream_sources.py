"""Where events come from while they happen, and the batch side that holds their history.

A stream source is a stream and, mostly, a batch source with the same rows: historical reads and batch jobs of a stream
feature view use the batch side only. Reading the stream itself is not this module's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.domain.source_rules import raise_faults, required_text_faults
from featurekit_dagster.domain.sources import BatchConfig, BatchSource, Bound, SourceRange, TectonTimeConstant
from featurekit_dagster.domain.windows import size_fault
from featurekit_dagster.domain.wording import described, text_fault

STREAM_POSITIONS = ("latest", "trim_horizon")
MOST_RUNS = 64
"""Runs that follow one stream of one view, at most; each is a process that holds a place of Dagster's queue."""
_PROCESSOR_MODES = ("python", "pandas")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfig:
    """Events that are sent to the ingest service.

    Args:
        timestamp_field: The column that tells when an event happened.
        watermark_delay_threshold: How far behind the newest event an event may be and still count; zero and None are
            no limit.
        deduplication_columns: Columns by which an event that came twice is known, within the watermark.
        post_processor: Function from sent records to rows of the source's schema: of one record, a dict, or of a pandas
            frame.
        post_processor_mode: `python` or `pandas`; what `post_processor` takes and returns.
        input_schema: Typed columns of sent records where `post_processor` changes them; else those of the source.
        log_offline: Deprecated, and without effect.
    """

    timestamp_field: str | None = None
    watermark_delay_threshold: timedelta | None = None
    deduplication_columns: Sequence[str] = ()
    post_processor: Callable[..., Any] | None = None
    post_processor_mode: str | None = None
    input_schema: Sequence[Field] | None = None
    log_offline: bool = False

    def __post_init__(self) -> None:
        faults = [*_timestamp_faults(self.timestamp_field), *_delay_faults(self.watermark_delay_threshold)]
        faults += [*_deduplication_faults(self.deduplication_columns), *_processor_faults(self.post_processor)]
        faults += _push_processor_faults(self)
        if not isinstance(self.log_offline, bool):
            faults.append(f"log_offline is {described(self.log_offline)}; it has no effect, so leave it out")
        raise_faults("PushConfig", faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadStream:
    """What all streams that are read have in common.

    Args:
        timestamp_field: The column that tells when an event happened.
        watermark_delay_threshold: How far behind the newest event an event may be and still count; zero and None are
            no limit.
        deduplication_columns: Columns by which an event that came twice is known, within the watermark.
        initial_stream_position: Where the first read begins: `latest`, or `trim_horizon` for the oldest event kept.
        post_processor: Function from the stream's records to rows: it takes a pandas frame with their text in the
            column `value`, and returns a pandas, polars or Arrow table.
        options: Further settings of the client, text to text; never logged.
    """

    timestamp_field: str | None = None
    watermark_delay_threshold: timedelta | None = None
    deduplication_columns: Sequence[str] = ()
    initial_stream_position: str = "latest"
    post_processor: Callable[..., Any] | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def _raise_faults(self, kind: str, faults: Sequence[str]) -> None:
        delay, position, columns = (
            self.watermark_delay_threshold,
            self.initial_stream_position,
            self.deduplication_columns,
        )
        found = [*faults, *_timestamp_faults(self.timestamp_field), *_delay_faults(delay)]
        found += _deduplication_faults(columns)
        if not isinstance(position, str) or position not in STREAM_POSITIONS:
            found.append(f"initial_stream_position is {described(position)}; give {' or '.join(STREAM_POSITIONS)}")
        found += _processor_faults(self.post_processor)
        if not isinstance(self.options, Mapping):
            found.append(f"options is {described(self.options)}; give a mapping of text to text")
        raise_faults(kind, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig(_ReadStream):
    """Events of Kafka topics.

    Args:
        kafka_bootstrap_servers: Brokers, as `host:port,host:port`.
        topics: Topics, as `topic,topic`.
        parallelism: How many runs share the partitions between them, for each view that follows the stream.
    """

    kafka_bootstrap_servers: str
    topics: str
    parallelism: int = 1

    def __post_init__(self) -> None:
        faults = required_text_faults("kafka_bootstrap_servers", self.kafka_bootstrap_servers, "brokers (host:port)")
        faults += _parallelism_faults(self.parallelism)
        self._raise_faults("KafkaConfig", [*faults, *required_text_faults("topics", self.topics, "a topic")])


@dataclass(frozen=True, slots=True, kw_only=True)
class KinesisConfig(_ReadStream):
    """Events of a Kinesis stream.

    Args:
        stream_name: Name of the stream.
        region: Its AWS region, such as `us-west-2`.
        parallelism: How many runs share the shards between them, for each view that follows the stream.
    """

    stream_name: str
    region: str
    parallelism: int = 1

    def __post_init__(self) -> None:
        faults = required_text_faults("stream_name", self.stream_name, "the name of the stream")
        faults += _parallelism_faults(self.parallelism)
        self._raise_faults("KinesisConfig", [*faults, *required_text_faults("region", self.region, "an AWS region")])


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStreamConfig(_ReadStream):
    """Events of a Redis stream.

    Args:
        url: Redis URL; kept out of every message and log, since it may hold a password.
        stream_key: Key of the stream.
    """

    url: str = field(repr=False)
    stream_key: str

    def __post_init__(self) -> None:
        faults = required_text_faults("url", self.url, "a Redis URL")
        key_faults = required_text_faults("stream_key", self.stream_key, "the key of the stream")
        self._raise_faults("RedisStreamConfig", [*faults, *key_faults])


StreamConfig = PushConfig | KafkaConfig | KinesisConfig | RedisStreamConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSource:
    """A named stream of events, and the batch source that holds their history.

    Args:
        name: Unique among the sources of the workspace.
        stream_config: `PushConfig`, `KafkaConfig`, `KinesisConfig` or `RedisStreamConfig`.
        batch_config: Where the same rows are found later, as in a `BatchSource`; only a push source may be without.
        schema: Typed columns of the events of a push source, which are checked against it; of no other source.
        description: What the events are.
        tags: Key-value pairs for people.
        owner: Who maintains it.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """

    name: str
    stream_config: StreamConfig
    batch_config: BatchConfig | None = None
    schema: Sequence[Field] | None = None
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    batch_source: BatchSource | None = field(init=False, compare=False, repr=False, default=None)

    def __post_init__(self) -> None:
        faults = [fault for fault in [text_fault("name", self.name)] if fault]
        is_push = isinstance(self.stream_config, PushConfig)
        if not isinstance(self.stream_config, StreamConfig):
            faults.append(
                f"stream_config is {described(self.stream_config)}; it is a PushConfig, a KafkaConfig, a KinesisConfig "
                "or a RedisStreamConfig"
            )
        elif self.batch_config is None and not is_push:
            faults.append(
                "batch_config is not given; only a push source may be without, so say where its rows are kept"
            )
        if self.batch_config is not None and not isinstance(self.batch_config, BatchConfig):
            faults.append(
                f"batch_config is {described(self.batch_config)}; it is a FileConfig, a DeltaTableConfig, a SqlConfig "
                "or a function decorated with pandas_batch_config"
            )
        raise_faults(f"stream source {self.name!r}", [*faults, *_schema_faults(self.schema, is_push=is_push)])
        if self.batch_config is not None:
            side = BatchSource(
                name=self.name,
                batch_config=self.batch_config,
                description=self.description,
                tags=self.tags,
                owner=self.owner,
            )
            object.__setattr__(side, "pushed", tuple(self.schema or ()))
            object.__setattr__(self, "batch_source", side)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_push(self) -> bool:
        """Whether events are sent to the ingest service instead of read."""
        return isinstance(self.stream_config, PushConfig)

    @property
    def parallelism(self) -> int:
        """How many runs follow the stream together, for each view."""
        config = self.stream_config
        return config.parallelism if isinstance(config, KafkaConfig | KinesisConfig) else 1

    def select_range(self, start_time: Bound, end_time: Bound) -> StreamRange:
        """Return this source with its batch side cut to `[start_time, end_time)`.

        Raises:
            DeclarationError: As in `BatchSource.select_range`.
        """
        side = None if self.batch_source is None else self.batch_source.select_range(start_time, end_time)
        return StreamRange(self, side)

    def unfiltered(self) -> StreamRange:
        """Return this source with its batch side whole, whatever interval a job has."""
        return self.select_range(TectonTimeConstant.UNBOUNDED_PAST, TectonTimeConstant.UNBOUNDED_FUTURE)

    @property
    def of_interval(self) -> StreamRange:
        """This source with its batch side cut to a job's interval."""
        constants = TectonTimeConstant
        return self.select_range(constants.MATERIALIZATION_START_TIME, constants.MATERIALIZATION_END_TIME)


@dataclass(frozen=True, slots=True)
class StreamRange:
    """A stream source, and the span of its batch side that a transformation is handed; None where it has none."""

    source: StreamSource
    batch: SourceRange | None


def _timestamp_faults(timestamp_field: object) -> list[str]:
    fault = None if timestamp_field is None else text_fault("timestamp_field", timestamp_field)
    return [fault] if fault else []


def _delay_faults(delay: object) -> list[str]:
    name = "watermark_delay_threshold"
    if delay is None:
        return []
    if not isinstance(delay, timedelta):
        return [f"{name} is {described(delay)}; give a timedelta"]
    if delay < timedelta(0):
        return [f"{name} {delay} is negative; give zero or more"]
    fault = size_fault(name, delay)
    return [fault] if fault else []


def _parallelism_faults(parallelism: object) -> list[str]:
    is_number = isinstance(parallelism, int) and not isinstance(parallelism, bool)
    if is_number and 1 <= parallelism <= MOST_RUNS:  # type: ignore[operator]
        return []
    return [f"parallelism is {described(parallelism)}; give a whole number from 1 to {MOST_RUNS}"]


def _deduplication_faults(columns: object) -> list[str]:
    if isinstance(columns, list | tuple) and all(isinstance(name, str) and name for name in columns):
        return []
    return ["deduplication_columns is no list of names; give column names"]


def _processor_faults(function: object) -> list[str]:
    if function is None or callable(function):
        return []
    return [f"post_processor is {described(function)}; give a function"]


def _push_processor_faults(config: PushConfig) -> list[str]:
    """Return the faults of what belongs to the post_processor of a push source."""
    mode, faults = config.post_processor_mode, []
    if mode is not None and (not isinstance(mode, str) or mode not in _PROCESSOR_MODES):
        faults.append(f"post_processor_mode is {described(mode)}; give {' or '.join(_PROCESSOR_MODES)}")
    for name in ("post_processor_mode", "input_schema"):
        if config.post_processor is None and getattr(config, name) is not None:
            faults.append(f"{name} is given without post_processor; leave it out")
    return [*faults, *_field_faults("input_schema", config.input_schema)]


def _schema_faults(schema: object, *, is_push: bool) -> list[str]:
    if schema is None:
        return []
    if not is_push:
        return ["schema is given, but only the events of a push source are checked against one; leave it out"]
    return _field_faults("schema", schema)


def _field_faults(name: str, schema: object) -> list[str]:
    if schema is None:
        return []
    if not isinstance(schema, list | tuple):
        return [f"{name} is {described(schema)}; give a list"]
    return [
        f"{described(column)} is in {name}; give Field(name, type)"
        for column in schema
        if not (isinstance(column, Field) and isinstance(column.name, str) and isinstance(column.dtype, DataType))
    ]
