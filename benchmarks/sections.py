"""What is measured. Each job runs in a process of its own and returns a plain record; seconds are
counted after the imports.

A job is a function here: arguments and result are JSON. `run.py` starts the jobs, keeps their
records, and renders them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings

from common import EXPERTS, draw
from work_rows import everything, growth, imports, neighbours, papermill, shapes  # noqa: F401


def _timed(f, repeats: int = 1, sync=None) -> tuple[list[float], object]:
    "Seconds of each call, and the last result."
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = f()
        if sync:
            sync()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def _busy(f) -> tuple[object, float]:
    "Result of a call, and the CPU seconds of all threads in it."
    before = time.process_time()
    return f(), time.process_time() - before


def warm(section: str):
    "Import what the jobs of a section use, before the clock starts."
    import importlib

    baseline = {'graphlime': ['sklearn.linear_model'], 'attributions': ['captum.attr']}
    for name in ('torch', 'moe_expert.tune_experts', *baseline.get(section, [])):
        importlib.import_module(name)


def _sync(device: str):
    import torch

    return (
        torch.cuda.synchronize
        if device.startswith('cuda') or (device == 'auto' and torch.cuda.is_available())
        else None
    )


def whole(
    dataset: str,
    n_trials: int = 30,
    epochs: int = 2000,
    data_dir: str | None = None,
    device: str = 'auto',
    n_nodes: int | None = None,
) -> dict:
    """The whole command: load, make the floor, tune three experts, write checkpoints and results,
    in an empty `cache_dir`.
    """
    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.tune_experts import ExpertTuner

    experts = {}
    with tempfile.TemporaryDirectory() as folder:
        start, busy_before = time.perf_counter(), time.process_time()
        source = make_synthetic(n_nodes) if dataset == 'synthetic' else dataset
        tuner = ExpertTuner(
            source, seed=0, cache_dir=folder, data_dir=data_dir, epochs=epochs, device=device
        )
        for expert in EXPERTS:
            busy = time.process_time()
            (seconds,), result = _timed(lambda expert=expert: tuner.tune_expert(expert, n_trials))
            experts[expert] = {
                'seconds': seconds,
                'cpu': time.process_time() - busy,
                'trials': result['n_trials'],
                'feasible': result['n_feasible'],
                'best': result['best_score'],
                'epochs': sum(t['epochs_run'] or 0 for t in result['trials']),
            }
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy_before
    data = tuner.data
    return {
        'dataset': data.name,
        'edition': data.edition,
        'nodes': data.num_nodes,
        'edges': data.num_edges // 2,
        'n_trials': n_trials,
        'epochs': epochs,
        'device': str(tuner.device),
        'seconds': seconds,
        'cpu': cpu,
        'experts': experts,
    }


def _data(dataset: str, data_dir: str | None, n_nodes: int | None = None):
    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.datasets import load_dataset

    if dataset == 'synthetic':
        return make_synthetic(n_nodes)
    return load_dataset(dataset, data_dir=data_dir)


def _configs(expert: str, n: int, seed: int = 0) -> list:
    "Random configurations of an expert's search space."
    import numpy as np

    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.trainers import TrainConfig
    from moe_expert.tuning.settings import search_space

    rng, space = np.random.default_rng(seed), search_space(SPECS[expert])
    return [TrainConfig(**draw(space, rng)) for _ in range(n)]


def _models(data, n: int, epochs: int):
    "A population of `n` models of expert1, trained for some epochs."
    from moe_expert.experts.populations import joined
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.experts.training import train_population
    from moe_expert.scores.evaluation import Evaluator

    settings, evaluator = TrainSettings(epochs=epochs, val_every=epochs), Evaluator(data, 'val')
    trained = train_population(data, _configs('expert1', n), evaluator=evaluator, settings=settings)
    return joined([model.population for model in trained])


def _unit_kernel(a, c: float, exp):
    "[n, n] Gaussian kernel of one column, centred, with norm 1; 0 where the column is constant."
    import numpy as np

    k = exp(-(np.subtract.outer(a, a) ** 2) / c)
    k = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    norm = np.linalg.norm(k)
    return k / norm if norm > 1e-12 else 0 * k


def _lasso_lars(x, p1, rho: float):
    """GraphLIME of one node as published: n² × d kernels and scikit-learn's LassoLars.

    Returns β, and the seconds of both parts.
    """
    import numpy as np
    from sklearn.linear_model import LassoLars

    start, n, d = time.perf_counter(), len(x), x.shape[1]
    # n on both sides: scikit-learn divides the squared error by the number of rows, n²
    kernels = np.stack([_unit_kernel(column, 0.2 * d, np.exp).ravel() for column in x.T], 1) * n
    target = _unit_kernel(p1, 0.2, np.exp).ravel() * n
    middle = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # where LARS gives up, it is not slower
        beta = LassoLars(alpha=rho, positive=True, fit_intercept=False).fit(kernels, target).coef_
    return beta, middle - start, time.perf_counter() - middle


def _sample(sizes, per_stratum: int, seed: int = 0):
    """Nodes stratified by neighbourhood size (powers of two): per stratum its bounds, its number of
    nodes, and the nodes drawn.
    """
    import numpy as np

    rng, strata, low = np.random.default_rng(seed), [], 1
    while low <= sizes.max():
        members = np.flatnonzero((sizes >= low) & (sizes < 2 * low))
        if len(members):
            drawn = rng.choice(members, min(per_stratum, len(members)), replace=False)
            strata.append((low, 2 * low - 1, len(members), drawn))
        low *= 2
    return strata


def graphlime(
    dataset: str = 'bail',
    models: int = 30,
    per_stratum: int = 20,
    repeats: int = 5,
    epochs: int = 2000,
    data_dir: str | None = None,
    n_nodes: int | None = None,
    rho: float = 0.1,
) -> dict:
    """GraphLIME of all validation nodes for a population, and per-node LassoLars on a stratified
    sample of the same nodes, same first model.
    """
    import numpy as np

    from moe_expert.scores.graphlime import GraphLIME, neighbourhoods

    data = _data(dataset, data_dir, n_nodes)
    population = _models(data, models, epochs)
    p1 = population.probabilities(data.x, data.edge_index)
    setup, plan = _timed(lambda: GraphLIME(data.x, data.edge_index, data.val_mask, rho), repeats)
    (passes, _), population_cpu = _busy(lambda: _timed(lambda: plan.top_features(p1), repeats))
    (single, beta), single_cpu = _busy(lambda: _timed(lambda: plan.explain(p1[:1]), repeats))
    starts, members = (
        t.numpy() for t in neighbourhoods(data.edge_index, plan.nodes, data.num_nodes)
    )
    sizes, x, first = np.diff(starts), data.x.double().numpy(), p1[0].numpy()
    drawn, strata, differ, above, lars_cpu = [], [], [], [], 0.0
    _lasso_lars(x[:9], first[:9], rho)  # the first call pays for loading
    for low, high, count, rows in _sample(sizes, per_stratum):
        seconds = []
        for i in rows:
            near = members[starts[i] : starts[i + 1]]
            (other, kernel_s, lars_s), busy = _busy(
                lambda near=near: _lasso_lars(x[near], first[near], rho)
            )
            lars_cpu += busy
            seconds.append(kernel_s + lars_s)
            drawn.append([int(sizes[i]), kernel_s, lars_s])
            mine = beta[0, i].numpy()
            differ.append(
                int(mine.argmax() != other.argmax() and max(mine.max(), other.max()) > 1e-9)
            )
            above.append(
                _objective(x[near], first[near], mine, rho)
                - _objective(x[near], first[near], np.maximum(other, 0), rho)
            )
        strata.append(
            {
                'low': int(low),
                'high': int(high),
                'nodes': count,
                'sampled': len(rows),
                'mean_s': statistics.fmean(seconds),
                'sd_s': statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
            }
        )
    return {
        'dataset': data.name,
        'nodes': len(plan.nodes),
        'models': models,
        'features': data.num_features,
        'repeats': repeats,
        'setup_s': setup,
        'population_s': passes,
        'single_s': single,
        'population_cpu': population_cpu / repeats,
        'single_cpu': single_cpu / repeats,
        'lars_cpu_per_s': lars_cpu / sum(k + s for _, k, s in drawn),
        'sample': drawn,
        'strata': strata,
        'largest': int(sizes.max()),
        'largest_of_graph': int(
            np.bincount(data.edge_index[1].numpy(), minlength=data.num_nodes).max()
        )
        + 1,
        'top1_differs': sum(differ),
        'objective_above': float(max(above)),
    }


def _objective(x, p1, beta, rho: float) -> float:
    "Of the lasso, from unit kernels; expm1 is exact for small differences."
    import numpy as np

    target, width = _unit_kernel(p1, 0.2, np.expm1), 0.2 * x.shape[1]
    fit = sum(b * _unit_kernel(c, width, np.expm1) for c, b in zip(x.T, beta) if b > 0)
    return float(0.5 * ((target - fit) ** 2).sum() + rho * beta.sum())


def attributions(
    dataset: str = 'bail',
    models: int = 30,
    steps: int = 50,
    repeats: int = 5,
    epochs: int = 2000,
    data_dir: str | None = None,
    n_nodes: int | None = None,
) -> dict:
    """Integrated Gradients of all validation nodes: closed form, for one model and for a
    population, against captum with `steps` steps.
    """
    import torch
    from captum.attr import IntegratedGradients

    data = _data(dataset, data_dir, n_nodes)
    population, nodes = _models(data, models, epochs), data.val_mask.nonzero().squeeze(1)
    one, module, rows = population.select([0]), population.module(0), data.x[nodes].double()
    closed, mine = _timed(lambda: one.attributions(data.x, data.edge_index, nodes), repeats)
    many, _ = _timed(lambda: population.attributions(data.x, data.edge_index, nodes), repeats)
    method = IntegratedGradients(lambda x: module(x).softmax(-1)[:, 1])
    quadrature, theirs = _timed(
        lambda: method.attribute(rows, baselines=torch.zeros_like(rows), n_steps=steps), repeats
    )
    return {
        'dataset': data.name,
        'nodes': len(nodes),
        'features': data.num_features,
        'models': models,
        'steps': steps,
        'repeats': repeats,
        'closed_s': closed,
        'population_s': many,
        'captum_s': quadrature,
        'largest_difference': float((mine[0] - theirs).abs().max()),
    }


def training(
    expert: str,
    dataset: str = 'bail',
    n: int = 10,
    epochs: int = 2000,
    repeats: int = 3,
    data_dir: str | None = None,
    n_nodes: int | None = None,
    device: str = 'cpu',
) -> dict:
    """The same configurations one after another and side by side, validation included, GraphLIME's
    model-independent part made before.
    """
    from moe_expert.experts.optimizer import resolve_device
    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.experts.training import reference_floor, train_population
    from moe_expert.scores.evaluation import Evaluator
    from moe_expert.tuning.settings import HIDDEN

    device = resolve_device(device)
    data = _data(dataset, data_dir, n_nodes).to(device)
    evaluator, settings = (
        Evaluator(data, 'val'),
        TrainSettings(epochs=epochs, hidden=HIDDEN.get(data.name, 8)),
    )
    floor, configs = (
        reference_floor(data, evaluator=evaluator, settings=settings, device=device),
        _configs(expert, n),
    )
    run = lambda which: train_population(
        data,
        which,
        SPECS[expert],
        evaluator=evaluator,
        floor=floor,
        settings=settings,
        device=device,
    )
    together, side, alone, singles = [], None, [], None
    for _ in range(repeats):  # in turns: both see the same machine
        seconds, side = _timed(lambda: run(configs), sync=_sync(str(device)))
        together += seconds
        seconds, singles = _timed(lambda: [run([c])[0] for c in configs], sync=_sync(str(device)))
        alone += seconds
    difference = max(
        abs(a.score - b.score)
        for a, b in zip(side, singles)
        if a.score is not None and b.score is not None
    )
    return {
        'dataset': data.name,
        'expert': expert,
        'n': n,
        'epochs': epochs,
        'epochs_run': sum(m.epochs_run for m in side),
        'repeats': repeats,
        'alone_s': alone,
        'together_s': together,
        'largest_difference': difference,
        'device': str(device),
    }


def scaling(
    n_nodes: int,
    avg_degree: float = 20,
    n_features: int = 20,
    n_trials: int = 5,
    epochs: int = 200,
    device: str = 'auto',
) -> dict:
    """Each expert tuned with a few trials on a synthetic graph: seconds per trial, and the time of
    what is made once.
    """
    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.tune_experts import ExpertTuner
    from moe_expert.tuning.settings import TuneSettings

    (made,), data = _timed(
        lambda: make_synthetic(n_nodes, n_features, avg_degree=avg_degree, seed=0)
    )
    train = TrainSettings(epochs=epochs)
    experts = {}
    with tempfile.TemporaryDirectory() as folder:
        tuner = ExpertTuner(data, cache_dir=folder, settings=TuneSettings(train), device=device)
        (plan,), _ = _timed(lambda: tuner.evaluator.plan)
        (floor,), _ = _timed(tuner.floor)
        for expert in EXPERTS:
            busy = time.process_time()
            (seconds,), result = _timed(lambda expert=expert: tuner.tune_expert(expert, n_trials))
            experts[expert] = {
                'seconds': seconds,
                'cpu': time.process_time() - busy,
                'trials': result['n_trials'],
                'feasible': result['n_feasible'],
            }
    n_train = int(data.train_mask.sum())
    return {
        'nodes': data.num_nodes,
        'edges': data.num_edges // 2,
        'features': n_features,
        'train': n_train,
        'val': int(data.val_mask.sum()),
        'rows': train.rows(n_train),
        'n_trials': n_trials,
        'epochs': epochs,
        'device': str(tuner.device),
        'data_s': made,
        'plan_s': plan,
        'floor_s': floor,
        'experts': experts,
    }


def graph(
    rows: int,
    method: str = 'exact',
    columns: int = 30,
    threshold: float = 0.8,
    n_neighbors: int = 50,
) -> dict:
    "The similarity rule on a table of normal and binary columns, half each."
    import numpy as np

    from moe_expert.data.graph import similarity_graph
    from moe_expert.errors import DataWarning

    rng = np.random.default_rng(0)
    table = rng.normal(size=(rows, columns))
    table[:, columns // 2 :] = table[:, columns // 2 :] > 0
    more = {} if method == 'exact' else {'method': method, 'n_neighbors': n_neighbors}
    more['max_edges'] = None  # the rule links 30 million pairs of 100,000 people here
    busy = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter(
            'ignore', DataWarning
        )  # nodes whose list is too short: expected here, and seen in the edges
        (seconds,), edges = _timed(lambda: similarity_graph(table, threshold, **more))
    return {
        'rows': rows,
        'columns': columns,
        'method': method,
        'threshold': threshold,
        'n_neighbors': n_neighbors,
        'seconds': seconds,
        'cpu': time.process_time() - busy,
        'edges': edges.shape[1] // 2,
    }


def budgets(work: str) -> dict:
    "What `budgets.py` has computed; nothing is computed here."
    from pathlib import Path

    import budgets as study

    return {'rows': study.analyse(Path(work))}


def epochs(
    seeds: int = 3, configurations: int = 30, data_dir: str | None = None, work: str | None = None
) -> dict:
    "The study of `curves.py`; what it has computed before is used."
    from pathlib import Path

    import curves as study

    folder = Path(work or study.WORK)
    study.compute(folder, ('german', 'math', 'por'), EXPERTS, seeds, configurations, data_dir)
    study.compute(
        folder, ('bail',), ('expert1',), seeds, configurations, data_dir
    )  # the others explain 4,719 nodes for 90 models, 20 times
    return study.analyse(folder, seeds, configurations)


def samplers(
    seeds: int = 10,
    n_trials: int = 30,
    epochs: int = 2000,
    datasets=('german', 'bail'),
    data_dir: str | None = None,
    work: str | None = None,
    strategies=None,
) -> dict:
    """The study of `samplers.py`; what it has computed before is used, only missing `strategies`
    (default: all) are computed.
    """
    from pathlib import Path

    import samplers as study

    folder = Path(work or study.WORK / 'samplers')
    wanted = {k: s for k, s in study.STRATEGIES.items() if k in (strategies or study.STRATEGIES)}
    study.compute(folder, datasets, EXPERTS, seeds, n_trials, epochs, data_dir, wanted)
    analysis = study.analyse(study.load_units(folder, n_trials, epochs))
    return {'seeds': seeds, 'n_trials': n_trials, 'epochs': epochs, 'analysis': analysis}
