"""An index file may be shorter than the pages that LMDB counts, and nothing is wrong with it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from storage.index import TABLES, Index

STATES = 200


def test_a_sound_index_opens_however_lmdb_left_its_end(tmp_path: Path) -> None:
    """The last pages that a transaction took and freed again are counted, and never written."""
    lmdb = pytest.importorskip("lmdb")
    rng = random.Random(1)
    for number in range(STATES):
        folder = tmp_path / str(number)
        Index(folder, writable=True).close()
        with lmdb.open(str(folder), map_size=1 << 30, max_dbs=len(TABLES), sync=False) as env:
            runs = env.open_db(b"runs")
            for last in (False, False, True):
                with env.begin(write=True) as transaction:
                    keys = [b"%016d" % rng.randrange(2_000) for _ in range(300)]
                    for key in keys:
                        transaction.put(key, rng.randbytes(rng.randrange(1, 1_900)), db=runs)
                    if last:
                        transaction.drop(runs, delete=False)
                        for key in keys:
                            transaction.put(key, b"short", db=runs)
                        for key in keys:
                            transaction.delete(key, db=runs)
        Index(folder, writable=False).close()
