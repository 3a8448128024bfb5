"""Our server beside those that people deploy."""
