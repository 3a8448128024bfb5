"""Training jobs and searches on SageMaker."""
