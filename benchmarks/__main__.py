"""`python -m benchmarks`: lists the benchmarks."""

from pathlib import Path

here = Path(__file__).parent
names = [*(p.stem for p in here.glob("[a-z]*.py")), *(p.parent.name for p in here.glob("*/__main__.py"))]
print("\n".join(f"python -m benchmarks.{name}" for name in sorted(names)))
