"""What launcher and machine agree on: the active run, its lease, checkpoints and fallback."""
