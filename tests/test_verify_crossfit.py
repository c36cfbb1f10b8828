"""A cross-fitted mixture is judged out of fold again, at all prices; what was forged is named.

One small folder; each record is changed, sealed again and compared with what can be computed.
"""

import json
import shutil

import pytest

from moe_expert.mixture import verify
from moe_expert.mixture.crossfit import CrossfitSettings
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tuning import artifacts
from moe_expert.tuning.folder import ExpertFiles

NAME = 'synthetic-300'
TUNED, TEST = (f'{NAME}_moe_{kind}results.json' for kind in ('finetuning_', ''))
GATE = GateSettings(epochs=40, val_every=20)


def trained(folder, steps, price=1.0):
    settings = MoESettings(GATE, CrossfitSettings(steps=steps), price=price)
    options = dict(epochs=100, n_trials=2, seed=3, device='cpu', settings=settings)
    one = MoETrainer(NAME, None, folder, **options)
    done = one.run(2)
    one.storage.engine.dispose()
    return done


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "All stages, at another price than the default; for copying only."
    folder = tmp_path_factory.mktemp('run') / 'cache'
    tuned = trained(folder, 60, price=4.0)['fine_tuning']
    ways = {tuple(sorted(entry['ways'])) for entry in tuned['prices'].values()}
    assert tuned['kept'] and len(ways) == 2, 'else the prices cannot be told apart'
    return folder


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run, tmp_path / 'cache')


def read(folder, name):
    return json.loads((folder / name).read_text())


def differences(folder, name, record):
    "What is said about a record that was sealed again."
    artifacts.write_json(folder / name, record)
    found = verify.verify(folder)
    return ' | '.join(f.what for f in found if f.file == name and f.state == 'differs')


def test_what_was_run_is_verified_and_what_cannot_be_is_said(folder):
    found = verify.verify(folder)
    assert found.exit_code == 0
    (tuned,) = (f for f in found if f.file == TUNED)
    assert tuned.state == 'verified' and tuned.what.startswith('all but the nested score')
    assert 'nested score' in repr(found)
    files = ExpertFiles(folder, NAME)
    assert any(f.file == files.finetuned_checkpoint.name for f in found)


def test_every_forged_score_out_of_fold_is_named(folder):
    record, k = read(folder, TUNED), 0
    forged, used = [], {way for e in record['prices'].values() for way in e['ways']}
    tables = {'metrics': record['metrics']}
    tables |= {f'ways.{way}': record['ways'][way]['scores'] for way in used}
    for where, scores in tables.items():
        for name in scores:
            k += 1
            scores[name] += 1e-6 * k
            forged.append(f'{where}.{name} is ')
    for price, entry in record['prices'].items():
        for name, told in entry['scores'].items():
            for end, value in told.items():
                if isinstance(value, float):
                    k += 1
                    told[end] = value + 1e-6 * k
                    forged.append(f'prices.{price}.{name}.{end} is ')
    assert len(forged) > 100
    said = differences(folder, TUNED, record)
    assert not [where for where in forged if where not in said]


def swapped(record):
    "The prices with the ways of another one."
    prices = record['prices']
    prices['4']['ways'], prices['0']['ways'] = prices['0']['ways'], prices['4']['ways']
    return 'prices.4'


def chosen(record):
    "A way that no price uses, with better scores: it should have been chosen."
    used = {way for e in record['prices'].values() for way in e['ways']}
    way = next(i for i in range(len(record['ways'])) if i not in used)
    scores = record['ways'][way]['scores']
    scores['utility'] += 1
    scores['final_score'] += 1
    return 'prices.1'


def nested(record):
    record['nested']['final_score'] += 0.01
    return 'nested.final_score is '


def without_nested(record):
    record['nested'] = {}
    return 'nested'


def infeasible(record):
    way = record['prices']['1']['ways'][0]
    record['ways'][way]['feasible'] = False
    return f'feasible.{way} is False'


def other_best(record):
    record['best_way'] = (record['best_way'] + 1) % 6
    return 'best_way is '


