"From records to RESULTS.md and its plots."

from __future__ import annotations

import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import budgets as limits
import curves
import matplotlib.pyplot as plt
import numpy as np
import samplers as study
from common import STUDIES

COLOURS = {'expert1': '#0072B2', 'expert2': '#D55E00', 'expert3': '#009E73'}  # Okabe-Ito
MARKS = {'expert1': 'o', 'expert2': 's', 'expert3': '^'}
GREY, ORANGE, BLUE = '#666666', '#E69F00', '#0072B2'
DATASETS = ('bail', 'german', 'math', 'por')
COMPARED = ('everything', 'papermill', 'imports')  # sections that show the code before too
# the published code, patched to run on CPU, on 2 cores of another machine; minutes
PUBLISHED_MINUTES = {'german': 39, 'math': 61, 'por': 99, 'bail': 276}
TARGETS = {'bail': 60, 'german': 20, 'math': 20, 'por': 20}


def _median(values) -> float:
    return statistics.median(values)


def _s(seconds: float) -> str:
    "Readable at any size."
    if seconds >= 99.5:
        return f'{seconds:.0f} s'
    if seconds >= 0.0995:
        return f'{seconds:.3g} s'
    return f'{seconds * 1e3:.3g} ms'


def _range(values) -> str:
    return f'{_s(min(values))} – {_s(max(values))}' if len(values) > 1 else 'one run'


def _peak(records: list[dict]) -> str:
    worst = max(records, key=lambda r: r['peak'])
    gpu = f' + {_mb(worst["gpu_peak"])} on the GPU' if worst.get('gpu_peak') else ''
    return f'{_mb(worst["peak"])} ({_mb(worst["peak_imports"])}){gpu}'


def _loads(records: list[dict]) -> str:
    "Lowest and highest one-minute load average around the jobs."
    loads = [x for r in records for x in r['load']]
    return f'{min(loads):.1f} – {max(loads):.1f}'


def _mb(size: float) -> str:
    return f'{size / 2**20:,.0f} MB'


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        '| ' + ' | '.join(head) + ' |',
        '|' + '---|' * len(head),
        *('| ' + ' | '.join(r) + ' |' for r in rows),
        '',
    ]


def _figure(path: Path, fig):
    "SVG without a date, with text as text: small, and the same bytes from the same numbers."
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'moe_expert'}):
        fig.savefig(path, bbox_inches='tight', metadata={'Date': None})
    plt.close(fig)


def _axes(width=6.4, height=4.0):
    fig, ax = plt.subplots(figsize=(width, height))
    ax.spines[['top', 'right']].set_visible(False)
    return fig, ax


# ---------------------------------------------------------------- targets


def _of(records: list[dict], name: str, before: bool = False) -> list[dict]:
    return [r for r in records if r['name'] == name and bool(r.get('before')) == before]


def _stages(records: list[dict], *names: str) -> float | None:
    "Median CPU seconds of some stages; None where nothing was measured."
    sums = [sum(r['stages'][n] for n in names) for r in records if set(names) <= set(r['stages'])]
    return _median(sums) if sums else None


# with the imports: what one state of the code imports at once, another imports when it loads
TUNED = ('imports', 'load', 'expert1', 'expert2', 'expert3')
MIXED = ('gate', 'integration', 'test')


def _seconds(value: float | None) -> str:
    return '—' if value is None else _s(value)


def _verdict(after: float, most: float | None, factor: float = 1.0, other: bool = True) -> str:
    "Was a target of seconds met, here or at the speed of this machine, and the `other` ones?"
    if other and (most is None or after <= most):
        return 'yes'
    return "yes, at this machine's speed" if other and after <= most * factor else '**no**'


def _compared(what: str, before, after, target: str, verdict: str, more: str = '') -> list[str]:
    "A row: what, seconds before, after, their ratio, the target, and whether it was met."
    ratio = f'{after / before:.2f}' if before and after else '—'
    return [what, _seconds(before), _seconds(after) + more, ratio, target, verdict]


REPORTED = ('report of the experts',)
# stages of bail → seconds of the code before, where the targets were set
ELSEWHERE = {TUNED: 25, MIXED: 60, REPORTED: 16}


def _here(records: dict[str, list[dict]], stages: tuple[str, ...] | None = None) -> float:
    """How many seconds of this machine are one second of the machine of the targets.

    By the code before, for some stages of bail; by default, the median of all.
    """
    before = _of(records.get('everything', []), 'bail', True)
    asked = ELSEWHERE if stages is None else [stages]
    ratios = [was / ELSEWHERE[s] for s in asked if (was := _stages(before, *s)) is not None]
    return _median(ratios) if ratios else 1.0


