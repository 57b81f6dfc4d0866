"""The gradients of all of ONNX's own backend cases: `python -m tests.conformance --help`."""
