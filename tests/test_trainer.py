"""Stages 2 and 3.

What is loaded and refused, what is written and kept, that test labels wait for the test, and the
table against other libraries.
"""

import copy
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import same_edges
from fairlearn.metrics import demographic_parity_difference, true_positive_rate_difference
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from moe_expert import MoETrainer as of_the_package
from moe_expert import parameters, trainer, tune_experts
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError, DataError, MoEExpertError
from moe_expert.experts.floor import Linear, logistic_regression, majority_class
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainSettings
from moe_expert.experts.training import reference_floor
from moe_expert.mixture import checkpoints as mixture_checkpoints
from moe_expert.mixture import gate as mixture_gate
from moe_expert.mixture import integration as mixture_integration
from moe_expert.mixture import teachers as mixture_teachers
from moe_expert.mixture.checkpoints import load_experts, load_mixture, predict_proba, tuning_command
from moe_expert.mixture.gate import Mixture, init_gates
from moe_expert.mixture.gate_training import GateConfig, GateSettings, start_biases
from moe_expert.mixture.integration import FineTuner, FineTuneSettings, fine_tuned
from moe_expert.mixture.teachers import crossfit_lesson, halves
from moe_expert.scores.evaluation import Evaluator
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning import settings as tuning_settings
from moe_expert.tuning.artifacts import sha256_file
from moe_expert.tuning.settings import TuneSettings

TUNED = TuneSettings(
    TrainSettings(epochs=100, val_every=50), utility_fraction=0.7, auc_fraction=0.3
)
TINY = dataclasses.replace(TUNED, train=TrainSettings(epochs=20, val_every=20))
QUICK = MoESettings(
    GateSettings(epochs=40, val_every=20),
    FineTuneSettings(epochs=10, val_every=5, gate_lr=1e-2, expert_lr=1e-3),
)
UNIFORM = dataclasses.replace(
    QUICK, gate=dataclasses.replace(QUICK.gate, start='uniform')
)  # leaves fine-tuning room to improve
NAME = 'synthetic-300'
GATE, RESULTS = f'{NAME}_gate_best.pt', f'{NAME}_gate_tuning_results.json'
FINETUNED, FINETUNING, TEST = (
    f'{NAME}_moe_finetuned.pt',
    f'{NAME}_moe_finetuning_results.json',
    f'{NAME}_moe_results.json',
)


def people(**kwargs):
    return make_synthetic(300, 8, group_bias=2.0, **kwargs)


@pytest.fixture(scope='module')
def data():
    return people()


@pytest.fixture(scope='module')
def experts(data, tmp_path_factory):
    "Three tuned experts; for copying only."
    folder = tmp_path_factory.mktemp('experts')
    ExpertTuner(data, cache_dir=folder, settings=TUNED).tune_all_experts(n_trials=2)
    return folder


@pytest.fixture
def cache(experts, tmp_path):
    "A folder of one's own with tuned experts."
    return shutil.copytree(experts, tmp_path / 'cache')


@pytest.fixture(scope='module')
def done(data, experts, tmp_path_factory):
    "All stages run; for looking only."
    folder = shutil.copytree(experts, tmp_path_factory.mktemp('done') / 'cache')
    one = moe(data, folder)
    return folder, one, one.run(n_trials=4)


def moe(data, folder, **more):
    return MoETrainer(data, cache_dir=folder, **dict(settings=QUICK) | more)


def read(path):
    return json.loads(path.read_text())


def tensors(path):
    return load_mixture(path)[1]['state_dict']


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def no_training(forbid_training):
    forbid_training(
        (trainer, 'train_gates'),
        (mixture_integration, 'run_training'),
        (mixture_teachers, 'train_population'),
        (tune_experts, 'train_population'),
    )


# --- loading experts ------------------------------------------------------------------------------


def test_what_the_tuner_wrote_is_what_is_loaded(experts, data):
    population, about = load_experts(experts, data, 0)
    scores = Evaluator(data).scores(population)
    for k, (e, spec) in enumerate(EXPERTS.items()):
        assert scores[spec.objective][k].item() == pytest.approx(
            about[e]['result']['best_score'], abs=1e-9
        )
        assert about[e]['sha256'] == sha256_file(experts / f'{NAME}_{e}_best.pt')
    assert (
        of_the_package is MoETrainer
        and len(MoETrainer(data, use_cached_experts=True, cache_dir=experts).experts) == 3
    )


@pytest.mark.parametrize('expert', EXPERTS)
def test_a_missing_expert_is_named_with_the_command(cache, data, expert):
    (cache / f'{NAME}_{expert}_best.pt').unlink()
    with pytest.raises(ArtifactError) as error:
        moe(data, cache)
    text = str(error.value)
    assert f'{expert}: {NAME}_{expert}_best.pt missing' in text and text.count(' missing') == 1
    assert (
        f'python -m moe_expert.run_expert_tuning --dataset {NAME} --seed 0 --cache_dir {cache}'
        in text
    )
    (cache / f'{NAME}_{expert}_tuning_results.json').unlink()
    with pytest.raises(
        ArtifactError,
        match=f'{NAME}_{expert}_best.pt and {NAME}_{expert}_tuning_results.json missing',
    ):
        moe(data, cache)


def test_nothing_there_names_all_and_makes_no_folder(data, tmp_path):
    with pytest.raises(ArtifactError) as error:
        moe(data, tmp_path / 'typo')
    assert all(f'{e}: ' in str(error.value) for e in EXPERTS) and not (tmp_path / 'typo').exists()


