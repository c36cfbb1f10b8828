"The benchmarks run and render; how long anything takes is not asserted."

import json
import subprocess
import sys

import optuna
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / 'benchmarks'))  # last: its coverage.py must hide no package
import budgets
import curves
import numpy as np
import render
import run
import samplers
import sections
import work_rows

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainSettings
from moe_expert.scores.evaluation import Evaluator
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.settings import TuneSettings

MACHINE = {
    'cpu': 'a',
    'cores': 2,
    'memory': 2**34,
    'system': 'b',
    'python': '3',
    'versions': {'torch': '2'},
}
COMMON = {
    'machine': MACHINE,
    'load': [0.1, 0.2],
    'torch_threads': 2,
    'peak': 2e9,
    'peak_imports': 3e8,
    'gpu': None,
    'code': 'x',
    'device': 'cpu',
}
TRAIN = TrainSettings(epochs=20, val_every=10)


pytestmark = pytest.mark.filterwarnings('ignore::optuna.exceptions.ExperimentalWarning')


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def experts(seconds):
    return {
        e: {
            'seconds': seconds,
            'cpu': seconds,
            'trials': 30,
            'feasible': 30,
            'best': 0.5,
            'epochs': 100,
        }
        for e in EXPERTS
    }


@pytest.mark.slow
def test_one_command_measures_and_renders(tmp_path):
    subprocess.run(
        [
            sys.executable,
            str(ROOT / 'benchmarks' / 'run.py'),
            '--quick',
            '--only',
            'attributions',
            '--work',
            str(tmp_path),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    text = (tmp_path / 'RESULTS.md').read_text(encoding='utf-8')
    assert (
        '## Attributions' in text
        and 'captum' in text
        and 'growth, whole, graphlime, training' in text
    )
    (record,) = run.load_records(tmp_path)['attributions']
    assert record['largest_difference'] < 1e-6 and record['peak'] >= record['peak_imports'] > 0
    assert (
        run.main(['--quick', '--render', '--work', str(tmp_path), '--out', str(tmp_path / 'again')])
        == 0
    )
    assert (tmp_path / 'again' / 'RESULTS.md').read_text(encoding='utf-8') == text


def test_sections_that_were_not_measured_again_are_kept_and_say_so(tmp_path):
    (tmp_path / 'RESULTS.md').write_text(
        '# Benchmarks\n\n<!-- scaling -->\n## Scaling\n\nan old table\n<!-- end of scaling -->\n'
    )
    for _ in range(2):
        text = render.write({s: [] for s in run.SECTIONS}, tmp_path).read_text(encoding='utf-8')
        assert text.count('an old table') == text.count(render.KEPT) == text.count('## ') == 1


def test_the_whole_command_is_measured_whole():
    record = sections.whole('synthetic', n_trials=1, epochs=20, n_nodes=400)
    parts = record['experts'].values()
    assert [e['trials'] for e in parts] == [1, 1, 1] and sum(e['seconds'] for e in parts) < record[
        'seconds'
    ]
    assert sum(e['cpu'] for e in parts) < record['cpu']  # the data and the reference count too


def test_records_of_whole_training_graphlime_and_scaling_render(tmp_path):
    whole = {
        **COMMON,
        'dataset': 'bail',
        'nodes': 100,
        'n_trials': 30,
        'epochs': 2000,
        'experts': experts(10.0),
        'cpu': 7.0,
    }
    strata = [{'low': 1, 'high': 2, 'nodes': 100, 'sampled': 10, 'mean_s': 0.01, 'sd_s': 0.0}]
    lime = {
        **COMMON,
        'dataset': 'bail',
        'nodes': 100,
        'models': 10,
        'features': 18,
        'repeats': 3,
        'setup_s': [0.1],
        'population_s': [0.2, 0.1, 0.3],
        'single_s': [0.1],
        'population_cpu': 0.1,
        'single_cpu': 0.1,
        'lars_cpu_per_s': 0.5,
        'sample': [[2, 0.005, 0.005]],
        'strata': strata,
        'largest': 2,
        'largest_of_graph': 9,
        'top1_differs': 0,
        'objective_above': -1e-12,
    }
    train = {
        **COMMON,
        'dataset': 'bail',
        'expert': 'expert1',
        'n': 10,
        'epochs': 2000,
        'epochs_run': 20000,
        'repeats': 1,
        'alone_s': [8.0],
        'together_s': [2.0],
        'largest_difference': 0.0,
    }
    scale = [
        {
            **COMMON,
            'nodes': n,
            'edges': 10 * n,
            'features': 20,
            'train': n // 2,
            'val': n // 4,
            'rows': min(n // 2, 8192),
            'n_trials': 5,
            'epochs': 200,
            'data_s': 1.0,
            'plan_s': 1.0,
            'floor_s': 1.0,
            'experts': experts(n / 1000),
        }
        for n in (10_000, 100_000)
    ]
    records = {
        'whole': [{**whole, 'seconds': s} for s in (3.0, 1.0, 2.0)],
        'graphlime': [lime],
        'attributions': [],
        'training': [train],
        'scaling': scale,
        'samplers': [],
    }
    text = render.write(records, tmp_path).read_text(encoding='utf-8')
    assert '**2 s** | 1 s – 3 s' in text and '276 min' in text  # median and range; context
    assert (
        '| `GraphLIME`, 10 models together | 20 ms | **50×** | 10 ms | **50×** |' in text
    )  # 100 nodes × 0.01 s against 0.2 s for 10 models
    assert (
        '**4.0×**' in text and 'power of 1.00 (expert1)' in text and '**7 s** | 0.1 – 0.2' in text
    )
    assert all(p.stat().st_size < 60_000 for p in (tmp_path / 'plots').iterdir())


def test_sampler_study_draws_what_the_tuner_draws_and_resumes(tmp_path):
    data, said = make_synthetic(400), []
    tuner = ExpertTuner(data, seed=3, cache_dir=tmp_path / 'tuner', settings=TuneSettings(TRAIN))
    theirs = tuner.tune_expert('expert1', 12)['trials']
    _, mine = samplers.units(
        data,
        Evaluator(data, 'val'),
        EXPERTS['expert1'],
        [5, 3],
        12,
        TRAIN,
        {k: samplers.STRATEGIES[k] for k in (samplers.TUNER, samplers.RANDOM, 'qmc')},
    )
    same = mine['studies'][samplers.TUNER]
    assert [t['params'] for t in theirs] == [t['params'] for t in same], (
        'samplers.TUNER is not what the tuner does'
    )
    assert [t['score'] for t in theirs] == pytest.approx([t['score'] for t in same])
    assert mine['studies'][samplers.RANDOM][:10] == mine['studies'][samplers.TUNER][:10]
    few = {k: samplers.STRATEGIES[k] for k in (samplers.TUNER, samplers.RANDOM)}
    for strategies in (
        few,
        few,
        {**few, 'qmc': samplers.STRATEGIES['qmc']},
    ):  # new, all there, one more strategy
        samplers.compute(
            tmp_path / 'work',
            [data],
            ['expert2'],
            2,
            4,
            20,
            strategies=strategies,
            say=lambda *a, **k: said.append(a),
        )
    assert len(said) == 2
    units = samplers.load_units(tmp_path / 'work', 4, 20)
    assert len(units) == 2 and all(set(u['studies']) == {*few, 'qmc'} for u in units)
    assert '| random |' in samplers.table(samplers.analyse(units))


def test_gains_are_paired_signed_and_tell_infeasible_studies(tmp_path):
    def trial(score, feasible=True):
        return {'score': score, 'feasible': feasible}

    units = [
        {
            'dataset': 'd',
            'expert': 'expert2',
            'seed': s,
            'studies': {
                samplers.RANDOM: [trial(0.2 + s / 10), trial(0.01, False)],
                samplers.TUNER: [trial(0.1 + s / 10), trial(0.3)],
                'qmc': [trial(0.1, False), trial(0.1, s == 0)],
            },
        }
        for s in range(3)
    ]
    analysis = samplers.analyse(units)
    rows = analysis['problems'][0]['rows']
    mine = rows[samplers.TUNER]['over'][samplers.RANDOM]
    assert mine['gain'] == pytest.approx(0.1)  # a lower fair_result is better: positive
    assert mine['half'] == pytest.approx(0, abs=1e-12) and mine['better'] == 3
    assert rows['qmc']['infeasible'] == 2 and rows['qmc']['over'][samplers.RANDOM][
        'gain'
    ] == pytest.approx(0.1)
    assert analysis['overall'][samplers.RANDOM][samplers.TUNER]['gain'] == pytest.approx(
        1
    )  # random's bests are 0.2, 0.3, 0.4: sd 0.1
    record = {
        **COMMON,
        'seeds': 3,
        'n_trials': 2,
        'epochs': 20,
        'analysis': json.loads(json.dumps(analysis)),
    }
    text = render.write({'samplers': [record]}, tmp_path).read_text(encoding='utf-8')
    assert 'over random is +1.00 ± 0.00 standard deviations (95 % t-interval over seeds)' in text


def test_what_a_rule_would_have_stopped():
    nan = np.nan
    objective = np.array(
        [
            [nan, 0.3, 0.2, 0.2, 0.25, 0.25, 0.1, 0.1],
            [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0],
            [nan] * 8,
        ]
    )  # lower is better
    violation = np.where(np.isnan(objective), 0.1, 0.0)
    assert curves.stops_of_patience(objective, violation, False).tolist() == [
        6,
        5,
        8,
    ]  # the third without gain; never feasible: never
    assert curves.outcome(objective, np.array([8, 8, 8]), False) == (1, 0.0) and curves.outcome(
        objective, np.array([8, 5, 8]), False
    ) == (0, 0.1)
    assert curves.outcome(objective[2:], np.array([8]), False)[0] == -1
    assert curves.stops_of_halving(objective, violation, False, (2,)).tolist() == [
        6,
        5,
        2,
    ]  # two of three go on
    assert curves.stops_of_halving(objective, violation, False, (2, 4)).tolist() == [6, 4, 2]
    assert curves.stops_of_floor(objective, violation, False, rung=4, most=0.05).tolist() == [
        6,
        5,
        4,
    ]
    assert curves.stops_of_floor(objective, violation, False, rung=4, most=0.2).tolist() == [
        6,
        5,
        8,
    ]


@pytest.mark.parametrize('expert', list(EXPERTS))
def test_curves_are_the_objectives_that_the_engine_selects_from(expert, monkeypatch):
    monkeypatch.setattr(curves, 'CAP', 400)
    data, spec = make_synthetic(400), EXPERTS[expert]
    found = curves.curves(data, spec, 2, 3, 400, TRAIN)
    assert {k: v.shape for k, v in found.items()} == {
        'objective': (6, 4),
        'violation': (6, 4),
        'utility': (6, 4),
        'lr': (6,),
    }
    from moe_expert.experts.training import reference_floor, train_population

    floor = reference_floor(
        data, 1, settings=curves.replace(TRAIN, epochs=curves.CAP, val_every=curves.EVERY)
    )
    alone = train_population(
        data,
        curves.configurations(spec, 3, 1),
        spec,
        floor=floor,
        settings=curves.replace(TRAIN, epochs=400, val_every=curves.EVERY, patience=9),
    )
    for row, m in zip(found['objective'][3:], alone):
        assert bool(np.isfinite(row).any()) == m.feasible
        if m.feasible:
            assert (np.nanmax(row) if spec.maximize else np.nanmin(row)) == pytest.approx(
                m.score, abs=1e-9
            )


def test_arguments():
    assert run.parse(['--only', 'whole,scaling']).only == ['whole', 'scaling']
    with pytest.raises(SystemExit):
        run.parse(['--only', 'nothing'])
    quick = run.jobs(run.parse(['--quick']))
    assert {j[0] for j in quick} == set(run.SECTIONS) - set(run.STUDIES)


def test_everything_is_measured_stage_by_stage_with_its_children():
    record = work_rows.everything('own:300x6', n_trials=1, epochs=20, stages='experts')
    assert list(record['stages']) == ['imports', 'load', 'expert1', 'expert2', 'expert3']
    assert record['people'] == 300 and record['features'] == 7  # six, and the group
    assert record['cpu'] == sum(record['stages'].values()) > 0
    before = work_rows.busy()
    subprocess.run([sys.executable, '-c', 'sum(range(3_000_000))'], check=True)
    assert work_rows.busy() - before > 0.01  # a process that was started counts


def test_recall_of_the_default_graph_is_that_of_a_slow_search():
    record = work_rows.neighbours(rows=300, columns=5, neighbours=4, searched=50)
    assert record['recall'] == 1 and record['same_again'] and record['edges'] >= 300 * 4 / 2


def test_growth_varies_one_size(monkeypatch):
    monkeypatch.setattr(work_rows, 'BASE', dict(people=300, features=6, neighbours=3, trials=1))
    record = work_rows.growth('features', 8, epochs=20)
    assert set(record['spent']) == {'load', 'experts', 'gate', 'test'}
    assert min(record['spent'].values()) > 0 and record['value'] == 8
    rows = [{**COMMON, **record, 'value': v} for v in (8, 16)]
    rows[1] = rows[1] | {'spent': {k: 4 * v for k, v in record['spent'].items()}}
    assert render._exponent([8, 16], [1, 4]) == pytest.approx(2)


def stages(name, before, scale):
    spent = dict(imports=0, load=1, expert1=2, expert2=3, expert3=4, gate=9, integration=1, test=1)
    spent |= {'report of the experts': 11, 'report of the mixture': 5}
    return {
        **COMMON,
        'section': 'everything',
        'name': name,
        'dataset': name,
        'before': before,
        'stages': {k: v * scale for k, v in spent.items()},
        'cpu': 37 * scale,
        'people': 100,
        'features': 5,
        'edges': 200,
        'n_trials': 30,
        'peak_children': 1e9,
    }


def test_targets_compare_before_and_after(tmp_path):
    records = [stages(n, b, 2 if b else 1) for n in ('bail', 'german') for b in (True, False)]
    empty = [{**COMMON, 'name': 'papermill', 'before': b, 'cpu': 9.5} for b in (True, False)]
    (tmp_path / 'RESULTS.md').write_text('')
    text = render.write({'everything': records, 'papermill': empty}, tmp_path).read_text()
    lines = [x for x in text.splitlines() if x.startswith('| bail') or x.startswith('| german')]
    assert '| 20 s | 10 s | 0.50 |' in lines[0] and lines[0].endswith('yes |')  # 10 s of 15
    assert '22 s | 11 s' in lines[2] and lines[2].endswith('speed |')  # 11 s of 10 · 22 / 16
    assert (
        render._verdict(9, 8, 1.1) == '**no**' and render._verdict(9, 10, other=False) == '**no**'
    )
    assert '| 12.5 s | 1.5 s | 0.12 | ≤ 3 s | yes |' in text  # above an empty report
    assert any(
        x.startswith('| german: imports, load and 30') and x.endswith('yes |') for x in lines
    )


def test_what_a_budget_loses_is_paired_by_seed_and_signed(tmp_path):
    def unit(seed, variant, best, expert='expert2'):
        about = dict(data='d', seed=seed, expert=expert, variant=variant, best=best, feasible=1)
        about |= dict(cpu=1.0, configurations=10, epochs=2000)
        place = tmp_path / f'{seed}-{expert}-{variant}.json'
        place.write_text(json.dumps(about))

    for seed, full, limited in ((200, 0.1, 0.2), (201, 0.3, 0.2), (202, 0.2, 0.5), (100, 0, 9)):
        unit(seed, budgets.FULL, full)
        unit(seed, budgets.LIMITED, limited)
        unit(seed, budgets.FULL, full, 'expert1')
        unit(seed, budgets.LIMITED, limited, 'expert1')
    unit(203, budgets.FULL, 0.1)
    unit(203, budgets.LIMITED, None)  # a winner that was lost
    up, down = budgets.analyse(tmp_path)
    assert up['loss'] == pytest.approx(-0.1)  # utility: more is better; seed 100 is for choosing
    assert down['loss'] == pytest.approx(0.1) and down['lost_winners'] == 1  # a gap: less is better
    assert down['low'] < 0.1 < down['high'] and down['seeds'] == 4
    text = render.write({'budgets': [{**COMMON, 'rows': [down]}]}, tmp_path).read_text()
    assert '| d | expert2 (fair_result) | 4 | +0.1000 |' in text