def _tuning_rows(records: dict[str, list[dict]]) -> list[list[str]]:
    there = records.get('everything', [])
    rows, bail = [], lambda before, *stages: _stages(_of(there, 'bail', before), *stages)
    for what, stages, most in (
        ('bail: imports, load and 30 × 3 trials', TUNED, 15),
        ('bail: gate (30 trials), stage 3, test with intervals', MIXED, 20),
        ('bail: executed report with its page', REPORTED, 10),
    ):
        was, after = bail(True, *stages), bail(False, *stages)
        if after is not None:
            verdict = _verdict(after, most, _here(records, stages))
            rows.append(_compared(what, was, after, f'≤ {most} s', verdict))
    if (shown := bail(False, *REPORTED)) and records.get('papermill'):
        empty = lambda before: _of(records['papermill'], 'papermill', before)
        above = lambda report, before: report - _median(r['cpu'] for r in empty(before))
        was = bail(True, *REPORTED) if empty(True) else None
        after, what = above(shown, False), 'of it above papermill, imports and an empty page'
        verdict = _verdict(after, 3, _here(records, REPORTED))
        rows.append(_compared(what, was and above(was, True), after, '≤ 3 s', verdict))
    for name in DATASETS[1:]:
        was, after = (_stages(_of(there, name, b), *TUNED) for b in (True, False))
        if after is not None:
            verdict = '—' if was is None else _verdict(after, was / 2)
            what = f'{name}: imports, load and 30 × 3 trials'
            rows.append(_compared(what, was, after, 'half', verdict))
    return rows


def _large_rows(records: dict[str, list[dict]]) -> list[list[str]]:
    rows, factor = [], _here(records)
    for name, what, most, gigabytes in (
        ('own', '20,000 × 60 own table, defaults, everything', 300, 2),
        ('adult', 'adult as catalogue data, defaults, everything', 480, 3),
    ):
        for r in _of(records.get('everything', []), name):
            peak = max(r['peak'], r['peak_children'])
            verdict = _verdict(r['cpu'], most, factor, peak <= gigabytes * 2**30)
            target = f'≤ {most} s, ≤ {gigabytes} GB'
            rows.append(_compared(what, None, r['cpu'], target, verdict, f', {_mb(peak)}'))
    million = lambda before: [
        sum(e['cpu'] for e in r['experts'].values())
        for r in _of(records.get('scaling', []), 'scaling-1000000', before)
    ]
    if after := million(False):
        was, after = next(iter(million(True)), None), after[0]
        what = '1,000,000 people, 10 million edges: 5 × 3 trials of 200 epochs'
        rows.append(_compared(what, was, after, '≤ 240 s', _verdict(after, 240, factor)))
    return rows


NEIGHBOURS = {'noise-100000': (30, None), 'noise-1000000': (600, 4), 'adult': (None, None)}


def _graph_rows(records: dict[str, list[dict]]) -> list[list[str]]:
    rows, factor = [], _here(records)
    for r in records.get('neighbours', []):
        most, gigabytes = NEIGHBOURS.get(r['name'], (None, None))
        right = r['recall'] >= 0.95 and r['same_again'] is not False
        right = right and (gigabytes is None or r['peak'] <= gigabytes * 2**30)
        limits = [f'≤ {most} s'] * (most is not None) + [f'≤ {gigabytes} GB'] * bool(gigabytes)
        target = ', '.join([*limits, 'recall ≥ 0.95'])
        more = f', {_mb(r["peak"])}, recall {r["recall"]:.4f}'
        what = f'nearest neighbours, {r["kind"]}: {r["rows"]:,} × {r["columns"]}'
        verdict = _verdict(r['cpu'], most, factor, right)
        rows.append(_compared(what, None, r['cpu'], target, verdict, more))
    return rows


def _shape_rows(records: dict[str, list[dict]]) -> list[list[str]]:
    rows = []
    for r in records.get('shapes', []):
        more = f', {_mb(r["peak"])} ({_mb(r["peak_imports"])} after the imports)'
        if r['error']:
            more = f', refused: {r["error"]}'
        verdict = _verdict(0, 0, other=r['peak'] - r['peak_imports'] <= 1.25 * 2**30)
        what = f'GraphLIME of {r["models"]} models: {r["shape"]}'
        rows.append(_compared(what, None, r['cpu'], 'about 1 GB, or refused', verdict, more))
    for r in _of(records.get('imports', []), 'imports'):
        (floor, after), was = r['cpu'].values(), _of(records['imports'], 'imports', True)
        was = was[0]['cpu']['moe_expert.trainer'] if was else None
        target = f'torch and optuna themselves: {_s(floor)}'
        verdict = _verdict(after, floor)
        rows.append(_compared('`import moe_expert.trainer`', was, after, target, verdict))
    return rows