def damage(path, how):
    raw = path.read_bytes()
    path.write_bytes(
        dict(
            truncated=raw[: len(raw) // 2],
            empty=b'',
            flipped=raw[:200] + bytes([raw[200] ^ 255]) + raw[201:],
            other=b'{}',
        )[how]
    )


@pytest.mark.parametrize('file', ['best.pt', 'tuning_results.json'])
@pytest.mark.parametrize('how', ['truncated', 'empty', 'flipped', 'other'])
def test_a_damaged_file_is_named(cache, data, file, how):
    path = cache / f'{NAME}_expert2_{file}'
    if how == 'other' and file.endswith('json'):
        path.write_text('[]')
    else:
        damage(path, how)
    with pytest.raises(ArtifactError) as error:
        moe(data, cache)
    text = str(error.value)
    assert (
        'expert2: ' in text
        and 'expert1: ' not in text
        and path.name in text.split('Tune them')[0]
        and '--overwrite' in text
    )


OTHERS = {
    'seed': (dict(seed=1), {}, 'seed is 0 there, 1 is asked for', '--seed 1'),
    'split': (
        {},
        dict(split_seed=21),
        'split_seed is 20 there, 21 is asked for',
        'ExpertTuner.*split_seed=21',
    ),
    'drop': (
        {},
        dict(drop=['c0', 'b1']),
        r"drop is \[\] there, \['c0', 'b1'\] is asked for",
        '--drop c0 b1',
    ),
    'data': (
        {},
        dict(seed=1),
        "fingerprint is '[0-9a-f]{64}' there, '[0-9a-f]{64}' is asked for",
        'run_expert_tuning',
    ),
    'backbone': (
        dict(backbone='gcn'),
        {},
        "backbone is 'mlp' there, 'gcn' is asked for",
        '--backbone gcn',
    ),
}


@pytest.mark.parametrize('what', OTHERS)
def test_what_does_not_match_is_named_with_the_command(experts, what):
    more, other, says, command = OTHERS[what]
    before = {p.name: p.read_bytes() for p in experts.iterdir() if p.suffix in ('.pt', '.json')}
    with pytest.raises(ArtifactError) as error:
        moe(people(**other), experts, **more)
    text = str(error.value)
    for e in EXPERTS:
        assert re.search(f'{e}: {says}', text), text
    assert re.search(command, text.split('Tune them: ')[1].splitlines()[0]), text
    assert {
        p.name: p.read_bytes() for p in experts.iterdir() if p.suffix in ('.pt', '.json')
    } == before


def test_another_edition_is_refused(cache, data):
    other = copy.copy(data)
    other.edition = 'offline'
    with pytest.raises(ArtifactError, match="edition is 'synthetic' there, 'offline' is asked for"):
        moe(other, cache)


def test_experts_of_different_trainings_are_not_mixed(cache, data, tmp_path):
    other = dataclasses.replace(TUNED, train=dataclasses.replace(TUNED.train, hidden=5))
    ExpertTuner(data, cache_dir=tmp_path / 'other', settings=other).tune_expert(
        'expert3', n_trials=1
    )
    for end in ('best.pt', 'tuning_results.json'):
        shutil.copy(tmp_path / 'other' / f'{NAME}_expert3_{end}', cache)
    with pytest.raises(
        ArtifactError, match=r'expert3: .*expert3_best.pt was made with other settings.*"hidden": 5'
    ):
        moe(data, cache)
    (cache / f'{NAME}_settings.json').unlink()  # then they are still compared with each other
    with pytest.raises(
        ArtifactError,
        match=r"expert3: backbone is \{.*'hidden': 5.*, that of expert1 is \{.*'hidden': 8",
    ):
        moe(data, cache)


def test_the_command_can_be_pasted(data, tmp_path):
    command = tuning_command(people(drop=['c0', 'b1']), 3, tmp_path / 'my folder')
    args = parameters.parser('tune').given(shlex.split(command)[3:])
    assert (args.dataset, args.seed, args.cache_dir, list(args.drop)) == (
        NAME,
        3,
        str(tmp_path / 'my folder'),
        ['c0', 'b1'],
    )
    own = copy.copy(data)
    own.edition = 'own'
    assert (
        tuning_command(own, 3, 'w')
        == "ExpertTuner(dataset=<these data>, seed=3, cache_dir='w').tune_all_experts()"
    )


def test_cached_experts_yes_no_or_either(data, tmp_path, monkeypatch):
    made = []
    original = ExpertTuner.tune_all_experts

    def counted(self, n_trials, **more):
        made.append(n_trials)
        return original(self, n_trials, **more)

    monkeypatch.setattr(ExpertTuner, 'tune_all_experts', counted)
    args = dict(n_trials=1, tune_settings=TINY)
    moe(data, tmp_path, use_cached_experts=None, **args)  # none there: tuned
    assert made == [1]
    moe(data, tmp_path, use_cached_experts=None, **args)  # there: loaded
    assert made == [1]
    more = moe(data, tmp_path, use_cached_experts=False, **args | dict(n_trials=2))  # tuned on
    assert made == [1, 2] and more.about['expert3']['result']['n_trials'] == 2
    (tmp_path / f'{NAME}_expert2_best.pt').unlink()
    moe(data, tmp_path, use_cached_experts=None, **args)  # one is missing: made from the study
    assert made == [1, 2, 1] and (tmp_path / f'{NAME}_expert2_best.pt').exists()
    with pytest.raises(ArtifactError, match='seed: 0 there, 1 asked for'):
        moe(data, tmp_path, use_cached_experts=False, seed=1, **args)
    anew = moe(data, tmp_path, use_cached_experts=None, overwrite=True, seed=1, **args)
    assert anew.about['expert1']['settings']['seed'] == 1
    with pytest.raises(MoEExpertError, match='overwrite=True would remove'):
        moe(data, tmp_path, overwrite=True, seed=1)


def test_settings_out_of_range(cache, data):
    for wrong in (-1, 1.5, True, 2**32, '0'):
        with pytest.raises(MoEExpertError, match='seed'):
            moe(data, cache, seed=wrong)
    one = moe(data, cache)
    for wrong in (0, 1.5, True, '3'):
        with pytest.raises(MoEExpertError, match='n_trials'):
            one.tune_gate(wrong)
    with pytest.raises(MoEExpertError, match='teachers'):
        MoESettings(teachers='test')
    with pytest.raises(MoEExpertError, match='val_every'):
        FineTuneSettings(val_every=0)
    with pytest.raises(MoEExpertError, match='no mixture yet'):
        one.predict_proba(data.x)
    with pytest.raises(MoEExpertError, match="'val'"):
        one.evaluate('everything')


# --- the gate's study -----------------------------------------------------------------------------


def test_files_are_named_as_the_contract_says(done):
    folder, _, results = done
    assert all((folder / f).is_file() for f in (GATE, RESULTS, FINETUNING, TEST))
    for f, stage in ((RESULTS, 'gate'), (FINETUNING, 'fine_tuning'), (TEST, 'test')):
        assert read(folder / f) == results[stage]


def test_what_the_experts_stand_beside_is_not_computed_again_for_the_gate(cache, data, monkeypatch):
    asked = []
    real = trainer.simple_models
    monkeypatch.setattr(trainer, 'simple_models', lambda e: (asked.append(e), real(e))[1])
    result = moe(data, cache).tune_gate(1)
    assert not asked
    monkeypatch.undo()
    again = real(moe(data, cache).evaluator('select'))
    assert {name: result[name] for name in again} == again


def test_the_winner_is_the_best_feasible_trial_and_its_own_weights(done, data):
    folder, _, results = done
    result = results['gate']
    feasible = [t for t in result['trials'] if t['feasible']]
    assert (
        result['n_trials'] == len(result['trials']) == 4
        and feasible
        and result['objective'] == 'final_score'
    )
    assert (
        result['best_score']
        == max(t['score'] for t in feasible)
        == result['best_metrics']['final_score']
    )
    assert result['trials'][0]['params'] == dict(gate_lr=1e-3, entropy_coeff=1e-3, lb_coeff=1e-3)
    assert all(
        1e-5 <= t['params']['gate_lr'] <= 1e-3 and 1e-5 <= t['params']['lb_coeff'] <= 1e-2
        for t in result['trials']
    )
    mixture, payload = load_mixture(folder / GATE, result['checkpoint_sha256'])
    scores = Evaluator(data).scores(mixture)
    for name, value in result['best_metrics'].items():
        assert scores[name].item() == pytest.approx(value, abs=1e-9), name
    assert (
        payload['experts']
        == {e: sha256_file(folder / f'{NAME}_{e}_best.pt') for e in EXPERTS}
        == result['experts']
    )
    assert payload['nodes']['taught_gate'] == 'training nodes' and payload['feature_names'] == list(
        data.feature_names
    )


def test_again_trains_nothing_and_gives_the_same(done, data, no_training):
    folder, one, results = done
    before = {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.iterdir()
        if p.suffix in ('.pt', '.json')
    }
    again = moe(data, folder)
    assert again.run(n_trials=4) == results
    assert (
        torch.equal(again.predict_proba(data.x), one.predict_proba(data.x))
        and again.stage == one.stage
    )
    assert {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.iterdir()
        if p.suffix in ('.pt', '.json')
    } == before


def test_a_gate_over_an_expert_that_was_tuned_on_is_a_new_study(tmp_path, data, monkeypatch):
    "Whatever rests on the old expert is not used again: study, fine-tuning, test record."
    monkeypatch.setitem(
        tuning_settings.DEFAULT_PARAMS, 'lr', 1e-5
    )  # a first trial that others beat
    cache, low = tmp_path, TuneSettings(TUNED.train, 0.0, 0.0)
    old = moe(data, cache, use_cached_experts=False, n_trials=1, tune_settings=low).run(n_trials=2)
    ExpertTuner(data, cache_dir=cache, settings=low).tune_expert('expert1', n_trials=8)
    new = moe(data, cache)
    assert new.about['expert1']['result']['best_trial'] > 0, 'the test needs another winner'
    with pytest.raises(
        ArtifactError,
        match=r'other experts or with other settings \(experts differ\): tune_gate\(\) first',
    ):
        new.fine_tune()
    results = new.run(n_trials=1)
    assert results['gate']['study'] != old['gate']['study'] and results['gate']['n_trials'] == 1
    assert (
        results['fine_tuning']['gate_sha256']
        == results['gate']['checkpoint_sha256']
        != old['gate']['checkpoint_sha256']
    )
    sha256 = results['test']['mixture_sha256']
    assert sha256 != old['test']['mixture_sha256']
    assert results['test']['tested_before'] == [old['test']['mixture_sha256']]
    assert read(cache / TEST) == old['test']  # the first test stays
    assert read(cache / f'{NAME}_moe_results.{sha256[:8]}.json') == results['test']
    alone = moe(data, cache)
    fresh = {
        e: Evaluator(data, 'test').scores(alone.experts.select([k]))['final_score'].item()
        for k, e in enumerate(EXPERTS)
    }
    for e, value in fresh.items():
        assert results['test']['methods'][e]['final_score']['value'] == pytest.approx(
            value, abs=1e-9
        )


def test_other_gate_settings_are_another_study(done, data):
    folder, one, _ = done
    names = {
        trainer.gate_study_name(moe(data, folder, settings=s))
        for s in (
            QUICK,
            dataclasses.replace(QUICK, teachers='val_half'),
            dataclasses.replace(QUICK, gate=GateSettings(epochs=41)),
        )
    }
    assert len(names) == 3 and trainer.gate_study_name(one) in names


@pytest.mark.parametrize('file', [GATE, RESULTS])
@pytest.mark.parametrize('how', ['missing', 'truncated'])
def test_a_damaged_gate_is_made_again_from_its_study(done, data, tmp_path, file, how):
    folder = shutil.copytree(done[0], tmp_path / 'cache')
    before = {f: (folder / f).read_bytes() for f in (GATE, RESULTS)}
    if how == 'missing':
        (folder / file).unlink()
    else:
        damage(folder / file, how)
    assert moe(data, folder).tune_gate(4) == done[2]['gate']
    assert {f: (folder / f).read_bytes() for f in (GATE, RESULTS)} == before


WORKER = """
import sys
import torch
torch.set_num_threads(1)
from moe_expert.tuning import storage as tuning_storage
from moe_expert.tuning import studies as tuning_studies
from moe_expert.data.synthetic import make_synthetic
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.trainer import MoESettings, MoETrainer
tuning_storage.GRACE = tuning_storage.HEARTBEAT = 1
settings = MoESettings(GateSettings(epochs=40, val_every=20))
one = MoETrainer(make_synthetic(300, 8, group_bias=2.0), cache_dir=sys.argv[1], settings=settings)
trained = 0
original = tuning_studies.tell
def tell(*args):
    global trained
    if trained == 3: print('three of six told', flush=True); import time; time.sleep(1000)
    trained += 1
    return original(*args)
tuning_studies.tell = tell
one.tune_gate(6)
"""


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bits(
    data, cache, experts, tmp_path, repo_root, monkeypatch
):
    from moe_expert.tuning import storage as tuning_storage

    monkeypatch.setattr(tuning_storage, 'GRACE', 1)
    monkeypatch.setattr(tuning_storage, 'HEARTBEAT', 1)
    with subprocess.Popen(
        [sys.executable, '-c', WORKER, str(cache)], cwd=repo_root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == 'three of six told\n'
        process.send_signal(signal.SIGKILL)
    assert not (cache / GATE).exists()
    time.sleep(1.2)  # its last sign of life is then old
    found = moe(data, cache).tune_gate(6)
    whole = shutil.copytree(experts, tmp_path / 'whole')
    expected = moe(data, whole).tune_gate(6)
    bare = lambda r: [
        {k: v for k, v in t.items() if k not in ('seconds', 'optuna_number')} for t in r['trials']
    ]
    assert found['n_trials'] == 6 and bare(found) == bare(expected)
    assert (found['best_trial'], found['study'], found['history']) == (
        expected['best_trial'],
        expected['study'],
        expected['history'],
    )
    assert (cache / GATE).read_bytes() == (whole / GATE).read_bytes()


# --- test labels ----------------------------------------------------------------------------------


def test_no_test_label_is_read_before_the_test(done, data, tmp_path):
    """Labels of the test nodes that are no labels at all.

    Experts, gate and fine-tuned mixture are the same to the bit. The test then sees labels.
    """
    folder, _, results = done
    test, other = data.test_mask.nonzero()[:, 0], data.clone()
    other.y[test] = 7
    one = moe(other, tmp_path, use_cached_experts=False, n_trials=2, tune_settings=TUNED)
    one.tune_gate(4)
    one.fine_tune()
    assert not (tmp_path / TEST).exists()
    for f in [GATE, FINETUNED, *(f'{NAME}_{e}_best.pt' for e in EXPERTS)]:
        assert (folder / f).exists() == (tmp_path / f).exists(), f
        if (folder / f).exists():
            assert (folder / f).read_bytes() == (tmp_path / f).read_bytes(), f
    one.data.y[test] = 1 - data.y[test]
    wrong = one.evaluate('test')['methods']
    for m, scores in results['test']['methods'].items():
        assert wrong[m]['acc']['value'] == pytest.approx(1 - scores['acc']['value']), m


# --- which nodes teach ----------------------------------------------------------------------------


def test_halves_are_even_and_reproducible(data):
    nodes = data.val_mask.nonzero()[:, 0]
    a, b = halves(nodes, data, 0)
    assert sorted(torch.cat([a, b]).tolist()) == nodes.tolist() and not set(a.tolist()) & set(
        b.tolist()
    )
    for y in (0, 1):
        for s in (0, 1):
            count = [int(((data.y[part] == y) & (data.sens[part] == s)).sum()) for part in (a, b)]
            assert abs(count[0] - count[1]) <= 1 and min(count) > 0
    assert torch.equal(halves(nodes, data, 0)[0], a) and not torch.equal(
        halves(nodes, data, 1)[0], a
    )


def test_val_half_teaches_with_one_half_and_selects_with_the_other(cache, data):
    one = moe(data, cache, settings=dataclasses.replace(QUICK, teachers='val_half'))
    nodes = data.val_mask.nonzero()[:, 0]
    teach, select = halves(nodes, data, 0)
    assert torch.equal(one.lesson().x, data.x[teach].double()) and torch.equal(
        one.evaluator('select').nodes, select
    )
    assert torch.equal(one.evaluator('val').nodes, nodes)
    model = one.train_gate()
    assert Evaluator(data, select).scores(one.mixture)['final_score'].item() == pytest.approx(
        model.score, abs=1e-9
    )


def test_crossfit_experts_have_not_seen_what_they_speak_of(cache, data, monkeypatch):
    "Labels of one half change what is said of the other half alone."
    about = load_experts(cache, data, 0)[1]
    nodes = data.train_mask.nonzero()[:, 0]
    first, second = halves(nodes, data, 0)
    lesson = crossfit_lesson(data, about, 0, 2, torch.device('cpu'))
    assert torch.equal(lesson.x, data.x[torch.cat([second, first])].double()) and torch.equal(
        lesson.y, data.y[torch.cat([second, first])]
    )
    other = data.clone()
    other.y[second[:20]] = 1 - other.y[second[:20]]
    monkeypatch.setattr(
        mixture_teachers, 'halves', lambda *args: (first, second)
    )  # new labels would cut otherwise
    changed = crossfit_lesson(other, about, 0, 2, torch.device('cpu'))
    n = len(second)
    assert torch.equal(changed.margins[:n], lesson.margins[:n]) and not torch.equal(
        changed.margins[n:], lesson.margins[n:]
    )
    assert (
        moe(data, cache, settings=dataclasses.replace(QUICK, teachers='crossfit'))
        .train_gate()
        .error
        is None
    )


def test_crossfit_experts_obey_the_floor(cache, data, monkeypatch):
    seen, original = [], mixture_teachers.train_population
    monkeypatch.setattr(
        mixture_teachers,
        'train_population',
        lambda *args, **kwargs: (seen.append(kwargs.get('floor')), original(*args, **kwargs))[1],
    )
    one = moe(data, cache)
    crossfit_lesson(data, one.about, 0, 2, torch.device('cpu'))
    assert len(seen) == 6 and all(f == one.floor for f in seen)


def test_the_floor_is_the_experts(cache, data):
    expected = reference_floor(
        data, 0, utility_fraction=0.7, auc_fraction=0.3, settings=TUNED.train
    )
    assert moe(data, cache).floor == expected


# --- fine-tuning ----------------------------------------------------------------------------------


def test_fine_tuning_that_helps_is_kept(cache, data):
    one = moe(data, cache, settings=UNIFORM)
    one.train_gate = None  # not used
    gate_result = one.tune_gate(1)
    found = one.fine_tune()
    assert found['kept'] and 'improved' in found['why'], 'the test needs an improvement'
    assert (
        found['score_before'] == pytest.approx(gate_result['best_score'], abs=1e-9)
        and found['score_after'] > found['score_before']
    )
    assert (
        one.stage == 'finetuned'
        and found['checkpoint'] == FINETUNED
        and sha256_file(cache / FINETUNED) == found['checkpoint_sha256']
    )
    assert Evaluator(data).scores(one.mixture)['final_score'].item() == pytest.approx(
        found['score_after'], abs=1e-9
    )
    before, after = tensors(cache / GATE), tensors(cache / FINETUNED)
    assert all(not torch.equal(before[k], after[k]) for k in before)  # gate and experts


def test_fine_tuning_that_does_not_help_says_so_and_leaves_no_file(cache, data):
    """After one that was kept, another gate's fine-tuning that is not.

    The old file goes, the mixture is the gate's.
    """
    one = moe(data, cache, settings=UNIFORM)
    one.tune_gate(1)
    assert one.fine_tune()['kept'] and (cache / FINETUNED).exists()
    useless = dataclasses.replace(
        UNIFORM, fine_tuning=FineTuneSettings(epochs=2, val_every=1, gate_lr=1e-12, expert_lr=1e-12)
    )
    other = moe(data, cache, settings=useless)
    other.tune_gate(1)
    found = other.fine_tune()
    assert (
        not found['kept']
        and 'did not improve' in found['why']
        and found['checkpoint'] is found['checkpoint_sha256'] is None
    )
    assert (
        not (cache / FINETUNED).exists()
        and other.stage == 'gate'
        and same_tensors(mixture_checkpoints.mixture_state(other.mixture), tensors(cache / GATE))
    )
    assert 'moe_finetuned' not in other.evaluate('test')['methods']


def test_fine_tuning_below_the_floor_is_not_kept(cache, data):
    one = moe(data, cache)
    one.tune_gate(1)
    one.floor = dataclasses.replace(one.floor, utility_fraction=5.0)
    found = one.fine_tune()
    assert (
        not found['kept']
        and found['why'] == 'no feasible checkpoint'
        and found['score_after'] is None
    )


def test_of_several_ways_validation_chooses(cache, data, monkeypatch):
    "The best of them is what it is when tried alone; a later call reads it from the file."
    ways = (
        FineTuneSettings(1e-12, 1e-12, epochs=2, val_every=1),
        *(FineTuneSettings(lr, lr, epochs=20, val_every=5, pull=1.0) for lr in (1e-2, 1e-3)),
    )
    alone = []
    for way in ways:
        one = moe(data, cache, settings=dataclasses.replace(UNIFORM, fine_tuning=way))
        one.tune_gate(1)
        alone.append((one.fine_tune(), one.mixture))
    scores = [found['score_after'] for found, _ in alone]
    several = dataclasses.replace(UNIFORM, fine_tuning=ways)
    one = moe(data, cache, settings=several)
    one.tune_gate(1)
    found, best = one.fine_tune(), max(range(3), key=lambda i: scores[i])
    assert (
        best > 0
        and found['kept']
        and found['best_way'] == best
        and [w['score'] for w in found['ways']] == scores
    )
    assert (
        found['score_after'] == scores[best]
        and found['fine_tuning'][best]['pull'] == 1.0
        and found['metrics'] == alone[best][0]['metrics']
    )
    assert same_tensors(
        mixture_checkpoints.mixture_state(one.mixture),
        mixture_checkpoints.mixture_state(alone[best][1]),
    )
    monkeypatch.setattr(mixture_integration, 'fine_tuned', None)  # not called again
    again = moe(data, cache, settings=several)
    again.tune_gate(1)
    assert again.fine_tune() == found


@pytest.mark.parametrize('given', [(), (QUICK.fine_tuning, 'small'), None])
def test_ways_that_are_none(given):
    with pytest.raises(MoEExpertError, match='fine_tuning must be one or several FineTuneSettings'):
        MoESettings(fine_tuning=given)


def gap(mixture, data, nodes):
    "Distance of the groups' mean hidden vectors, expert by expert, with plain loops."
    hidden, sens = (
        mixture.experts.hidden(data.x, data.edge_index, nodes).detach().numpy(),
        data.sens[nodes].numpy(),
    )
    return sum(float(((h[sens == 1].mean(0) - h[sens == 0].mean(0)) ** 2).mean()) for h in hidden)


def test_the_pull_is_added_to_the_loss_and_differentiated(done, data):
    _, one, _ = done
    nodes = data.train_mask.nonzero()[:, 0]
    plain, pulled = (
        FineTuner(one.tuned_gate, data, nodes, FineTuneSettings(pull=pull), 0)
        for pull in (0.0, 3.0)
    )
    here = pulled.adam.flat
    value = lambda flat: pulled.mixture_loss(pulled.population(flat), nodes)
    assert value(here).item() == pytest.approx(
        plain.mixture_loss(plain.population(), nodes).item() + 3 * gap(one.tuned_gate, data, nodes),
        abs=1e-9,
    )
    flat = here.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(flat), flat)
    for k in torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0))[:12].tolist():
        step = torch.zeros_like(here.detach())
        step.view(-1)[k] = 1e-6
        numeric = (value(here.detach() + step) - value(here.detach() - step)).item() / 2e-6
        assert slope.view(-1)[k].item() == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_a_pull_brings_the_groups_together(done, data):
    _, one, _ = done
    nodes = data.train_mask.nonzero()[:, 0]
    after = []
    for pull in (0.0, 30.0):
        tuner = FineTuner(one.tuned_gate, data, nodes, FineTuneSettings(1e-3, 1e-3, pull=pull), 0)
        for _ in range(100):
            tuner.epoch(False)
        after.append(gap(tuner.population(), data, nodes))
    assert after[1] < 0.5 * after[0]


