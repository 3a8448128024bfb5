"""Asks an endpoint or a local model, and keeps what it counted."""
