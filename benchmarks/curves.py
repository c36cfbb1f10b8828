"""What would more epochs buy, and what would stopping earlier cost? Every configuration is trained
to the end and looked at afterwards.

    python benchmarks/curves.py --datasets german bail --seeds 3      # compute, then print

Random configurations of the search space (and the default) train without early stopping; at every
validation the objective and the floor's constraints are written down. From these curves follows
what the engine's patience, successive halving, or a rule on the floor would have stopped, how many
epochs they save, and whether the study's winner stays the same. A cap is a prefix of a longer run,
except for expert2, whose warm-up is a share of the epochs: the caps are compared on expert1.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import numpy as np
from common import EXPERTS, best_so_far, draw, find_data

WORK = Path(__file__).resolve().parent / 'work' / 'curves'
BATCH, EVERY, LONG, CAP = 10, 100, 8000, 2000
CAPS = (500, 1000, 2000, 4000, 8000)


# ---------------------------------------------------------------- measure


def _watching(evaluator):
    """The evaluator, and a list of what it is asked at each validation: cheap scores of all models,
    then (expert3) all scores of the feasible ones.
    """
    seen = []

    class Watching(type(evaluator)):
        def scores(self, population, procedure=True):
            scores = super().scores(population, procedure)
            seen.append((procedure, {k: v.numpy() for k, v in scores.items()}))
            return scores

    evaluator.__class__ = Watching
    return evaluator, seen


def curves(data, spec, seeds: int, n: int, epochs: int, settings) -> dict:
    """Objective (NaN where infeasible), violation and utility [M, V] of n configurations per seed
    at V validations; configurations seed by seed.
    """
    import torch

    from moe_expert.experts.floor import Floor
    from moe_expert.experts.training import reference_floor, train_population
    from moe_expert.scores.evaluation import Evaluator

    plain = Evaluator(data, 'val')
    settings = replace(settings, epochs=epochs, val_every=EVERY, patience=epochs)
    floors = [
        reference_floor(
            data, s, evaluator=plain, settings=replace(settings, epochs=CAP, patience=3)
        )
        for s in range(seeds)
    ]
    configs = [c for s in range(seeds) for c in configurations(spec, n, s)]
    floor = Floor(
        *torch.tensor([(f.reference_utility, f.reference_auc) for f in floors], dtype=torch.float64)
        .repeat_interleave(n, 0)
        .T
    )
    evaluator, seen = _watching(Evaluator(data, 'val'))
    every_one = replace(spec, several=True)  # nobody stops for being behind the others
    train_population(data, configs, every_one, evaluator=evaluator, floor=floor, settings=settings)
    del seen[-2:]  # the selected checkpoints, once more, without explanations and with them
    every, out = (
        [s for explained, s in seen if not explained],
        {k: [] for k in ('objective', 'violation', 'utility')},
    )
    explained = iter([s for full, s in seen if full])
    for i, scores in enumerate(every):
        violation = (
            floor.constraints({k: torch.as_tensor(v) for k, v in scores.items()})
            .clamp(min=0)
            .sum(-1)
            .numpy()
        )
        counts = (i + 1) * EVERY > int(spec.warmup * epochs)
        objective = np.full(len(configs), np.nan)
        if counts and (feasible := violation == 0).any():
            objective[feasible] = (
                scores[spec.objective][feasible]
                if spec.objective in scores
                else next(explained)[spec.objective]
            )
        out['objective'].append(objective)
        out['violation'].append(violation)
        out['utility'].append(scores['utility'])
    return {k: np.stack(v, 1) for k, v in out.items()} | {'lr': np.array([c.lr for c in configs])}


def configurations(spec, n: int, seed: int) -> list:
    "The default and n − 1 random configurations, as a study starts."
    from moe_expert.experts.trainers import TrainConfig
    from moe_expert.tuning.settings import DEFAULT_PARAMS, search_space
    from moe_expert.tuning.studies import draw_seed

    space = search_space(spec)
    rng = np.random.default_rng(draw_seed(seed, spec.name, 'curves'))
    default = {k: DEFAULT_PARAMS[k] for k in space}
    params = [default, *(draw(space, rng) for _ in range(1, n))]
    return [TrainConfig(**p, seed=seed) for p in params]


def compute(work: Path, datasets, experts, seeds: int, n: int, data_dir=None, say=print):
    "Compute what is missing in `work`."
    from moe_expert.datasets import load_dataset
    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.tuning.settings import HIDDEN

    work.mkdir(parents=True, exist_ok=True)
    for name in datasets:
        data = load_dataset(name, data_dir=data_dir)
        for expert in experts:
            path = work / f'{name}-{expert}-{seeds}x{n}.npz'
            if path.exists():
                continue
            spec = SPECS[expert]
            found = curves(
                data,
                spec,
                seeds,
                n,
                LONG if expert == 'expert1' else CAP,
                TrainSettings(hidden=HIDDEN.get(name, 8)),
            )
            np.savez_compressed(part := path.with_suffix('.part.npz'), **found)
            part.replace(path)
            say(path.stem, flush=True)


# ---------------------------------------------------------------- rules


def stops_of_patience(objective, violation, maximize: bool, patience: int = 3) -> np.ndarray:
    "[M] validations each configuration sees: the engine's rule."
    best, stops = best_so_far(objective, maximize), np.full(len(objective), objective.shape[1])
    for m, row in enumerate(best):
        since, last = 0, np.nan
        for v, value in enumerate(row):
            better = np.isfinite(value) and not value == last
            since = 0 if better or not np.isfinite(value) else since + 1
            last = value
            if since == patience:
                stops[m] = v + 1
                break
    return stops


def stops_of_halving(objective, violation, maximize: bool, rungs=(5, 10)) -> np.ndarray:
    """The better half of each batch goes on at each rung: feasible ones by their objective, then
    the others by their violation; patience too.
    """
    stops, best = (
        stops_of_patience(objective, violation, maximize),
        best_so_far(objective, maximize),
    )
    for start in range(0, len(objective), BATCH):
        alive = list(range(start, min(start + BATCH, len(objective))))
        for rung in rungs:
            score = {m: best[m, rung - 1] for m in alive}
            order = sorted(
                alive,
                key=lambda m: (
                    (0, -score[m] if maximize else score[m])
                    if np.isfinite(score[m])
                    else (1, np.minimum.accumulate(violation[m])[rung - 1])
                ),
            )
            for m in order[(len(order) + 1) // 2 :]:
                stops[m] = min(stops[m], rung)
            alive = order[: (len(order) + 1) // 2]
    return stops


def stops_of_floor(
    objective, violation, maximize: bool, rung: int = 10, most: float = 0.05
) -> np.ndarray:
    """Half-way, whoever was never feasible and violates the floor by more than `most` stops;
    patience too.
    """
    stops, best = (
        stops_of_patience(objective, violation, maximize),
        best_so_far(objective, maximize),
    )
    hopeless = ~np.isfinite(best[:, rung - 1]) & (violation[:, :rung].min(1) > most)
    return np.where(hopeless, np.minimum(stops, rung), stops)


RULES = {
    'patience 3 (the engine)': stops_of_patience,
    'halving at 500 and 1000 epochs': stops_of_halving,
    'halving at 1000 epochs': lambda o, v, m: stops_of_halving(o, v, m, (10,)),
    'floor missed by > 0.05 at 1000 epochs': stops_of_floor,
    'floor missed by > 0.15 at 1000 epochs': lambda o, v, m: stops_of_floor(o, v, m, most=0.15),
}


def outcome(objective, stops, maximize: bool) -> tuple[int, float]:
    "The winner of a study under a rule, and its objective; (−1, NaN) where nothing is feasible."
    seen = np.where(np.arange(objective.shape[1]) < stops[:, None], objective, np.nan)
    best = best_so_far(seen, maximize)[:, -1]
    if not np.isfinite(best).any():
        return -1, np.nan
    winner = int(np.nanargmax(best) if maximize else np.nanargmin(best))
    return winner, float(best[winner])


# ---------------------------------------------------------------- analyse


def analyse(work: Path, seeds: int, n: int) -> dict:
    """Of every rule: epochs run (share of all), winners changed; of every cap: best utility and
    feasible configurations, by data set.
    """
    from moe_expert.experts.specs import EXPERTS as SPECS

    rules, caps = [], []
    for path in sorted(work.glob(f'*-{seeds}x{n}.npz')):
        dataset, expert, _ = path.stem.split('-')
        spec, found = SPECS[expert], dict(np.load(path))
        per_seed = [{k: v[s * n : (s + 1) * n] for k, v in found.items()} for s in range(seeds)]
        for name, rule in RULES.items():
            row = {
                'dataset': dataset,
                'expert': expert,
                'rule': name,
                'ran': [],
                'winner': [],
                'loss': [],
                'without': 0,
            }
            for f in per_seed:
                objective, violation = (f[k][:, : CAP // EVERY] for k in ('objective', 'violation'))
                stops = rule(objective, violation, spec.maximize)
                (w0, b0), (w, b) = (
                    outcome(objective, s, spec.maximize) for s in (np.full(n, CAP // EVERY), stops)
                )
                row['ran'].append(float(stops.mean() / (CAP // EVERY)))
                row['winner'].append(w == w0)
                row['without'] += w < 0 <= w0
                row['loss'].append(
                    (b0 - b if spec.maximize else b - b0) if min(w, w0) >= 0 else 0.0
                )
            rules.append(
                {
                    k: (v if not isinstance(v, list) else [float(x) for x in v])
                    for k, v in row.items()
                }
            )
        if expert == 'expert1':
            for cap in CAPS:
                cut = [f['objective'][:, : cap // EVERY] for f in per_seed]
                caps.append(
                    {
                        'dataset': dataset,
                        'cap': cap,
                        'best': [outcome(o, np.full(n, cap // EVERY), True)[1] for o in cut],
                        'feasible': [int(np.isfinite(o).any(1).sum()) for o in cut],
                    }
                )
    return {'seeds': seeds, 'n': n, 'rules': rules, 'caps': caps}


def tables(analysis: dict) -> tuple[list[list[str]], list[list[str]]]:
    "Rows of two tables: rules (over all data sets and experts), caps (by data set)."
    rules = []
    for name in RULES:
        rows = [r for r in analysis['rules'] if r['rule'] == name]
        same = [x for r in rows for x in r['winner']]
        losses = [x for r in rows for x in r['loss']]
        rules.append(
            [
                name,
                f'{100 * np.mean([x for r in rows for x in r["ran"]]):.0f} %',
                f'{int(sum(same))} of {len(same)}',
                f'{np.mean(losses):.4f}',
                f'{max(losses):.4f}',
                str(sum(r['without'] for r in rows)),
            ]
        )
    caps = []
    for dataset in dict.fromkeys(r['dataset'] for r in analysis['caps']):
        rows = [r for r in analysis['caps'] if r['dataset'] == dataset]
        show = lambda r: (
            (f'{np.nanmean(r["best"]):.4f}' if np.isfinite(r['best']).any() else '—')
            + f' ({np.mean(r["feasible"]):.1f})'
        )
        caps.append([dataset, *(show(r) for r in rows)])
    return rules, caps


RULE_HEAD = [
    'stopped by',
    'epochs run',
    'same winner',
    'objective lost, mean',
    'at most',
    'no winner left',
]


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--datasets', nargs='+', default=['german', 'math', 'por', 'bail'])
    p.add_argument('--experts', nargs='+', default=list(EXPERTS))
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--configurations', type=int, default=30)
    p.add_argument('--data-dir', default=None)
    p.add_argument('--work', type=Path, default=WORK)
    a = p.parse_args(argv)
    compute(a.work, a.datasets, a.experts, a.seeds, a.configurations, a.data_dir or find_data())
    for head, rows in zip(
        (RULE_HEAD, ['data', *map(str, CAPS)]), tables(analyse(a.work, a.seeds, a.configurations))
    ):
        print('\n'.join('| ' + ' | '.join(r) + ' |' for r in (head, *rows)), end='\n\n')


if __name__ == '__main__':
    main()
