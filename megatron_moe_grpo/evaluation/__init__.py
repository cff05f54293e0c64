"""Accuracy, expert use, and the report of a run."""
