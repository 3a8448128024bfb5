"""Hyperparameter search: search spaces, trials and results."""
