"""How fast data preparation downloads many small objects."""
