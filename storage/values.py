"""Values: what other subsystems keep in the log under keys of their own, as far as it is durable.

Newer than the index is what lies in here, by key: the value, and the batch that brought it. It
leaves as the index gets further, so it is bounded by the backlog (`Limits.unindexed_*`).

Left out: accepted values. Whoever keeps values knows what they are; a batch that fails says so to
the `restore` that came with each (`Store.put_value`).
"""

from storage.index import Index


class Values:
    """Look-ups and their overlay; for the owner thread."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._newer: dict[bytes, tuple[int, bytes]] = {}

    def committed(self, sequence: int, values: dict[bytes, bytes]) -> None:
        """A batch with these values has become durable."""
        for key, value in values.items():
            self._newer.pop(key, None)  # so that the order is that of the batches
            self._newer[key] = (sequence, value)

    def reached(self, sequence: int) -> None:
        """The index has every batch up to this one."""
        newer = self._newer
        while newer:
            key = next(iter(newer))
            if newer[key][0] > sequence:
                return
            del newer[key]

    def get(self, key: bytes) -> bytes | None:
        """The value of a key. Raises `CorruptData`."""
        newer = self._newer.get(key)
        if newer is not None:
            return newer[1] or None
        return self._index.value(key)

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All keys that begin with `prefix`, and their values. Raises `CorruptData`."""
        found = dict(self._index.values(prefix))
        for key, (_, value) in self._newer.items():
            if key.startswith(prefix):
                found[key] = value
        return sorted((key, value) for key, value in found.items() if value)
