"""Calls of DynamoDB with what every caller wants: patience, typed errors, and a table that is made when it is needed.

All views of a store lie in one table: its hash key is the view, its range key what is stored, both in `Item`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import boto3
from botocore import exceptions
from botocore.config import Config

from featurekit_dagster.domain.online_stores import DynamoConfig
from featurekit_dagster.errors import OnlineRecordTooLarge, OnlineStoreRefused
from featurekit_dagster.stores.remote_patience import patiently

Item = dict[str, Any]
VIEW, KEY = "p", "k"
MOST_ITEM_BYTES = 400 * 1024
_GET_AT_ONCE, _DELETE_AT_ONCE = 100, 25
_WAIT = {"Delay": 1, "MaxAttempts": 60}
_BUSY = {
    "InternalServerError",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ResourceInUseException",
    "ServiceUnavailable",
    "ThrottlingException",
    "TransactionConflictException",
    "TransactionInProgressException",
}


class Busy(Exception):
    """The service takes no more for the moment."""


_AWAY = (
    Busy,
    exceptions.ConnectionClosedError,
    exceptions.ConnectTimeoutError,
    exceptions.EndpointConnectionError,
    exceptions.ReadTimeoutError,
)


class Cancelled(Exception):
    """A transaction or a conditional write changed nothing.

    Args:
        failed: Places of the actions whose condition did not hold.
    """

    def __init__(self, failed: Sequence[int]) -> None:
        self.failed = tuple(failed)
        super().__init__()


class DynamoClient:
    """One table of DynamoDB.

    Args:
        config: Where it is.
    """

    def __init__(self, config: DynamoConfig) -> None:
        self.table = config.table_prefix
        settings = Config(
            connect_timeout=5, read_timeout=15, retries={"mode": "standard", "max_attempts": 5}, max_pool_connections=32
        )
        session = boto3.session.Session(region_name=config.region)
        self._client = session.client("dynamodb", endpoint_url=config.endpoint_url, config=settings)
        self.place = f"DynamoDB table {self.table} ({session.region_name})"

    def call(self, name: str, **arguments: Any) -> Any:
        """Make a call; make it again for some seconds if the service is busy or out of reach.

        Raises:
            Cancelled: Conditions did not hold; nothing was changed.
            OnlineRecordTooLarge: An item would be too large.
            OnlineStoreRefused: The service refused it.
            OnlineStoreUnavailable: It was busy or out of reach for too long.
        """
        return patiently(partial(self._send, name, arguments), away=_AWAY, place=self.place)

    def _send(self, name: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return getattr(self._client, name)(**arguments)
        except exceptions.ClientError as error:
            raise self._meaning(error) from error
        except exceptions.NoCredentialsError as error:
            raise OnlineStoreRefused(place=self.place, reason="NoCredentials") from error

    def _meaning(self, error: Any) -> Exception:
        """Return what an answer of the service means; its own text may quote keys and values."""
        code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code == "ResourceNotFoundException":
            return TableIsMissing()
        if code == "ConditionalCheckFailedException":
            return Cancelled([0])
        if code in _BUSY:
            return Busy()
        if code == "TransactionCanceledException":
            reasons = [reason.get("Code") for reason in error.response.get("CancellationReasons", ())]
            failed = [place for place, reason in enumerate(reasons) if reason == "ConditionalCheckFailed"]
            if failed:
                return Cancelled(failed)
            if "ValidationError" not in reasons:
                return Busy()
            text = "size" if any("size" in str(r.get("Message")) for r in error.response["CancellationReasons"]) else ""
        if "size" in text:
            return OnlineRecordTooLarge(place=self.place, most_bytes=MOST_ITEM_BYTES)
        return OnlineStoreRefused(place=self.place, reason=code)

    def create(self) -> None:
        """Make the table, or wait until somebody else has."""
        kinds = {VIEW: "S", KEY: "B"}
        try:
            self._client.create_table(
                TableName=self.table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": n, "AttributeType": t} for n, t in kinds.items()],
                KeySchema=[{"AttributeName": VIEW, "KeyType": "HASH"}, {"AttributeName": KEY, "KeyType": "RANGE"}],
            )
        except exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUseException":
                raise self._meaning(error) from error
        self._client.get_waiter("table_exists").wait(TableName=self.table, WaiterConfig=_WAIT)

    def get(self, view: str, keys: Sequence[bytes]) -> dict[bytes, Item]:
        """Return the items that exist of these, each as of one moment."""
        found: dict[bytes, Item] = {}
        waiting = [{VIEW: {"S": view}, KEY: {"B": key}} for key in dict.fromkeys(keys)]
        while waiting:
            asked = {self.table: {"Keys": waiting[:_GET_AT_ONCE], "ConsistentRead": True}}
            answer = self.call("batch_get_item", RequestItems=asked)
            for item in answer["Responses"].get(self.table, ()):
                found[bytes(item[KEY]["B"])] = item
            left = answer.get("UnprocessedKeys", {}).get(self.table, {}).get("Keys", [])
            waiting = [*left, *waiting[_GET_AT_ONCE:]]
        return found

    def query(self, view: str, condition: str, values: Mapping[str, Any], **options: Any) -> Iterator[Item]:
        """Yield the items of a view that a condition on the range key describes."""
        arguments = {
            "TableName": self.table,
            "ConsistentRead": True,
            "KeyConditionExpression": f"{VIEW} = :view AND {condition}" if condition else f"{VIEW} = :view",
            "ExpressionAttributeValues": {":view": {"S": view}, **values},
            **options,
        }
        while True:
            answer = self.call("query", **arguments)
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def delete(self, view: str, keys: Sequence[bytes]) -> None:
        """Delete items, whatever is in them."""
        waiting = [{"DeleteRequest": {"Key": {VIEW: {"S": view}, KEY: {"B": key}}}} for key in keys]
        while waiting:
            answer = self.call("batch_write_item", RequestItems={self.table: waiting[:_DELETE_AT_ONCE]})
            waiting = [*answer.get("UnprocessedItems", {}).get(self.table, []), *waiting[_DELETE_AT_ONCE:]]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class TableIsMissing(Exception):
    """The table does not exist yet."""
