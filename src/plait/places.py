"""Where things are kept on a user's machine; like `errors`, for every room."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """$PLAIT_CACHE, or `plait` in the platform's place for caches."""
    if os.environ.get("PLAIT_CACHE"):
        return Path(os.environ["PLAIT_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "plait" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "plait"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait"
