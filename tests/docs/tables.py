"""Write a table that README takes for granted: `python tests/docs/tables.py people.csv`."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
n = 400
people = pd.DataFrame(
    {
        'age': rng.integers(18, 70, n),
        'income': rng.lognormal(3, 0.5, n).round(1),
        'sex': rng.choice(['female', 'male'], n),
        'race': rng.choice(['A', 'B'], n, p=[0.6, 0.4]),
    }
)
chance = people.income / 20 + (people.race == 'A') - 1.5 + rng.logistic(size=n)
people['approve'] = np.where(chance > 0, 'yes', 'no')
people['hired'] = rng.integers(0, 2, n)
people['predicted'] = ((people.race == 'A') | (rng.random(n) < 0.4)).astype(int)
columns = {
    'people.csv': ['age', 'income', 'race', 'approve'],
    'predictions.csv': ['sex', 'race', 'hired', 'predicted'],
}
path = Path(sys.argv[1])
people[columns[path.name]].to_csv(path, index=False)
