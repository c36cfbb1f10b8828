"""The tuner.

Files, caching, continuing, interruptions, failures, and that only training and validation labels
matter.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys

import optuna
import pytest
import torch
from optuna.trial import TrialState

from moe_expert import tune_experts
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError, MoEExpertError
from moe_expert.experts import trainers as experts_trainers
from moe_expert.experts.floor import CONSTRAINTS, Floor
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainConfig, TrainSettings
from moe_expert.experts.training import train_population
from moe_expert.scores.evaluation import Evaluator
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning import records as tuning_records
from moe_expert.tuning import studies as tuning_studies
from moe_expert.tuning import trials as tuning_trials
from moe_expert.tuning.artifacts import read_json
from moe_expert.tuning.folder import ExpertFiles, claim
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.settings import (
    DEFAULT_PARAMS,
    SEARCH_SPACE,
    TuneSettings,
    search_space,
    settings_record,
    train_settings,
)

SETTINGS = TuneSettings(
    TrainSettings(epochs=150, val_every=50), utility_fraction=0.7, auc_fraction=0.3
)
NAME = 'synthetic-300'
FILES = [
    f'{NAME}_expert{i}_{end}' for i in (1, 2, 3) for end in ('best.pt', 'tuning_results.json')
] + [f'{NAME}_expert_tuning_summary.json']
DIRECTIONS = {
    'expert1': ('utility', True),
    'expert2': ('fair_result', False),
    'expert3': ('fair_procedure', False),
}


@pytest.fixture(scope='module')
def data():
    return make_synthetic(300, 8, group_bias=2.0)


@pytest.fixture(scope='module')
def tuned(data, tmp_path_factory):
    "Three experts, seventeen trials each; for looking only."
    folder = tmp_path_factory.mktemp('tuned')
    return folder, ExpertTuner(data, cache_dir=folder, settings=SETTINGS).tune_all_experts(
        n_trials=17
    )


def tuner(data, folder, **more):
    return ExpertTuner(data, cache_dir=folder, **dict(settings=SETTINGS) | more)


def test_a_folder_of_the_earlier_schedule_is_not_mixed_with_the_new_one(
    data, tmp_path, monkeypatch
):
    "Where a step does not see all nodes the limit of steps belongs to the settings."
    small = settings_record(data, 0, SETTINGS)
    assert 'steps' not in small['training']  # as before there was a limit
    for name in ('WHOLE_ROWS', 'STEP_ROWS'):
        monkeypatch.setattr(experts_trainers, name, 50)
    record = settings_record(data, 0, SETTINGS)
    assert record['training'] == small['training'] | {'steps': experts_trainers.MOST_STEPS}
    claim(tmp_path, data.name, small)  # what the version before wrote
    with pytest.raises(ArtifactError, match='"steps": 4000'):
        tuner(data, tmp_path)
    n = int(data.train_mask.sum())
    today, before = train_settings(record, n), train_settings(small, n)
    assert today == dataclasses.replace(SETTINGS.train, steps=4_000) and today.rows(n) < n
    assert before.rows(n) == n and before.steps_until(150, n) == 150  # the earlier schedule
    assert train_settings(small, 30_000).rows(30_000) == 8_192
    assert train_settings(small, 30_000).steps_until(150, 30_000) == 3 * 150


def strict(path):
    "JSON as other programs read it: no NaN, no Infinity, no key twice."

    def refuse(value):
        raise AssertionError(value)

    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(path.read_bytes().decode(), parse_constant=refuse, object_pairs_hook=once)


def bare(result):
    """What must not depend on when, where and how often something was run.

    Numbers, parameters, scores, order.
    """
    keys = (
        'number',
        'params',
        'score',
        'metrics',
        'constraints',
        'feasible',
        'epoch',
        'epochs_run',
        'state',
        'error',
    )
    return [{k: t[k] for k in keys} for t in result['trials']]


def assert_same(found, expected):
    """The same study up to the rounding that batches of another size bring.

    Draws, epochs and verdicts without any.
    """
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        for k in ('params', 'feasible', 'epoch', 'epochs_run', 'state', 'error'):
            assert a[k] == b[k], k
        for k in ('score', 'metrics', 'constraints'):
            assert a[k] == pytest.approx(b[k], abs=1e-9), k


@pytest.fixture
def no_training(forbid_training):
    forbid_training((tune_experts, 'train_population'), (tune_experts, 'reference_floor'))


# --- what is written ------------------------------------------------------------------------------


def test_files_are_named_as_the_contract_says(tuned):
    folder, _ = tuned
    assert all((folder / f).is_file() for f in FILES)
    others = {p.name for p in folder.iterdir()} - set(FILES)
    assert all(
        re.fullmatch(rf'\.?{NAME}(_settings\.json|_studies\.db(-wal|-shm)?|\.lock)', f)
        for f in others
    ), others


@pytest.mark.parametrize('expert', EXPERTS)
def test_what_is_returned_is_the_result_file(tuned, expert):
    folder, results = tuned
    result = strict(folder / f'{NAME}_{expert}_tuning_results.json')
    assert result == results[expert]
    assert {'expert_type', 'best_params', 'best_score', 'best_metrics'} <= result.keys()
    assert {
        'acc',
        'f1',
        'auc',
        'utility',
        'fair_result',
        'fair_procedure',
        'final_score',
    } <= result['best_metrics'].keys()
    assert result['expert_type'] == expert and list(result['best_params']) == list(
        search_space(EXPERTS[expert])
    )
    assert result['n_trials'] == len(result['trials']) == 17
    assert result['n_feasible'] == sum(t['feasible'] for t in result['trials']) >= 3
    assert {'seed', 'split_seed', 'edition', 'fingerprint', 'drop', 'backbone'} <= result[
        'settings'
    ].keys()
    assert {'moe_expert', 'torch', 'optuna', 'python'} <= result['versions'].keys() and result[
        'seconds'
    ] > 0
    assert result['floor']['utility'] == pytest.approx(0.7 * result['floor']['reference_utility'])


@pytest.mark.parametrize('expert', EXPERTS)
def test_the_winner_is_the_best_feasible_trial_in_its_direction(tuned, expert):
    result = tuned[1][expert]
    objective, maximize = DIRECTIONS[expert]
    floor, feasible = result['floor'], [t for t in result['trials'] if t['feasible']]
    assert (result['objective'], result['direction']) == (
        objective,
        'maximize' if maximize else 'minimize',
    )
    assert (
        result['best_score']
        == (max if maximize else min)(t['score'] for t in feasible)
        == result['best_metrics'][objective]
    )
    for t in result['trials']:
        assert t['score'] == t['metrics'][objective]
        m = t['metrics']
        cleared = (
            m['utility'] >= floor['utility']
            and m['auc'] >= floor['auc']
            and 0 < m['selection_rate'] < 1
        )
        assert (
            t['feasible'] == cleared == all(c <= 0 for c in t['constraints']) and t['error'] is None
        )
    winner = next(t for t in result['trials'] if t['number'] == result['best_trial'])
    assert (winner['params'], winner['metrics'], winner['epoch']) == (
        result['best_params'],
        result['best_metrics'],
        result['best_epoch'],
    )


@pytest.mark.parametrize('expert', EXPERTS)
def test_the_checkpoint_is_the_winner(tuned, expert):
    """Evaluated on fresh data it gives the recorded scores.

    Trained again, the winning configuration gives the same weights.
    """
    folder, results = tuned
    population, payload = load_expert(folder, NAME, expert)
    data, result = make_synthetic(300, 8, group_bias=2.0), results[expert]
    scores = Evaluator(data, 'val').scores(population)
    assert scores[result['objective']].item() == pytest.approx(result['best_score'], abs=1e-6)
    for k, v in result['best_metrics'].items():
        assert scores[k].item() == pytest.approx(v, abs=1e-6), k
    assert (
        payload['config'] == result['best_params']
        and payload['settings'] == result['settings']
        and payload['expert'] == expert
    )
    assert payload['feature_names'] == list(data.feature_names)
    torch.testing.assert_close(payload['x_min'], torch.as_tensor(data.x_min), rtol=0, atol=0)
    floor = Floor(**{f.name: result['floor'][f.name] for f in dataclasses.fields(Floor)})
    (again,) = train_population(
        data,
        [TrainConfig(**result['best_params'])],
        EXPERTS[expert],
        floor=floor,
        settings=SETTINGS.train,
    )
    for k, v in again.population.params.items():
        torch.testing.assert_close(population.params[k], v, rtol=0, atol=1e-5)


def test_the_summary_tells_of_all_three_and_of_the_real_files(tuned):
    folder, results = tuned
    summary = strict(folder / FILES[-1])
    assert list(summary['experts']) == list(EXPERTS) and summary['dataset'] == NAME
    for expert, entry in summary['experts'].items():
        assert (entry['best_params'], entry['best_score'], entry['feasible']) == tuple(
            results[expert][k] for k in ('best_params', 'best_score', 'feasible')
        )
        assert entry['checkpoint'] == f'{NAME}_{expert}_best.pt'
        assert (
            entry['checkpoint_sha256']
            == hashlib.sha256((folder / entry['checkpoint']).read_bytes()).hexdigest()
        )


def test_trial_records_stay_within_the_search_space(tuned):
    assert {k: (d.low, d.high, d.log) for k, d in SEARCH_SPACE.items()} == {
        'lr': (1e-5, 1e-3, True),
        'weight_decay': (1e-6, 1e-3, True),
        **{f'lambda_{k}': (0.01, 10.0, True) for k in ('rep', 'fair', 'attention', 'adv')},
    }
    for expert, result in tuned[1].items():
        space = search_space(EXPERTS[expert])
        assert result['search_space'] == {
            k: dict(low=d.low, high=d.high, log=True) for k, d in space.items()
        }
        for t in result['trials']:
            assert t['params'].keys() == space.keys() and all(
                d.low <= t['params'][k] <= d.high for k, d in space.items()
            )
        for k in space:
            assert len({t['params'][k] for t in result['trials']}) == 17  # no draw twice


@pytest.mark.parametrize('expert', EXPERTS)
def test_the_first_trial_is_the_documented_default(tuned, expert):
    first = tuned[1][expert]['trials'][0]
    assert first['number'] == 0 and first['params'] == {
        k: DEFAULT_PARAMS[k] for k in search_space(EXPERTS[expert])
    }


def test_optuna_knows_the_constraints(tuned, data):
    folder, results = tuned
    for expert, result in results.items():
        study = tuner(data, folder).study(expert)
        assert (
            study.best_trial.number == result['best_trial']
            and study.best_value == result['best_score']
        )
        for trial, record in zip(study.get_trials(), result['trials']):
            assert dict(trial.constraints) == pytest.approx(
                dict(zip(CONSTRAINTS, record['constraints']))
            )


# --- again, more, other ---------------------------------------------------------------------------


def test_the_same_call_again_trains_nothing_and_says_so(tuned, data, no_training, caplog):
    folder, results = tuned
    before = {f: (folder / f).stat().st_mtime_ns for f in FILES}
    seen = []
    again = tuner(data, folder, progress=seen.append)
    with caplog.at_level(logging.INFO, 'moe_expert'):
        assert again.tune_all_experts(n_trials=17) == results
    assert [(p.expert, p.cached, p.trials) for p in seen] == [(e, True, 17) for e in EXPERTS]
    assert 'nothing was trained' in caplog.text
    assert (
        again.tune_expert('expert1', n_trials=5) == results['expert1']
    )  # those that are there count
    assert {f: (folder / f).stat().st_mtime_ns for f in FILES} == before


def test_more_trials_continue_the_study(data, tmp_path):
    first = tuner(data, tmp_path).tune_expert('expert2', n_trials=3)
    seen = []
    more = tuner(data, tmp_path, progress=seen.append).tune_expert('expert2', n_trials=18)
    assert (
        len(first['trials']) == 3
        and len(more['trials']) == 18
        and more['trials'][:3] == first['trials']
    )
    assert more == strict(tmp_path / f'{NAME}_expert2_tuning_results.json')
    assert {p.trials for p in seen[:-1]} == {3, 10} and (seen[-1].trials, seen[-1].cached) == (
        18,
        False,
    )
    population, _ = load_expert(tmp_path, NAME, 'expert2')
    assert Evaluator(data).scores(population)['fair_result'].item() == pytest.approx(
        more['best_score'], abs=1e-6
    )


def test_the_same_settings_elsewhere_give_the_same_study_and_another_seed_another(
    tuned, data, tmp_path
):
    again = tuner(data, tmp_path / 'a').tune_expert('expert2', n_trials=17)
    assert bare(again) == bare(tuned[1]['expert2'])
    other = tuner(data, tmp_path / 'b', seed=1).tune_expert('expert2', n_trials=17)
    assert other['trials'][0]['params'] == again['trials'][0]['params']
    assert all(a['score'] != b['score'] for a, b in zip(again['trials'], other['trials']))
    assert all(a['params'] != b['params'] for a, b in zip(again['trials'][1:], other['trials'][1:]))
    mine, theirs = (
        load_expert(tmp_path / 'a', NAME, 'expert2')[0],
        load_expert(tuned[0], NAME, 'expert2')[0],
    )
    assert all(torch.equal(mine.params[k], theirs.params[k]) for k in mine.params)


def test_experts_may_come_one_by_one(tuned, data, tmp_path):
    for i, expert in enumerate(('expert3', 'expert1'), 1):
        result = tuner(data, tmp_path).tune_expert(expert, n_trials=17)
        assert bare(result) == bare(tuned[1][expert])  # the order of the experts does not matter
        assert len(strict(tmp_path / FILES[-1])['experts']) == i


@pytest.fixture(scope='module')
def small(data, tmp_path_factory):
    "One trial of expert 1; for refusals, which must not change it."
    folder = tmp_path_factory.mktemp('small')
    tuner(data, folder).tune_expert('expert1', n_trials=1)
    return folder


def altered(settings=SETTINGS, **train):
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, **train))


OTHERS = {
    'seed': (lambda d: dict(seed=1), 'seed: 0 there, 1 asked for'),
    'split': (
        lambda d: dict(dataset=make_synthetic(300, 8, group_bias=2.0, split_seed=21)),
        'split_seed: 20 there, 21 asked for',
    ),
    'drop': (
        lambda d: dict(dataset=make_synthetic(300, 8, group_bias=2.0, drop=['c0'])),
        r'drop: \[\] there, \["c0"\] asked for',
    ),
    'epochs': (
        lambda d: dict(settings=altered(epochs=80)),
        '"epochs": 150.* there, .*"epochs": 80.* asked for',
    ),
    'backbone': (
        lambda d: dict(settings=altered(hidden=5)),
        '"hidden": 8.* there, .*"hidden": 5.* asked for',
    ),
    'floor': (
        lambda d: dict(settings=dataclasses.replace(SETTINGS, auc_fraction=0.6)),
        '0.3.* there, .*0.6.* asked for',
    ),
    'data': (
        lambda d: dict(dataset=make_synthetic(300, 8, seed=1, group_bias=2.0)),
        'fingerprint: "[0-9a-f]{64}" there, "[0-9a-f]{64}" asked for',
    ),
}


@pytest.mark.parametrize('what', OTHERS)
def test_another_setting_is_refused_naming_both_values(small, data, what):
    make, words = OTHERS[what]
    before = {p.name: p.read_bytes() for p in small.iterdir() if p.suffix in ('.pt', '.json')}
    with pytest.raises(ArtifactError, match=words):
        ExpertTuner(**dict(dataset=data, cache_dir=small, settings=SETTINGS) | make(data))
    assert {
        p.name: p.read_bytes() for p in small.iterdir() if p.suffix in ('.pt', '.json')
    } == before


def test_overwrite_replaces_all_files_together(data, tmp_path):
    old = tuner(data, tmp_path).tune_all_experts(n_trials=1)
    beside = tmp_path / 'other_expert1_best.pt'
    beside.write_bytes(b'of another data set')
    new = tuner(data, tmp_path, seed=1, overwrite=True).tune_expert('expert2', n_trials=2)
    assert (
        new['n_trials'] == 2 and new['trials'][0]['score'] != old['expert2']['trials'][0]['score']
    )
    assert sorted(f for f in FILES if (tmp_path / f).exists()) == sorted(
        f for f in FILES if 'expert2' in f or 'summary' in f
    )
    assert (
        list(strict(tmp_path / FILES[-1])['experts']) == ['expert2']
        and beside.read_bytes() == b'of another data set'
    )
    with pytest.raises(ArtifactError, match='seed: 1 there, 0 asked for'):
        tuner(data, tmp_path)
    again = tuner(data, tmp_path, seed=1, overwrite=True).tune_expert(
        'expert2', n_trials=1
    )  # the same settings: anew all the same
    assert again['n_trials'] == 1
    assert_same(bare(again), bare(new)[:1])


def test_a_storage_elsewhere_serves_as_well(tuned, data, tmp_path):
    url = f'sqlite:///{tmp_path}/shared.db'
    result = tuner(data, tmp_path / 'a', storage=url).tune_expert('expert1', n_trials=4)
    assert_same(bare(result), bare(tuned[1]['expert1'])[:4])
    assert not (tmp_path / 'a' / f'{NAME}_studies.db').exists()
    assert (
        tuner(data, tmp_path / 'b', storage=url).tune_expert('expert1', n_trials=4) == result
    )  # whoever finishes writes the files
    assert load_expert(tmp_path / 'b', NAME, 'expert1')[1]['trial'] == result['best_trial']
    other = tuner(data, tmp_path / 'c', storage=url, seed=1).tune_expert('expert1', n_trials=1)
    assert other['n_trials'] == 1  # another setting is another study, in one storage too
    with pytest.raises(ArtifactError, match='cannot be opened'):
        tuner(data, tmp_path / 'd', storage='postgresql://nobody@127.0.0.1:1/none')


# --- wrong calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize('n_trials', [0, -3, 'x', True, 2.0, None])
def test_a_senseless_number_of_trials_is_refused(small, data, n_trials):
    with pytest.raises(MoEExpertError, match=f'n_trials.*{n_trials!r}'):
        tuner(data, small).tune_expert('expert1', n_trials=n_trials)


@pytest.mark.parametrize('seed', [-1, 2**32, True, '0', 1.0])
def test_a_senseless_seed_is_refused(data, tmp_path, seed):
    with pytest.raises(MoEExpertError, match='seed'):
        tuner(data, tmp_path, seed=seed)
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(small, data, tmp_path):
    with pytest.raises(MoEExpertError, match='expert1, expert2, expert3'):
        tuner(data, small).tune_expert('expert4', n_trials=1)
    with pytest.raises(MoEExpertError, match='bail'):
        ExpertTuner('bial', cache_dir=tmp_path)
    with pytest.raises(MoEExpertError, match='abacus'):
        tuner(data, tmp_path, device='abacus')
    with pytest.raises(ArtifactError):
        load_expert(tmp_path, NAME, 'expert1')


# --- the floor ------------------------------------------------------------------------------------


def test_a_feasible_trial_beats_a_better_infeasible_one(tuned):
    "Constant or nearly constant trials are there, and fairer than the winner."
    result = tuned[1]['expert2']
    infeasible = [t['score'] for t in result['trials'] if not t['feasible']]
    assert infeasible and min(infeasible) < result['best_score']


def test_without_a_feasible_trial_the_least_violating_is_kept_and_marked(
    data, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(
        tune_experts, 'reference_floor', lambda *args, **kwargs: Floor(2.0, 1.0, 1.0, 1.0)
    )
    one = tuner(data, tmp_path)
    with caplog.at_level(logging.WARNING, 'moe_expert'):
        result = one.tune_expert('expert2', n_trials=4)
    assert result['feasible'] is False and result['n_feasible'] == 0
    assert strict(tmp_path / f'{NAME}_expert2_tuning_results.json')['feasible'] is False
    assert strict(tmp_path / FILES[-1])['experts']['expert2']['feasible'] is False
    assert 'no trial reached the floor' in caplog.text
    violation = [sum(max(0, c) for c in t['constraints']) for t in result['trials']]
    assert result['best_trial'] == violation.index(min(violation)) and len(set(violation)) == 4
    population, _ = load_expert(tmp_path, NAME, 'expert2')
    assert Evaluator(data).scores(population)['fair_result'].item() == pytest.approx(
        result['best_score'], abs=1e-6
    )
    with pytest.raises(ValueError):
        print(one.study('expert2').best_trial)  # Optuna has none either


# --- interruptions --------------------------------------------------------------------------------


def interrupt(monkeypatch, name, at):
    "The `at`-th call of a function of the tuner or of its studies is a Ctrl-C."
    places = (ExpertTuner, tune_experts, tuning_records, tuning_studies, tuning_trials)
    module = next(place for place in places if getattr(place, name, None))
    real, calls = getattr(module, name), []

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.parametrize(
    'name, at',
    [
        ('train_population', 1),
        ('tell', 4),
        ('_write_outcome', 17),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [
                ('train_population', 2),
                ('tell', 17),
                ('make_sampler', 7),
                ('save_checkpoint', 1),
                ('write_json', 1),
                ('_alive', 17),
            ]
        ),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(
    tuned, data, tmp_path, monkeypatch, name, at
):
    with monkeypatch.context() as patch:
        interrupt(patch, name, at)
        with pytest.raises(KeyboardInterrupt):
            tuner(data, tmp_path).tune_expert('expert2', n_trials=17)
    result = tuner(data, tmp_path).tune_expert('expert2', n_trials=17)
    assert (
        bare(result) == bare(tuned[1]['expert2'])
        and result['best_trial'] == tuned[1]['expert2']['best_trial']
    )
    assert result['checkpoint_sha256'] == tuned[1]['expert2']['checkpoint_sha256']  # the same bits


KILLED = """
import os, sys
from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.trainers import TrainSettings
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.settings import TuneSettings
def die(p):
    if p.trials == 10 and p.epoch == 100: os._exit(9)
