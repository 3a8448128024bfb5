"""Metrics and the report of a run. Uses no AWS."""