def test_fine_tuned_is_what_the_trainer_does(done, data):
    "And it writes nothing."
    folder, one, found = done
    files = {p.name: sha256_file(p) for p in folder.iterdir() if p.is_file()}
    model = fine_tuned(
        one.tuned_gate, data, one.settings.fine_tuning, one.evaluator('select'), one.floor, one.seed
    )
    assert (model.score if model.feasible else None) == found['fine_tuning'][
        'score_after'
    ] and model.epoch == found['fine_tuning']['epoch']
    assert {p.name: sha256_file(p) for p in folder.iterdir() if p.is_file()} == files


@pytest.mark.parametrize('pull', [-1.0, float('nan'), float('inf')])
def test_a_pull_that_is_no_weight(pull):
    with pytest.raises(MoEExpertError, match='pull must be a finite number of at least 0'):
        FineTuneSettings(pull=pull)


def test_without_a_gate_there_is_nothing_to_fine_tune(cache, data):
    with pytest.raises(ArtifactError, match=r'no gate to fine-tune; tune_gate\(\) first'):
        moe(data, cache).fine_tune()


def test_fine_tuning_in_batches_sets_aside_what_is_left_over(cache, data):
    "76 of 151 training nodes per step, or 1 left over: neither is a reason to diverge."
    n = int(data.train_mask.sum())
    one = moe(
        data,
        cache,
        settings=dataclasses.replace(
            QUICK, fine_tuning=dataclasses.replace(QUICK.fine_tuning, batch_size=n - 1)
        ),
    )
    one.tune_gate(1)
    found = one.fine_tune()
    assert found['metrics'] and 'NaN' not in found['why'] and found['epochs_run'] == 10


