"""How good a network is, and the report of a run. Knows no AWS."""
