"""What is counted, and how it is told to Prometheus.

`counts` has plain numbers that the hot paths add to: `operations` of requests by what they ask for,
`commits` of batches, `refusals` of those who were turned away. Only when somebody asks for
`/metrics` does `collector` make of them, and of the store's own state, what `exposition` writes.
"""
