"""What jobs do, seen from outside: counts and rates, a board of running jobs, event logs, metrics."""
