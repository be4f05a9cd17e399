"""Moto's server, corrected: a split shard keeps its records, takes no more, and ends once they were read.

Moto moves the records of a split shard to its children, and lets readers wait at it for ever.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from moto.kinesis.models import KinesisBackend, Stream
from moto.kinesis.utils import decompose_shard_iterator
from moto.server import main

_split, _records_of = Stream.split_shard, KinesisBackend.get_records


def _split_shard(stream: Any, shard: str, hash_key: str) -> None:
    parent = stream.shards[shard]
    kept, parent.records = parent.records, OrderedDict()
    _split(stream, shard, hash_key)
    parent.records = kept
    stream.shards[shard] = stream.shards.pop(shard)  # the first shard that a key fits takes it


def _get_records(backend: Any, stream_arn: Any, shard_iterator: str, limit: Any) -> Any:
    following, records, behind = _records_of(backend, stream_arn, shard_iterator, limit)
    name, shard, _ = decompose_shard_iterator(shard_iterator)
    is_open = backend.describe_stream(stream_arn=stream_arn, stream_name=name).get_shard(shard).is_open
    return (following if is_open or records else None), records, behind


if __name__ == "__main__":
    Stream.split_shard, KinesisBackend.get_records = _split_shard, _get_records  # type: ignore[method-assign]
    main(sys.argv[1:])
