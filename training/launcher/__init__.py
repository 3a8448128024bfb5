"""On the user's computer: starts, shows and stops runs on EC2."""
