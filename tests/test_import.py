"""Who imports the library waits for torch and Pyro, and for nothing that is not used yet."""

import subprocess
import sys

HEAVY = ("arviz", "jinja2", "matplotlib", "pandas", "scipy.stats", "sklearn", "torchmetrics", "typer")


def test_nothing_heavy_is_imported_before_it_is_used():
    program = f"import sys, bayesnn; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
