"""What a lane's protocol sees of a TLS connection: a transport, whose buffer is the socket's.

All that is TLS is in `tls_connection`.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from durable_streamsd.edge.tls_connection import TlsConnection

__all__ = ["TlsTransport"]


class TlsTransport(asyncio.Transport):
    """The transport that a lane's protocol sees."""

    __slots__ = ("_connection",)

    def __init__(self, connection: "TlsConnection") -> None:
        super().__init__()
        self._connection = connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._connection.about(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._connection.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._connection.protocol)

    def is_closing(self) -> bool:
        return self._connection.socket.is_closing()

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()

    def is_reading(self) -> bool:
        return self._connection.socket.is_reading()

    def pause_reading(self) -> None:
        self._connection.pause_reading()

    def resume_reading(self) -> None:
        self._connection.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(data)

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self._connection.write(data)

    def write_eof(self) -> None:
        self._connection.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._connection.socket.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._connection.socket.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._connection.socket.get_write_buffer_size()
