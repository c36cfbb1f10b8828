"""Any groups, from the catalogue to the report: adult (sex × race), compas (race), law (both).

    python benchmarks/groups.py --public FOLDER            # all three; minutes to half an hour each
    python benchmarks/groups.py --public FOLDER --names compas --n_trials 5

For each table: the three experts are tuned, the gate is trained, everything is tested with
intervals, and the report is written. Beside it stands a plain network (cross-entropy alone, the
reference of the floor). The largest gaps between any two groups on the test nodes are compared,
and the rates by group are compared with Fairlearn's `MetricFrame`.

Results are kept in `work/groups/NAME.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from common import EXPERTS, read_json, write_json

WORK = Path(__file__).resolve().parent / 'work' / 'groups'
TABLES = 'adult-sex-race', 'compas-races', 'law-race-sex'
SHOWN = 'utility', 'dp', 'eo', 'fair_result', 'ref', 'vef', 'att_jsd', 'fair_procedure'


def plain_network(data, evaluator, seed: int):
    "The reference of the floor: cross-entropy alone."
    from dataclasses import asdict

    from moe_expert.experts.training import REFERENCE, TrainConfig, train_population

    config = TrainConfig(**asdict(REFERENCE) | {'seed': seed})
    (model,) = train_population(data, [config], evaluator=evaluator)
    return model.population


def distance_to_fairlearn(record) -> float:
    "The largest difference between our rates by group and those of `MetricFrame`."
    from fairlearn import metrics as fairlearn
    from sklearn.metrics import accuracy_score

    from moe_expert.scores.metrics import by_group, decide

    theirs = {
        'accuracy': accuracy_score,
        'selection rate': fairlearn.selection_rate,
        'true positive rate': fairlearn.true_positive_rate,
        'false positive rate': fairlearn.false_positive_rate,
    }
    compared = record.sens >= 0
    y, sens, p1 = record.y[compared], record.sens[compared], record.p1[0][compared]
    ours = by_group(p1, y, sens).by_group
    decided = decide(p1).numpy()
    frame = fairlearn.MetricFrame(
        metrics=theirs, y_true=y.numpy(), y_pred=decided, sensitive_features=sens.numpy()
    )
    return max(float((ours[name] - frame.by_group[name]).abs().max()) for name in theirs)


def unit(name: str, n_trials: int, public: Path, seed: int) -> dict:
    "One table from the catalogue to the report."
    from moe_expert.datasets import load_dataset
    from moe_expert.report import run_moe_report
    from moe_expert.scores.evaluation import Evaluator
    from moe_expert.scores.intervals import scores_with_intervals
    from moe_expert.trainer import MoETrainer
    from moe_expert.tune_experts import ExpertTuner

    begin = time.process_time()
    data = load_dataset(name, data_dir=public)
    with tempfile.TemporaryDirectory() as folder:
        place = {'cache_dir': folder, 'device': 'cpu', 'seed': seed}
        tuned = ExpertTuner(data, **place).tune_all_experts(n_trials)
        trainer = MoETrainer(data, use_cached_experts=True, **place)
        trainer.tune_gate(n_trials)
        trainer.fine_tune()
        trainer.evaluate()
        report = run_moe_report(name, cache_dir=folder, data_dir=str(public))
        plain = plain_network(data, Evaluator(data, 'val'), seed)
        models = {f'expert{k + 1}': trainer.experts.select([k]) for k in range(3)}
        models |= {'mixture': trainer.mixture, 'plain network': plain}
        test = Evaluator(data, 'test')
        records = {m: test.record(population) for m, population in models.items()}
        scores = {m: scores_with_intervals(r) for m, r in records.items()}
        return {
            'dataset': name,
            'groups': list(data.group_names),
            'cells': data.groups_report['cells'],
            'people': data.num_nodes,
            'n_trials': n_trials,
            'feasible': {e: tuned[e]['feasible'] for e in EXPERTS},
            'scores': {m: {k: s[k] for k in SHOWN} for m, s in scores.items()},
            'distance_to_fairlearn': max(map(distance_to_fairlearn, records.values())),
            'report_bytes': Path(report).stat().st_size
            if isinstance(report, (str, Path))
            else None,
            'cpu': time.process_time() - begin,
        }


def table(units: list[dict]) -> list[str]:
    "Lines of a Markdown table: gaps on the test nodes, with intervals."
    lines = ['| table | model | ' + ' | '.join(SHOWN) + ' |', '|---' * (len(SHOWN) + 2) + '|']
    for u in units:
        for model, scores in u['scores'].items():
            text = lambda s: (
                '–' if s['value'] is None else f'{s["value"]:.3f} [{s["low"]:.3f}, {s["high"]:.3f}]'
            )
            cells = ' | '.join(text(scores[name]) for name in SHOWN)
            lines.append(f'| {u["dataset"]}, {len(u["groups"])} groups | {model} | {cells} |')
    return lines


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--public', type=Path, help='files of the catalogue; None: they are downloaded')
    p.add_argument('--names', nargs='+', choices=TABLES, default=list(TABLES))
    p.add_argument('--n_trials', type=int, default=10)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--work', type=Path, default=WORK)
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    for name in a.names:
        path = a.work / f'{name}.json'
        if not path.exists():
            write_json(path, unit(name, a.n_trials, a.public, a.seed))
    units = [read_json(a.work / f'{n}.json') for n in a.names]
    print('\n'.join(table(units)))
    for u in units:
        print(
            f'{u["dataset"]}: {u["distance_to_fairlearn"]:.1e} from MetricFrame, {u["cpu"]:.0f} s'
        )


if __name__ == '__main__':
    main()
