"""The domain of ONNX Runtime's own operators, which its optimizer and those of others leave in models.

Their definitions are in `docs/ContribOperators.md` of ONNX Runtime; where that page is silent, the kernels of
its CPU provider decide.
"""

DOMAIN = "com.microsoft"
