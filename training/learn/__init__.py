"""Training: from photos to weights. Uses no AWS."""