def nodes(record):
    del record['nodes']['taught_final']
    return 'nodes.taught_final is missing'


def before(record):
    record['score_before'] += 0.01
    return 'score_before.final_score is '


FORGERIES = (swapped, chosen, nested, without_nested, infeasible, other_best, nodes, before)


@pytest.mark.slow
@pytest.mark.parametrize('forge', FORGERIES)
def test_a_forged_choice_is_named(folder, forge):
    record = read(folder, TUNED)
    where = forge(record)
    assert where in differences(folder, TUNED, record)


def test_every_forged_score_of_the_test_is_named(folder):
    record, forged = read(folder, TEST), []
    for price, scores in record['prices'].items():
        for k, (name, told) in enumerate(scores.items()):
            told['value'] += 1e-6 * (1 + k)
            forged.append(f'prices.{price}.{name}.value is ')
    said = differences(folder, TEST, record)
    assert len(forged) > 50 and not [where for where in forged if where not in said]


@pytest.mark.slow
def test_a_test_at_another_price_or_with_another_gate_is_named(folder):
    record = read(folder, TEST)
    assert 'methods.moe_finetuned.' in differences(folder, TEST, record | {'price': 0.0})
    for price in (3.0, None):
        assert 'price' in differences(folder, TEST, record | {'price': price})
    less = {k: v for k, v in record.items() if k != 'prices'}
    assert 'prices.0 is missing' in differences(folder, TEST, less)
    usage = json.loads(json.dumps(record['gate_usage']))
    usage['all']['expert1']['mean_weight'] += 0.01
    assert 'gate_usage.all.expert1' in differences(folder, TEST, record | {'gate_usage': usage})
    roles = record['roles'] | {'taught_final': 'training nodes'}
    assert 'taught_final' in differences(folder, TEST, record | {'roles': roles})


def forged_checkpoint(folder, change):
    "The checkpoint after a change, with its SHA-256 in all records."
    files = ExpertFiles(folder, NAME)
    path = files.finetuned_checkpoint
    old, payload = artifacts.sha256_file(path), artifacts.load_checkpoint(path)
    change(payload)
    new = artifacts.save_checkpoint(path, payload)
    for name in (TUNED, TEST):
        text = json.dumps(read(folder, name)).replace(old, new)
        artifacts.write_json(folder / name, json.loads(text))
    found = verify.verify(folder)
    said = {}
    for f in found.of('differs'):
        said[f.file] = f'{said.get(f.file, "")} | {f.what}'
    return said


def test_prices_that_are_exchanged_in_the_checkpoint_are_found(folder):
    def exchange(payload):
        payload['state_dict']['shares'] = payload['state_dict']['shares'].flip(0)

    found = forged_checkpoint(folder, exchange)
    assert set(found) >= {f'{NAME}_moe_finetuned.pt', TUNED, TEST}
    assert 'prices.0.' in found[f'{NAME}_moe_finetuned.pt']


@pytest.mark.slow
def test_other_parts_than_those_that_were_left_out_are_found(folder):
    "With another seed the networks would judge people that taught them."

    def seed(payload):
        payload['cross_fitting']['seed'] += 1

    found = forged_checkpoint(folder, seed)
    assert TUNED in found and f'{NAME}_moe_finetuned.pt' not in found and TEST not in found


@pytest.mark.slow
def test_weights_that_are_changed_are_found(folder):
    def weights(payload):
        state = payload['state_dict']
        name = next(n for n in state if n.endswith('out.weight'))
        state[name] = 1.5 * state[name]

    assert set(forged_checkpoint(folder, weights)) >= {TUNED, TEST}


@pytest.mark.slow
def test_below_the_floor_the_gate_stays_and_is_verified(tmp_path):
    done = trained(tmp_path, 1000)
    assert not done['fine_tuning']['kept'] and done['fine_tuning']['metrics'] == {}
    found = verify.verify(tmp_path)
    assert found.exit_code == 0 and 'nested' not in repr(found)
