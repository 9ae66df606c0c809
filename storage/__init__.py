"""The storage engine: one segmented, fsync-batched log for all streams, and an LMDB index over it.

Synchronous; knows nothing of HTTP or of event loops. `storage.store.Store` is the front door,
`FORMAT.md` beside this file describes what lies on disk. Modules, from the bottom up:

    errors                 what can go wrong, by what the caller can do about it
    disk                   the only caller of writes, syncs and directory syncs (the fault seam)
    record, batch, segment the on-disk format: encoders, decoders, layouts
    framing                where the messages of a stream's payload end
    scan                   reading batches back from segments
    state, pending         a stream's accepted and durable state; the batch that is filling
    log                    the active segment: placing, writing, rolling
    index, indexer         LMDB offset tables and the process that keeps them
    recovery               opening a directory: torn or corrupt, and what is replayed
    reading, cache         finding bytes: memory, page cache, disk
    store                  the front door
"""
