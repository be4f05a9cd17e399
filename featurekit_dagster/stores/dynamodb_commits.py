"""Changes of items in DynamoDB: single actions of a transaction, and commits of more than one transaction takes.

A large commit holds a guard, without which nobody commits anything to the view. Under it the versions that were read
are compared, the changes are written down, and only then the guard says that they hold. From there on anybody can
finish them: every item is changed on the condition that it has the version that was written down, so whoever comes
late, or does it again, changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from featurekit_dagster.errors import OnlineStoreContended
from featurekit_dagster.stores.dynamodb_client import KEY, VIEW, Cancelled, DynamoClient

GUARD = "#guard"
"""What follows the view in the hash key of its guard and of the changes under it."""

_GUARD_KEY = b"guard"
_VERSION = "n"
_PART_BYTES = 300_000
_THREADS = 8
# How long somebody else's commit is left alone before it is finished or taken back.
_PATIENCE_SECONDS, _WAIT_SECONDS = 5.0, 0.02
_TRIES = 500


@dataclass(slots=True)
class ItemChange:
    """What changes in one item.

    Args:
        key: Range key of the item.
        values: New value of each attribute; None removes it.
        is_whole: Whether the item has no other attributes afterwards; without any it goes.
    """

    key: bytes
    values: dict[str, bytes | None] = field(default_factory=dict)
    is_whole: bool = False

    @property
    def size(self) -> int:
        """About how many bytes the change has."""
        return len(self.key) + sum(len(name) + len(value or b"") for name, value in self.values.items())


def _place(client: DynamoClient, view: str, key: bytes) -> dict[str, Any]:
    return {"TableName": client.table, "Key": {VIEW: {"S": view}, KEY: {"B": key}}}


def _has_version(version: bytes) -> tuple[str, dict[str, Any]]:
    """Return the condition that an item has a version; the empty one says that there is no item."""
    if not version:
        return f"attribute_not_exists({KEY})", {}
    return f"{_VERSION} = :old", {":old": {"B": version}}


def guard_check(client: DynamoClient, view: str) -> dict[str, Any]:
    """Return the action that fails while a large commit is under way."""
    place = _place(client, view + GUARD, _GUARD_KEY)
    return {"ConditionCheck": {**place, "ConditionExpression": f"attribute_not_exists({KEY})"}}


def check(client: DynamoClient, view: str, key: bytes, version: bytes) -> dict[str, Any]:
    """Return the action that fails if an item has another version."""
    condition, values = _has_version(version)
    made = {**_place(client, view, key), "ConditionExpression": condition}
    return {"ConditionCheck": {**made, "ExpressionAttributeValues": values} if values else made}


def action(client: DynamoClient, view: str, change: ItemChange, new: bytes, old: bytes | None) -> dict[str, Any]:
    """Return the action that changes an item.

    Args:
        client: The table of the store.
        view: Hash key of the item.
        change: What changes.
        new: Its version from then on.
        old: The version that it must have; None for any.
    """
    name = "Update" if not change.is_whole else "Put" if change.values else "Delete"
    return {name: arguments(client, view, change, new, old)}


def arguments(client: DynamoClient, view: str, change: ItemChange, new: bytes, old: bytes | None) -> dict[str, Any]:
    """Return the arguments of a call that changes one item; see `action`."""
    condition, values = ("", {}) if old is None else _has_version(old)
    if change.is_whole:
        made = _place(client, view, change.key)
        if change.values:
            held = {name: {"B": value} for name, value in change.values.items()}
            made = {"TableName": client.table, "Item": {**made["Key"], _VERSION: {"B": new}, **held}}
        made |= {"ConditionExpression": condition} if condition else {}
        return {**made, "ExpressionAttributeValues": values} if values else made
    names, sets, removes = {}, [f"{_VERSION} = :new"], []
    values = {**values, ":new": {"B": new}}
    for number, (name, value) in enumerate(change.values.items()):
        names[f"#a{number}"] = name
        if value is None:
            removes.append(f"#a{number}")
        else:
            sets.append(f"#a{number} = :v{number}")
            values[f":v{number}"] = {"B": value}
    text = "SET " + ", ".join(sets) + (" REMOVE " + ", ".join(removes) if removes else "")
    made = {
        **_place(client, view, change.key),
        "UpdateExpression": text,
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }
    return {**made, "ConditionExpression": condition} if condition else made


class LargeCommit:
    """Commits to one view of more items than a transaction takes.

    Args:
        client: The table of the store.
        view: Hash key of the view's items.
    """

    def __init__(self, client: DynamoClient, view: str) -> None:
        self._client, self._view = client, view
        self._place = _place(client, view + GUARD, _GUARD_KEY)

    def commit(self, versions: Mapping[bytes, bytes], changed: Mapping[bytes, ItemChange]) -> Collection[bytes]:
        """Change items if those that were read have not changed; return those that have."""
        number = os.urandom(16)
        self._hold(number)
        stored = self._versions([*versions, *(key for key in changed if key not in versions)])
        stale = [key for key, version in versions.items() if stored[key] != version]
        if stale:
            self._release(number)
            return stale
        blob = msgpack.packb([(key, stored[key], each.values, each.is_whole) for key, each in changed.items()])
        parts = -(-len(blob) // _PART_BYTES)
        for part in range(parts):
            piece = blob[part * _PART_BYTES : (part + 1) * _PART_BYTES]
            item = {VIEW: {"S": self._view + GUARD}, KEY: {"B": _part_key(number, part)}, "v": {"B": piece}}
            self._client.call("put_item", TableName=self._client.table, Item=item)
        if self._change_guard(number, "SET gparts = :parts", {":parts": {"N": str(parts)}}):
            self._finish(number, parts)
            return []
        return [*versions, *changed]  # it took so long that somebody has taken it back

    def finish_others(self) -> None:
        """Wait until nobody holds the guard; finish or take back what was left behind.

        Raises:
            OnlineStoreContended: Others hold it again and again.
        """
        seen, since = b"", time.monotonic()
        for _ in range(_TRIES):
            guard = self._guard()
            if guard is None:
                return
            number = bytes(guard["gid"]["B"])
            if number != seen:
                seen, since = number, time.monotonic()
            if time.monotonic() - since > _PATIENCE_SECONDS:
                if "gparts" in guard:
                    self._finish(number, int(guard["gparts"]["N"]))
                else:
                    self._release(number)
            time.sleep(_WAIT_SECONDS)
        raise OnlineStoreContended(place=self._client.place, tries=_TRIES)

    def _guard(self) -> dict[str, Any] | None:
        answer = self._client.call("get_item", **self._place, ConsistentRead=True)
        found: dict[str, Any] | None = answer.get("Item")
        return found

    def _hold(self, number: bytes) -> None:
        item = {**self._place["Key"], "gid": {"B": number}}
        for _ in range(_TRIES):
            try:
                condition = f"attribute_not_exists({KEY})"
                self._client.call("put_item", TableName=self._client.table, Item=item, ConditionExpression=condition)
            except Cancelled:
                guard = self._guard()
                if guard is not None and guard["gid"]["B"] == number:
                    return  # the answer to the first try was lost
                self.finish_others()
                continue
            return
        raise OnlineStoreContended(place=self._client.place, tries=_TRIES)

    def _change_guard(self, number: bytes, text: str, values: Mapping[str, Any]) -> bool:
        """Change the guard if it is still this commit's; tell whether it was."""
        mine = {":gid": {"B": number}, **values}
        try:
            self._client.call(
                "update_item",
                **self._place,
                UpdateExpression=text,
                ConditionExpression="gid = :gid",
                ExpressionAttributeValues=mine,
            )
        except Cancelled:
            return False
        return True

    def _release(self, number: bytes) -> None:
        """Give up a commit that nobody has to finish, or that is finished."""
        try:
            self._client.call(
                "delete_item",
                **self._place,
                ConditionExpression="gid = :gid",
                ExpressionAttributeValues={":gid": {"B": number}},
            )
        except Cancelled:
            return

    def _versions(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found = self._client.get(self._view, keys)
        return {key: bytes(found[key][_VERSION]["B"]) if key in found else b"" for key in keys}

    def _finish(self, number: bytes, parts: int) -> None:
        """Make the changes that hold, then give up the guard."""
        keys = [_part_key(number, part) for part in range(parts)]
        items = self._client.get(self._view + GUARD, keys)
        if len(items) == parts:  # else somebody else has finished it
            changes = msgpack.unpackb(b"".join(bytes(items[key]["v"]["B"]) for key in keys))
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(partial(self._apply, number), changes))
        self._release(number)
        self._client.delete(self._view + GUARD, keys)

    def _apply(self, number: bytes, written: Sequence[Any]) -> None:
        key, old, values, is_whole = written
        change = ItemChange(key, values, is_whole)
        try:
            name = "update_item" if not is_whole else "put_item" if values else "delete_item"
            self._client.call(name, **arguments(self._client, self._view, change, number, old))
        except Cancelled:
            return  # it was changed already


def _part_key(number: bytes, part: int) -> bytes:
    return b"part" + number + part.to_bytes(4, "big")
