"""How a study is run, its files by when they act.

Before: ``study`` (the way in), ``prepare``, ``prepared``, ``trials``, ``given``, ``groups``.
While it runs: ``begin``, ``context``, ``adaptive`` (rounds), ``conductor`` (one group through all
``stages``), ``callbacks``, ``trial_weights``, ``group_ledger``, ``oom``, ``study_clock``;
``outputs`` then writes the answer.
In other processes: ``executors``, ``units``, ``worker_process`` (starts a worker and watches it),
``starter``, ``worker`` (what runs there).
Only for ``rankscope plan``: ``plan``, ``costs``, ``machines``.
"""
