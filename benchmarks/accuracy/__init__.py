"""How accurately recipes count."""
