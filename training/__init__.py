import serving  # noqa: F401 - switches the telemetry of ONNX Runtime off
