"""Checkpoint loading, CPU processes, and what the command-line tools share."""
