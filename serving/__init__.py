"""Photo → count: `container/` is what the serving image holds, `client/` asks it."""
