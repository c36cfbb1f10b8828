"""What the budget of steps costs: the same configurations trained with it and without it.

    python benchmarks/budgets.py --data own:20000x60 --seeds 10   # more seeds, or what is missing
    python benchmarks/budgets.py --gates bail german              # gates: 1,000 epochs, the default
    python benchmarks/budgets.py --studies bail german           # whole studies; the code before by
    PYTHONPATH=EARLIER python benchmarks/budgets.py --studies bail german --before
    python benchmarks/budgets.py --summary                        # what is there

On large data a step sees some of the training nodes and a configuration has a limited number of
steps. Here the same ten configurations of an expert (the default one and nine random ones) are
trained both ways, with the same floor, the one of the reference that was trained without limits.
What counts is the best feasible validation objective of the ten, paired by seed. Seeds 100 to 102
are for choosing the budget; 200 and above confirm.

Gates are compared likewise, over experts that are tuned first: ten gates with 1,000 epochs and with
the default number.

Whole studies of 30 trials are compared likewise, with those of an earlier state of the code: what
they lose by larger batches, and by leaving out configurations that are behind.

Units are kept as JSON in `work/budgets`; they do not become old when the code changes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common import EXPERTS, draw, find_data, read_json, t_interval, write_json

WORK = Path(__file__).resolve().parent / 'work' / 'budgets'
FULL, LIMITED = 'without limits', 'the default'
FIRST_SEED = 200
NO_LIMIT = 10**9


def load(name: str, public: Path | None):
    "A table of the catalogue, own:PEOPLExFEATURES, or synthetic:PEOPLE with 20 neighbours each."
    import tempfile

    from work_rows import own_table

    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.datasets import load_dataset

    kind, _, size = name.partition(':')
    if kind == 'synthetic':
        return make_synthetic(int(size), 20, avg_degree=20, seed=0)
    if kind == 'own':
        with tempfile.TemporaryDirectory() as folder:
            people, features = map(int, size.split('x'))
            return load_dataset(str(own_table(people, features, Path(folder))))
    return load_dataset(name, data_dir=public)


def settings(variant: str, n: int, epochs: int):
    "Training with or without limits on n training nodes."
    from moe_expert.experts.trainers import TrainSettings

    schedule = {'epochs': epochs, 'val_every': max(1, epochs // 20)}
    if variant == LIMITED:
        return TrainSettings(**schedule)
    return TrainSettings(**schedule, batch_size=n if n <= 20_000 else 8192, steps=NO_LIMIT)


def configurations(expert: str, n: int, seed: int) -> list:
    "The default configuration and random ones."
    import numpy as np

    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.trainers import TrainConfig
    from moe_expert.tuning.settings import default_params, search_space

    rng, space = np.random.default_rng([seed, int(expert[-1])]), search_space(SPECS[expert])
    drawn = [default_params(SPECS[expert]), *(draw(space, rng) for _ in range(n - 1))]
    return [TrainConfig(**params, seed=seed) for params in drawn]


def unit(data, evaluator, floor, expert: str, seed: int, variant: str, n: int, epochs: int) -> dict:
    "The best of some configurations."
    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.training import train_population

    spec, budget = SPECS[expert], settings(variant, int(data.train_mask.sum()), epochs)
    start = time.process_time()
    models = train_population(
        data,
        configurations(expert, n, seed),
        spec,
        evaluator=evaluator,
        floor=floor,
        settings=budget,
    )
    scores = [m.score for m in models if m.feasible]
    best = (max if spec.maximize else min)(scores) if scores else None
    return {'best': best, 'feasible': len(scores), 'cpu': time.process_time() - start}


def compute(work: Path, name: str, seeds, experts, n: int, epochs: int, public: Path | None):
    "Compute the units that are missing."
    from moe_expert.experts.training import reference_floor
    from moe_expert.scores.evaluation import Evaluator

    place = lambda *key: work / f'{"-".join(map(str, (name, *key)))}.json'.replace(':', '_')
    wanted = [(s, e, v) for s in seeds for e in experts for v in (FULL, LIMITED)]
    missing = [key for key in wanted if not place(*key).exists()]
    if not missing:
        return
    data = load(name, public)
    evaluator, floors = Evaluator(data, 'val'), {}
    for seed, expert, variant in missing:
        if seed not in floors:
            plain = settings(FULL, int(data.train_mask.sum()), epochs)
            floors[seed] = reference_floor(data, seed, evaluator=evaluator, settings=plain)
        found = unit(data, evaluator, floors[seed], expert, seed, variant, n, epochs)
        about = {'data': name, 'seed': seed, 'expert': expert, 'variant': variant}
        about |= {'configurations': n, 'epochs': epochs}
        write_json(place(seed, expert, variant), about | found)
        print({**about, **found}, flush=True)


def gate_configurations(n: int, seed: int) -> list:
    "The default configuration of a gate and random ones."
    import numpy as np

    from moe_expert.mixture.gate_training import GateConfig
    from moe_expert.tuning.settings import GATE_DEFAULTS, GATE_SPACE

    rng = np.random.default_rng(seed)
    drawn = [GATE_DEFAULTS, *(draw(GATE_SPACE, rng) for _ in range(n - 1))]
    return [GateConfig(**params, seed=seed) for params in drawn]


def compute_gates(work: Path, name: str, seeds, n: int, data_dir: Path | None):
    "Compute the units of gates that are missing; experts are tuned once, in the work folder."
    from moe_expert.mixture.gate_training import GateSettings, train_gates
    from moe_expert.scores.evaluation import Evaluator
    from moe_expert.trainer import MoETrainer
    from moe_expert.tune_experts import ExpertTuner

    place = lambda seed, v: work / f'{name}-{seed}-gate-{v}.json'
    settings = {FULL: GateSettings(epochs=1000), LIMITED: GateSettings()}
    missing = [(s, v) for s in seeds for v in settings if not place(s, v).exists()]
    if not missing:
        return
    cache = {'cache_dir': work / 'experts', 'data_dir': data_dir, 'device': 'cpu'}
    ExpertTuner(name, **cache).tune_all_experts()  # what is there is taken
    trainer = MoETrainer(name, **cache)
    lesson, (start, _) = trainer.lesson(), trainer.start()
    for seed, variant in missing:
        begin, chosen = time.process_time(), settings[variant]
        gates = gate_configurations(n, seed)
        # an evaluator of its own: what it remembers would make the second variant cheaper
        evaluator = Evaluator(trainer.data, 'val')
        models = train_gates(
            trainer.experts, lesson, gates, evaluator, trainer.floor, chosen, start=start
        )
        scores = [m.score for m in models if m.feasible]
        about = {'data': name, 'seed': seed, 'expert': 'gate', 'variant': variant}
        about |= {'configurations': n, 'epochs': settings[FULL].epochs, 'feasible': len(scores)}
        found = {'best': max(scores, default=None), 'cpu': time.process_time() - begin}
        write_json(place(seed, variant), about | found)
        print({**about, **found}, flush=True)


def compute_studies(
    work: Path, name: str, seeds, experts, n: int, variant: str, data_dir: Path | None
):
    "Compute the studies that are missing with the code at hand."
    import tempfile

    from moe_expert.datasets import load_dataset
    from moe_expert.tune_experts import ExpertTuner

    place = lambda seed, e: work / f'{name}-{seed}-{e}-study-{variant}.json'
    for seed in (s for s in seeds if not all(place(s, e).exists() for e in experts)):
        with tempfile.TemporaryDirectory() as folder:
            data = load_dataset(name, data_dir=data_dir)
            tuner = ExpertTuner(data, seed=seed, cache_dir=folder, device='cpu')
            for expert in experts:
                begin = time.process_time()
                result = tuner.tune_expert(expert, n)
                about = {'data': f'{name}, studies', 'seed': seed, 'expert': expert}
                about |= {'variant': variant, 'configurations': n, 'epochs': 2000}
                found = {'best': result['best_score'] if result['feasible'] else None}
                found |= {'feasible': result['n_feasible'], 'cpu': time.process_time() - begin}
                write_json(place(seed, expert), about | found)
                print({**about, **found}, flush=True)


def _pairs(units: list[dict]) -> dict[tuple[str, str], dict[int, dict[str, dict]]]:
    "(data, expert) → seed → variant → unit."
    found = {}
    for u in units:
        of = found.setdefault((u['data'], u['expert']), {}).setdefault(u['seed'], {})
        of[u['variant']] = u
    return found


def _row(name: str, expert: str, both: list[dict[str, dict]]) -> dict:
    "What the limits lose, from the seeds that have both variants."
    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.specs import GATE

    spec = GATE if expert == 'gate' else SPECS[expert]
    best = [(s[FULL]['best'], s[LIMITED]['best']) for s in both]
    sign = 1 if spec.maximize else -1
    mean, half = t_interval([sign * (a - b) for a, b in best if a is not None and b is not None])
    return {
        'data': name,
        'expert': expert,
        'objective': spec.objective,
        'seeds': len(both),
        'configurations': both[0][FULL]['configurations'],
        'epochs': both[0][FULL]['epochs'],
        'loss': mean,
        'low': mean - half,
        'high': mean + half,
        'lost_winners': sum(a is not None and b is None for a, b in best),
        'new_winners': sum(a is None and b is not None for a, b in best),
        'cpu_full': sum(s[FULL]['cpu'] for s in both) / len(both),
        'cpu': sum(s[LIMITED]['cpu'] for s in both) / len(both),
    }


def analyse(work: Path) -> list[dict]:
    "A row for each data set and expert that has a confirming seed."
    rows = []
    pairs = _pairs([read_json(path) for path in work.glob('*.json')])
    for (name, expert), seeds in sorted(pairs.items()):
        both = [s for seed, s in seeds.items() if len(s) == 2 and seed >= FIRST_SEED]
        rows += [_row(name, expert, both)] if both else []
    return rows


HEAD = ['data', 'expert', 'seeds', 'mean loss', '95 %', 'winners lost / gained', 'CPU', 'ratio']


def table(rows: list[dict]) -> list[list[str]]:
    return [
        [
            r['data'],
            f'{r["expert"]} ({r["objective"]})',
            str(r['seeds']),
            f'{r["loss"]:+.4f}',
            f'{r["low"]:+.4f} to {r["high"]:+.4f}',
            f'{r["lost_winners"]} / {r["new_winners"]}',
            f'{r["cpu_full"]:.0f} → {r["cpu"]:.0f} s',
            f'{r["cpu"] / r["cpu_full"]:.2f}',
        ]
        for r in rows
    ]


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--data', default='own:20000x60')
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--first-seed', type=int, default=FIRST_SEED)
    p.add_argument('--experts', nargs='+', default=list(EXPERTS))
    p.add_argument('--configurations', type=int, default=10)
    p.add_argument('--epochs', type=int, default=2000)
    p.add_argument('--gates', nargs='+', metavar='NAME', help='gates on these benchmarks instead')
    p.add_argument('--studies', nargs='+', metavar='NAME', help='whole studies of these instead')
    p.add_argument('--before', action='store_true', help='the code at hand is the earlier one')
    p.add_argument('--data-dir', type=Path, default=find_data(), help='files of the benchmarks')
    p.add_argument('--public', type=Path, help='files of the catalogue')
    p.add_argument('--work', type=Path, default=WORK)
    p.add_argument('--summary', action='store_true', help='compute nothing')
    a = p.parse_args()
    if not a.summary:
        seeds = range(a.first_seed, a.first_seed + a.seeds)
        for name in a.gates or ():
            compute_gates(a.work, name, seeds, a.configurations, a.data_dir)
        for name in a.studies or ():
            variant = FULL if a.before else LIMITED
            compute_studies(a.work, name, seeds, a.experts, 30, variant, a.data_dir)
        if not a.gates and not a.studies:
            options = a.configurations, a.epochs, a.public
            compute(a.work, a.data, seeds, a.experts, *options)
    for row in [HEAD, *table(analyse(a.work))]:
        print(' | '.join(row))


if __name__ == '__main__':
    main()