# --- mixtures on disk -----------------------------------------------------------------------------


def test_save_and_load_give_the_same_to_the_bit(done, data, tmp_path):
    folder, one, _ = done
    digest = one.save(tmp_path / 'all.pt')
    assert digest == sha256_file(tmp_path / 'all.pt')
    other = moe(data, folder).load(tmp_path / 'all.pt')
    assert torch.equal(other.predict_proba(data.x), one.predict_proba(data.x))
    mixture, payload = load_mixture(tmp_path / 'all.pt', digest)
    assert torch.equal(
        predict_proba(mixture, data.x), one.predict_proba(data.x)
    )  # without trainer and data
    other.save(tmp_path / 'again.pt')
    assert same_tensors(tensors(tmp_path / 'again.pt'), tensors(tmp_path / 'all.pt'))
    for f in (GATE, FINETUNED):
        if (folder / f).exists():
            assert same_tensors(
                mixture_checkpoints.mixture_state(moe(data, folder).load(folder / f).mixture),
                tensors(folder / f),
            )
    assert other.evaluate('val')['methods']['moe']['final_score']['value'] == pytest.approx(
        Evaluator(data).scores(one.mixture)['final_score'].item(), abs=1e-9
    )


@pytest.mark.parametrize(
    'other, says',
    [
        (dict(seed=1), "fingerprint is '[0-9a-f]{64}' there"),
        (dict(split_seed=21), 'split_seed is 20 there, 21 here'),
        (dict(drop=['c0']), r"drop is \[\] there, \['c0'\] here"),
    ],
)
def test_a_mixture_of_other_data_is_refused(done, tmp_path, other, says):
    folder, one, _ = done
    one.save(tmp_path / 'mixture.pt')
    stranger = moe(
        people(**other),
        tmp_path / 'cache',
        use_cached_experts=False,
        n_trials=1,
        tune_settings=TINY,
    )
    with pytest.raises(ArtifactError, match=says):
        stranger.load(tmp_path / 'mixture.pt')
    assert stranger.mixture is None


