"""Which sampler finds better hyperparameters in 30 trials? A study on real data with paired seeds.

    python benchmarks/samplers.py --datasets german bail --seeds 10     # compute, then print

For every data set, expert and seed, all strategies tune from the same ten trials (the default
configuration and nine random ones, as the tuner draws them) and then go on in their own way. Trials
that are due at the same moment, those of other seeds too, are trained side by side; that changes no
result, because a configuration's result does not depend on its neighbours, and everything else is
as in `ExpertTuner`: search spaces, floor of the seed, constraints, training seed. Finished
units lie in the work folder and are not computed again.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import numpy as np
import optuna
from common import EXPERTS, best_so_far, find_data, read_json, t_interval, write_json
from optuna.distributions import FloatDistribution
from optuna.samplers import GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

WORK = Path(__file__).resolve().parent / 'work'
START = 15  # trials that all strategies share
RANDOM, SINGLE = 'random', 'tpe-1'  # what the others are compared with
TUNER = 'tpe-15'  # what the tuner does, but for expert 2: see `ExpertSpec.batches`


@dataclass(frozen=True)
class Strategy:
    "How a study goes on after its start-up."

    title: str
    batch: int | None  # trials asked before any of them is told; None: all that are left
    sampler: Callable[[int], optuna.samplers.BaseSampler]  # seed of a draw -> sampler
    once: bool = False  # one sampler, with its state, for the whole study; else one per trial
    shared_start: bool = True  # False: only the default configuration is shared


def tpe(seed: int, multivariate: bool | None = None) -> TPESampler:
    return TPESampler(
        seed=seed, n_startup_trials=START, constant_liar=True, multivariate=multivariate
    )


STRATEGIES = {
    'tpe-1': Strategy('TPE, one by one', 1, tpe),
    'tpe-5': Strategy('TPE, batches of 5', 5, tpe),
    'tpe-10': Strategy('TPE, batches of 10', 10, tpe),
    'tpe-15': Strategy('TPE, batches of 15', 15, tpe),
    'tpe-independent-10': Strategy(
        'TPE of single parameters, batches of 10', 10, lambda seed: tpe(seed, multivariate=False)
    ),
    'gp-1': Strategy(
        'GP, one by one', 1, lambda seed: GPSampler(seed=seed, n_startup_trials=START), once=True
    ),
    'gp-10': Strategy(
        'GP, batches of 10',
        10,
        lambda seed: GPSampler(seed=seed, n_startup_trials=START),
        once=True,
    ),
    'qmc': Strategy(
        'quasi-random (Sobol)',
        None,
        lambda seed: QMCSampler(seed=seed, scramble=True),
        once=True,
        shared_start=False,
    ),
    RANDOM: Strategy('random', None, lambda seed: RandomSampler(seed=seed)),
}


class Tuning:
    "One strategy's study: asks for a batch, is told its results."

    def __init__(self, strategy: Strategy, spec, seed: int, n_trials: int):
        from moe_expert.tuning.settings import DEFAULT_PARAMS, search_space

        self.strategy, self.spec, self.seed, self.n_trials, self.space = (
            strategy,
            spec,
            seed,
            n_trials,
            search_space(spec),
        )
        self.study = optuna.create_study(direction='maximize' if spec.maximize else 'minimize')
        self.study.enqueue_trial({k: DEFAULT_PARAMS[k] for k in self.space})
        self.distributions = {
            k: FloatDistribution(r.low, r.high, log=r.log) for k, r in self.space.items()
        }
        self.kept, self.results = None, []

    @property
    def done(self) -> int:
        return len(self.results)

    def _sampler(self, rank: int):
        from moe_expert.tuning.studies import draw_seed

        seed = draw_seed(self.seed, self.spec.name, rank)
        if rank < START and self.strategy.shared_start:
            return RandomSampler(seed=seed)
        if not self.strategy.once:
            return self.strategy.sampler(seed)
        self.kept = self.kept or self.strategy.sampler(seed)
        return self.kept

    def ask(self) -> list[optuna.Trial]:
        "The next batch."
        left = self.n_trials - self.done
        size = min(left, START if self.done < START else self.strategy.batch or left)
        trials = []
        for rank in range(self.done, self.done + size):
            self.study.sampler = self._sampler(rank)
            trials.append(self.study.ask(self.distributions))
        return trials

    def tell(self, trial: optuna.Trial, result: dict):
        "What training made of a trial."
        from moe_expert.experts.floor import CONSTRAINTS

        if result['score'] is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            for name, value in zip(CONSTRAINTS, result['constraints']):
                trial.set_constraint(name, value)
            self.study.tell(trial, result['score'])
        self.results.append({'params': trial.params, **result})


def _key(seed: int, params: dict) -> tuple:
    return seed, *sorted(params.items())


def units(
    data,
    evaluator,
    spec,
    seeds: list[int],
    n_trials: int,
    settings,
    strategies: dict[str, Strategy],
) -> list[dict]:
    """All strategies on one data set and expert, for several seeds at once; a record per seed.

    Every seed has its own floor, studies and models. Every round asks each study that is behind for
    its next batch, and trains all of these configurations side by side.
    """
    import torch

    from moe_expert.experts.floor import Floor
    from moe_expert.experts.trainers import TrainConfig
    from moe_expert.experts.training import reference_floor, train_population

    floors = {s: reference_floor(data, s, evaluator=evaluator, settings=settings) for s in seeds}
    tunings, known = (
        {(s, k): Tuning(v, spec, s, n_trials) for s in seeds for k, v in strategies.items()},
        {},
    )
    asking = training = 0.0
    while (now := min(t.done for t in tunings.values())) < n_trials:
        start = time.perf_counter()
        asked = [(t, trial) for t in tunings.values() if t.done == now for trial in t.ask()]
        asking += time.perf_counter() - start
        new = {
            key: trial.params
            for t, trial in asked
            if (key := _key(t.seed, trial.params)) not in known
        }
        start = time.perf_counter()
        if new:
            configs = [TrainConfig(**p, seed=seed) for (seed, *_), p in new.items()]
            references = [
                (floors[c.seed].reference_utility, floors[c.seed].reference_auc) for c in configs
            ]
            floor = Floor(*torch.tensor(references, dtype=torch.float64).T)
            models = train_population(
                data, configs, spec, evaluator=evaluator, floor=floor, settings=settings
            )
            for key, m in zip(new, models):
                known[key] = {
                    'score': m.score,
                    'constraints': list(m.constraints),
                    'feasible': m.feasible,
                    'epochs': m.epochs_run,
                }
        training += time.perf_counter() - start
        for tuning, trial in asked:
            tuning.tell(trial, known[_key(tuning.seed, trial.params)])
    trained = {s: sum(key[0] == s for key in known) for s in seeds}
    return [
        {
            'seed': s,
            'floor': asdict(floors[s]),
            'asking_s': asking / len(seeds),
            'training_s': training / len(seeds),
            'trained': trained[s],
            'studies': {k: tunings[s, k].results for k in strategies},
        }
        for s in seeds
    ]


def compute(
    work: Path,
    datasets,
    experts,
    seeds: int,
    n_trials: int,
    epochs: int,
    data_dir=None,
    strategies=STRATEGIES,
    say=print,
):
    "Compute the units that are missing in `work`."
    from moe_expert.datasets import load_dataset
    from moe_expert.experts.specs import EXPERTS as SPECS
    from moe_expert.experts.trainers import TrainSettings
    from moe_expert.scores.evaluation import Evaluator
    from moe_expert.tuning.settings import HIDDEN

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    for name in datasets:
        data = name if not isinstance(name, str) else load_dataset(name, data_dir=data_dir)
        name = data.name
        evaluator, settings = (
            Evaluator(data, 'val'),
            TrainSettings(epochs=epochs, hidden=HIDDEN.get(data.name, 8)),
        )
        for expert in experts:
            paths = {
                s: work / f'{name}-{expert}-{s}-{n_trials}x{epochs}.json' for s in range(seeds)
            }
            there = {s: read_json(p)['studies'] if p.exists() else {} for s, p in paths.items()}
            groups = {}  # seeds that lack the same strategies
            for s in there:
                groups.setdefault(tuple(k for k in strategies if k not in there[s]), []).append(s)
            for missing, members in groups.items():
                if not missing:
                    continue
                records = units(
                    data,
                    evaluator,
                    SPECS[expert],
                    members,
                    n_trials,
                    settings,
                    {k: strategies[k] for k in missing},
                )
                for r in records:
                    r['studies'] = {**there[r['seed']], **r['studies']}
                    write_json(
                        paths[r['seed']],
                        {'dataset': name, 'edition': data.edition, 'expert': expert, **r},
                    )
                trained, training, asking = (
                    sum(r[k] for r in records) for k in ('trained', 'training_s', 'asking_s')
                )
                say(
                    f'{name}, {expert}, seeds {members}, {", ".join(missing)}: {trained} trained '
                    f'in {training:.0f} s, drawn in {asking:.0f} s',
                    flush=True,
                )


def best_scores(results: list[dict], maximize: bool) -> np.ndarray:
    "[n_trials] best feasible score after each trial; NaN while there is none."
    scores = [r['score'] if r['feasible'] else np.nan for r in results]
    return best_so_far(np.array(scores, dtype=float), maximize)


def load_units(work: Path, n_trials: int, epochs: int) -> list[dict]:
    return [read_json(p) for p in sorted(work.glob(f'*-{n_trials}x{epochs}.json'))]


def analyse(units: list[dict]) -> dict:
    """Per problem and over all: best feasible scores; gains over random and over TPE one by one,
    paired by seed (positive: better).
    """
    from moe_expert.experts.specs import EXPERTS as SPECS

    problems, pooled = [], {RANDOM: {}, SINGLE: {}}
    for dataset, expert in sorted({(u['dataset'], u['expert']) for u in units}):
        spec = SPECS[expert]
        mine = [u for u in units if (u['dataset'], u['expert']) == (dataset, expert)]
        there = [k for k in STRATEGIES if all(k in u['studies'] for u in mine)]
        best = {
            k: np.array([best_scores(u['studies'][k], spec.maximize)[-1] for u in mine])
            for k in there
        }
        sign, known = 1 if spec.maximize else -1, best[RANDOM][np.isfinite(best[RANDOM])]
        spread = known.std(ddof=1) if len(known) > 1 else np.nan
        rows = {
            k: {
                'best': float(np.nanmean(b)) if np.isfinite(b).any() else np.nan,
                'infeasible': int(np.isnan(b).sum()),
                'over': {},
            }
            for k, b in best.items()
        }
        for k, base in ((k, base) for base in pooled if base in best for k in best if k != base):
            gain = sign * (best[k] - best[base])
            mean, half = t_interval(gain)
            rows[k]['over'][base] = {
                'gain': mean,
                'half': half,
                'better': int((gain > 1e-12).sum()),
                'worse': int((gain < -1e-12).sum()),
            }
            for u, g in zip(mine, gain):
                if np.isfinite(g / spread):
                    pooled[base].setdefault(k, {}).setdefault(u['seed'], []).append(g / spread)
        problems.append(
            {
                'dataset': dataset,
                'expert': expert,
                'objective': spec.objective,
                'seeds': len(mine),
                'rows': rows,
            }
        )
    everywhere = {k for k in STRATEGIES if all(k in p['rows'] for p in problems)}
    overall = {
        base: {
            k: t_interval(np.array([np.mean(v) for v in seeds.values()]))
            for k, seeds in gains.items()
            if k in everywhere
        }
        for base, gains in pooled.items()
    }
    return {
        'problems': problems,
        'overall': {
            base: {k: {'gain': m, 'half': h} for k, (m, h) in g.items()}
            for base, g in overall.items()
        },
    }


def verdict(analysis: dict) -> str:
    "What the pooled intervals say, in sentences."
    overall = analysis['overall'][RANDOM]
    clear = [k for k, v in overall.items() if v['gain'] - v['half'] > 0]
    top, mine = max(overall, key=lambda k: overall[k]['gain']), overall[TUNER]
    text = (
        f"Over these problems and seeds, the gain of the tuner's sampler "
        f'({STRATEGIES[TUNER].title}) over random is {mine["gain"]:+.2f} ± {mine["half"]:.2f} '
        'standard deviations (95 % t-interval over seeds).'
    )
    if single := analysis['overall'][SINGLE].get(TUNER):
        text += f' Its difference to TPE one by one: {single["gain"]:+.2f} ± {single["half"]:.2f}.'
    names = ', '.join(STRATEGIES[k].title for k in clear) or 'none'
    return (
        f'{text} Largest mean gain: {STRATEGIES[top].title}. '
        f'The interval of the gain leaves out 0 on the good side for: {names}.'
    )


def _gain(record: dict | None, digits: int) -> str:
    return f'{record["gain"]:+.{digits}f} ± {record["half"]:.{digits}f}' if record else '—'


def table(analysis: dict) -> str:
    "Markdown."
    out, head = [], '| sampler | {}gain over random (95 %) | {}gain over TPE one by one (95 %) |'
    for p in analysis['problems']:
        out += [
            f'**{p["dataset"]}, {p["expert"]}** ({p["objective"]}), {p["seeds"]} seeds',
            '',
            head.format('best feasible, mean | ', 'better / worse seeds | ') + ' infeasible |',
            '|---|---|---|---|---|---|',
        ]
        for k, r in p['rows'].items():
            over = r['over'].get(RANDOM)
            seeds = f'{over["better"]} / {over["worse"]}' if over else '—'
            out.append(
                f'| {STRATEGIES[k].title} | {r["best"]:.4f} | {_gain(over, 4)} | {seeds} | '
                f'{_gain(r["over"].get(SINGLE), 4)} | '
                f'{r["infeasible"]} |'
            )
        out.append('')
    out += [
        "**All problems**, for the samplers tried on all: gains in standard deviations of random's "
        'best (mean over problems, 95 % '
        't-interval over seeds)',
        '',
        head.format('', ''),
        '|---|---|---|',
    ]
    for k in STRATEGIES:
        if any(k in gains for gains in analysis['overall'].values()):
            out.append(
                f'| {STRATEGIES[k].title} | '
                + ' | '.join(_gain(analysis['overall'][b].get(k), 2) for b in (RANDOM, SINGLE))
                + ' |'
            )
    return '\n'.join(out + ['', verdict(analysis)])


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--datasets', nargs='+', default=['german', 'bail'])
    p.add_argument('--experts', nargs='+', default=list(EXPERTS))
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--trials', type=int, default=30)
    p.add_argument('--epochs', type=int, default=2000)
    p.add_argument(
        '--strategies',
        nargs='+',
        default=list(STRATEGIES),
        choices=list(STRATEGIES),
        help='compute these only; the table shows all strategies that every unit of a problem has',
    )
    p.add_argument(
        '--data-dir',
        default=None,
        help='folder with the benchmark files (default: MOE_EXPERT_DATA, or ../shared/data)',
    )
    p.add_argument('--work', type=Path, default=WORK / 'samplers')
    return p.parse_args(argv)


def main(argv=None):
    a = parse(argv)
    compute(
        a.work,
        a.datasets,
        a.experts,
        a.seeds,
        a.trials,
        a.epochs,
        a.data_dir or find_data(),
        {k: STRATEGIES[k] for k in STRATEGIES if k in a.strategies},
    )
    print(table(analyse(load_units(a.work, a.trials, a.epochs))))


if __name__ == '__main__':
    main()
