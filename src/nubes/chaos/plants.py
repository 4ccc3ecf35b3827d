"""Losses on purpose, to show that the auditor notices them: each changes what a real run left behind."""
from pathlib import Path
def plant(name: str, folder: Path) -> None:
    raise NotImplementedError
