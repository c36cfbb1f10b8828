"""Measure and write RESULTS.md.

    python benchmarks/run.py                        # all that is missing, then RESULTS.md
    python benchmarks/run.py --only whole graphlime # some sections
    python benchmarks/run.py --quick                # small sizes, in work/quick: does it work?
    python benchmarks/run.py --render               # RESULTS.md and plots from earlier records

Every job runs in a process of its own (its peak memory is its own), and its record is kept in the
work folder: an interrupted run continues where it stopped. Records of another state of the
code are measured anew (not those of the two studies, which ask about scores, not about time:
`--fresh` renews all).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from common import ROOT, STUDIES, find_data, read_json, write_json

HERE = Path(__file__).resolve().parent
SECTIONS = (
    *('everything', 'papermill', 'imports', 'neighbours', 'shapes', 'growth'),
    *('whole', 'graphlime', 'attributions', 'training'),
    *('scaling', 'graph', 'budgets', 'epochs', 'samplers'),
)
DATASETS = ('bail', 'german', 'math', 'por')
ONE_THREAD = (
    *('everything', 'papermill', 'imports', 'scaling', 'neighbours', 'shapes', 'growth'),
    *STUDIES,
)
COMPARED = (*DATASETS, 'papermill', 'imports', 'scaling-1000000')  # jobs of `--before`
MEASURED = (
    *('data', 'scores', 'experts', 'tuning', 'mixture', 'report'),
    *('datasets.py', 'tune_experts.py', 'trainer.py'),
)
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def jobs(a) -> list[tuple[str, str, dict, int]]:
    "(section, name, arguments, repeats in fresh processes)."
    data = {'data_dir': str(a.data_dir)} if a.data_dir else {}
    files = a.data_dir and not a.quick
    real = lambda name: (
        {'dataset': name, **data}
        if files
        else {'dataset': 'synthetic', 'n_nodes': 1000 if a.quick else 20_000}
    )
    small, device = ({'epochs': 40} if a.quick else {}), {'device': a.device}
    names = DATASETS if files else ('synthetic',)
    out = [
        ('whole', n, {**real(n), **device, **small, 'n_trials': 4 if a.quick else 30}, a.repeats)
        for n in names
    ]
    few = {'models': 3, 'repeats': 1, **small} if a.quick else {}
    out.append(
        (
            'graphlime',
            'graphlime',
            {**real('bail'), **few, **({'per_stratum': 2} if a.quick else {})},
            1,
        )
    )
    out.append(('attributions', 'attributions', {**real('bail'), **few}, 1))
    out += [
        (
            'training',
            f'training-{e}',
            {**real('bail'), 'expert': e, **({'n': 3, 'repeats': 1, **small} if a.quick else {})},
            1,
        )
        for e in ('expert1', 'expert2', 'expert3')
    ]
    out += work_jobs(a, real, data if files else {}, device)
    sizes = a.sizes or ((1000, 2000) if a.quick else SIZES)
    out += [
        (
            'scaling',
            f'scaling-{n}',
            {'n_nodes': n, **device, **(small and {'epochs': 10, 'n_trials': 2})},
            1,
        )
        for n in sizes
    ]
    out += [
        ('graph', f'graph-{method}-{n}', {'rows': n, 'method': method}, 1)
        for method, n in (
            [('exact', 2000)]
            if a.quick
            else [('exact', 10_000), ('exact', 100_000), ('approximate', 100_000)]
        )
    ]
    if not a.quick:
        out.append(('budgets', 'budgets', {'work': str(a.work / 'budgets')}, 1))
    if files:
        out.append(('epochs', 'epochs', {**data, 'work': str(a.work / 'curves')}, 1))
        out.append(
            (
                'samplers',
                'samplers',
                {**data, 'work': str(a.work / 'samplers'), 'strategies': a.strategies},
                1,
            )
        )
    return [j for j in out if j[0] in a.only and (a.names is None or j[1] in a.names)]


def work_jobs(a, real, data: dict, device: dict) -> list[tuple[str, str, dict, int]]:
    "Jobs of the sections about whole pieces of work; `data`: {} where there are no files."
    from work_rows import GROWTH, SHAPES

    few = {'n_trials': 2, 'epochs': 40} if a.quick else {}
    rows = [('own', {'dataset': 'own:600x8' if a.quick else 'own:20000x60'})]
    if data:
        rows += [(n, {**real(n), 'stages': 'all' if n == 'bail' else 'experts'}) for n in DATASETS]
    if a.public and not a.quick:
        rows.append(('adult', {'dataset': 'adult', 'data_dir': str(a.public)}))
    runs = lambda row: a.repeats if 'stages' in row else 1  # the benchmarks are quick: several
    out = [('everything', n, {**row, **device, **few}, runs(row)) for n, row in rows]
    out += [('papermill', 'papermill', {}, a.repeats), ('imports', 'imports', {}, 1)]
    noise = (2000,) if a.quick else (100_000, 1_000_000)
    out += [('neighbours', f'noise-{n}', {'rows': n}, 1) for n in noise]
    if a.public and not a.quick:
        table = {'kind': 'adult', 'data_dir': str(a.public)}
        out.append(('neighbours', 'adult', table, 1))
    small = {'a complete graph of 60': (60, 5, 'complete')}
    for shape, size in (small if a.quick else SHAPES).items():
        of = dict(zip(('people', 'features', 'degree'), size))
        out.append(('shapes', shape, {'shape': shape, **of}, 1))
    sizes = {'people': (500, 1000)} if a.quick else GROWTH
    short = {'epochs': 20} if a.quick else {}
    for vary, values in sizes.items():
        out += [('growth', f'{vary}-{v}', {'vary': vary, 'value': v, **short}, 1) for v in values]
    return out


def code_version(root: Path = ROOT) -> str:
    "Of the rooms that are measured."
    digest = hashlib.sha256()
    for place in (root / 'moe_expert' / name for name in MEASURED):
        for path in sorted(place.glob('*.py')) if place.is_dir() else [place]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def peak_memory() -> int:
    "Largest resident memory of this process so far, bytes."
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == 'darwin' else 1024
    )


def machine() -> dict:
    "What the numbers depend on."
    model = platform.processor()
    if Path('/proc/cpuinfo').exists():
        model = next(
            (
                x.split(':')[1].strip()
                for x in Path('/proc/cpuinfo').read_text().splitlines()
                if x.startswith('model name')
            ),
            model,
        )
    versions = {
        n: importlib.metadata.version(n)
        for n in ('torch', 'numpy', 'scipy', 'scikit-learn', 'optuna', 'captum')
    }
    return {
        'cpu': model or 'unknown',
        'cores': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'memory': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        'versions': versions,
    }


def do_job(section: str, arguments: dict, result: Path):
    "In the job's own process."
    import sections

    sys.path.remove(str(HERE))  # where coverage.py would hide the package that numba looks for
    sys.path.append(str(HERE))

    sections.warm(section)
    import torch

    if section in ONE_THREAD:
        torch.set_num_threads(1)
    before, load = peak_memory(), os.getloadavg()
    record = getattr(sections, section)(**arguments)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record |= {
        'peak': peak_memory(),
        'peak_imports': before,
        'load': [load[0], os.getloadavg()[0]],
        'torch_threads': torch.get_num_threads(),
        'gpu': gpu,
    }
    if gpu:
        record['gpu_peak'] = torch.cuda.max_memory_allocated()
    write_json(result, record, indent=1)


def in_a_process(section: str, arguments: dict, part: Path, root: Path) -> bool:
    "Run a job on the code in a folder; did it succeed?"
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    env = {**os.environ, 'PYTHONPATH': path, 'MPLBACKEND': 'agg'}
    env.pop('PYTHONDONTWRITEBYTECODE', None)  # byte code is kept, as where the package is installed
    if section in ONE_THREAD:
        env['OMP_NUM_THREADS'] = '1'
    job = '--job', section, json.dumps(arguments), str(part)
    done = subprocess.run([sys.executable, str(Path(__file__).resolve()), *job], env=env)
    if done.returncode:
        print(f'  failed (exit status {done.returncode})', file=sys.stderr)
    return done.returncode == 0


def stays(path: Path, about: dict, a) -> bool:
    "Is there a record of this job and this state of the code?"
    there = read_json(path) if path.exists() and not a.fresh else None
    if there is None or there['arguments'] != about['arguments']:
        return False
    return about['section'] in STUDIES or there['code'] == about['code']


def measure(a) -> list[str]:
    "Run the jobs that are missing; returns those that failed."
    failed, versions = [], {ROOT: code_version()}
    if a.before:
        versions[a.before] = code_version(a.before)
    for section, name, arguments, repeats in jobs(a):
        for i, root in [(i, root) for i in range(repeats) for root in versions]:
            before = root != ROOT
            if before and (name not in COMPARED or section == 'whole'):
                continue
            about = {'section': section, 'name': name, 'arguments': arguments}
            about |= {'code': versions[root], 'before': before}
            label = f'{section}.{name}.{"before." if before else ""}{i}'.replace(' ', '_')
            path = a.work / 'results' / f'{label}.json'
            if section not in STUDIES and stays(path, about, a):  # a study knows what is missing
                continue
            which = f'{name}{", the code before" if before else ""}'
            print(f'{section}: {which}, run {i + 1} of {repeats}', flush=True)
            part = path.with_suffix('.new')
            if not in_a_process(section, arguments, part, root):
                failed.append(f'{section}.{name}')
                break
            write_json(path, about | {'machine': machine()} | read_json(part), indent=1)
            part.unlink()
    return failed


def load_records(work: Path) -> dict[str, list[dict]]:
    "Section -> its records, in a fixed order."
    out = {s: [] for s in SECTIONS}
    for path in sorted((work / 'results').glob('*.json')):
        record = read_json(path)
        out[record['section']].append(record)
    return out


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        '--only',
        type=lambda s: s.replace(',', ' ').split(),
        nargs='+',
        default=[list(SECTIONS)],
        metavar='SECTION',
        help='some of: ' + ' '.join(SECTIONS),
    )
    p.add_argument('--names', nargs='+', metavar='JOB', help='some jobs of these sections')
    p.add_argument('--quick', action='store_true', help='small sizes and synthetic data')
    p.add_argument('--render', action='store_true', help='measure nothing')
    p.add_argument('--fresh', action='store_true', help='measure also what is there')
    p.add_argument('--repeats', type=int, help='of the whole command (default 3)')
    p.add_argument('--sizes', type=int, nargs='+', help='nodes of the scaling section')
    p.add_argument(
        '--strategies',
        nargs='+',
        help='of the sampler study: compute these only; what is there is shown in any case',
    )
    p.add_argument('--device', default='auto', help='of whole and scaling')
    p.add_argument(
        '--data-dir',
        type=Path,
        default=find_data(),
        help='benchmark files (default: MOE_EXPERT_DATA, or ../shared/data)',
    )
    p.add_argument(
        '--public',
        type=Path,
        default=find_data('public', 'adult'),
        help='files of the catalogue (default: ../shared/public)',
    )
    p.add_argument(
        '--before',
        type=lambda s: Path(s).resolve(),
        metavar='FOLDER',
        help='a checkout of an earlier state of the code, measured by the same jobs in turns',
    )
    p.add_argument('--work', type=Path, help='records (default: benchmarks/work, ignored by git)')
    p.add_argument('--out', type=Path, help='folder of RESULTS.md and plots (default: benchmarks)')
    p.add_argument('--job', nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    a.only = [s for part in a.only for s in part]
    if unknown := set(a.only) - set(SECTIONS):
        p.error(f'unknown sections {sorted(unknown)}; there are: {" ".join(SECTIONS)}')
    a.repeats = a.repeats or (1 if a.quick else 3)
    a.work = a.work or HERE / 'work' / ('quick' if a.quick else '')
    a.out = a.out or (a.work if a.quick else HERE)
    return a


def main(argv=None) -> int:
    a = parse(argv)
    if a.job:
        do_job(a.job[0], json.loads(a.job[1]), Path(a.job[2]))
        return 0
    if a.data_dir is None:
        print(
            'The benchmark files are not here (set MOE_EXPERT_DATA): synthetic data instead, no '
            'sampler study.',
            file=sys.stderr,
        )
    failed = [] if a.render else measure(a)
    import render  # imports matplotlib: only now, a job's memory would start with this process's

    path = render.write(load_records(a.work), a.out)
    print(path.read_text(encoding='utf-8'))
    print(f'written: {path}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