def targets(records: dict[str, list[dict]]) -> list[str]:
    "The table of targets, from the records of several sections."
    parts = _tuning_rows, _large_rows, _graph_rows, _shape_rows
    rows = [row for part in parts for row in part(records)]
    return [
        '## Whole pieces of work',
        '',
        'CPU seconds of one thread, of the process and of those it starts, defaults unless said; '
        'peak memory is that of the largest of these processes. `before` is the code before this '
        'work, measured by the same jobs in turns with the code after (`--before`). The targets '
        'were set on another machine, where the code before took '
        f'{", ".join(map(str, ELSEWHERE.values()))} s for the first three rows: by that, a second '
        f'there is {", ".join(f"{_here(records, s):.2f}" for s in ELSEWHERE)} s here, and '
        f'{_here(records):.2f} s for the rows below.',
        '',
        *_table(['work', 'before', 'after', 'ratio', 'target', 'met'], rows),
    ]


# ---------------------------------------------------------------- sections


def _middle(runs: list[dict]) -> dict:
    "One record with the median seconds of some runs of a job."
    names = runs[0]['stages']
    stages = {n: _median(r['stages'][n] for r in runs) for n in names}
    return runs[0] | {'stages': stages, 'cpu': _median(r['cpu'] for r in runs)}


def everything(records: list[dict], folder: Path) -> list[str]:
    names = list(dict.fromkeys(n for r in records for n in r['stages']))
    jobs, rows = {}, []
    for r in records:
        jobs.setdefault((r['people'], r['dataset'], bool(r.get('before'))), []).append(r)
    for _, runs in sorted(jobs.items(), key=lambda job: job[0]):
        r = _middle(runs)
        when = ', the code before' if r.get('before') else ''
        cells = [_seconds(r['stages'].get(n)) for n in names]
        size = f'{r["people"]:,} × {r["features"]}, {r["edges"]:,} edges'
        cells += [_s(r['cpu']), _peak(runs), str(len(runs))]
        rows.append([f'{r["dataset"]}{when}', size, *cells])
    r = records[0]
    return [
        '## Stage by stage',
        '',
        f'From the data to the reports, {r["n_trials"]} trials for each expert and the gate; CPU '
        'seconds, medians of the runs.',
        '',
        *_table(['data', 'people × features', *names, 'all', 'peak memory', 'runs'], rows),
    ]


def papermill(records: list[dict], folder: Path) -> list[str]:
    return [
        '## An empty report',
        '',
        'Papermill, a kernel, the imports of a report and a page without content: '
        f'{_s(_median(r["cpu"] for r in records if not r.get("before")))} (CPU).',
        '',
    ]


def imports(records: list[dict], folder: Path) -> list[str]:
    rows = [
        [name, 'before' if r.get('before') else 'after', _s(seconds)]
        for r in records
        for name, seconds in r['cpu'].items()
    ]
    said = f'Median CPU seconds of {records[0]["repeats"]} fresh interpreters.'
    return ['## Imports', '', said, '', *_table(['import', 'code', 'CPU time'], rows)]


def neighbours(records: list[dict], folder: Path) -> list[str]:
    same = {None: 'not tried', True: 'the same', False: '**differs**'}
    rows = [
        [
            f'{r["kind"]}: {r["rows"]:,} × {r["columns"]}',
            f'{r["edges"]:,}',
            _s(r['cpu']),
            f'{r["recall"]:.4f} ({r["searched"]:,} people)',
            same[r['same_again']],
            _peak([r]),
        ]
        for r in sorted(records, key=lambda r: r['rows'])
    ]
    head = ['table', 'edges', 'CPU time', 'recall', 'second run', 'peak memory']
    return ['## The default graph', '', *_table(head, rows)]


def shapes(records: list[dict], folder: Path) -> list[str]:
    rows = [
        [r['shape'], f'{r["edges"]:,}', _s(r['cpu']), r['error'] or 'explained', _peak([r])]
        for r in records
    ]
    said = f'GraphLIME of {records[0]["models"]} models, of all people (of a hub: of 1,000).'
    head = ['shape', 'edges', 'CPU time', 'outcome', 'peak memory']
    return ['## Unusual shapes', '', said, '', *_table(head, rows)]