@pytest.mark.parametrize('how', ['truncated', 'empty', 'flipped', 'missing', 'expert'])
def test_a_damaged_mixture_is_refused(done, data, tmp_path, how):
    folder, one, _ = done
    path = tmp_path / 'mixture.pt'
    one.save(path)
    if how == 'missing':
        path.unlink()
    elif how == 'expert':
        shutil.copy(folder / f'{NAME}_expert1_best.pt', path)
    else:
        damage(path, how)
    with pytest.raises(ArtifactError, match='mixture.pt'):
        moe(data, folder).load(path)


# --- new people -----------------------------------------------------------------------------------


def raw_table(data):
    "The raw columns that the scaled features come from."
    low, high = (np.asarray(v, dtype=float) for v in (data.x_min, data.x_max))
    return pd.DataFrame(
        (data.x.double().numpy() + 1) / 2 * (high - low) + low,
        columns=[c['name'] for c in data.recipe['columns']],
    )


def test_raw_columns_by_name_are_the_scaled_features(done, data):
    _, one, _ = done
    table = raw_table(data)
    shuffled = table[table.columns[::-1]].assign(unrelated=1)
    expected = one.predict_proba(data.x)
    torch.testing.assert_close(one.predict_proba(shuffled), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.predict_proba(data.x.numpy()), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        one.predict_proba(data.x[:5].tolist()), expected[:5], rtol=0, atol=1e-12
    )
    assert expected.shape == (300, 2) and expected.dtype == torch.double
    torch.testing.assert_close(expected.sum(-1), torch.ones(300).double())
    torch.testing.assert_close(
        expected[:, 1],
        Evaluator(data, torch.arange(300)).record(one.mixture, explain=False).p1[0],
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    'wrong, says',
    [
        (lambda t, d: t.drop(columns='c1'), 'lacks 1 of 8 columns: c1'),
        (lambda t, d: t.assign(c1=np.nan), "column 'c1', row 0 is missing"),
        (lambda t, d: d.x[:, :5], r'takes 8 features per person, not an array of shape \(300, 5\)'),
        (lambda t, d: d.x[0], r'shape \(8,\)'),
        (lambda t, d: d.x * float('nan'), 'finite'),
        (lambda t, d: np.full((2, 8), 'a'), 'numbers'),
        (lambda t, d: np.full((2, 8), None), 'numbers'),
    ],
)
def test_people_who_do_not_fit(done, data, wrong, says):
    with pytest.raises(DataError, match=says):
        done[1].predict_proba(wrong(raw_table(data), data))


