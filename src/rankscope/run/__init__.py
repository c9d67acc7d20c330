"""The run of a study. Its files, by the time at which they act:

Before: ``study`` (the entry), ``prepare``, ``prepared``, ``machines``, ``trials``, ``groups``.
During: ``begin``, ``context``, ``given``, ``search`` (rounds), ``conductor`` (one group through all
``stages``), ``trial_weights``, ``group_ledger``, ``study_clock``; at the end ``outputs``
writes the answer, with its ``versions``.
In other processes: ``executors``, which decide where units run, and ``workers``.
Only for ``rankscope plan``: ``plan``, ``costs``.
"""
