"""Gymnasium environments for a population, in this process or in worker processes. Nothing here imports torch.

`environment` wraps one environment, `group` steps many together, and `workers` steps them in other processes. Import these three.
`worker` is the program of a worker process.
"""
