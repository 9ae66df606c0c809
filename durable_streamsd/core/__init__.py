"""The protocol core: request values in, response values out, no input or output of its own.

Start at `router.dispatch`. A lane (the code that owns a socket) builds a `message.Request`, drives
the coroutine that `dispatch` returns and answers each effect (`effects`) it yields; the
coroutine's result is the `message.Response`.

Invariants: nothing here imports asyncio, an HTTP library or a socket, and nothing here awaits
anything but an effect, so the whole protocol can be driven by a `for` loop in a test.
"""