def _exponent(sizes, seconds) -> float:
    "Slope of the logarithms, by least squares."
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(records: list[dict], folder: Path) -> list[str]:
    stages, rows = list(records[0]['spent']), []
    fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True)
    looks = dict(zip(stages, zip((GREY, *COLOURS.values()), 'dos^')))
    for ax, vary in zip(axes, dict.fromkeys(r['vary'] for r in records)):
        mine = sorted((r for r in records if r['vary'] == vary), key=lambda r: r['value'])
        sizes = [r['value'] for r in mine]
        seconds = {s: [r['spent'][s] for r in mine] for s in stages}
        power = [f'{_exponent(sizes, seconds[s]):.2f}' for s in stages]
        rows.append([vary, ' / '.join(f'{n:,}' for n in sizes), *power])
        for stage, (colour, mark) in looks.items():
            ax.loglog(sizes, seconds[stage], marker=mark, color=colour, label=stage)
        ax.set_xlabel(vary)
        ax.set_xticks(sizes, [f'{n:,}' for n in sizes])
        ax.minorticks_off()
    axes[0].set_ylabel('CPU seconds')
    axes[-1].legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    _figure(folder / 'growth.svg', fig)
    base = ', '.join(f'{v:,} {k}' for k, v in records[0]['base'].items())
    return [
        '## How cost grows',
        '',
        f"Tables of one's own around {base} (trials: of each expert and of the gate; "
        f'{records[0]["epochs"]} epochs), one size varied at a time; CPU time grows as that size '
        'to the power of (least squares on logarithms; 1 is linear):',
        '',
        *_table(['varied', 'values', *stages], rows),
        '![CPU seconds of each stage against each size](plots/growth.svg)',
        '',
    ]


def whole(records: list[dict], folder: Path) -> list[str]:
    names = sorted(
        {r['dataset'] for r in records}, key=lambda n: DATASETS.index(n) if n in DATASETS else 9
    )
    rows, medians = [], {}
    for n in names:
        mine = [r for r in records if r['dataset'] == n]
        seconds = [r['seconds'] for r in mine]
        medians[n] = {e: _median([r['experts'][e]['seconds'] for r in mine]) for e in COLOURS}
        trials = sum(e['trials'] for e in mine[0]['experts'].values())
        rows.append(
            [
                f'{n} ({mine[0]["nodes"]:,} nodes)',
                str(trials),
                f'**{_s(_median(seconds))}**',
                _range(seconds),
                f'**{_s(_median(r["cpu"] for r in mine))}**',
                _loads(mine),
                ' / '.join(_s(medians[n][e]) for e in COLOURS),
                _peak(mine),
                f'≤ {TARGETS[n]} s' if n in TARGETS and mine[0]['n_trials'] == 30 else '—',
                f'{PUBLISHED_MINUTES[n]} min'
                if n in PUBLISHED_MINUTES and mine[0]['n_trials'] == 30
                else '—',
            ]
        )
    r = records[0]
    out = [
        '## The whole command',
        '',
        f'`tune_all_experts({r["n_trials"]})` on {r["device"]}: load the data, train the '
        f'reference, run {r["n_trials"]} trials of '
        f'each of the three experts in an empty `cache_dir` (at most {r["epochs"]:,} epochs, '
        'default settings), write checkpoints and '
        f'results. Seconds after the imports; median of {len(records) // len(names)} runs in fresh '
        'processes; peak memory of the '
        'process (in brackets: after the imports). CPU time is that of all threads: on a machine '
        'with other work it says more than '
        "the clock, and on a free one it is close to it, because most of the work is one thread's.",
        '',
    ]
    out += _table(
        [
            'data',
            'trials',
            'median',
            'range',
            'CPU time',
            'load',
            'expert1 / 2 / 3',
            'peak memory',
            'target',
            'published code, **elsewhere**',
        ],
        rows,
    )
    if missing := [n for n in DATASETS if n not in names]:
        out += [
            f'Skipped: {", ".join(missing)} (the data files were not there, or these runs were not '
            'asked for).',
            '',
        ]
    out += [
        'The last column is context and was **not measured in this run**: others timed the '
        'published code, patched to run on a CPU '
        'with its logic unchanged, on 2 cores of another machine. No ratio to it is given for that '
        'reason; the sections below '
        'compare methods within one run.',
        '',
    ]
    fig, ax = _axes(6.4, 0.55 * len(names) + 1.2)
    left = np.zeros(len(names))
    for e, colour in COLOURS.items():
        width = np.array([medians[n][e] for n in names])
        ax.barh(names, width, left=left, color=colour, edgecolor='white', label=e)
        left += width
    ax.invert_yaxis()
    ax.set_xlabel(f'seconds for {r["n_trials"]} trials of each expert (median)')
    ax.legend(frameon=False, ncols=3, loc='lower left', bbox_to_anchor=(0, 1))
    _figure(folder / 'whole.svg', fig)
    return out + ['![Seconds of the whole command, by data set and expert](plots/whole.svg)', '']


