"""What a search tries, and what it has found."""
