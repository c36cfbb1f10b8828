"""Whole pieces of work that people wait for: jobs of `run.py`, in CPU seconds of all threads and of
the processes that they start.

Only names that every version of the package has are used, so that two states of the code can be
measured by the same jobs (`run.py --before FOLDER`).
"""

from __future__ import annotations

import hashlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from common import EXPERTS

IMPORTS = {
    'torch and optuna': 'import torch, optuna',
    'moe_expert.trainer': 'import moe_expert.trainer',
}
SHAPES = {  # people, features, degree: see `shapes`
    '1,000 people × 600 features': (1000, 600, 20),
    '600 people × 1,000 features': (600, 1000, 20),
    '600 people × 2,000 features': (600, 2000, 20),
    'a complete graph of 3,000': (3000, 20, 'complete'),
    'a hub of 50,000 neighbours': (50_001, 20, 'hub'),
}


def busy() -> float:
    "CPU seconds of this process and of its ended children."
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _cpu(f) -> tuple[float, object]:
    "CPU seconds of a call, and its result."
    before = busy()
    result = f()
    return busy() - before, result


def own_table(people: int, features: int, folder: Path, seed: int = 0) -> Path:
    """A table of one's own with its card: half of the columns normal, half 0 or 1, a group that
    shifts six of them, and an outcome that follows ten. The path of the card.
    """
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    x, group = rng.normal(size=(people, features)), rng.random(people) < 0.4
    x[:, features // 2 :] = x[:, features // 2 :] > 0
    x[:, :6] += 0.5 * group[:, None]
    informative = min(10, features)
    pull = x[:, :informative] @ rng.normal(size=informative) * 0.6 + 0.5 * group
    outcome = pull + rng.logistic(size=people) > 0
    half = features // 2
    columns = {f'c{i}': x[:, i] if i < half else x[:, i].astype(int) for i in range(features)}
    said = {'sex': np.where(group, 'f', 'm'), 'y': outcome.astype(int)}
    pd.DataFrame(columns | said).to_csv(folder / 'people.csv', index=False)
    card = folder / 'people.yaml'
    card.write_text('table: people.csv\nlabel: y\nsensitive: sex\nprivileged: m\n')
    return card


def everything(
    dataset: str,  # a name, or own:PEOPLExFEATURES
    data_dir: str | None = None,
    n_trials: int = 30,
    epochs: int = 2000,
    stages: str = 'all',  # or 'experts'
    device: str = 'auto',
) -> dict:
    "Load, tune the experts, train gate and integration, test with intervals, write both reports."
    from moe_expert.datasets import load_dataset
    from moe_expert.report import run_moe_report, run_report
    from moe_expert.trainer import MoETrainer
    from moe_expert.tune_experts import ExpertTuner

    spent = {'imports': busy()}  # of this process so far; what is imported later counts there
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        source, where = dataset, {'data_dir': data_dir}
        if dataset.startswith('own:'):
            people, features = map(int, dataset[4:].split('x'))
            source, where = str(own_table(people, features, Path(folder))), {}

        def stage(name, f):
            spent[name], result = _cpu(f)
            return result

        data = stage('load', lambda: load_dataset(source, **where))
        place = {'cache_dir': str(Path(folder, 'cache')), 'device': device}
        tuner = ExpertTuner(data, **place, epochs=epochs)
        best = {
            e: stage(e, lambda e=e: tuner.tune_expert(e, n_trials))['best_score'] for e in EXPERTS
        }
        tuner.tune_all_experts(n_trials)  # the trials are there: writes the summary
        if stages == 'all':
            trainer = MoETrainer(data, use_cached_experts=True, **place)
            stage('gate', lambda: trainer.tune_gate(n_trials))
            stage('integration', trainer.fine_tune)
            stage('test', trainer.evaluate)
            files = {'cache_dir': place['cache_dir'], **where}
            stage('report of the experts', lambda: run_report(source, **files))
            stage('report of the mixture', lambda: run_moe_report(source, **files))
    return {
        'dataset': dataset,
        'people': data.num_nodes,
        'features': data.x.shape[1],
        'edges': data.num_edges // 2,
        'n_trials': n_trials,
        'epochs': epochs,
        'stages': spent,
        'cpu': sum(spent.values()),
        'peak_children': resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        'best': best,
    }


def papermill() -> dict:
    "What a report costs before it says anything: papermill, a kernel, the imports, and a page."
    import nbformat

    from moe_expert.report import save_notebook, write_page  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'empty.ipynb')
        imports = 'from moe_expert import report\nfrom moe_expert.tune_experts import ExpertTuner\n'
        imports += 'import matplotlib.pyplot, pandas, torch_geometric.data, sklearn.linear_model'
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(imports)])
        nbformat.write(book, path)

        def execute():
            import papermill

            papermill.execute_notebook(
                str(path), str(path), kernel_name='python3', progress_bar=False
            )
            write_page(path)

        spent, _ = _cpu(execute)
    return {'cpu': spent}


def imports(repeats: int = 5) -> dict:
    "CPU seconds of imports, each in fresh interpreters, in turns."
    spent = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            command = [sys.executable, '-c', code]
            # away from the clone: Python would look for the package in the folder it starts in
            done = lambda c=command: subprocess.run(c, check=True, cwd=tempfile.gettempdir())
            spent[name].append(_cpu(done)[0])
    return {'cpu': {name: statistics.median(s) for name, s in spent.items()}, 'repeats': repeats}


