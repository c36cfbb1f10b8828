"The study's machinery: rows are never lost or mixed, methods never see test labels, substitutes and statistics against other ways to compute them."
import dataclasses
import itertools
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from moe_expert.study import plan as study_plan
from moe_expert.study import runs as study_runs
from moe_expert.study import methods as study_methods
from moe_expert.study import ledger as study_ledger
from moe_expert.study import bench as study_bench
from moe_expert.study import tables as study_tables
from moe_expert.errors import ArtifactError
from moe_expert.errors import MoEExpertError
from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.specs import ExpertSpec
from moe_expert.study.plan import MAIN, Run
from moe_expert.study.bench import Bench, Predictor
from moe_expert.study.ledger import Ledger
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.mixture.comparison import logistic_regression
from moe_expert.experts.training import TrainConfig, TrainSettings, run_training, train_population

PLAIN = ExpertSpec('plain', 'plain', 'utility', True)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(study_plan.VARIANTS, 'tiny', study_plan.Variant('synthetic-200'))


@pytest.fixture
def bench(tiny, tmp_path):
    return Bench('tiny', 1000, 100, n_trials=1, epochs=100, cache_dir=tmp_path)


def counting(monkeypatch, fails=()):
    "Two families that cost nothing, and how often each was made."
    made = []

    def family(name):
        def make(bench):
            made.append((name, bench.seed))
            if name in fails:
                raise MoEExpertError('as if the power had failed')
            return {name: logistic_regression(bench.data)}
        return make
    monkeypatch.setattr(study_runs, 'FAMILIES', {n: (family(n), (n,)) for n in ('one', 'two')})
    return made


def test_an_interrupted_study_goes_on(tiny, tmp_path, monkeypatch):
    runs = [Run('tiny', 1000 + i, 100 + i, m, epochs=100) for i in range(2) for m in ('one', 'two')]
    ledger, made = Ledger(tmp_path / 'rows'), counting(monkeypatch, fails=['two'])
    with pytest.raises(MoEExpertError, match='power'):
        study_runs.carry_out(runs, ledger, cache_dir=tmp_path)
    assert made == [('one', 100), ('two', 100)] and len(ledger.rows()) == 1
    made = counting(monkeypatch)
    assert study_runs.carry_out(runs, Ledger(tmp_path / 'rows'), cache_dir=tmp_path) == []
    assert made == [('two', 100), ('one', 101), ('two', 101)]
    before = ledger.rows()
    for path in ledger.runs.glob('*.json'):
        path.unlink()
    after = Ledger(tmp_path / 'rows').rows()
    pd.testing.assert_frame_equal(before, after, check_dtype=False, rtol=1e-8)
    assert study_runs.carry_out(runs, ledger, cache_dir=tmp_path) == [] and len(made) == 3
    monkeypatch.setattr(study_methods.moe_expert, '__version__', '99.0')
    assert ledger.missing(runs) == runs  # rows of another version do not count


def test_a_confirmatory_call_is_on_record_even_if_it_fails(tiny, tmp_path, monkeypatch):
    counting(monkeypatch, fails=['one'])
    ledger, runs = Ledger(tmp_path / 'rows'), [Run('tiny', 20, 0, 'one', phase='confirmatory')]
    assert study_runs.carry_out(runs, ledger, cache_dir=tmp_path, hours=0) == runs and ledger.log() == []  # nothing was to be started
    with pytest.raises(MoEExpertError, match='power'):
        study_runs.carry_out(runs, ledger, cache_dir=tmp_path)
    entry, = ledger.log()
    assert entry['runs'] == 1 and entry['variants'] == ['tiny'] and entry['design'] == study_ledger.source_digest() and entry['settings'] == ['main']


def test_rows_of_files_and_of_the_csv_are_the_same(tmp_path):
    "To the last digit: two methods that are level in one are not apart in the other."
    ledger, rng = Ledger(tmp_path), np.random.default_rng(0)
    for i, value in enumerate(rng.normal(size=300) / 3):
        ledger.add(dict(name=f'r{i:03}', version='1', commit='', fingerprint='', design='', note='', utility=float(value), n_trials=i))
    files = ledger.rows()
    ledger.write_csv()
    for f in ledger.runs.glob('*.json'): f.unlink()
    assert len(files) == 300
    pd.testing.assert_frame_equal(files, Ledger(tmp_path).rows(), check_exact=True)


def test_a_damaged_row_is_named(tmp_path):
    ledger = Ledger(tmp_path)
    (ledger.runs / 'x.json').write_text('{"name": ')
    with pytest.raises(ArtifactError, match='x.json'):
        ledger.rows()


