"""How a study is run, its files by when they act.

Before: ``study`` (the way in), ``prepare``, ``prepared``, ``machines``, ``trials``, ``groups``.
While it runs: ``begin``, ``context``, ``given``, ``search`` (rounds), ``conductor`` (one group
through all ``stages``), ``trial_weights``, ``group_ledger``, ``oom``, ``study_clock``;
``outputs`` then writes the answer, with its ``versions``.
In other processes: ``executors``, which say where, and ``workers``.
Only for ``rankscope plan``: ``plan``, ``costs``.
"""
