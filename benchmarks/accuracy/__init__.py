"""How well recipes count."""
