"""How should a gate be taught? REINFORCE against the direct gradient, three choices of teaching
nodes, and single settings.

    python benchmarks/gate.py --datasets german math por bail --seeds 5    # compute, then write

Development seeds only: split seeds 1000 + k, seeds 100 + k. For every data set and k the experts
are tuned once (10 trials each) and shared by all variants. Every variant trains the same gate
configurations (the default and random draws from the tuner's space) with the same epochs and
validations; the best feasible one by validation `final_score` is scored on the test nodes of that
split. Finished parts lie in the work folder and are not computed again; the summary is
gate_results.json.

REINFORCE: every node draws an expert from its gate's weights. `reinforce` gives all nodes the
reward of the batch, soft objective of what was drawn minus that of expert1; `reinforce_node` gives
each node the first-order effect of its own choice. Both subtract a moving average of past rewards.
Other variants use the direct gradient through the soft mixture; `crossfit` and `val_half` are other
nodes that teach.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import numpy as np
import torch
from common import draw, find_data, read_json, t_interval, write_json
from torch import Tensor

from moe_expert.datasets import load_dataset
from moe_expert.experts.losses import soft_gaps
from moe_expert.experts.specs import EXPERTS, GATE
from moe_expert.experts.trainers import per_model
from moe_expert.experts.training import TrainedModel, run_training
from moe_expert.mixture.gate import gate_weights, mixture_attributions, uniform_mixture
from moe_expert.mixture.gate_training import (
    GateConfig,
    GateSettings,
    GateTrainer,
    Lesson,
    gate_terms,
)
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.procedure import att_jsd
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.settings import GATE_DEFAULTS, GATE_SPACE

HERE = Path(__file__).resolve().parent
WORK, RESULTS = HERE / 'work' / 'gate', HERE / 'gate_results.json'
SCORES = ('final_score', 'utility', 'fair_result', 'fair_procedure', 'att_jsd')
DATASETS = ('german', 'math', 'por', 'bail')
PARTS = ('direct', 'best_start', 'reinforce', 'val_half', 'crossfit', 'single')


@dataclass(frozen=True)
class Setting:
    "One gate's own way of being taught; the defaults are the package's."

    sharpness: float = 0.1  # width of the soft step
    temperature: float = 1.0  # of the softmax over the experts
    att_jsd: float = 1 / 3  # weight of ATT_JSD
    weight_decay: float = 0.0
    start: float = 0.0  # head start, in logits, of the expert with the best validation score


@dataclass(frozen=True)
class Trial:
    "A gate to be trained: its variant, its configuration, its setting."

    variant: str
    config: GateConfig
    setting: Setting = field(default_factory=Setting)


# single settings, with the default configuration; compared with the direct gate of that
SETTINGS = {
    'sharpness 0.03': Setting(sharpness=0.03),
    'sharpness 0.3': Setting(sharpness=0.3),
    'temperature 0.5': Setting(temperature=0.5),
    'temperature 2': Setting(temperature=2.0),
    'without att_jsd': Setting(att_jsd=0.0),
    'att_jsd × 3': Setting(att_jsd=1.0),
    'weight decay 0.01': Setting(weight_decay=0.01),
    'start at the best expert': Setting(start=2.0),
    'learning rate 0.01': Setting(),
}


def objective(p1: Tensor, attributions: Tensor, lesson: Lesson, c: dict[str, Tensor]) -> Tensor:
    "[M] as `gate_training.soft_objective`, with a width and a weight of ATT_JSD for each gate."
    sharpness = c['sharpness']
    soft, positive, negative = (
        torch.sigmoid((p1 - 0.5) / sharpness[:, None]),
        lesson.y == 1,
        lesson.y == 0,
    )
    accuracy = torch.where(positive, soft, 1 - soft).mean(-1)
    f1 = 2 * soft[:, positive].sum(-1) / (soft.sum(-1) + positive.sum())
    pairs = p1[:, positive, None] - p1[:, None, negative]
    auc = torch.sigmoid(pairs / sharpness[:, None, None]).mean((-1, -2))
    divergence = att_jsd(attributions, lesson.sens, undefined='nan')
    gaps = soft_gaps(soft, lesson.group_weights)
    return (accuracy + f1 + auc) / 3 - gaps - c['att_jsd'] * divergence


class Direct(GateTrainer):
    "The direct gradient through the soft mixture, with settings for each gate."

    def __init__(
        self, experts, lesson, trials: list[Trial], settings: GateSettings, seed: int, best: int
    ):
        super().__init__(experts, lesson, [t.config for t in trials], settings, seed)
        own = [t.setting for t in trials]
        self.temperatures = per_model(own, 'temperature')[:, None, None]
        self.coefficients |= {k: per_model(own, k) for k in ('sharpness', 'att_jsd')}
        self.adam.weight_decay = per_model(own, 'weight_decay')[:, None]
        with torch.no_grad():
            self.adam.params['gate.out_bias'][:, best] += per_model(own, 'start')

    def scaled(self, params, t: Tensor) -> dict[str, Tensor]:
        "A temperature is as good as smaller weights of the last layer."
        out, bias = params['gate.out'] / t, params['gate.out_bias'] / t[:, 0]
        return params | {'gate.out': out, 'gate.out_bias': bias}

    def population(self, flat=None):
        mixture = super().population(flat)
        t = self.temperatures[self.running] if flat is None else self.temperatures
        return replace(mixture, gates=self.scaled(mixture.gates, t))

    def loss(self, params, lesson, warm=False):
        params = self.scaled(params, self.temperatures[self.running])
        g = gate_weights(params, lesson.x @ params['gate.features'].mT, lesson.p1)
        attributions = mixture_attributions(params, lesson.x, lesson.path)
        p1 = (g * lesson.p1).sum(-1)
        return self.terms(g) - objective(p1, attributions, lesson, self.coefficients)

    def terms(self, g: Tensor) -> Tensor:
        "[M] load balance minus entropy bonus."
        entropy, balance = gate_terms(g)
        return (
            self.coefficients['lb_coeff'] * balance - self.coefficients['entropy_coeff'] * entropy
        )


class Reinforce(Direct):
    "Experts are drawn; a draw's log-probability is weighted with its reward over a moving average."

    def __init__(self, experts, lesson, trials, settings, seed, best):
        super().__init__(experts, lesson, trials, settings, seed, best)
        self.coefficients['by_node'] = torch.tensor([t.variant == 'reinforce_node' for t in trials])
        self.coefficients['baseline'] = torch.zeros(len(trials), dtype=torch.double)
        self.draws, self.first_step = torch.Generator().manual_seed(seed), True

    def loss(self, params, lesson, warm=False):
        from_x = lesson.x @ params['gate.features'].mT
        g = gate_weights(params, from_x, lesson.p1, self.settings.temperature)
        drawn = torch.multinomial(g.detach().flatten(0, 1), 1, generator=self.draws)
        drawn = drawn.view(g.shape[:2])
        advantage = self.advantage(rewards(drawn, lesson, self.coefficients))
        log_g = g.gather(-1, drawn[..., None])[..., 0].clamp(min=1e-12).log()
        return self.terms(g) - (advantage * log_g).sum(-1)

    def advantage(self, reward: Tensor) -> Tensor:
        "[M, n] rewards over the moving average, which they then move."
        c, mean = self.coefficients, reward.mean(-1)
        if self.first_step:
            c['baseline'], self.first_step = mean.clone(), False
        advantage = reward - c['baseline'][:, None]
        c['baseline'] = 0.9 * c['baseline'] + 0.1 * mean
        return advantage


def expert_attributions(lesson: Lesson) -> Tensor:
    "[n, K, d] Integrated Gradients of each expert's own probability."
    s = lesson.path.states
    margin = (s.margin * s.weight).unflatten(1, lesson.path.margins.shape[:2])  # [K, S, n]
    return (margin.permute(1, 2, 0)[..., None] * lesson.path.slopes).sum(0)


def rewards(drawn: Tensor, lesson: Lesson, c: dict[str, Tensor]) -> Tensor:
    """[M, n] the reward of each node's draw.

    It is the batch's gain over expert1, or the first-order effect of the node's own choice in place
    of expert1.
    """
    by_expert, p1, nodes = expert_attributions(lesson), lesson.p1, torch.arange(drawn.shape[1])
    a = by_expert[nodes, drawn].requires_grad_()  # [M, n, d]
    p = p1[nodes, drawn].requires_grad_()
    value = objective(p, a, lesson, c)
    to_p, to_a = torch.autograd.grad(value.sum(), (p, a))
    with torch.no_grad():
        first = objective(p1[:, 0].expand_as(p), by_expert[:, 0].expand_as(a), lesson, c)
        node = to_p * (p - p1[:, 0]) + (to_a * (a - by_expert[:, 0])).sum(-1)
        batch = (value - first)[:, None].expand_as(p)
        return torch.where(c['by_node'][:, None], node, batch)


def draw_configs(k: int, n_trials: int) -> list[GateConfig]:
    "The default configuration and random draws, the same for all variants."
    rng = np.random.default_rng(k)
    drawn = [draw(GATE_SPACE, rng) for _ in range(n_trials - 1)]
    return [GateConfig(**params, seed=100 + k) for params in (GATE_DEFAULTS, *drawn)]


def trials_of(part: str, k: int, n_trials: int) -> list[Trial]:
    "The gates of a part of the study."
    configs = draw_configs(k, n_trials)
    if part == 'reinforce':
        return [Trial(v, c) for v in ('reinforce', 'reinforce_node') for c in configs]
    if part == 'single':
        fast = replace(configs[0], gate_lr=1e-2)
        return [
            Trial(name, fast if name.startswith('learning') else configs[0], setting)
            for name, setting in SETTINGS.items()
        ]
    return [Trial(part, c) for c in configs]


@cache
def prepare(name: str, k: int, n_expert_trials: int = 10):
    "Data of the development split and a folder with its tuned experts."
    folder = WORK / 'experts' / f'{name}-{k}'
    data = load_dataset(name, data_dir=find_data(), split_seed=1000 + k)
    tuner = ExpertTuner(data, 100 + k, folder, split_seed=1000 + k, device='cpu')
    tuner.tune_all_experts(n_expert_trials)
    return data, folder


def _scores(evaluator: Evaluator, population) -> list[dict]:
    s = evaluator.scores(population)
    return [{name: round(s[name][i].item(), 5) for name in SCORES} for i in range(len(population))]


def references(name: str, k: int) -> dict:
    "Experts alone and the uniform mixture, on validation and test nodes."
    data, folder = prepare(name, k)
    trainer = MoETrainer(data, True, folder, 100 + k, device='cpu')
    methods = {e: trainer.experts.select([i]) for i, e in enumerate(EXPERTS)}
    methods['uniform'] = uniform_mixture(trainer.experts, data.x.shape[1])
    validation, testing = (Evaluator(trainer.data, split) for split in ('val', 'test'))
    records = {}
    for label, population in methods.items():
        violations = trainer.floor.constraints(validation.scores(population))
        records[label] = {
            'val': _scores(validation, population)[0],
            'test': _scores(testing, population)[0],
            'feasible': bool((violations <= 0).all()),
        }
    return records


def train_part(name: str, k: int, part: str, n_trials: int, settings: GateSettings) -> list[dict]:
    """All gates of a part, trained side by side.

    The records hold each gate's checkpoint on the nodes that select and on the test nodes.
    """
    data, folder = prepare(name, k)
    start = time.process_time()
    teachers = part if part in ('val_half', 'crossfit') else 'train'
    trainer = MoETrainer(
        data, True, folder, 100 + k, device='cpu', settings=MoESettings(settings, teachers=teachers)
    )
    trials, select = trials_of(part, k, n_trials), trainer.evaluator('select')
    best = int(select.scores(trainer.experts)['final_score'].argmax()) if part == 'single' else 0
    gates = (Reinforce if part == 'reinforce' else Direct)(
        trainer.experts, trainer.lesson(), trials, settings, 100 + k, best
    )
    if part == 'best_start':
        with torch.no_grad():
            gates.adam.params['gate.out_bias'][:] = trainer.start()[0]
    models = run_training(
        gates, trials, GATE, select, trainer.floor, settings, offer_start=part == 'best_start'
    )
    gone = [m.error for m in models if m.error]
    if gone:
        raise SystemExit(f'{name} {k} {part}: {gone}')
    first = models[0].population
    stacked = {p: torch.cat([m.population.gates[p] for m in models]) for p in first.gates}
    population = replace(first, gates=stacked)
    tested = _scores(Evaluator(trainer.data, 'test'), population)
    usage = population.weights(data.x, data.edge_index, select.nodes).mean(1).tolist()
    more = {'part_cpu_s': round(time.process_time() - start, 1)}
    return [record(*parts) | more for parts in zip(trials, models, tested, usage)]


def record(trial: Trial, model: TrainedModel, test: dict, usage: list[float]) -> dict:
    "What is kept of one gate."
    c = trial.config
    return {
        'variant': trial.variant,
        **{name: getattr(c, name) for name in ('gate_lr', 'entropy_coeff', 'lb_coeff')},
        'val': {s: round(model.metrics[s], 5) for s in SCORES},
        'test': test,
        **{name: getattr(model, name) for name in ('feasible', 'epoch', 'epochs_run')},
        'usage': [round(v, 3) for v in usage],
    }


def cell(name: str, k: int, part: str, n_trials: int, settings: GateSettings):
    "A record, from the work folder or computed."
    path = WORK / 'cells' / f'{name}-{k}-{part}.json'
    if path.exists():
        return read_json(path)
    if part == 'references':
        found, seconds = references(name, k), ''
    else:
        found = train_part(name, k, part, n_trials, settings)
        seconds = found[0]['part_cpu_s']
    write_json(path, found)
    print(name, k, part, time.strftime('%H:%M:%S'), seconds, flush=True)
    return found


def chosen(records: list[dict]) -> dict:
    "The feasible trial with the best validation score; where none is feasible, of all."
    return max(records, key=lambda r: (r['feasible'], r['val']['final_score']))


def difference(values: list[float]) -> dict:
    "Mean of paired differences with its 95 % t-interval."
    mean, half = t_interval(values)
    ends = {'mean': mean, 'low': mean - half, 'high': mean + half}
    return {'n': len(values), **{name: round(v, 4) for name, v in ends.items()}}


def of_cell(name: str, k: int) -> dict | None:
    """variant → {val, test} of the chosen gate, of single settings and of references.

    None while there is no direct gate.
    """
    paths = {p: WORK / 'cells' / f'{name}-{k}-{p}.json' for p in ('references', *PARTS)}
    records = {p: read_json(f) for p, f in paths.items() if f.exists()}
    if not {'references', 'direct'} <= set(records):
        return None

    def both(r):
        return {s: r[s]['final_score'] for s in ('val', 'test')}

    refs = {
        label: both(r) | {'feasible': r['feasible']}
        for label, r in records.pop('references').items()
    }
    single = {r['variant']: both(r) for r in records.pop('single', [])}
    rows = [r for part in records.values() for r in part]
    variants = {
        v: both(chosen([r for r in rows if r['variant'] == v]))
        for v in dict.fromkeys(r['variant'] for r in rows)
    }
    best = max(refs, key=lambda v: (refs[v]['feasible'], refs[v]['val']))
    refs = {
        label: {s: r[s] for s in ('val', 'test')}
        for label, r in (refs | {'best by validation': refs[best]}).items()
    }
    single = single and {'default': both(records['direct'][0])} | single
    return {'dataset': name, 'k': k, 'variants': variants, 'references': refs, 'single': single}


def summary(cells: list[dict]) -> list[dict]:
    """Rows of paired differences to the direct gate taught by the training nodes.

    Single settings are compared with the direct gate of the default configuration.
    """
    rows = []
    for name in (*dict.fromkeys(c['dataset'] for c in cells), 'all'):
        for kind, base in (('variants', 'direct'), ('references', None), ('single', 'default')):
            own = [c for c in cells if name in (c['dataset'], 'all')]
            for other in dict.fromkeys(v for c in own for v in c[kind] if v != base):
                both = [c for c in own if other in c[kind]]
                if len(both) < 2:
                    continue
                against = [c['variants']['direct'] if base is None else c[kind][base] for c in both]
                row = {'dataset': name, 'kind': kind, 'what': other}
                for split in ('val', 'test'):
                    gaps = [c[kind][other][split] - b[split] for c, b in zip(both, against)]
                    row[split] = difference(gaps)
                rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--datasets', nargs='+', default=DATASETS)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument(
        '--trials', type=int, default=3, help='gate configurations of every variant'
    )
    parser.add_argument('--epochs', type=int, default=600, help='of every gate, at most')
    parser.add_argument('--parts', nargs='+', default=('references', *PARTS))
    parser.add_argument('--only', nargs='+', type=int, help='these k only')
    parser.add_argument(
        '--summary',
        action='store_true',
        help='compute nothing, write gate_results.json from what is there',
    )
    args = parser.parse_args()
    settings = GateSettings(epochs=args.epochs)
    torch.set_num_threads(1)
    if not args.summary:
        for k in args.only or range(args.seeds):
            for name in args.datasets:
                for part in args.parts:
                    cell(name, k, part, args.trials, settings)
    cells = [c for name in DATASETS for k in range(args.seeds) if (c := of_cell(name, k))]
    if cells:
        result = {
            'trials': args.trials,
            'settings': {
                k: getattr(settings, k) for k in ('epochs', 'val_every', 'patience', 'temperature')
            },
            'split_seeds': '1000 + k',
            'seeds': '100 + k',
            'expert_trials': 10,
            'summary': summary(cells),
            'cells': cells,
        }
        text = json.dumps(result, separators=(',', ':'))
        RESULTS.write_text(text.replace('{"dataset"', '\n{"dataset"') + '\n')
        print(f'{len(cells)} cells in {RESULTS.name}')


if __name__ == '__main__':
    main()
