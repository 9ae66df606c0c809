"""Scheme and authority of this server as its client knows it: for absolute URLs in answers."""

import re

from durable_streamsd.core.context import Context
from durable_streamsd.core.message import Request
from durable_streamsd.core.problems import Code, Problem

__all__ = ["HOST", "origin_of"]

HOST = re.compile(rb"(?:[0-9A-Za-z._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def origin_of(request: Request, context: Context) -> bytes:
    """Such as `https://example.org`: the configured URL, else from `Host`; empty without one.

    Raises `Problem`.
    """
    if context.base_url is not None:
        return context.base_url
    host = request.headers.get(b"host")
    if host is None:
        return b""  # HTTP/1.0
    if not HOST.fullmatch(host):
        raise Problem(Code.BAD_HOST)
    return b"%b://%b" % (request.scheme.encode("ascii"), host)
