"""On the user's computer: starts a run on EC2, shows it, stops it."""
