"""What requests and answers of the Stream Ingest API look like, as OpenAPI says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.execution.ingest import PushSource

_SIMPLE: dict[str, dict[str, Any]] = {
    "String": {"type": "string"},
    "Int32": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "Int64": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "Float32": {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38},
    "Float64": {"type": "number"},
    "Bool": {"type": "boolean"},
    "Bytes": {"type": "string", "contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*$"},
    "Timestamp": {"type": "string", "format": "date-time"},
}
_ERRORS = {
    400: "The body is no request",
    401: "No key, or none that is known",
    403: "The key may not send to the source",
    404: "No such workspace or push source",
    408: "The body took too long to come in",
    413: "The body is too large, or has too many events",
    415: "The body is no JSON by its content type",
    429: "Too many requests at once",
    503: "The log cannot be written",
}


def request_schema(workspace: str, sources: Iterable[PushSource], most_events: int) -> dict[str, Any]:
    """Return the body of `POST /ingest`: one form per push source."""
    forms = [
        _object(
            {
                "workspace": {"const": workspace},
                "source": {"const": push.name},
                "records": {"type": "array", "maxItems": most_events, "items": _event(push)},
                "dry_run": {"type": "boolean", "default": False},
            },
            optional=("dry_run",),
        )
        for push in sources
    ]
    return {"required": True, "content": {"application/json": {"schema": {"oneOf": forms}}}}


def answers_schema() -> dict[int | str, dict[str, Any]]:
    """Return every answer of `POST /ingest`."""
    taken = _object(
        {
            "accepted": {"type": "integer", "description": "How many events were logged, or would have been"},
            "sequence": {"type": ["integer", "null"], "description": "Number of the last one in the source's log"},
            "visible": {
                "type": ["boolean", "null"],
                "description": "Whether CONTINUOUS views have them online; null where there is no such view",
            },
            "dry_run": {"type": "boolean"},
        }
    )
    fault = _object({"index": {"type": "integer"}, "field": {"type": "string"}, "rule": {"type": "string"}})
    refused = _object({"error": {"type": "string"}, "refused": {"type": "array", "items": fault}})
    error = _object({"error": {"type": "string"}})
    return {
        200: _answer("All events were logged", taken),
        422: _answer("Events do not fit the source; none was logged", refused),
        **{status: _answer(text, error) for status, text in _ERRORS.items()},
    }


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _event(push: PushSource) -> dict[str, Any]:
    needed = {*push.never_null, push.time_field}
    return _object({field.name: _value(field.dtype, may_be_null=field.name not in needed) for field in push.fields})


def _value(dtype: DataType, *, may_be_null: bool = True) -> dict[str, Any]:
    if dtype.name == "Array":
        schema: dict[str, Any] = {"type": "array", "items": _value(dtype.children[0])}
    elif dtype.name == "Map":
        schema = {"type": "object", "additionalProperties": _value(dtype.children[1])}
    elif dtype.name == "Struct":
        schema = _members(dtype.fields)
    else:
        schema = _SIMPLE[dtype.name]
    return {**schema, "type": [schema["type"], "null"]} if may_be_null else schema


def _members(fields: Iterable[Field]) -> dict[str, Any]:
    return _object({field.name: _value(field.dtype) for field in fields})


def _object(properties: dict[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
