"""Records of an online store in DynamoDB: all that is stored of one join key is one item, so it changes at once.

A commit is one transaction of the service where it fits one (100 items), else one of `dynamodb_commits.py`; either way
it changes everything or nothing. An item has a version, random and new with each change, and its values as attributes:
one for each chunk of tiles, or one for a row.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote

from featurekit_dagster.domain.online_stores import DynamoConfig
from featurekit_dagster.errors import OnlineRecordTooLarge
from featurekit_dagster.stores.dynamodb_client import (
    KEY,
    MOST_ITEM_BYTES,
    Cancelled,
    DynamoClient,
    Item,
    TableIsMissing,
)
from featurekit_dagster.stores.dynamodb_commits import GUARD, ItemChange, LargeCommit, action, check, guard_check
from featurekit_dagster.stores.key_codec import CHUNK_BYTES
from featurekit_dagster.stores.remote import RemoteOnlineStore
from featurekit_dagster.stores.remote_table import ABSENT, Stored

_ROW, _CHUNK, _VERSION = "r", "c", "n"
_FACTS = b"\x00\x00"
_GENERATION_BYTES = 2
_MOST_ACTIONS, _MOST_BYTES = 99, 3_500_000
# An expression has at most 4 KB and 300 operators.
_MOST_NAMES = 100


class DynamoTable:
    """The records of one view (see `RemoteTable`).

    Args:
        client: The table of the store.
        names: What tells it from the tables of other views: the store's own word, the workspace, the view.
    """

    def __init__(self, client: DynamoClient, names: Sequence[str]) -> None:
        self._client = client
        self._view = "/".join(quote(name, safe="") for name in names)
        # whether a generation has tiles is seen in its items, or told by whoever writes the first
        self._is_tiled: dict[bytes, bool] = {}

    def expect(self, prefix: bytes, *, is_tiled: bool) -> None:
        """Take note of whether the records under a generation's prefix are tiles."""
        self._is_tiled[prefix] = is_tiled

    def _split(self, key: bytes) -> tuple[bytes, str]:
        """Return the key of the item of a record, and the name of the attribute in it."""
        if not key.startswith(_FACTS) and self._is_tiled.get(key[:_GENERATION_BYTES]):
            return key[:-CHUNK_BYTES], _CHUNK + key[-CHUNK_BYTES:].hex()
        return key, _ROW

    def get(self, keys: Sequence[bytes]) -> list[Stored]:
        """Return what is stored under each key."""
        places = [self._split(key) for key in keys]
        try:
            items = self._client.get(self._view, [key for key, _ in places])
        except TableIsMissing:
            return [(ABSENT, None)] * len(keys)
        return [_stored(items.get(key), name) for key, name in places]

    def following(self, begin: bytes, end: bytes | None, most: int) -> list[bytes]:
        """Return the first stored keys from one on."""
        return [key for key, _ in self.scan(begin, end, most)]

    def scan(self, begin: bytes, end: bytes | None, most: int) -> list[tuple[bytes, Stored]]:
        """Return the same with what is stored under them."""
        found: list[tuple[bytes, Stored]] = []
        try:
            for item in self._items(begin, most):
                key, version = bytes(item[KEY]["B"]), bytes(item[_VERSION]["B"])
                names = [name for name in item if name[0] == _CHUNK or name == _ROW]
                if names and not key.startswith(_FACTS):
                    self._is_tiled.setdefault(key[:_GENERATION_BYTES], names[0] != _ROW)
                whole = ((key + bytes.fromhex(name[1:]), name) for name in sorted(names))
                records = [(each, (version, bytes(item[name]["B"]))) for each, name in whole]
                found += [record for record in records if record[0] >= begin and (end is None or record[0] < end)]
                if len(found) >= most or (end is not None and key >= end):
                    break
        except TableIsMissing:
            return []
        return found

    def _items(self, begin: bytes, most: int) -> Any:
        """Yield the items from the one on that may hold a key."""
        if len(begin) > _GENERATION_BYTES and not begin.startswith(_FACTS):
            before = self._client.query(
                self._view, f"{KEY} <= :k", {":k": {"B": begin}}, ScanIndexForward=False, Limit=1
            )
            for item in islice(before, 1):
                held = bytes(item[KEY]["B"])
                if begin.startswith(held) and held != begin:
                    yield item
        limit = {"Limit": max(most, 1)} if most < 100 else {}
        # an empty key cannot be compared with
        condition, values = (f"{KEY} >= :k", {":k": {"B": begin}}) if begin else ("", {})
        yield from self._client.query(self._view, condition, values, **limit)

    def commit(self, expected: Mapping[bytes, bytes], changes: Mapping[bytes, bytes | None]) -> Collection[bytes]:
        """Change records if no other has changed (see `RemoteTable.commit`)."""
        versions: dict[bytes, bytes] = {}
        keys_of: dict[bytes, list[bytes]] = {}
        for key, version in expected.items():
            item, _ = self._split(key)
            keys_of.setdefault(item, []).append(key)
            if versions.setdefault(item, version) != version:
                return [key]  # its item has changed between two reads
        changed: dict[bytes, ItemChange] = {}
        for key, value in changes.items():
            item, name = self._split(key)
            changed.setdefault(item, ItemChange(item, {})).values[name] = value
        while True:
            try:
                self._make_whole(versions, changed)
                stale = self._commit(versions, changed)
            except TableIsMissing:
                self._client.create()
                continue
            return [key for item in stale for key in keys_of.get(item, [item])]

    def _make_whole(self, versions: dict[bytes, bytes], changed: dict[bytes, ItemChange]) -> None:
        """Replace items of which nothing is left, or of which more changes than an expression takes.

        They must be as they are now then.

        Raises:
            OnlineRecordTooLarge: There is more of a join key than an item takes.
        """
        some = [key for key, each in changed.items() if len(each.values) > _MOST_NAMES or not _is_put(each)]
        items = self._client.get(self._view, some) if some else {}
        for key in some:
            item, change = items.get(key, {}), changed[key]
            held = {name: bytes(item[name]["B"]) for name in item if name[0] == _CHUNK or name == _ROW}
            left = {name: value for name, value in {**held, **change.values}.items() if value is not None}
            version = bytes(item[_VERSION]["B"]) if item else ABSENT
            if not item and not left:
                del changed[key]
            elif not left or len(change.values) > _MOST_NAMES:
                whole = changed[key] = ItemChange(key, dict(left), is_whole=True)
                versions.setdefault(key, version)
                if whole.size > MOST_ITEM_BYTES:
                    raise OnlineRecordTooLarge(place=self._client.place, most_bytes=MOST_ITEM_BYTES)

    def _commit(self, versions: dict[bytes, bytes], changed: Mapping[bytes, ItemChange]) -> Collection[bytes]:
        """Commit by item; return those with another version than expected."""
        size = sum(change.size for change in changed.values())
        large = LargeCommit(self._client, self._view)
        if len({*versions, *changed}) > _MOST_ACTIONS or size > _MOST_BYTES:
            return large.commit(versions, changed)
        new, token = os.urandom(16), os.urandom(16).hex()
        items = [*changed, *(item for item in versions if item not in changed)]
        client = self._client
        while True:
            actions = [guard_check(client, self._view)]
            actions += [
                action(client, self._view, changed[item], new, versions.get(item))
                if item in changed
                else check(client, self._view, item, versions[item])
                for item in items
            ]
            try:
                client.call("transact_write_items", TransactItems=actions, ClientRequestToken=token)
            except Cancelled as cancelled:
                if 0 in cancelled.failed:
                    large.finish_others()
                    token = os.urandom(16).hex()
                    continue
                return [items[place - 1] for place in cancelled.failed]
            return []

    def clear(self) -> None:
        """Remove all records."""
        try:
            for view in (self._view, self._view + GUARD):
                names = {"ProjectionExpression": KEY}
                self._client.delete(view, [bytes(i[KEY]["B"]) for i in self._client.query(view, "", {}, **names)])
        except TableIsMissing:
            return

    def close(self) -> None:
        """Leave the connections to the other views of the store."""


def _is_put(change: ItemChange) -> bool:
    return any(value is not None for value in change.values.values())


def _stored(item: Item | None, name: str) -> Stored:
    if item is None:
        return ABSENT, None
    value = item.get(name)
    return bytes(item[_VERSION]["B"]), None if value is None else bytes(value["B"])


def open_dynamodb(config: DynamoConfig, *, within: str = "featurekit") -> RemoteOnlineStore:
    """Return the store in a region; nothing is connected yet.

    Args:
        config: Its declaration.
        within: What the keys of all of its views begin with; stores under other words know nothing of each other.
    """
    opened: list[DynamoClient] = []

    def client() -> DynamoClient:
        if not opened:
            opened.append(DynamoClient(config))
        return opened[0]

    def disconnect() -> None:
        while opened:
            opened.pop().close()

    def table(workspace: str, view: str) -> DynamoTable:
        return DynamoTable(client(), [within, workspace, view])

    return RemoteOnlineStore(table, f"DynamoDB table {config.table_prefix}", disconnect)
