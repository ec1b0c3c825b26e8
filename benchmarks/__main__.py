"""`python -m benchmarks`: lists the benchmarks."""

from pathlib import Path

print("\n".join(f"python -m benchmarks.{p.stem}" for p in sorted(Path(__file__).parent.glob("[a-z]*.py"))))
