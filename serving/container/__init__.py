"""The content of the serving image: a model behind HTTP. Training shares its preprocessing.

This package disables the telemetry of ONNX Runtime, which reads the variable once, at import. So
other packages that use ONNX Runtime import this one first. Source:
github.com/microsoft/onnxruntime/pull/27379
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