def test_graphs_that_do_not_fit(done, data):
    for edges, says in (
        (torch.zeros(3, 2, dtype=torch.long), 'transpose it'),
        (torch.tensor([[0], [300]]), r'column 0 is \[0, 300\].*numbered 0 to 299'),
        (torch.tensor([[-1], [0]]), r'column 0 is \[-1, 0\]'),
        (torch.zeros(2, 3), 'must be whole numbers'),
    ):
        with pytest.raises(DataError, match=f'edge_index.*{says}'):
            done[1].predict_proba(data.x, edges)
    plain = done[1].predict_proba(data.x)  # an mlp checks the graph and does not look at it
    assert torch.equal(done[1].predict_proba(data.x, data.edge_index[:, :9]), plain)
    with pytest.raises(DataError, match='recipe'):
        predict_proba(done[1].mixture, raw_table(data))


# --- the test -------------------------------------------------------------------------------------


def test_the_table_is_that_of_other_libraries(done, data):
    "Every method's figures from its probabilities, by scikit-learn and fairlearn."
    folder, one, results = done
    nodes = data.test_mask.nonzero()[:, 0]
    y, s = data.y[nodes].numpy(), data.sens[nodes].numpy()
    train = data.train_mask
    experts, _ = load_experts(folder, data, 0)
    p = {
        e: torch.softmax(experts.module(k)(data.x.double()), 1)[:, 1][nodes].detach().numpy()
        for k, e in enumerate(EXPERTS)
    }
    p['uniform_mixture'] = np.mean([p[e] for e in EXPERTS], 0)
    p['majority_class'] = np.full(len(y), float(data.y[train].double().mean() >= 0.5))
    p['logistic_regression'] = (
        LogisticRegression(max_iter=10_000)
        .fit(data.x[train].double().numpy(), data.y[train].numpy())
        .predict_proba(data.x[nodes].double().numpy())[:, 1]
    )
    p['moe'] = predict_proba(load_mixture(folder / GATE)[0], data.x)[nodes, 1].numpy()
    if (folder / FINETUNED).exists():
        p['moe_finetuned'] = predict_proba(load_mixture(folder / FINETUNED)[0], data.x)[
            nodes, 1
        ].numpy()
    table = results['test']['methods']
    assert table.keys() == p.keys() and results['test']['nodes'] == len(y)
    for name, p1 in p.items():
        hard = (p1 >= 0.5).astype(int)
        groups = dict(sensitive_features=s)
        expected = dict(
            acc=accuracy_score(y, hard),
            f1=f1_score(y, hard),
            auc=roc_auc_score(y, p1),
            dp=demographic_parity_difference(y, hard, **groups),
            eo=true_positive_rate_difference(y, hard, **groups),
        )
        expected['utility'] = np.mean([expected[k] for k in ('acc', 'f1', 'auc')])
        expected['fair_result'] = (expected['dp'] + expected['eo']) / 2
        for k, v in expected.items():
            assert table[name][k]['value'] == pytest.approx(v, abs=1e-9), (name, k)
        v = {k: table[name][k]['value'] for k in table[name]}
        assert v['final_score'] == pytest.approx(
            v['utility'] - v['fair_result'] - (v['ref'] + v['vef'] + v['att_jsd']) / 3, abs=1e-9
        )


