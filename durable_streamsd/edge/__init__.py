"""The network's edge: who may connect, how often they may ask, and what stands in between.

`front` judges requests for both lanes, `guarded` is the express lane's connection when there is
anything to judge, `connections` counts and evicts, `tls_connection` speaks TLS in front of either
lane.
"""
