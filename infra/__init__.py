"""The AWS resources of the project, one stack or construct in each file."""
