"""What this project costs: prices, estimates, bills and comparisons."""
