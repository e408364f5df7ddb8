"""What there is to measure:  python -m bench"""

import ast
from pathlib import Path

for file in sorted(Path(__file__).parent.glob("*.py")):
    title, _, command = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0].partition(":  ")
    if command and file.stem not in ("__main__", "competitors", "gpu_competitors"):
        print(f"{command:64}{title}")
