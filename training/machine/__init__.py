"""On the training machine: one attempt at the active run. Loads no PyTorch."""
