"""Every table of the catalogue, from its name to a tested mixture and a report.

    python benchmarks/own_tables.py --data_dir ../shared/public            # all shipped cards
    python benchmarks/own_tables.py --data_dir ../shared/public heart nba  # some of them

Each table has a process of its own, so that its peak memory is its own. Budgets are small (one
trial per expert and for the gate, few epochs): the question is whether everything works and what is
flagged, not how good the models are. Seconds are of the processor; only a temporary folder is
written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HEADING = ('name', 'people', 'features', 'edges', 'load s', 'MiB', 'run s', 'MiB', 'first try')


def peak() -> int:
    "Most memory of this process so far, in MiB (Linux counts in KiB)."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(name: str, a: argparse.Namespace) -> dict:
    "Load, audit, tune, train, test and report one table in this process."
    from moe_expert import cli
    from moe_expert.data.audit import audit
    from moe_expert.datasets import load_dataset

    before, start = peak(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        data = load_dataset(name, data_dir=a.data_dir)
    record = dict(people=data.num_nodes, features=data.x.shape[1], edges=data.num_edges // 2)
    record |= {'load': time.process_time() - start, 'memory': peak(), 'imported': before}
    own = [str(w.message) for w in caught if w.category.__module__.startswith('moe_expert')]
    record |= {'warnings': own, 'reading': list(data.flags)}
    record['audit'] = [f'{f.topic}: {f.text}' for f in audit(data).findings]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        budget = ['--n_trials', str(a.n_trials), '--epochs', str(a.epochs), '--device', 'cpu']
        place = ['--data_dir', str(a.data_dir), '--cache_dir', folder]
        record['code'] = cli.main(['run', name, *budget, *place, '--quiet'])
        record['reports'] = len(list(Path(folder).rglob('*.html')))
    return record | {'run': time.process_time() - start, 'most': peak()}


def in_a_process(name: str, a: argparse.Namespace) -> dict:
    "The record of one table, or what went wrong."
    said = ['--n_trials', str(a.n_trials), '--epochs', str(a.epochs)]
    command = [sys.executable, __file__, name, '--data_dir', str(a.data_dir), *said, '--one']
    environment = os.environ | {'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    last = (done.stdout.strip() or ' ').splitlines()[-1]
    if done.returncode or not last.startswith('{'):
        return {'error': (done.stderr.strip() or last).splitlines()[-1]}
    return json.loads(last)


def row(name: str, r: dict) -> str:
    "A line of the table."
    if 'error' in r:
        return f'| {name} | {" | ".join([""] * (len(HEADING) - 2))} | {r["error"]} |'
    works = 'works' if r['code'] == 0 and r['reports'] >= 2 else f'exit code {r["code"]}'
    cells = [name, f'{r["people"]:,}', str(r['features']), f'{r["edges"]:,}', f'{r["load"]:.1f}']
    cells += [str(r['memory']), f'{r["run"]:.0f}', str(r['most']), works]
    return f'| {" | ".join(cells)} |'


def main():
    from moe_expert.data.catalogue import SHIPPED

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help='tables; without names all')
    parser.add_argument('--data_dir', type=Path, required=True)
    parser.add_argument('--n_trials', type=int, default=1)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--one', action='store_true', help='in this process, as JSON')
    a = parser.parse_args()
    if a.one:
        print(json.dumps(measure(a.names[0], a)))
        return
    print(f'| {" | ".join(HEADING)} |\n|{"---|" * len(HEADING)}', flush=True)
    records = {}
    for name in a.names or SHIPPED:
        records[name] = in_a_process(name, a)
        print(row(name, records[name]), flush=True)
    for name, r in records.items():
        found = [f'{k}: {text}' for k in ('warnings', 'reading', 'audit') for text in r.get(k, ())]
        print(f'\n{name}', *(f'- {text}' for text in found), sep='\n')


if __name__ == '__main__':
    main()
