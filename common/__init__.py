"""Code that all packages share. It imports none of them."""