def graphlime(records: list[dict], folder: Path) -> list[str]:
    r = records[0]
    per_model, single = _median(r['population_s']) / r['models'], _median(r['single_s'])
    total = sum(s['nodes'] * s['mean_s'] for s in r['strata'])
    error = (
        sum(
            s['nodes'] ** 2 * s['sd_s'] ** 2 / s['sampled'] * (1 - s['sampled'] / s['nodes'])
            for s in r['strata']
        )
        ** 0.5
    )
    drawn = np.array(r['sample'])
    out = [
        '## GraphLIME',
        '',
        f'Explanations of all {r["nodes"]:,} validation nodes of {r["dataset"]} ({r["features"]} '
        'features), for a population of '
        f'{r["models"]} '
        f"trained models; median of {r['repeats']}. scikit-learn's `LassoLars` was run node by "
        f'node on {len(drawn)} of the same '
        'nodes for one '
        'of the models, drawn at random within strata of neighbourhood size (powers of two, every '
        'one sampled), and **extrapolated**: '
        'Σ nodes of a stratum × its mean, ± 1.96 standard errors of that sampling. No validation '
        'node is left out; the largest '
        'neighbourhood of one has '
        f'{r["largest"]:,} members'
        + (
            f" (the graph's largest hub, {r['largest_of_graph']:,}, is not a validation node)"
            if r['largest_of_graph'] > r['largest']
            else ''
        )
        + '.',
        '',
    ]
    cpu = {
        'lars': total * r['lars_cpu_per_s'],
        'single': r['single_cpu'],
        'per_model': r['population_cpu'] / r['models'],
    }
    out += _table(
        ['', 'per model', 'ratio', 'CPU time', 'ratio'],
        [
            [
                'per-node `LassoLars`, extrapolated',
                f'{_s(total)} ± {_s(1.96 * error)}',
                '1',
                _s(cpu['lars']),
                '1',
            ],
            [
                '`GraphLIME`, one model by itself',
                _s(single),
                f'{total / single:,.0f}×',
                _s(cpu['single']),
                f'{cpu["lars"] / cpu["single"]:,.0f}×',
            ],
            [
                f'`GraphLIME`, {r["models"]} models together',
                _s(per_model),
                f'**{total / per_model:,.0f}×**',
                _s(cpu['per_model']),
                f'**{cpu["lars"] / cpu["per_model"]:,.0f}×**',
            ],
        ],
    )
    out += [
        f'Made once per data set, not counted above: {_s(_median(r["setup_s"]))}. Peak memory '
        f'{_peak([r])}. On the sampled nodes the '
        f'lasso objective of `GraphLIME` was at most {max(0, r["objective_above"]):.0e} above that '
        'of `LassoLars`; the most '
        f'important feature differed on {r["top1_differs"]}.',
        '',
    ]
    fig, ax = _axes()
    ax.loglog(
        drawn[:, 0],
        drawn[:, 1] + drawn[:, 2],
        'o',
        ms=4,
        color=ORANGE,
        mec='none',
        alpha=0.7,
        label='LassoLars, one node each',
    )
    for value, style, label in (
        (single / r['nodes'], '--', 'GraphLIME, one model (mean over nodes)'),
        (per_model / r['nodes'], '-', f'GraphLIME, {r["models"]} models (mean over nodes)'),
    ):
        ax.axhline(value, color=BLUE, ls=style, label=label)
    ax.set_xlabel('members of the neighbourhood')
    ax.set_ylabel('seconds per node and model')
    ax.legend(frameon=False, loc='lower left', bbox_to_anchor=(0, 1))
    _figure(folder / 'graphlime.svg', fig)
    return out + ['![Seconds per node against neighbourhood size](plots/graphlime.svg)', '']


def attributions(records: list[dict], folder: Path) -> list[str]:
    r = records[0]
    captum, one, many = (
        _median(r['captum_s']),
        _median(r['closed_s']),
        _median(r['population_s']) / r['models'],
    )
    out = [
        '## Attributions',
        '',
        f'Integrated Gradients of all {r["nodes"]:,} validation nodes of {r["dataset"]}, same '
        'trained model, double precision; median '
        f'of {r["repeats"]}.',
        '',
    ]
    out += _table(
        ['', 'per model', 'ratio'],
        [
            [f'captum `IntegratedGradients`, {r["steps"]} steps', _s(captum), '1'],
            ['closed form, one model by itself', _s(one), f'{captum / one:,.0f}×'],
            [f'closed form, {r["models"]} models together', _s(many), f'{captum / many:,.0f}×'],
        ],
    )
    return out + [
        f'Largest difference between the two: {r["largest_difference"]:.0e}. Peak memory '
        f"{_peak([r])}: captum's, which holds "
        'all steps of all nodes.',
        '',
    ]


