"What the benchmark's sections share."

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_data() -> Path | None:
    "The folder with the real benchmark files: MOE_EXPERT_DATA, else ../shared/data or shared/data; None if there is none."
    named = os.environ.get('MOE_EXPERT_DATA')
    places = [Path(named)] if named else [ROOT.parent / 'shared' / 'data', ROOT / 'shared' / 'data']
    return next((p.resolve() for p in places if (p / 'bail').is_dir()), None)
