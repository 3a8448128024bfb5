"""AWS on this machine: the demo and the notebook, run against the stand-in in `aws/`."""

import serving.container  # noqa: F401 - switches off the telemetry of ONNX Runtime
