"""Photo → count: `container/` is the serving image, `client/` sends requests to it."""
