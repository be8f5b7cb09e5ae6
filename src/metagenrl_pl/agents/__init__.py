"""A stacked population of actor-critic agents.

`windows` is the batch type and has the legend of axis names. `stacked_networks` and `networks` are pure functions of stacked parameters,
`population` owns those parameters, and `lifetimes` says when an agent is replaced by a fresh one.
"""
