"""The golden values: scores of small runs of every stage, made before the code was rearranged.

`python tests/golden/recompute.py` computes them again and says what differs by more than 1e-12.
`python tests/golden/recompute.py --write` replaces them: only in a commit of its own, which lists
each changed number and why it changed.
"""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault(
    'OMP_NUM_THREADS', '1'
)  # before torch is imported: sums then do not depend on the machine's cores
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name('golden.json')
TOLERANCE = 1e-12  # where the arithmetic is that of the golden values
# On a different processor or PyTorch sums are rounded differently, and training amplifies that.
ELSEWHERE = 1e-6
RESULT_KEYS = (
    'best_trial',
    'best_epoch',
    'best_score',
    'best_params',
    'best_metrics',
    'n_trials',
    'n_feasible',
)


def arithmetic():
    "What decides how sums are rounded."
    import torch

    cpu = platform.processor()
    if Path('/proc/cpuinfo').exists():
        cpu = next(
            (
                line
                for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')
            ),
            cpu,
        )
    return {
        'torch': torch.__version__,
        'capability': torch.backends.cpu.get_cpu_capability(),
        'cpu': cpu.split(':')[-1].strip(),
    }


def tolerance(golden):
    "What two numbers may differ by here."
    return TOLERANCE if golden['arithmetic'] == arithmetic() else ELSEWHERE


def find_data_dir():
    "The folder with the four benchmark data sets."
    places = [
        os.environ.get('MOE_EXPERT_DATA'),
        ROOT.parent / 'shared' / 'data',
        ROOT / 'shared' / 'data',
    ]
    return next(str(p) for p in places if p and (Path(p) / 'facts.json').is_file())


def tuned(result):
    "What is kept of the result record of an expert or of the gate."
    trials = [[t['score'], t['feasible'], *(t['params'].values())] for t in result['trials']]
    return {k: result[k] for k in RESULT_KEYS} | {'trials': trials}


def tuned_mixture(done):
    "What is kept of stages 2 and 3 and of the test."
    fine_tuning = {
        k: done['fine_tuning'][k]
        for k in ('kept', 'score_before', 'score_after', 'epoch', 'metrics')
    }
    test = {k: done['test'][k] for k in ('methods', 'gate_usage', 'nodes')}
    return {'gate': tuned(done['gate']), 'fine_tuning': fine_tuning, 'test': test}


def all_stages(dataset, *, n_trials, epochs, gate_trials, **options):
    "Three experts, gate, fine-tuning and test of one data set."
    from moe_expert import ExpertTuner, MoETrainer
    from moe_expert.mixture.crossfit import WAYS
    from moe_expert.trainer import MoESettings

    one_way = MoESettings(fine_tuning=WAYS['one'])
    with tempfile.TemporaryDirectory() as folder:
        source = {k: v for k, v in options.items() if k != 'backbone'}
        experts = ExpertTuner(
            dataset, 0, folder, epochs=epochs, device='cpu', **options
        ).tune_all_experts(n_trials)
        trainer = MoETrainer(dataset, True, folder, 0, device='cpu', settings=one_way, **source)
        done = trainer.run(gate_trials)
        people = trainer.predict_proba(trainer.data.x[:20], trainer.data.edge_index[:, :0])[
            :, 1
        ].tolist()
        fingerprint = trainer.data.fingerprint
    return {
        'fingerprint': fingerprint,
        'experts': {e: tuned(r) for e, r in experts.items()},
        'mixture': tuned_mixture(done),
        'people': people,
    }


def benchmark(name):
    return all_stages(name, n_trials=12, epochs=600, gate_trials=6, data_dir=find_data_dir())


def own_people(n=240):
    "A table with words, numbers, codes and gaps."
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(7)
    group, merit = rng.integers(0, 2, n), rng.normal(size=n)
    table = pd.DataFrame(
        {
            'age': rng.integers(18, 80, n),
            'income': np.round(np.exp(7 + merit + 0.3 * group), 2),
            'city': rng.choice(['Aachen', 'Bonn', 'Köln'], n),
            'gender': np.where(group == 1, 'man', 'woman'),
        }
    )
    table.loc[rng.choice(n, 12, replace=False), 'income'] = np.nan
    table['approved'] = np.where(merit + 0.5 * group + rng.normal(size=n) > 0, 'yes', 'no')
    return table


def own_table(**graph):
    card = {
        'label': 'approved',
        'positive': 'yes',
        'sensitive': 'gender',
        'privileged': 'man',
        'missing': 'impute',
        'dataset_name': 'golden',
    }
    graph = graph or {'threshold': 0.8}  # the similarity rule, as in the first editions
    return all_stages(own_people(), n_trials=4, epochs=200, gate_trials=3, **card, **graph)


def own_table_by_default():
    return own_table(neighbours=10)


def graph_backbone(backbone):
    return all_stages('synthetic-200', n_trials=3, epochs=200, gate_trials=2, backbone=backbone)