def test_no_method_depends_on_test_labels(bench, tmp_path):
    pytest.importorskip('fairlearn')
    other = Bench(**{k: getattr(bench, k) for k in ('variant', 'split_seed', 'seed', 'n_trials', 'epochs')}, cache_dir=tmp_path / 'other')
    other.data.y[other.data.test_mask] = 1 - other.data.y[other.data.test_mask]
    for name in (f for f in study_runs.FAMILIES if f != 'mixture'):  # `MoETrainer` has its own such test
        (_, a), (_, b) = *study_runs.FAMILIES[name][0](bench).items(), *study_runs.FAMILIES[name][0](other).items()
        args = bench.data.x, bench.data.edge_index
        assert torch.equal(a.probabilities(*args), b.probabilities(*args)), name


def test_stage_3_of_a_setting_is_the_trainers(tiny, tmp_path, monkeypatch):
    "The same ways, tried by the trainer: the same winner, and its row has a name of its own."
    ways = tuple(FineTuneSettings(lr, lr, epochs=30, val_every=5, pull=pull) for lr in (1e-3, 1e-2) for pull in (0., 5.))
    monkeypatch.setitem(study_plan.SETTINGS, 'ways', study_plan.Setting('several ways', stage3=ways))
    bench = Bench('tiny', 1000, 100, n_trials=1, epochs=100, setting='ways', cache_dir=tmp_path)
    made = study_methods.ablated(bench)
    assert set(made) == set(study_plan.SETTINGS['ways'].methods) and 'pull' in bench.notes['moe_finetuned']
    one = MoETrainer(bench.data, None, tmp_path / 'trainer', 100, n_trials=1, epochs=100, device='cpu', settings=MoESettings(fine_tuning=ways))
    one.tune_gate(1)
    assert one.fine_tune()['kept']  # else there is nothing to see
    args = bench.data.x, bench.data.edge_index
    assert torch.equal(made['moe_finetuned'].probabilities(*args), one.mixture.probabilities(*args))
    assert not torch.equal(made['moe'].probabilities(*args), one.mixture.probabilities(*args))
    assert [r.method for r in study_runs.plan('development', ['tiny'], [100], [1000], settings=['ways'])] == list(study_plan.SETTINGS['ways'].methods)


def test_a_missing_fairlearn_is_said_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fairlearn', None)
    runs = [Run('tiny', 1000, 100, m, epochs=100) for m in ('single_network', 'expgrad_dp')]
    with pytest.raises(MoEExpertError, match='pip install'):
        study_runs.carry_out(runs, Ledger(tmp_path / 'rows'), cache_dir=tmp_path)
    assert not (tmp_path / 'tiny-split1000-seed100-epochs100').exists()


def test_shapley_values_against_all_orders():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(6, 2)), rng.normal(size=(2, 2))
    f = lambda r: 1 / (1 + np.exp(-(np.einsum('ni,ij,nj->n', r, a, r) + r @ [1., -2.])))
    np.testing.assert_allclose(study_bench.shapley_values(f, x, 1), by_all_orders(f, x), atol=1e-12)  # a pair is all orders of two
    x, a = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    f = lambda r: np.tanh(np.einsum('ni,ij,nj->n', r, a, r) / 4)
    sampled = study_bench.shapley_values(f, x, 400)
    np.testing.assert_allclose(sampled, by_all_orders(f, x), atol=.05)
    np.testing.assert_allclose(sampled.sum(1), f(x) - f(0 * x), atol=1e-12)


def by_all_orders(f, x):
    "Shapley values by the definition: mean step over all orders."
    out = np.zeros_like(x)
    orders = list(itertools.permutations(range(x.shape[1])))
    for order in orders:
        for i, k in enumerate(order):
            before, after = np.zeros_like(x), np.zeros_like(x)
            before[:, order[:i]], after[:, order[:i + 1]] = x[:, order[:i]], x[:, order[:i + 1]]
            out[:, k] += (f(after) - f(before)) / len(orders)
    return out


def test_masking_of_the_adapter_touches_one_feature_of_one_row():
    data = make_synthetic(60, 4, avg_degree=4)
    seen = []
    predictor = Predictor(lambda rows, groups: (seen.append((rows.copy(), groups)), rows[:, 0] * 0 + .5)[1], data.sens)
    nodes = torch.tensor([5, 3, 8])
    predictor.masked_probabilities(data.x, None, nodes, torch.tensor([[2, -1, 0]]))
    expected = data.x[nodes].double().numpy()
    expected[0, 2] = expected[2, 0] = 0
    np.testing.assert_array_equal(seen[0][0], expected)
    np.testing.assert_array_equal(seen[0][1], data.sens[nodes].numpy())


