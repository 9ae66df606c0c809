"""Logs: one line per event on standard error, as `key=value` pairs that a machine can take apart.

    time=2026-01-31T12:00:00.000Z level=error from=committer message="..." trace="Traceback ..."

Values with anything but plain characters are JSON strings, so that a line stays a line.
"""

import json
import logging
import re
import sys
import time

__all__ = ["set_up_logging"]

_PLAIN = re.compile(r"[\w.:/+-]+")


class LineFormatter(logging.Formatter):
    """A record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "from": record.name.removeprefix("durable_streamsd."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def set_up_logging(level: str) -> None:
    """Send the logs of the whole process to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
