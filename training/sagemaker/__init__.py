"""The same training as jobs of SageMaker."""