def training(records: list[dict], folder: Path) -> list[str]:
    r, rows = records[0], []
    for x in sorted(records, key=lambda x: x['expert']):
        alone, side = _median(x['alone_s']), _median(x['together_s'])
        pairs = [a / b for a, b in zip(x['alone_s'], x['together_s'])]
        rows.append(
            [
                x['expert'],
                f'{x["epochs_run"]:,}',
                _s(alone),
                _s(side),
                f'**{_median(pairs):.1f}×**',
                f'{x["largest_difference"]:.0e}',
                _peak([x]),
            ]
        )
    return [
        '## Training alone and side by side',
        '',
        f'{r["n"]} random configurations of each expert on {r["dataset"]}: one call after another, '
        'and all in one call of '
        f'`train_population`; validation included, at most {r["epochs"]:,} epochs, device '
        f'{r["device"]}; median of {r["repeats"]}, '
        'in turns.',
        '',
        *_table(
            [
                '',
                'epochs run',
                f'{r["n"]} × alone',
                'side by side',
                'ratio',
                'largest difference of a score',
                'peak memory',
            ],
            rows,
        ),
    ]


def scaling(records: list[dict], folder: Path) -> list[str]:
    records = sorted(records, key=lambda r: r['nodes'])
    r, n = records[0], np.array([r['nodes'] for r in records])
    per_trial = lambda what: {
        e: np.array([r['experts'][e][what] / r['experts'][e]['trials'] for r in records])
        for e in COLOURS
    }
    each, cpu = per_trial('seconds'), per_trial('cpu')
    step = lambda r: 'all' if r['rows'] == r['train'] else f'{r["rows"]:,}'
    rows = [
        [
            f'{r["nodes"]:,}',
            f'{r["edges"]:,}',
            f'{r["train"]:,}',
            f'{r["val"]:,}',
            step(r),
            *(_s(each[e][i]) for e in COLOURS),
            _s(r['data_s']),
            _s(r['plan_s']),
            _s(r['floor_s']),
            _s(sum(x['seconds'] for x in r['experts'].values())),
            _peak([r]),
            _loads([r]),
        ]
        for i, r in enumerate(records)
    ]
    out = [
        '## Scaling',
        '',
        f'`synthetic` graphs with {r["features"]} features (half of them continuous) and '
        f'{2 * r["edges"] / r["nodes"]:.0f} neighbours '
        f'per node, device {r["device"]}; each expert tuned with {r["n_trials"]} trials of '
        f'{r["epochs"]} epochs; GraphLIME over all '
        'validation nodes. Seconds per trial: those of `tune_expert`, divided by its trials. Made '
        'once per data set: the data, the '
        'model-independent part of GraphLIME, the reference model. One run per size.',
        '',
    ]
    out += _table(
        [
            'nodes',
            'edges (undirected)',
            'training nodes',
            'validation nodes',
            'rows per step',
            *(f'{e}, per trial' for e in COLOURS),
            'data',
            'GraphLIME plan',
            'reference',
            'three experts',
            'peak memory',
            'load',
        ],
        rows,
    )
    if len(n) > 1:
        power = lambda s, i: f'{np.log(s[-1] / s[i]) / np.log(n[-1] / n[i]):.2f}'
        show = lambda of, i: ', '.join(f'{power(s, i)} ({e})' for e, s in of.items())
        out += [
            f'From {n[0]:,} to {n[-1]:,} nodes the cost per trial grows as nodes to the power of '
            f'{show(each, 0)} by the clock, '
            f'{show(cpu, 0)} in CPU time; over the last step, from {n[-2]:,} nodes, '
            f'{show(cpu, -2)} in CPU time. Linear is 1.',
            '',
        ]
    fig, ax = _axes()
    for e, s in each.items():
        ax.loglog(n, s, marker=MARKS[e], color=COLOURS[e], label=e)
        ax.loglog(n, cpu[e], ':', color=COLOURS[e], lw=1, label=f'{e}, CPU time')
    top = max(s[0] for s in each.values()) * 1.6
    ax.loglog(n, top * n / n[0], '--', color=GREY, lw=1, label='slope 1')
    ax.set_xlabel('nodes')
    ax.set_ylabel('seconds per trial')
    ax.legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    _figure(folder / 'scaling.svg', fig)
    return out + [
        '![Seconds per trial against nodes, both axes logarithmic](plots/scaling.svg)',
        '',
    ]


