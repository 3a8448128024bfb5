"""What the serving image holds: the model behind HTTP. Training shares its preprocessing.

Before anything imports ONNX Runtime, this package switches its telemetry off: ONNX Runtime reads
the variable once, at import. Other packages that use ONNX Runtime import this one first. Source:
github.com/microsoft/onnxruntime/pull/27379
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
