"""AWS on this machine: the demo and the notebook, against the stand-in in `aws/`."""

import serving.container  # noqa: F401 - switches the telemetry of ONNX Runtime off
