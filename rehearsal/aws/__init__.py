"""The stand-in for AWS: moto's server, and what moto lacks."""
