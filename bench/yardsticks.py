"""What is no server of the protocol, but shows what the machine can do.

A yardstick has the same sizes as the servers beside it, and does the least that has the same
result: the bytes are on disk, or with the reader.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import msgspec

from bench.load import measure
from bench.measure import Figure, Job, LoadError, Measurement, Messages, Sizes, Window
from bench.reading import PLAIN_FILE, large_content
from bench.servers import OwnServer
from bench.turns import NotComparable

__all__ = ["NGINX", "WRITES"]

_FILE = "file"
"""Name of the file that nginx serves."""


class _Writes(msgspec.Struct, frozen=True):
    """Appending to one file of our own, and `fdatasync`.

    As many messages share a sync as the scenario has in flight; a latency is from the first write
    to the end of the sync. All in this process: it is both server and generator, and its CPU time
    is shown as the generator's.
    """

    name: str = "write + fdatasync"

    def measure(self, sizes: Sizes, folder: Path) -> Measurement:
        """Raises LoadError if the file is not as long as what was written."""
        messages = Messages(0, sizes.message_bytes)
        together = sizes.connections * sizes.in_flight * sizes.messages_per_request
        window = Window(None)
        latencies_ns = window.latencies_ns
        path = folder / "writes"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            begun_ns = time.perf_counter_ns()
            opened_ns = 0
            while len(latencies_ns) < sizes.operations_max:
                before_ns = time.perf_counter_ns()
                if not opened_ns and before_ns - begun_ns >= sizes.warmup_seconds * 1e9:
                    window.open()
                    opened_ns = before_ns
                if opened_ns and before_ns - opened_ns >= sizes.measured_seconds * 1e9:
                    break
                for number in range(together):
                    _write(descriptor, messages.at(len(latencies_ns) + number))
                os.fdatasync(descriptor)
                for _ in range(together):
                    latencies_ns.append(time.perf_counter_ns() - before_ns)
            window.close()
            written_bytes = len(latencies_ns) * sizes.message_bytes
            if os.fstat(descriptor).st_size != written_bytes:
                raise LoadError(f"the file has not the {written_bytes} bytes that were written")
        finally:
            os.close(descriptor)
            path.unlink()
        found = window.measurement(f"{written_bytes:,} bytes, {together} messages a sync")
        payload = Figure("payload", found.rate * sizes.message_bytes / 1e6, "MB/s")
        return msgspec.structs.replace(found, figures=(payload,))


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Nginx(msgspec.Struct, frozen=True):
    """nginx with one worker and `sendfile`, which serves the bytes of a stream from a file."""

    name: str = "nginx, a file"

    def measure(self, sizes: Sizes, folder: Path) -> Measurement:
        """Raises NotComparable if nginx is not installed."""
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if program is None:
            raise NotComparable("it is not on PATH: `apt-get install nginx-light`")

        def command(data_dir: Path, port: int) -> list[str]:
            (data_dir / _FILE).write_bytes(large_content(job))
            configuration = folder / "nginx.conf"
            configuration.write_text(_configuration(folder, data_dir, port))
            return [program, "-e", "stderr", "-c", str(configuration)]

        server = OwnServer(command, folder, streams="")
        job = Job("read-large", sizes, server.url, run=_FILE, server_pid=None, phase=PLAIN_FILE)
        with server.running():
            found = measure(msgspec.structs.replace(job, server_pid=server.pid))
        said = subprocess.run([program, "-v"], capture_output=True, text=True).stderr.strip()
        return msgspec.structs.replace(found, checked=f"{found.checked} ({said})")


def _configuration(folder: Path, data_dir: Path, port: int) -> str:
    """What lies elsewhere by default is set to lie in `folder`, so that anybody may run it."""
    user = "user root;" if os.geteuid() == 0 else ""  # the folder is closed to others
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    {temporary}
    server {{
        listen 127.0.0.1:{port};
        root {data_dir};
    }}
}}
"""


WRITES = _Writes()
NGINX = _Nginx()
