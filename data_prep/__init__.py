"""Photos of a public bucket, or your own → a data set in our bucket."""
