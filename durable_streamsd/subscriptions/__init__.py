"""Subscriptions: durable cursors that wake workers when streams have news (protocol 6 and 7).

    patterns      globs over stream paths, and which of thousands match a path
    model         one subscription: its links with their cursors, and what is pending
    wake          generations, leases and retries: a wake's states, without clock or I/O
    rows          how all of that lies in the store's values
    registry      all subscriptions, by id and by stream; every change, accepted and taken back
    backfill      linking the streams that are there already
    tokens        what a worker shows to prove which wake it was given
    signing       the server's signing key, its public form and its signatures
    targets       which webhook URLs and addresses may be called
    delivery      the HTTP client that calls them
    runner        what happens without a request: issuing wakes, leases, retries

The handlers of the HTTP routes are in `core`. Invariants of all:

- decisions are made on accepted state, in one go; nothing is told, delivered or announced before
  the batch that it rests on is durable
- cost follows appends and creations, not subscriptions: a commit looks up each stream it changed,
  a creation walks the patterns' common trie once, and nobody looks at idle subscriptions
"""
