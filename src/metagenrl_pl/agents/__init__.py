"""A stacked population of actor-critic agents.

`windows` defines the batch type and explains the axis names. `stacked_networks` and `networks` are pure functions of stacked
parameters. `population` owns those parameters. `lifetimes` schedules when an agent is replaced by a fresh one.
"""