def test_intervals_are_ordered_and_hold_their_value(done):
    cells = [
        c
        for scores in done[2]['test']['methods'].values()
        for k, c in scores.items()
        if c['low'] is not None
    ]
    assert all(c['low'] <= c['high'] for c in cells) and len(cells) > 80
    assert all(c['low'] - 1e-12 <= c['value'] <= c['high'] + 1e-12 for c in cells)
    gaps = [scores['fair_result'] for scores in done[2]['test']['methods'].values()]
    assert all(c['low'] <= c['debiased'] <= c['high'] and c['by_chance'] >= 0 for c in gaps)
    for scores in done[2]['test'][
        'methods'
    ].values():  # these are means: an interval without them is a mistake
        for k in ('acc', 'auc', 'utility'):
            assert scores[k]['low'] <= scores[k]['value'] <= scores[k]['high']
    assert (
        done[2]['test']['methods']['moe']['acc']['high']
        - done[2]['test']['methods']['moe']['acc']['low']
        > 0.05
    )


def test_the_second_test_is_read_from_the_file(cache, data, monkeypatch):
    one = moe(data, cache)
    one.tune_gate(1)
    first = one.evaluate('test')
    calls, original = [], trainer.compared
    monkeypatch.setattr(trainer, 'compared', lambda t: (calls.append(t), original(t))[1])
    assert one.evaluate('test') == first and not calls
    other = moe(data, cache)
    other.tune_gate(1)
    assert other.evaluate('test') == first and not calls
    one.evaluate('val')
    assert len(calls) == 1
    damage(cache / TEST, 'truncated')
    damaged = (cache / TEST).read_bytes()
    with pytest.raises(ArtifactError, match=TEST):
        other.evaluate('test')  # never a second test beside a record that cannot be read
    assert len(calls) == 1 and (cache / TEST).read_bytes() == damaged
    (cache / TEST).unlink()
    again = other.evaluate('test')
    assert len(calls) == 2 and again['methods'] == first['methods']
    one.train_gate(GateConfig(1e-2))  # a mixture that is in no file leaves the records alone
    assert one.evaluate('test') != again and read(cache / TEST) == again


def test_each_mixture_keeps_its_test_and_what_was_tested_its_checkpoint(cache, data, monkeypatch):
    "A gate that is tuned further, and fine-tunings in other ways."
    from moe_expert.tuning.folder import ExpertFiles, claim, owner

    monkeypatch.setitem(tuning_settings.GATE_DEFAULTS, 'gate_lr', 1e-5)  # others beat the first
    one, files = moe(data, cache, settings=UNIFORM), ExpertFiles(cache, NAME)
    one.tune_gate(1)
    first, gate = one.evaluate('test'), (cache / GATE).read_bytes()
    raw = (cache / TEST).read_bytes()
    assert one.fine_tune()['kept']
    second, tuned = one.evaluate('test'), (cache / FINETUNED).read_bytes()
    one.tune_gate(8)
    assert one.sha256 != first['mixture_sha256'], 'the test needs another winner'
    third = one.evaluate('test')
    other = dataclasses.replace(UNIFORM.fine_tuning, epochs=1, val_every=1, gate_lr=1e-30)
    still = dataclasses.replace(other, expert_lr=1e-30)  # does not move, so it is not kept
    same = moe(data, cache, settings=dataclasses.replace(UNIFORM, fine_tuning=still))
    assert not same.fine_tune()['kept'] and not (cache / FINETUNED).exists()
    tests = [first, second, third]
    shas = [t['mixture_sha256'] for t in tests]
    assert [t['tested_before'] for t in tests] == [shas[:i] for i in range(3)]
    assert (cache / TEST).read_bytes() == raw
    records = files.marked_files('moe_results')
    assert {p.name for p in records} == {f'{NAME}_moe_results.{s[:8]}.json' for s in shas[1:]}
    assert (cache / f'{NAME}_gate_best.{shas[0][:8]}.pt').read_bytes() == gate
    assert (cache / f'{NAME}_moe_finetuned.{shas[1][:8]}.pt').read_bytes() == tuned
    assert 'written on' in third['tested_once'] and third['tested_at'] >= first['tested_at']
    claim(cache, NAME, owner(cache, NAME), overwrite=True)  # all of them together
    assert [p.name for p in cache.iterdir() if p.suffix != '.lock'] == [files.settings.name]


def test_usage_is_the_gates_weights(done, data):
    folder, one, results = done
    nodes = data.test_mask.nonzero()[:, 0]
    w = one.mixture.weights(data.x, data.edge_index, nodes)[0].numpy()
    masks = [np.full(len(nodes), True), *(data.sens[nodes].numpy() == s for s in (0, 1))]
    for part, mask in zip(['all', *map(str, data.group_names)], masks):
        for k, e in enumerate(EXPERTS):
            found = results['test']['gate_usage'][part][e]
            assert found['mean_weight'] == pytest.approx(w[mask, k].mean(), abs=1e-9)
            assert found['share_first'] == pytest.approx((w[mask].argmax(1) == k).mean(), abs=1e-9)


def test_baselines_count_people_by_their_weight(data):
    weighted, x = data.clone(), data.x.double().numpy()
    weighted.weight = torch.as_tensor(np.random.default_rng(0).uniform(0.2, 5, data.num_nodes))
    train = data.train_mask.numpy()
    fit = LogisticRegression(max_iter=10_000, tol=1e-10)
    y, weight = data.y.numpy()[train], weighted.weight.numpy()[train]
    fit.fit(x[train], y, sample_weight=weight)
    got = logistic_regression(weighted).probabilities(data.x)[0].numpy()
    np.testing.assert_allclose(got, fit.predict_proba(x)[:, 1], rtol=0, atol=1e-3)
    plain = logistic_regression(data).probabilities(data.x)[0].numpy()
    assert np.abs(got - plain).max() > 0.01
    weighted.weight = torch.ones(data.num_nodes, dtype=torch.double)
    same = logistic_regression(weighted).probabilities(data.x)[0].numpy()
    assert (same == plain).all()
    weighted.weight = torch.where(data.y == 0, 1e-6, 1.0).double()
    assert (majority_class(weighted).probabilities(data.x) > 0.5).all()
    weighted.weight = torch.where(data.y == 1, 1e-6, 1.0).double()
    assert (majority_class(weighted).probabilities(data.x) < 0.5).all()


