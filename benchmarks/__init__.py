"""Side-by-side measurements, a folder for each page."""
