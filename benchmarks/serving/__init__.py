"""Our server under load."""
