"""Do experts that look at the graph do better? Every backbone tuned alike on german and bail, and
compared with the mlp on the test nodes.

    python benchmarks/backbones.py                              # what is missing, then BACKBONES.md
    python benchmarks/backbones.py --datasets german --backbones mlp gcn --render

A unit (data set, backbone) is one `ExpertTuner` with its own reference and floor; the winners are
evaluated on the test nodes, which nothing was selected on. What is known of every node is kept in
the work folder, so that the differences to the mlp are resampled in pairs: the same people are
drawn for both. Units that are there are not computed again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import torch
from common import EXPERTS, find_data

HERE = Path(__file__).resolve().parent
BACKBONES = ('mlp', 'gcn', 'sage', 'gin', 'gat')
SHOWN = ('utility', 'fair_result', 'fair_procedure', 'final_score')
PARTS = ('p1', 'fidelity', 'flipped', 'masked', 'attributions')


COVERED = ('utility',)  # scores whose percentile intervals cover, see COVERAGE.md


ABOUT = """\
Winners of each tuning on the test nodes; below each value its difference to the mlp. Brackets are
95 % percentile intervals over {} stratified bootstrap draws of the test nodes, the same draws
for all backbones of a table. Only the utility has them: those of gaps and of what contains gaps do
not cover (COVERAGE.md), so these differences are undecided. The intervals reflect the sampling of
people, not seeds, splits or the luck of a tuning. Utility and final score: higher is better; the
others: lower. Each backbone has its own reference and floor. CPU seconds are those of the tuning
process, one thread. The completeness error is the largest over the test nodes (gat: quadrature, the
others: closed form)."""


def unit(
    dataset: str, backbone: str, expert: str, data_dir: Path, n_trials: int, epochs: int, seed: int
) -> dict:
    "Tune one expert, evaluate its winner on the test nodes; plain data and tensors."
    from moe_expert.scores.evaluation import Evaluator
    from moe_expert.tune_experts import ExpertTuner
    from moe_expert.tuning.records import load_expert

    with tempfile.TemporaryDirectory() as folder:
        tuner = ExpertTuner(
            dataset, seed, folder, data_dir=data_dir, backbone=backbone, epochs=epochs
        )
        tuner.floor()
        clock, cpu = time.perf_counter(), time.process_time()
        result = tuner.tune_expert(expert, n_trials)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        population, _ = load_expert(folder, tuner.data.name, expert)
    record = Evaluator(tuner.data, 'test').record(population)
    error = record.completeness
    if error is None:  # closed form: the same check
        error = (record.attributions.sum(-1) - record.p1 + 0.5).abs()
    about = {
        'seconds': clock / n_trials,
        'cpu': cpu / n_trials,
        'n_trials': n_trials,
        'n_feasible': result['n_feasible'],
        'feasible': result['feasible'],
        'val': result['best_metrics'],
        'completeness': error.max().item(),
        'seed': seed,
        'epochs': epochs,
    }
    return about | {k: getattr(record, k) for k in ('nodes', 'y', 'sens', *PARTS)}


def compared(
    units: dict[str, dict], n_resamples: int, level: float = 0.95
) -> dict[str, dict[str, tuple]]:
    """backbone → score → (value, low, high, difference to the mlp, low, high); all models see the
    same draws.
    """
    from moe_expert.scores.evaluation import NodeRecord
    from moe_expert.scores.intervals import resampled_scores, resamples

    names, first = list(units), next(iter(units.values()))
    stacked = {k: torch.cat([u[k] for u in units.values()]) for k in PARTS}
    record = NodeRecord(first['nodes'], first['y'], first['sens'], **stacked)
    scores, tails = (
        record.scores(),
        torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double),
    )
    draws = resamples(record.sens, n_resamples)
    parts = [resampled_scores(record, d) for d in draws.split(max(1, 2**22 // record.p1.numel()))]
    drawn = {k: torch.cat([p[k] for p in parts], 1) for k in SHOWN}
    out = {}
    for m, name in enumerate(names):
        out[name] = {}
        for k in SHOWN:
            by_itself, gap = (
                drawn[k][m].nanquantile(tails),
                (drawn[k][m] - drawn[k][0]).nanquantile(tails),
            )
            out[name][k] = (
                scores[k][m].item(),
                *by_itself.tolist(),
                (scores[k][m] - scores[k][0]).item(),
                *gap.tolist(),
            )
    return out


def table(dataset: str, expert: str, units: dict[str, dict], n_resamples: int) -> list[str]:
    "Markdown of one data set and expert."
    values = compared(units, n_resamples)
    lines = [
        f'### {dataset}, {expert}',
        '',
        '| backbone | '
        + ' | '.join(SHOWN)
        + ' | feasible trials | CPU s per trial | completeness error |',
        '|' + '---|' * (len(SHOWN) + 4),
    ]
    for name, u in units.items():
        cells = []
        for k in SHOWN:
            value, low, high, gap, gap_low, gap_high = values[name][k]
            ends = (f' [{low:.3f}, {high:.3f}]', f' [{gap_low:+.3f}, {gap_high:+.3f}]')
            own, of_gap = ends if k in COVERED else ('', '')
            cells.append(f'{value:.3f}{own}' + (f'<br>{gap:+.3f}{of_gap}' if name != 'mlp' else ''))
        note = '' if u['feasible'] else ' (winner INFEASIBLE)'
        cells += [
            f'{u["n_feasible"]} of {u["n_trials"]}{note}',
            f'{u["cpu"]:.2g}',
            f'{u["completeness"]:.0e}',
        ]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return [*lines, '']


def render(work: Path, datasets, backbones, n_resamples: int) -> str:
    "BACKBONES.md from the units that are there; what is missing is named."
    lines = [
        '# Backbones',
        '',
        __doc__.split('\n\n')[0],
        '',
        ABOUT.format(n_resamples),
        '',
    ]
    missing, one = [], None
    for dataset in datasets:
        for expert in EXPERTS:
            files = {b: work / f'{dataset}-{b}-{expert}.pt' for b in backbones}
            units = {b: torch.load(f, weights_only=True) for b, f in files.items() if f.exists()}
            missing += [f'{dataset} {expert} {b}' for b, f in files.items() if not f.exists()]
            one = next(iter(units.values()), one)
            if 'mlp' in units:
                lines += table(dataset, expert, units, n_resamples)
    if one:
        lines += [
            f'Each: {one["n_trials"]} trials, at most {one["epochs"]} epochs, seed {one["seed"]}.',
            '',
        ]
    if missing:
        lines += ['Not computed: ' + ', '.join(missing) + '.', '']
    return '\n'.join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--datasets', nargs='+', default=['german', 'bail'])
    p.add_argument('--backbones', nargs='+', default=list(BACKBONES), choices=BACKBONES)
    p.add_argument('--n_trials', type=int, default=10)
    p.add_argument('--epochs', type=int, default=2000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--resamples', type=int, default=500)
    p.add_argument('--work', type=Path, default=HERE / 'work' / 'backbones')
    p.add_argument('--render', action='store_true', help='only the tables')
    p.add_argument('--out', type=Path, default=HERE / 'BACKBONES.md')
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    data_dir = find_data()
    if data_dir is None:
        p.error('the benchmark files are not here: set MOE_EXPERT_DATA to their folder')
    for dataset in a.datasets:
        for backbone in () if a.render else a.backbones:
            for expert in EXPERTS:
                file = a.work / f'{dataset}-{backbone}-{expert}.pt'
                if file.exists():
                    continue
                found = unit(dataset, backbone, expert, data_dir, a.n_trials, a.epochs, a.seed)
                torch.save(found, file.with_suffix('.tmp'))
                file.with_suffix('.tmp').replace(file)
                print(
                    f'{dataset} {backbone} {expert}: {found["cpu"]:.2g} CPU s per trial, '
                    f'{found["n_feasible"]} feasible',
                    flush=True,
                )
    a.out.write_text(render(a.work, a.datasets, a.backbones, a.resamples))


if __name__ == '__main__':
    main()
