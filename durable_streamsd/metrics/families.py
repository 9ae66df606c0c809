"""Families of metrics from plain numbers, with the project's prefix."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from durable_streamsd.metrics.histogram import Histogram

__all__ = ["PREFIX", "counter", "counters", "gauge", "gauges", "histogram", "histograms"]

PREFIX = "durable_streamsd_"

Labelled = Iterable[tuple[tuple[str, ...], float]]


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """One number that only grows; its sample's name ends with `_total`."""
    return CounterMetricFamily(PREFIX + name, text, value=value)


def counters(
    name: str, text: str, labels: tuple[str, ...], values: Labelled
) -> CounterMetricFamily:
    """The same by labels: pairs of their values and the number."""
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """One number as it is now."""
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def gauges(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> GaugeMetricFamily:
    """The same by labels."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def histogram(name: str, text: str, values: Histogram) -> HistogramMetricFamily:
    """One histogram."""
    return histograms(name, text, (), [((), values)])


def histograms(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], Histogram]],
) -> HistogramMetricFamily:
    """Histograms by labels."""
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, one in values:
        buckets = []
        total = 0
        bounds = [*map(floatToGoString, one.bounds), "+Inf"]
        for bound, count in zip(bounds, one.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(label_values, buckets, one.sum)
    return family
