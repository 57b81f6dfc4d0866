"""How much memory a model takes while it runs on ONNX Runtime."""

from onnx_grad.memory.peak import PeakMemory, peak_memory

__all__ = ["PeakMemory", "peak_memory"]
