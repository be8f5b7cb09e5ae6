"""Gymnasium environments for a population, in this process or in worker processes. Nothing here imports torch.

`spec` names an environment, `environment` wraps one, `group` steps many together, and `workers` steps them in other processes.
`worker` is the program of such a process. `probing` tries an environment before a run.
"""
