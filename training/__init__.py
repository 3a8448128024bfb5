"""Data set → model: the modules here are commands, the folders what they are made of."""

import serving.container  # noqa: F401 - switches the telemetry of ONNX Runtime off