ExpertTuner(make_synthetic(300, 8, group_bias=2.0), cache_dir=sys.argv[1], progress=die,
            settings=TuneSettings(TrainSettings(epochs=150, val_every=50), utility_fraction=0.7,
                                  auc_fraction=0.3)).tune_expert('expert2', 17)
"""


@pytest.mark.faults
def test_a_killed_process_loses_nothing(tuned, data, tmp_path):
    process = subprocess.run(
        [sys.executable, '-c', KILLED, str(tmp_path)],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        timeout=120,
    )
    assert process.returncode == 9 and not (tmp_path / f'{NAME}_expert2_best.pt').exists()
    study = tuner(data, tmp_path).study('expert2')
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE] * 10 + [
        TrialState.RUNNING
    ] * 7
    result = tuner(data, tmp_path).tune_expert('expert2', n_trials=17)
    assert bare(result) == bare(tuned[1]['expert2'])


def test_a_trial_killed_between_its_parameters_is_drawn_again_whole(tuned, data, tmp_path):
    one = tuner(data, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        real = optuna.Trial.suggest_float

        def stopping(trial, name, *args, **kwargs):
            if trial.number == 1 and name == 'lambda_rep':
                raise KeyboardInterrupt
            return real(trial, name, *args, **kwargs)

        patch.setattr(optuna.Trial, 'suggest_float', stopping)
        with pytest.raises(KeyboardInterrupt):
            one.tune_expert('expert2', n_trials=17)
    half = one.study('expert2').get_trials()[1]
    assert half.state == TrialState.FAIL and set(half.params) == {'lr', 'weight_decay'}
    assert half.params['lr'] == tuned[1]['expert2']['trials'][1]['params']['lr']
    assert bare(one.tune_expert('expert2', n_trials=17)) == bare(tuned[1]['expert2'])


# --- failures -------------------------------------------------------------------------------------


def failing(monkeypatch, which):
    "Configurations at these places of every batch get a learning rate that is not a number."

    def train(data, configs, *args, **kwargs):
        broken = [
            dataclasses.replace(c, lr=float('nan')) if which(i) else c
            for i, c in enumerate(configs)
        ]
        return train_population(data, broken, *args, **kwargs)

    monkeypatch.setattr(tune_experts, 'train_population', train)


def test_trials_that_fail_are_recorded_and_count(data, tmp_path, monkeypatch, tuned):
    failing(monkeypatch, lambda i: i % 3 == 0)
    result = tuner(data, tmp_path).tune_expert('expert1', n_trials=6)
    states = [t['state'] for t in result['trials']]
    assert states == ['fail', 'complete', 'complete'] * 2 and result['n_trials'] == 6
    for i in (0, 3):
        t = result['trials'][i]
        assert 'NaN or infinite' in t['error'] and t['score'] is None and t['feasible'] is False
        assert t['params'] == tuned[1]['expert1']['trials'][i]['params']
    assert_same(bare(result)[1:2], bare(tuned[1]['expert1'])[1:2])  # the neighbours went on as ever
    assert strict(tmp_path / f'{NAME}_expert1_tuning_results.json') == result
    monkeypatch.undo()
    more = tuner(data, tmp_path).tune_expert('expert1', n_trials=7)
    assert more['trials'][:6] == result['trials'] and more['n_trials'] == 7


def test_when_all_trials_fail_the_first_error_is_raised(data, tmp_path, monkeypatch):
    failing(monkeypatch, lambda i: True)
    one = tuner(data, tmp_path)
    for n in (3, 3, 4):
        with pytest.raises(
            MoEExpertError, match=f'all {n} trials failed.*NaN or infinite by epoch 50'
        ):
            one.tune_expert('expert1', n)
    assert len(one.study('expert1').get_trials()) == 4
    assert not any((tmp_path / f).exists() for f in FILES)
    monkeypatch.undo()
    assert one.tune_expert('expert1', n_trials=5)['n_trials'] == 5


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture
def damaged(data, tmp_path):
    results = tuner(data, tmp_path).tune_all_experts(n_trials=2)
    return tmp_path, results, {f: (tmp_path / f).read_bytes() for f in FILES}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize('expert', EXPERTS)
@pytest.mark.parametrize('end', ['best.pt', 'tuning_results.json'])
@pytest.mark.parametrize('how', [cut, os.unlink], ids=['cut short', 'missing'])
def test_a_damaged_file_is_written_again_from_the_study(
    damaged, data, no_training, expert, end, how
):
    folder, results, before = damaged
    how(folder / f'{NAME}_{expert}_{end}')
    with pytest.raises(ArtifactError, match=f'{NAME}_{expert}_{end}'):
        load_expert(folder, NAME, expert)
    again = tuner(data, folder).tune_all_experts(n_trials=2)
    assert again == results
    assert {f: (folder / f).read_bytes() for f in FILES} == before


def test_a_checkpoint_of_another_run_is_refused(damaged, tuned, data):
    folder, _, _ = damaged
    (folder / f'{NAME}_expert1_best.pt').write_bytes(
        (tuned[0] / f'{NAME}_expert2_best.pt').read_bytes()
    )
    with pytest.raises(ArtifactError, match='SHA-256'):
        load_expert(folder, NAME, 'expert1')


@pytest.mark.parametrize('how', [cut, os.unlink], ids=['cut short', 'missing'])
def test_a_damaged_summary_is_written_again(damaged, data, no_training, how):
    folder, _, before = damaged
    how(folder / FILES[-1])
    tuner(data, folder).tune_all_experts(n_trials=2)
    assert (folder / FILES[-1]).read_bytes() == before[FILES[-1]]


def test_several_damaged_files_are_written_again(damaged, data, no_training):
    folder, results, before = damaged
    for expert in EXPERTS:
        cut(folder / f'{NAME}_{expert}_tuning_results.json')
    assert tuner(data, folder).tune_all_experts(n_trials=2) == results
    assert {f: (folder / f).read_bytes() for f in FILES} == before


def test_a_summary_that_a_killed_process_did_not_write_is_made_up_for(data, tmp_path, monkeypatch):
    tuner(data, tmp_path).tune_expert('expert1', n_trials=1)
    with monkeypatch.context() as patch:
        interrupt(patch, '_write_summary', 1)
        with pytest.raises(KeyboardInterrupt):
            tuner(data, tmp_path).tune_expert('expert1', n_trials=17)
    result = tuner(data, tmp_path).tune_expert('expert1', n_trials=17)
    entry = strict(tmp_path / FILES[-1])['experts']['expert1']
    assert entry['n_trials'] == 17 and entry['checkpoint_sha256'] == result['checkpoint_sha256']


# --- whose labels matter --------------------------------------------------------------------------


def with_shuffled_labels(data, mask):
    other, nodes = data.clone(), mask.nonzero().squeeze(1)
    other.y = data.y.clone()
    other.y[nodes] = data.y[
        nodes[torch.randperm(len(nodes), generator=torch.Generator().manual_seed(0))]
    ]
    assert not torch.equal(other.y, data.y)
    other.fingerprint = hashlib.sha256(other.y.numpy().tobytes()).hexdigest()
    return other


def test_test_labels_have_no_part_in_tuning(tuned, data, tmp_path):
    folder, results = tuned
    other = tuner(with_shuffled_labels(data, data.test_mask), tmp_path).tune_all_experts(
        n_trials=17
    )
    for expert in EXPERTS:
        assert bare(other[expert]) == bare(results[expert])
        assert (
            other[expert]['settings']['fingerprint'] != results[expert]['settings']['fingerprint']
        )
        mine, theirs = load_expert(tmp_path, NAME, expert)[0], load_expert(folder, NAME, expert)[0]
        assert all(torch.equal(mine.params[k], theirs.params[k]) for k in mine.params)


def test_validation_and_training_labels_have(tuned, data, tmp_path):
    for name in ('val', 'train'):
        other = tuner(
            with_shuffled_labels(data, data[f'{name}_mask']), tmp_path / name
        ).tune_expert('expert1', n_trials=1)
        assert other['trials'][0]['metrics'] != tuned[1]['expert1']['trials'][0]['metrics']


# --- the benchmarks -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bail', 'german', 'math', 'por'])
def test_ten_trials_have_feasible_winners_on_the_benchmarks(name, data_dir, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results = ExpertTuner(
        name, cache_dir=tmp_path, data_dir=data_dir, edition='full'
    ).tune_all_experts(n_trials=10)
    data = load_dataset(name, data_dir=data_dir)
    for expert, result in results.items():
        best = result['best_metrics']
        assert (
            result['feasible'] and result['n_feasible'] >= 1 and 0 < best['selection_rate'] < 1
        ), expert
        assert best['utility'] >= 0.9 * result['floor']['reference_utility'] and best['auc'] > 0.5
        population, payload = load_expert(tmp_path, name, expert)
        assert payload['backbone']['hidden'] == (4 if name == 'german' else 8)
        scores = Evaluator(data, 'val').scores(population)
        assert scores[result['objective']].item() == pytest.approx(result['best_score'], abs=1e-6)


def test_results_are_dicts_that_are_shown_in_short(tmp_path):
    data = make_synthetic(200, 8, seed=0)
    results = ExpertTuner(data, cache_dir=tmp_path, epochs=40).tune_all_experts(2)
    r = results['expert2']
    assert (
        isinstance(results, dict)
        and isinstance(r, dict)
        and dict(r) == read_json(ExpertFiles(tmp_path, data.name).results('expert2'))
    )
    assert (
        len(repr(r)) < 1200 < len(str(dict(r)))
        and 'fair_result' in repr(r)
        and repr(results).count('objective:') == 3
    )
    assert (
        r._repr_html_().count('<tr>') == len(r.facts())
        and results._repr_html_().count('<table>') == 3
    )
    assert json.loads(json.dumps(r)) == r and pickle.loads(pickle.dumps(r)) == r
