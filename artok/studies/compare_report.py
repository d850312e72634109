"""The page of a study."""
from pathlib import Path
def write_page(path: Path, outcome, device) -> Path:
    path.write_text("soon"); return path
