"""How long `make setup`, `make demo` and `make test` take."""
