"What the benchmarks share. Nothing heavy is imported here: a job's memory would start with it."

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERTS = ('expert1', 'expert2', 'expert3')
STUDIES = ('budgets', 'epochs', 'samplers')  # of scores, not of time: kept when the code changes


def find_data(folder: str = 'data', holds: str = 'bail') -> Path | None:
    """The folder with the real benchmark files, or another one; None if there is none.

    It is MOE_EXPERT_DATA, else ../shared/data or shared/data.
    """
    named = os.environ.get('MOE_EXPERT_DATA')
    beside = [ROOT.parent / 'shared' / folder, ROOT / 'shared' / folder]
    places = [Path(named)] if named else beside
    return next((p.resolve() for p in places if (p / holds).is_dir()), None)


def write_json(path: Path, record, indent: int | None = None):
    "Write a record whole or not at all; its folder is made."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record, indent=indent), encoding='utf-8')
    part.replace(path)


def read_json(path: Path):
    return json.loads(path.read_text(encoding='utf-8'))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    "Mean and half width of the 95 % t-interval of the finite values; NaN where it does not exist."
    import numpy as np
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def draw(space: Mapping, rng) -> dict[str, float]:
    "One configuration, log-uniform in every dimension of a search space."
    import numpy as np

    return {
        name: float(np.exp(rng.uniform(np.log(d.low), np.log(d.high)))) for name, d in space.items()
    }


def best_so_far(objective, maximize: bool):
    "[..., V] best feasible objective after each validation or trial; NaN while there is none."
    import numpy as np

    return (np.fmax if maximize else np.fmin).accumulate(objective, -1)
