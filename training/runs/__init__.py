"""What launcher and machine share: the active run, its lease, checkpoints and fallback."""
