"""Gymnasium environments for a population, in this process or in workers; free of torch.

`environment` wraps one, `group` steps many at once, `workers` does so in other processes. Import those three; `worker` is what runs there.
"""