def test_cfa_and_reweighing_without_their_part_are_plain_training():
    data, settings = make_synthetic(200, 6, seed=1), TrainSettings(epochs=60, val_every=30)
    balanced = data.clone()
    train = data.train_mask.nonzero()[:, 0]
    for c in (0, 1):  # groups independent of the class among the training nodes
        some = train[data.y[train] == c]
        balanced.sens[some] = torch.arange(len(some)) % 2
    config = [TrainConfig(lr=1e-2, seed=3)]
    plain, = train_population(balanced, config, PLAIN, settings=settings)
    evaluator = study_methods.Evaluator(balanced, 'val')
    for trainer in (study_methods._CFATrainer, study_methods._Reweighed):
        made = trainer(balanced, config, settings, torch.device('cpu'), 0)
        model, = run_training(made, config, PLAIN, evaluator, None, settings)
        tolerance = 1e-9 if trainer is study_methods._CFATrainer else 1e-2  # odd cells weigh almost 1
        for k, v in plain.population.params.items():
            torch.testing.assert_close(model.population.params[k], v, atol=tolerance, rtol=0)


def test_sliced_distance_against_numpy():
    rng = np.random.default_rng(0)
    a, b, directions = rng.normal(size=(1, 30, 3)), rng.normal(size=(1, 21, 3)) + 1, rng.normal(size=(3, 5))
    q = (np.arange(32) + .5) / 32
    expected = np.mean([(np.quantile(a[0] @ d, q) - np.quantile(b[0] @ d, q)) ** 2 for d in directions.T])
    got = study_methods.sliced_distance(*(torch.as_tensor(v) for v in (a, b, directions)))
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_chance_is_the_mean_over_all_ways_to_hand_out_the_groups():
    "Eight people: all 56 ways to make three of them a group, against the sampled ones."
    data = make_synthetic(200, 4, seed=1)
    nodes = torch.cat([((data.y == y) & (data.sens == s)).nonzero()[:n, 0] for (y, s), n in {(1, 0): 4, (1, 1): 2, (0, 0): 1, (0, 1): 1}.items()])
    record = study_methods.Evaluator(data, nodes).record(logistic_regression(data))
    size = int(record.sens.sum())
    every = []
    for group in itertools.combinations(range(8), size):
        sens = torch.zeros(8, dtype=torch.long)
        sens[list(group)] = 1
        assert 0 < int(record.y[sens == 1].sum()) and 0 < int(record.y[sens == 0].sum())
        every.append({k: v.item() for k, v in dataclasses.replace(record, sens=sens).scores().items()})
    found = study_bench.by_chance(record, 4000)
    assert len({e['fair_result'] for e in every}) > 3
    for name in study_ledger.CHANCE:
        assert found[f'chance_{name}'] == pytest.approx(np.mean([e[name] for e in every]), abs=.01)
    assert study_bench.by_chance(record, 20) == study_bench.by_chance(record, 20) != study_bench.by_chance(record, 20, seed=1)


def test_holm_against_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(5) ** 3
        adjusted = study_tables.holm(p)
        for alpha in (.01, .05, .2):
            rejected = set()
            for i, k in enumerate(np.argsort(p)):
                if p[k] > alpha / (len(p) - i):
                    break
                rejected.add(int(k))
            assert set(np.flatnonzero(adjusted <= alpha)) == rejected


def row(method, seed, score, variant='german', split=20):
    return dict(setting=MAIN, n_trials=30, epochs=2000, variant=variant, split_seed=split, seed=seed, method=method, final_score=score,
                utility=score, fair_result=0., fair_procedure=0.)


def test_only_pairs_are_compared():
    rows = pd.DataFrame([row('a', 0, .5), row('b', 0, .4), row('a', 1, .7), row('b', 1, .8), row('a', 2, 9.), row('b', 3, -9.)])
    found = study_tables.paired(rows, 'a', 'b').iloc[0]
    assert (found.pairs, found.wins) == (2, 1) and found['mean'] == pytest.approx(0) and found.low < 0 < found.high
    assert study_tables.paired(rows, 'a', 'absent').empty


def test_dominance_asks_for_all_three_aims():
    rows = pd.DataFrame([row('moe_finetuned', 0, .5), row('better', 0, .6), row('more', 0, .9)])
    rows[['fair_result', 'fair_procedure']] = [[.2, .2], [.1, .1], [.1, .3]]
    assert study_tables.dominators(rows) == {'german': ['better']}


def test_an_ablation_without_a_floor_accepts_what_the_released_setting_refuses(bench):
    assert bench.floor.utility > .5
    bench.setting = 'no-floor'
    _, best = study_methods.tuned_network(bench, study_methods.EXPERTS['expert2'], 2)
    assert best['constraints'] == [0.] and best['feasible']
