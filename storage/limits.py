"""Every bound of the engine, with its unit in its name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine holds at most. `Store.accepting` turns false where accepting must wait."""

    segment_bytes: int = 256 << 20
    """A segment is rolled before a batch would pass this; keep it above twice the largest body."""
    batch_bytes_max: int = 64 << 20
    """Payload accepted into one batch before accepting waits (the last append may pass it)."""
    batch_records_max: int = 50_000
    unindexed_bytes_max: int = 128 << 20
    """Log written and not yet in the index: what recovery has to read after a kill."""
    unindexed_records_max: int = 200_000
    index_step_records: int = 50_000
    """Records of one index transaction; also how many make indexing due at once."""
    tail_cache_bytes_max: int = 64 << 20
    """Recent payload kept in memory, counting each run's own overhead."""
    read_plans_max: int = 4_096
    """Remembered answers of the index to reads of older data."""
    gathered_bytes_max: int = 32 << 20
    """Chunks put together from many places, remembered as a whole."""
    open_segments_max: int = 64
    resident_streams_max: int = 50_000
    """Idle streams above this are evicted at once, others after `idle_ms`."""
    idle_ms: int = 60_000
    known_absent_max: int = 10_000
    """Paths remembered as free, so that asking again costs no look-up."""
    producers_per_stream_max: int = 65_536
    fork_depth_max: int = 64
    """Sources behind a fork: what one look-up loads, and one read may have to visit."""
    path_bytes_max: int = 480
    """LMDB refuses keys over 511 bytes."""
    value_key_bytes_max: int = 500
    value_bytes_max: int = 64 << 10
    """Of what other subsystems keep under one key."""
    reserve_bytes: int = 8 << 20
    """Disk space given back when the disk is full, so that deletes can still be written."""
    compact_bytes_per_s: int = 32 << 20
    """What compaction reads and writes in the background while there is little else; 0: none."""
    zero_ahead_bytes: int = 8 << 20
    """Zeroes written and synced ahead of the active segment's end; 0 turns it off."""