def _table(rows: int, columns: int, kind: str, data_dir: str | None):
    "[N, d] noise, or the scaled columns of a table of the catalogue."
    import numpy as np

    if kind == 'noise':
        return np.random.default_rng(0).normal(size=(rows, columns))
    from moe_expert.datasets import load_dataset

    return load_dataset(kind, data_dir=data_dir).x.double().numpy()


def neighbours(
    rows: int = 0,
    columns: int = 30,
    kind: str = 'noise',  # or the name of a table, which has its own size
    neighbours: int = 10,
    searched: int = 1000,  # people whose neighbours are searched exactly
    data_dir: str | None = None,
) -> dict:
    "The default graph of a table: seconds, recall against an exact search, and a second run."
    import numpy as np

    from moe_expert.data.graph import nearest_keys

    x = _table(rows, columns, kind, data_dir)
    spent, keys = _cpu(lambda: nearest_keys(x, neighbours))
    mark = lambda k: hashlib.sha256(np.ascontiguousarray(k).tobytes()).hexdigest()
    again = mark(nearest_keys(x, neighbours)) if len(x) <= 200_000 else None
    low, high = keys // len(x), keys % len(x)
    some = np.random.default_rng(1).choice(len(x), min(searched, len(x)), replace=False)
    found = []
    linked = np.zeros(len(x), dtype=bool)
    for i in some:
        distance = np.sqrt(((x - x[i]) ** 2).sum(1))
        distance[i] = np.inf
        reach = np.partition(distance, neighbours - 1)[neighbours - 1]
        linked[:] = False
        linked[high[low == i]] = linked[low[high == i]] = True
        # whoever is nearer than the last place must be linked; those tied at it share the places
        must = distance < reach * (1 - 1e-9)
        found.append(linked[must].mean() if must.any() else 1.0)
    return {
        'kind': kind,
        'rows': len(x),
        'columns': x.shape[1],
        'edges': len(keys),
        'cpu': spent,
        'recall': float(np.mean(found)),
        'searched': len(some),
        'same_again': None if again is None else again == mark(keys),
    }


def shapes(
    shape: str,  # what it is called
    people: int,
    features: int,
    degree: int | str,  # neighbours of everyone; 'complete'; 'hub': one person has all
    models: int = 3,
) -> dict:
    "GraphLIME of all people of an unusual graph: seconds and memory, or the error that it ends in."
    import numpy as np
    import torch

    from moe_expert.errors import MoEExpertError
    from moe_expert.scores.graphlime import GraphLIME

    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(-1, 1, size=(people, features)))
    if degree == 'hub':
        pairs = np.stack([np.zeros(people - 1, dtype=int), np.arange(1, people)])
    elif degree == 'complete':
        pairs = np.stack(np.triu_indices(people, 1))
    else:
        ring = np.arange(people)
        pairs = np.concatenate([[ring, (ring + k) % people] for k in range(1, degree // 2 + 1)], 1)
    edges = torch.from_numpy(np.concatenate([pairs, pairs[::-1]], 1))
    nodes = torch.arange(people if degree != 'hub' else 1000)
    weights = torch.from_numpy(rng.normal(size=(models, features)))
    p1 = torch.sigmoid(weights @ x.T / features**0.5)
    explained, error, before = None, None, busy()
    try:
        explained = int(GraphLIME(x, edges, nodes).top_features(p1).any(-1).sum())
    except MoEExpertError as err:
        error = str(err)
    return {
        'shape': shape,
        'people': people,
        'features': features,
        'edges': pairs.shape[1],
        'models': models,
        'cpu': busy() - before,
        'explained': explained,
        'error': error,
    }


GROWTH = {  # what is varied, around 10,000 people × 30 features, ten neighbours, ten trials
    'people': (5000, 10_000, 20_000, 40_000),
    'features': (15, 30, 60, 120),
    'neighbours': (5, 10, 20, 40),
    'trials': (10, 20, 30, 40),
}
BASE = {'people': 10_000, 'features': 30, 'neighbours': 10, 'trials': 10}


def growth(vary: str, value: int, epochs: int = 200) -> dict:
    "A table of one's own through all stages but the reports, one size varied."
    import pandas as pd

    from moe_expert.datasets import load_dataset
    from moe_expert.trainer import MoETrainer
    from moe_expert.tune_experts import ExpertTuner

    size, spent = BASE | {vary: value}, {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        own_table(size['people'], size['features'], Path(folder))
        table = pd.read_csv(Path(folder, 'people.csv'))
        said = {'label': 'y', 'sensitive': 'sex', 'privileged': 'm'}
        about = {'neighbours': size['neighbours'], **said}
        spent['load'], data = _cpu(lambda: load_dataset(table, **about))
        place = {'cache_dir': folder, 'device': 'cpu'}
        tuner = ExpertTuner(data, epochs=epochs, **place)
        spent['experts'], _ = _cpu(lambda: tuner.tune_all_experts(size['trials']))
        trainer = MoETrainer(data, use_cached_experts=True, **place)
        spent['gate'], _ = _cpu(lambda: trainer.tune_gate(size['trials']))
        spent['test'], _ = _cpu(trainer.evaluate)
    return {'vary': vary, 'value': value, 'base': BASE, 'epochs': epochs, 'spent': spent}
