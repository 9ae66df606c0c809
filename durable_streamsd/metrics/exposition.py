"""`/metrics` as text: the daemon's own metrics, and those of its process.

Numbers are taken down on the loop's thread, which alone changes them; asking the file system before
that, and writing text after it, are left to another.
"""

import logging
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from durable_streamsd.express.lane import Lane
from durable_streamsd.metrics.collector import families
from durable_streamsd.metrics.survey import UNKNOWN, Survey, survey
from durable_streamsd.services import Services

__all__ = ["MetricsPage"]

MEDIA_TYPE = "application/openmetrics-text"
OPENMETRICS = f"{MEDIA_TYPE}; version=1.0.0"


log = logging.getLogger(__name__)


class Taken(Collector):
    """Families that were taken down before."""

    def __init__(self, taken: Iterable[Metric]) -> None:
        self._taken = taken

    def collect(self) -> Iterable[Metric]:
        return self._taken


class MetricsPage:
    """A `core.metrics.Exposition`."""

    def __init__(self, services: Services, lane: Lane) -> None:
        self._services = services
        self._lane = lane

    def survey(self) -> Survey:
        """What the file system says; a disk that is gone keeps nobody from seeing the rest."""
        try:
            return survey(self._services.store)
        except OSError as error:
            log.warning("the data directory cannot be looked at: %s", error)
            return UNKNOWN

    def gather(self, survey: Survey) -> list[Metric]:
        """All of the daemon's own families."""
        return list(families(self._services, self._lane, survey))

    def write(self, gathered: list[Metric], accept: str) -> tuple[str, bytes]:
        """Content type and body: OpenMetrics if it is asked for, else Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Taken(gathered))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        # Nothing else of what a client sends is passed on: the library trusts it, and repeats it.
        encoder, content_type = choose_encoder(OPENMETRICS if MEDIA_TYPE in accept else "")
        return content_type, encoder(registry)
