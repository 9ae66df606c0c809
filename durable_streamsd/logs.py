"""Logs: one line per event on standard error, in one of two formats with one schema.

    time=2026-01-31T12:00:00.000Z level=error logger=committer message="..." trace="Traceback ..."
    {"time":"2026-01-31T12:00:00.000Z","level":"error","logger":"committer","message":"..."}

`time`, `level`, `logger` and `message` are always there. Events that have more to say have fields
of their own after them (`fields`), and exceptions a `trace`. As text, values with anything but
plain characters are JSON strings, so that a line stays a line.
"""

import json
import logging
import re
import sys
import time
from typing import Literal

__all__ = ["fields", "set_up_logging"]

_PLAIN = re.compile(r"[\w.:/+-]+")


def fields(**values: object) -> dict[str, object]:
    """The `extra` of a log call: what the event has to say beside its message."""
    return {"fields": values}


class TextFormatter(logging.Formatter):
    """A record as one line of pairs."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = self.pairs(record)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())

    def pairs(self, record: logging.LogRecord) -> dict[str, object]:
        """What a record says, in order."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("durable_streamsd."),
            "message": record.getMessage(),
        }
        pairs.update(getattr(record, "fields", {}))
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        return pairs


class JsonFormatter(TextFormatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            self.pairs(record), ensure_ascii=False, separators=(",", ":"), default=str
        )


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def set_up_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send the logs of the whole process to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
