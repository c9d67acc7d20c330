"""Changes by subject: which groups of a task's test items got better by training, which worse."""