def graph(records: list[dict], folder: Path) -> list[str]:
    records = sorted(records, key=lambda r: (r['method'] != 'exact', r['rows']))
    exact = {r['rows']: r['edges'] for r in records if r['method'] == 'exact'}
    how = lambda r: (
        'exact' if r['method'] == 'exact' else f'approximate, {r["n_neighbors"]} neighbours'
    )
    part = lambda r: f'{100 * r["edges"] / exact[r["rows"]]:.1f} %' if r['rows'] in exact else '—'
    r = records[0]
    return [
        '## The similarity graph',
        '',
        f'Tables of {r["columns"]} columns, half normal, half binary, threshold {r["threshold"]}. '
        'The approximate search compiles itself at its '
        'first call (some 20 s), included here.',
        '',
        *_table(
            [
                'rows',
                'method',
                'seconds',
                'CPU time',
                'edges',
                'share of the exact graph',
                'peak memory',
                'load',
            ],
            [
                [
                    f'{r["rows"]:,}',
                    how(r),
                    _s(r['seconds']),
                    _s(r['cpu']),
                    f'{r["edges"]:,}',
                    part(r),
                    _peak([r]),
                    _loads([r]),
                ]
                for r in records
            ],
        ),
    ]


def budgets(records: list[dict], folder: Path) -> list[str]:
    rows = records[0]['rows']
    if not rows:
        return ['## What the budget of steps costs', '', 'Nothing has been computed yet.', '']
    trained = [r for r in rows if 'studies' not in r['data']]
    sizes = {(r['data'], r['configurations'], r['epochs']) for r in trained}
    said = '; '.join(f'{d}: {n} of {e:,} epochs' for d, n, e in sorted(sizes))
    return [
        '## What the budget of steps costs',
        '',
        'On large data a step sees some of the training nodes, and a configuration has a limited '
        'number of steps. The same configurations of an expert (the default one and random ones; '
        f'{said}) were trained with these limits and without them (all nodes in a step up to '
        '20,000, else 8,192; no cap on steps), with the same floor. Loss: by how much the best '
        'feasible validation objective is worse with the limits, paired by seed; negative is '
        'better with them; 95 % t-intervals. "Studies" are whole studies of 30 trials, against '
        'those of the code in which a batch had ten trials and none stopped for being behind.',
        '',
        *_table(limits.HEAD, limits.table(rows)),
    ]


def epochs(records: list[dict], folder: Path) -> list[str]:
    r = records[0]
    rules, caps = curves.tables(r)
    out = [
        '## Stopping earlier, training longer',
        '',
        f'{r["n"]} configurations (the default and random ones) for each of {r["seeds"]} seeds, '
        'trained to the end without early stopping; what '
        'a rule would have stopped follows from the curves. '
        f'{len({(x["dataset"], x["expert"]) for x in r["rules"]})} pairs of data set '
        'and expert together (of bail only expert1); epochs run are a share of '
        f"{curves.CAP:,} each, and the objective lost is that of the study's winner.",
        '',
        *_table(curves.RULE_HEAD, rules),
        'And what a larger cap would buy expert1: best feasible utility of the study, mean over '
        'seeds (in brackets: how many of its '
        f'{r["n"]} configurations were feasible).',
        '',
        *_table(['epochs', *(f'{c:,}' for c in curves.CAPS)], caps),
    ]
    fig, ax = _axes(5.5, 3.4)
    for colour, dataset in zip(
        (BLUE, ORANGE, '#009E73', '#CC79A7'), dict.fromkeys(c['dataset'] for c in r['caps'])
    ):
        rows = [c for c in r['caps'] if c['dataset'] == dataset]
        ax.plot(
            [c['cap'] for c in rows],
            [np.nanmean(c['best']) if np.isfinite(c['best']).any() else np.nan for c in rows],
            'o-',
            color=colour,
            label=dataset,
        )
    ax.axvline(curves.CAP, color=GREY, lw=1, ls=':')
    ax.set_xscale('log', base=2)
    ax.set_xticks(curves.CAPS, [f'{c:,}' for c in curves.CAPS])
    ax.set_xlabel('epochs, at most (dotted: the default)')
    ax.set_ylabel('best feasible utility')
    ax.legend(frameon=False)
    _figure(folder / 'epochs.svg', fig)
    return out + ['![Best feasible utility against the cap on epochs](plots/epochs.svg)', '']


def samplers(records: list[dict], folder: Path) -> list[str]:
    r = records[0]
    _sampler_plot(r['analysis'], folder / 'samplers.svg')
    return [
        '## Samplers',
        '',
        f'Best feasible validation objective after {r["n_trials"]} trials, {r["seeds"]} seeds. The '
        'default configuration is '
        "everyone's first trial, and all but the Sobol sequence share nine random ones. "
        'Differences to random are paired by seed; '
        'positive is better; 95 % t-intervals.',
        '',
        study.table(r['analysis']),
        '',
        '![Gain over random by sampler, with 95 % intervals](plots/samplers.svg)',
        '',
    ]