def nine_ways():
    "Stage 3 in nine ways, after a short stage 1."
    from moe_expert import MoETrainer
    from moe_expert.mixture.crossfit import WAYS
    from moe_expert.trainer import MoESettings

    with tempfile.TemporaryDirectory() as folder:
        trainer = MoETrainer(
            'synthetic-200',
            False,
            folder,
            0,
            device='cpu',
            n_trials=2,
            epochs=200,
            settings=MoESettings(fine_tuning=WAYS['nine']),
        )
        done = trainer.run(2)
    return tuned_mixture(done) | {
        'best way': done['fine_tuning']['best_way'],
        'ways': [w['score'] for w in done['fine_tuning']['ways']],
    }


def estimator():
    from moe_expert import FairMoEClassifier

    table = own_people()
    X, y = (
        table[['age', 'income']].fillna(1000).to_numpy(),
        (table['approved'] == 'yes').to_numpy().astype(int),
    )
    fair = FairMoEClassifier(n_trials=2, epochs=200, random_state=0, threshold=0.8).fit(
        X,
        y,
        sensitive_features=table['gender'],
    )
    return {'probabilities': fair.predict_proba(X[:30])[:, 1].tolist()}


def trade_off():
    from moe_expert import ExpertTuner
    from moe_expert.tuning.trade_off import search_pareto

    with tempfile.TemporaryDirectory() as folder:
        tuner = ExpertTuner('synthetic-300', 0, folder, epochs=300, device='cpu')
        result = search_pareto(tuner, 12, 0.9)
    kept = {
        k: result[k]
        for k in ('best_trial', 'best_params', 'best_metrics', 'n_trials', 'n_feasible', 'n_front')
    }
    return kept | {
        'trials': [
            [t['feasible'], t['on_front'], t['metrics'], *t['params'].values()]
            for t in result['trials']
        ]
    }


def quick_study():
    "One pair of the study's quick mode, every method."
    from moe_expert.study.ledger import CHANCE_SCORES, ROW_SCORES, Ledger
    from moe_expert.study.runs import run_missing, study_request

    with tempfile.TemporaryDirectory() as folder:
        asked = study_request(
            datasets='german',
            analyses='main',
            split_seeds='1000',
            n_trials=3,
            epochs=300,
            results=f'{folder}/rows',
            cache_dir=f'{folder}/cache',
            data_dir=find_data_dir(),
        )
        ledger = Ledger(asked.results)
        run_missing(asked.runs, ledger, cache_dir=asked.cache_dir, data_dir=asked.data_dir)
        rows = ledger.rows()
    chance = [f'chance_{name}' for name in CHANCE_SCORES]
    columns = [*ROW_SCORES, *chance, 'val_final_score', 'val_utility']
    return {row['method']: {c: row[c] for c in columns} for row in rows.to_dict('records')}


SECTIONS = {
    'german': lambda: benchmark('german'),
    'math': lambda: benchmark('math'),
    'own table': own_table,
    'own table, nearest neighbours': own_table_by_default,
    'gcn': lambda: graph_backbone('gcn'),
    'gat': lambda: graph_backbone('gat'),
    'nine ways': nine_ways,
    'estimator': estimator,
    'trade-off': trade_off,
    'study': quick_study,
}


def plain(value):
    "As JSON has it: what is not a number becomes None."
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, 'item') else value


def compute(section):
    "One section, computed now."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return plain(SECTIONS[section]())


def differences(golden, now, where='', within=TOLERANCE):
    "What is not the same: key path, golden value, value now."
    if isinstance(golden, dict) and isinstance(now, dict):
        return [
            d
            for k in golden | now
            for d in differences(
                golden.get(k, 'absent'), now.get(k, 'absent'), f'{where}/{k}', within
            )
        ]
    if isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        return [
            d
            for i, (a, b) in enumerate(zip(golden, now))
            for d in differences(a, b, f'{where}/{i}', within)
        ]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (golden, now))
    same = abs(golden - now) <= within if numbers else golden == now
    return [] if same else [(where, golden, now)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'sections', nargs='*', choices=[*SECTIONS, []], help='which; all of them if none is named'
    )
    parser.add_argument(
        '--write', action='store_true', help='replace the golden values by those computed now'
    )
    args = parser.parse_args()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    within = tolerance(golden) if golden else TOLERANCE
    print(f'Numbers may differ by {within:g} here.')
    changed = []
    for section in args.sections or SECTIONS:
        now = compute(section)
        found = differences(golden.get(section, {}), now, section, within)
        print(f'{section}: {len(found)} of its values differ', flush=True)
        changed += found
        golden[section] = now
    for where, before, now in changed[:200]:
        print(f'  {where}: {before} -> {now}')
    if args.write:
        golden['arithmetic'] = arithmetic()
        GOLDEN.write_text(json.dumps(golden, indent=1, allow_nan=False) + '\n')
    return 1 if changed and not args.write else 0


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
