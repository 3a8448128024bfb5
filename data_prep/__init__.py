"""Prepare photos of a public bucket, or the user's own, as a data set in our bucket."""
