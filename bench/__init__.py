"""The benchmark: this daemon beside other servers of the protocol, on the same machine and disk.

`python -m bench --help`, from the root of the repository. What lies where:

- `__main__`: the command line; which server is measured when
- `report`: what the rounds say together, as a table and as JSON
- `machine`: on what it was measured
- `targets`, `node/`: starting and stopping the servers
- `processes`: what the kernel says about a server's CPU time and memory
- `scenarios`: the table of what can be measured
- `load`: the load generator, a process of its own, so that its CPU time is not the server's
- `append`, `fanout`: what the generator does in a scenario
- `measure`: what generator and report tell each other; the measured window
- `wire`: as much HTTP and SSE as the generator must read

It is not a test: no figure fails it. A wrong *answer* does: what was written is read back, and a
server that lost, repeated or changed something has no figure but an error.
"""
