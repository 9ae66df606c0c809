"""The express lane: stream requests and health without a task, and without a library's request.

`lane.Lane` is the protocol factory; `connection` is one connection, `head` and `body` take apart
what it receives. The general lane (`durable_streamsd.general`) serves whatever this one leaves.
"""
