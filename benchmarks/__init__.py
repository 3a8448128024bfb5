"""Measurements, a folder for each page."""
