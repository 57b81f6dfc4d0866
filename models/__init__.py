"""Real forward models: small ``.onnx`` files, and the scripts which made them.

README, tests and benchmarks use the files. Making them needs PyTorch and scikit-learn, using them
does not. ``python -m models`` makes them all again; ``README.md`` in this folder describes each.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the ``.onnx`` files lie."""
