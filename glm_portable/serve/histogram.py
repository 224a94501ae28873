"""A histogram that costs its writer well under a microsecond."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Histogram:
    """Counts values in buckets; one thread observes, any thread reads.

    prometheus-client's own takes a lock for each value. Without it a reader may see the last
    value in the count and not yet in the sum.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        """bounds: the buckets' upper ends, rising; one more takes what is above."""
        self.name, self._documentation = name, documentation
        self._bounds = [*map(float, bounds), float("inf")]
        self._counts, self._sum = [0] * len(self._bounds), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Several at once, among which many are equal: a step's tokens all come together."""
        for value, count in Counter(values).items():
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count

    @property
    def state(self) -> tuple[list[int], float]:
        """Counts of the buckets, and the sum: as of now."""
        return list(self._counts), self._sum

    @state.setter
    def state(self, value: tuple[list[int], float]) -> None:
        assert len(value[0]) == len(self._counts), f"{self.name}: {value=}"
        self._counts, self._sum = value

    def family(self, labels: Mapping[str, str]) -> HistogramMetricFamily:
        """As of now, for Prometheus."""
        family = HistogramMetricFamily(self.name, self._documentation, labels=list(labels))
        ends = map(floatToGoString, self._bounds)
        buckets = list(zip(ends, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(list(labels.values()), buckets=buckets, sum_value=self._sum)
        return family
