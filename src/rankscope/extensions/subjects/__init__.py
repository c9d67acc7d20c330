"""Changes by subject: the groups of a task's test items that training made better or worse."""
