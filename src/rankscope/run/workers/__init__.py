"""Units of work in separate processes, by side of the process boundary:

driver.py     the process of ``rankscope run``: makes units, takes over their results
attempts.py   the driver, or a node of a cluster: runs a worker until its unit is sealed
starter.py    between the two, on this machine: a process that forks workers
worker.py     ``rankscope work``: one unit, with its shards on several devices
order.py      both sides: the order of a unit, and its seal
"""
