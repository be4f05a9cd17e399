"""One short text that changes when a loop that follows a stream would do something else, and only then.

A deployment drains the loop of other code and starts its own. Settings that may hold a secret are not part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from urllib.parse import urlsplit

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.planning.called_code import called_code_text
from featurekit_dagster.planning.fingerprint import fingerprint

_LENGTH = 8
_LEFT_OUT = ("options", "log_offline")


def stream_code(view: FeatureView) -> str:
    """Return the fingerprint of a stream view, and 8 hexadecimal digits that stand for how its stream is read."""
    source = view.stream_source
    config = None if source is None else source.stream_config
    facts: list[tuple[str, str]] = [("mode", str(view.stream_processing_mode)), ("kind", type(config).__name__)]
    for each in () if config is None else fields(config):
        value = getattr(config, each.name)
        if each.name == "url":
            parts = urlsplit(value)
            facts.append((each.name, f"{parts.hostname}:{parts.port}{parts.path}"))
        elif each.name == "post_processor":
            facts.append((each.name, "" if value is None else called_code_text(value)))
        elif each.name not in _LEFT_OUT:
            facts.append((each.name, str(list(value)) if isinstance(value, list | tuple) else str(value)))
    facts += [(field.name, str(field.dtype)) for field in (source.schema if source is not None else None) or ()]
    return f"{fingerprint(view)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]}"