def _sampler_plot(analysis: dict, path: Path):
    problems, columns = analysis['problems'], 3
    keys = [
        k for k in study.STRATEGIES if k != study.RANDOM and any(k in p['rows'] for p in problems)
    ]
    lines = -(-len(problems) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(9, 0.27 * len(keys) * lines + 1.6), sharey=True, squeeze=False
    )
    for ax, p in zip(axes.flat, problems):
        gain, half = (
            np.array(
                [p['rows'][k]['over'][study.RANDOM][f] if k in p['rows'] else np.nan for k in keys]
            )
            for f in ('gain', 'half')
        )
        ax.axvline(0, color=GREY, lw=1)
        ax.errorbar(gain, range(len(keys)), xerr=half, fmt='o', color=BLUE, ms=4, capsize=2, lw=1)
        ax.set_yticks(range(len(keys)), [study.STRATEGIES[k].title for k in keys])
        ax.set_title(f'{p["dataset"]}, {p["expert"]}', fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
        ax.spines[['top', 'right']].set_visible(False)
    for ax in axes.flat[len(problems) :]:
        ax.set_visible(False)
    axes[0, 0].invert_yaxis()
    fig.supxlabel('gain in best feasible objective over random (right is better)', fontsize=9)
    fig.tight_layout()
    _figure(path, fig)


# ---------------------------------------------------------------- document


def _machine(records: list[dict]) -> list[str]:
    m, loads = records[0]['machine'], [x for r in records for x in r['load']]
    gpus = sorted({r['gpu'] for r in records if r.get('gpu')})
    same = all(r['machine'] == m for r in records)
    return [
        f'Machine: {m["cpu"]}, {m["cores"]} cores, {m["memory"] / 2**30:.0f} GB, {m["system"]}; '
        f'{", ".join(gpus) or "no GPU"}. '
        f'Python {m["python"]}, {", ".join(f"{k} {v}" for k, v in m["versions"].items())}; torch '
        'threads: '
        f'{", ".join(sorted({str(r["torch_threads"]) for r in records}))}. One-minute load average '
        'before and after the jobs: '
        f'{min(loads):.1f} to {max(loads):.1f}.'
        + ('' if same else ' **Not all records come from this machine.**'),
        '',
    ]


def _versions(records: dict[str, list[dict]]) -> list[str]:
    timed = [r for s, rs in records.items() if s not in STUDIES for r in rs]
    codes = {r['code'] for r in timed if not r.get('before')}
    return (
        ['**The records come from different states of the code; run the command again.**', '']
        if len(codes) > 1
        else []
    )


def _load(rs: list[dict]) -> str:
    loads = [x for r in rs for x in r['load']]
    return f'<sub>Load average during these jobs: {min(loads):.1f} to {max(loads):.1f}.</sub>'


KEPT = (
    '*Kept from an earlier run of this command, perhaps with an older state of the code; '
    'its records are not here.*'
)


def _sections(path: Path) -> dict[str, str]:
    "Sections of an earlier RESULTS.md: long studies are not repeated because a short one was."
    if not path.exists():
        return {}
    found = re.findall(
        r'^<!-- (\w+) -->\n(.*?)\n<!-- end of \1 -->', path.read_text(encoding='utf-8'), re.S | re.M
    )
    return dict(found)


def write(records: dict[str, list[dict]], out: Path) -> Path:
    "RESULTS.md and plots/*.svg in the folder `out`."
    folder = out / 'plots'
    folder.mkdir(parents=True, exist_ok=True)
    text = [
        '# Benchmarks',
        '',
        'Written by `make bench` (`python benchmarks/run.py`); see [README.md](README.md). Do not '
        'edit.',
        '',
    ]
    there = {s: rs for s, rs in records.items() if rs}
    kept = _sections(out / 'RESULTS.md')
    if not there and not kept:
        text += ['Nothing has been measured yet.', '']
    elif there:
        text += _machine([r for rs in there.values() for r in rs]) + _versions(there)
    if there.get('everything'):
        text += ['<!-- targets -->', *targets(there), '<!-- end of targets -->', '']
    for section, rs in records.items():
        rs = rs if section in COMPARED else [r for r in rs if not r.get('before')]
        if rs:
            text += [
                f'<!-- {section} -->',
                *globals()[section](rs, folder),
                _load(rs),
                f'<!-- end of {section} -->',
                '',
            ]
        elif section in kept:
            body = (
                kept[section]
                if KEPT in kept[section]
                else kept[section].replace('\n\n', f'\n\n{KEPT}\n\n', 1)
            )
            text += [f'<!-- {section} -->', body, f'<!-- end of {section} -->', '']
    if there and (missing := [s for s in records if s not in there and s not in kept]):
        text += [f'Not measured: {", ".join(missing)}.', '']
    path = out / 'RESULTS.md'
    path.write_text('\n'.join(text).rstrip() + '\n', encoding='utf-8')
    return path
