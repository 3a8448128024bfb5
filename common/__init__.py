"""What all packages share: how commands end, what is deployed, the record of a run.

Imports none of the others.
"""
