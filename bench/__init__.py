"""The benchmark: this daemon beside other servers of the protocol, on the same machine and disk.

`python -m bench --help`, from the root of the repository. What lies where:

- `__main__`: the command line; which server is measured when
- `turns`: one turn of one server in a scenario
- `report`, `plot`: what the rounds say together, as a table, as JSON, and as a picture
- `machine`: on what it was measured
- `targets`, `node/`: which servers can be measured
- `servers`: starting, stopping and killing them
- `yardsticks`: what is no server of the protocol, measured beside them
- `processes`, `memory`: what the kernel says about a server's CPU time and memory
- `scenarios`: the table of what can be measured
- `load`, `generator`: the load generator, a process of its own, so that its CPU time is not the
  server's
- `append`, `producer`, `reading`, `wrk`, `mixed`, `fanout`, `wake`, `idle`, `slow`: what the
  generator does in a scenario
- `many_streams`, `restart`: scenarios of several phases, or several servers
- `scattered`, `pipeline`: working on very many streams
- `reclaim`: a program of its own, `python -m bench.reclaim`: how much disk a store takes through
  which far more was written than is live
- `loops`: how operations follow each other: in a closed loop, or at a fixed rate
- `connections`, `catchup`, `followers`, `readers`: connections that append, read, and follow live
- `measure`: what generator and report tell each other; the measured window
- `wire`: as much HTTP and SSE as the generator must read

It is not a test: no figure fails it. A wrong *answer* does: what was written is read back, and a
server that lost, repeated or changed something has no figure but an error.
"""
