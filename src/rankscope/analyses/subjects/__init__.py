"""Retention by subject: the change on every subject of the retention tasks, as a map."""
