"""Shared by all tests: the folders that the configuration refers to."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.environments import set_defaults  # noqa: E402

set_defaults()
