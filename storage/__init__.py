"""The storage engine: one segmented, fsync-batched log for all streams, and an LMDB index over it.

Synchronous; knows nothing of HTTP or of event loops. `storage.store.Store` is the front door,
`FORMAT.md` beside this file describes what lies on disk. Modules, from the bottom up:

    errors                   what can go wrong, by what the caller can do about it
    disk                     the only caller of writes, syncs and directory syncs (the fault seam)
    directory                the data directory: its format, its locks, the reserve
    record, batch, segment   the on-disk format: encoders, decoders, layouts
    framing                  where the messages of a stream's payload end
    scan, chain              reading batches back, from one segment and across them
    state, pending, accept   accepted and durable state; the batch that is filling; what fills it
    family                   forks: where a stream came from, whose bytes its offsets lead to
    log                      the active segment: placing, writing, rolling
    index, indexer           LMDB offset tables over the log, and what keeps them
    indexer_process, child   the indexer in a process of its own
    recovery                 opening a directory: torn or corrupt, and what is moved
    residents, backlog       streams in memory; durable batches that the index lacks
    reading, stitching       finding bytes: memory, page cache, disk; across the seams of forks
    listing                  what streams there are
    store                    the front door
    verify, dump, reindex,   offline tools
    backup
"""
