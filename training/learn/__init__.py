"""From photos to trained weights. Knows no AWS."""
