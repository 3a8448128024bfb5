"""Preparing data at the size of the public bucket."""
