"""Training jobs and searches on SageMaker."""

PROGRAM = "python -m training.sagemaker"  # as messages name it