def test_linear_models_against_scikit_learn_and_captum(data):
    x, nodes = data.x.double(), data.test_mask.nonzero()[:, 0]
    model = logistic_regression(data)
    fit = LogisticRegression(max_iter=10_000).fit(
        x[data.train_mask].numpy(), data.y[data.train_mask].numpy()
    )
    torch.testing.assert_close(
        model.probabilities(data.x)[0],
        torch.as_tensor(fit.predict_proba(x.numpy())[:, 1]),
        rtol=0,
        atol=1e-12,
    )
    p1 = lambda rows: torch.sigmoid(rows @ model.weight[0] + model.bias[0])
    expected = IntegratedGradients(p1).attribute(x[nodes], n_steps=100, method='gausslegendre')
    torch.testing.assert_close(
        model.attributions(data.x, None, nodes)[0], expected, rtol=0, atol=1e-7
    )
    features = torch.randint(-1, 8, (1, len(nodes)), generator=torch.Generator().manual_seed(0))
    masked = x[nodes] * (torch.arange(8) != features[0][:, None])
    torch.testing.assert_close(
        model.masked_probabilities(data.x, None, nodes, features)[0], p1(masked), rtol=0, atol=1e-12
    )
    two = Linear(torch.cat([model.weight, -model.weight]), torch.cat([model.bias, model.bias]))
    both = (
        two.masked_probabilities(data.x, None, nodes, features.expand(2, -1)),
        two.attributions(data.x, None, nodes),
    )
    torch.testing.assert_close(both[0][0], p1(masked))
    torch.testing.assert_close(both[1][0], model.attributions(data.x, None, nodes)[0])
    flat = Linear(torch.zeros(1, 8).double(), torch.ones(1).double())
    assert not flat.attributions(data.x, None, nodes).any()
    scores = Evaluator(data, 'test').scores(majority_class(data))
    most = int(data.y[data.train_mask].double().mean() >= 0.5)
    assert (
        scores['acc'].item() == pytest.approx((data.y[nodes] == most).double().mean().item())
        and scores['auc'].item() == 0.5
    )
    assert scores['fair_result'].item() == 0 and scores['fair_procedure'].item() == pytest.approx(
        0, abs=1e-12
    )


# --- other backbones, real data -------------------------------------------------------------------


@pytest.mark.parametrize('backbone', ['gcn', 'sage', 'gin', 'gat'])
def test_graph_experts_go_through_all_stages(tmp_path, backbone):
    data = make_synthetic(200, 6, group_bias=2.0)
    one = MoETrainer(
        data, False, tmp_path, n_trials=1, backbone=backbone, epochs=20, settings=QUICK
    )
    results = one.run(n_trials=1)
    assert (
        one.experts.backbone == backbone
        and results['test']['methods']['moe']['completeness']['value'] < 1e-3
    )
    again = MoETrainer(data, True, tmp_path, settings=QUICK)  # whichever the cached ones are
    assert again.run(n_trials=1) == results
    p = again.predict_proba(data.x, data.edge_index)
    assert torch.equal(p, one.predict_proba(data.x, data.edge_index)) and p.std(0).max() > 1e-4
    torch.testing.assert_close(
        p[:, 1], again.mixture.probabilities(data.x, data.edge_index)[0], rtol=0, atol=0
    )
    with pytest.raises(DataError, match=f'backbone {backbone}.*give edge_index'):
        again.predict_proba(data.x)
    with pytest.raises(ArtifactError, match=f"backbone is '{backbone}' there, 'mlp' is asked for"):
        MoETrainer(data, True, tmp_path, backbone='mlp')
    before, after = (
        mixture_checkpoints.mixture_state(m)
        for m in (one.tuned_gate, load_mixture(tmp_path / f'{data.name}_gate_best.pt')[0])
    )
    assert same_tensors(before, after)


@pytest.mark.parametrize('backbone', ['gcn', 'sage', 'gin', 'gat'])
def test_fit_and_predict_see_one_graph(tmp_path, backbone):
    "New people's edges are taken as the training graph: by trainer, loaded file, tensor and table."
    made = make_synthetic(200, 6, group_bias=2.0)
    graphs = same_edges(made.edge_index)
    raw = Data(x=3 * made.x + 5, y=made.y, sens=made.sens, edge_index=graphs['one way'])
    options = dict(n_trials=1, backbone=backbone, epochs=20, settings=QUICK)
    one = MoETrainer(raw, False, tmp_path, **options)
    one.train_gate()
    x, graph = one.data.x, to_undirected(graphs['one way'])
    assert torch.equal(one.data.edge_index, graph)
    fitted = one.mixture.probabilities(x, graph)[0]
    one_way = one.mixture.probabilities(x, graphs['one way'])[0]
    assert (fitted - one_way).abs().max() > 1e-3  # the form would matter
    one.save(tmp_path / 'whole.pt')
    mixture, payload = load_mixture(tmp_path / 'whole.pt')
    again = MoETrainer(one.data, True, tmp_path, settings=QUICK).load(tmp_path / 'whole.pt')
    table = pd.DataFrame(raw.x.numpy(), columns=one.data.feature_names).iloc[:, ::-1]
    for form, edges in graphs.items():
        for p in (
            one.predict_proba(x, edges),
            one.predict_proba(table, edges),
            again.predict_proba(x, edges),
            predict_proba(mixture, table, payload['recipe'], edges),
        ):
            assert torch.equal(p[:, 1], fitted), form
    for opened in (one, again):
        opened.storage.engine.dispose()


def test_a_real_data_set_by_name(data_dir, tmp_path):
    "german: raw columns, dropped columns and the seed of the split go through."
    one = MoETrainer(
        'german',
        use_cached_experts=False,
        cache_dir=tmp_path,
        data_dir=data_dir,
        n_trials=1,
        epochs=100,
        settings=QUICK,
    )
    results = one.run(n_trials=1)
    data = load_dataset('german', data_dir=data_dir)
    assert (
        results['test']['nodes'] == int(data.test_mask.sum()) == 250
        and one.data.fingerprint == data.fingerprint
    )
    assert set(results['test']['gate_usage']) == {'all', *map(str, data.group_names)}
    assert mixture_gate.Mixture is type(one.mixture)


def test_gates_start_from_the_best_of_uniform_and_single_experts(cache, data):
    one = moe(data, cache)
    biases, found = one.start()
    val = one.evaluator('val')
    leaning = Mixture(
        one.experts, init_gates([0] * 4, data.x.shape[1], 3, 1) | {'gate.out_bias': start_biases(3)}
    )
    scores = val.scores(leaning)
    feasible = (one.floor.constraints(scores) <= 0).all(-1)
    assert list(found.values()) == pytest.approx(scores['final_score'].tolist(), abs=1e-12)
    best = max(feasible.nonzero()[:, 0].tolist(), key=lambda i: scores['final_score'][i].item())
    assert torch.equal(biases, start_biases(3)[best])
    weights = one.experts.probabilities(
        data.x
    ).T  # the start is what is trained from, and may be chosen
    assert (
        leaning.select([1])
        .weights(data.x)[0]
        .allclose(torch.tensor([0.99, 0.005, 0.005], dtype=torch.double).expand(len(weights), 3))
    )
    assert one.train_gate().score >= scores['final_score'][best].item() - 1e-9
    with pytest.raises(MoEExpertError, match='start'):
        GateSettings(start='there')
