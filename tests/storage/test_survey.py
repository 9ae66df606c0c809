"""What a scrape of metrics is told of a store whose index is damaged."""

from __future__ import annotations

import math
import re
from pathlib import Path

import engine

from durable_streamsd.metrics.survey import survey


def test_a_damaged_index_hides_nothing_else(tmp_path: Path) -> None:
    """What only it knows is unknown; whoever looks after the daemon still sees the rest."""
    store = engine.open_store(tmp_path / "data")
    engine.create(store, b"a")
    engine.append(store, b"a", b"data")
    engine.commit(store)
    engine.index_all(store)
    assert survey(store).live_bytes == 4
    file = tmp_path / "data" / "index" / "data.mdb"
    content = file.read_bytes()
    with store._index._look() as txn, txn.cursor(db=store._index._tables["segments"]) as cursor:
        assert cursor.first()
        entry = bytes(cursor.key()) + bytes(cursor.value())
    with file.open("r+b") as pages:
        for found in re.finditer(re.escape(entry), content):
            pages.seek(found.end() - 1)
            pages.write(bytes([entry[-1] ^ 1]))
    seen = survey(store)
    assert math.isnan(seen.live_bytes)
    assert seen.segments >= 1
    assert seen.segments_bytes > 0
    engine.abandon(store)
