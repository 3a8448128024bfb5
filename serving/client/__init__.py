"""Gets predictions from an endpoint or a local model, and stores them."""
