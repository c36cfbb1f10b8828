"""The study: no row is lost or mixed up, and no method sees test labels.

Substitutes and statistics are checked against a second way to compute them.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import moe_expert
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArtifactError, MoEExpertError
from moe_expert.experts.floor import logistic_regression
from moe_expert.experts.specs import EXPERTS, ExpertSpec
from moe_expert.experts.trainers import TrainConfig, TrainSettings
from moe_expert.experts.training import run_training, train_population
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.scores.evaluation import Evaluator
from moe_expert.study import conditions as study_conditions
from moe_expert.study import ledger as study_ledger
from moe_expert.study import methods as study_methods
from moe_expert.study import plan as study_plan
from moe_expert.study import runs as study_runs
from moe_expert.study import statistics as study_statistics
from moe_expert.study.conditions import Predictor, SharedConditions
from moe_expert.study.ledger import Ledger
from moe_expert.study.plan import MAIN, MethodRun
from moe_expert.trainer import MoESettings, MoETrainer

PLAIN = ExpertSpec('plain', 'plain', 'utility')


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(study_plan.VARIANTS, 'tiny', study_plan.Variant('synthetic-200'))


@pytest.fixture
def shared(tiny, tmp_path):
    return SharedConditions('tiny', 1000, 100, n_trials=1, epochs=100, cache_dir=tmp_path)


def counting(monkeypatch, fails=()):
    "Two makers that cost nothing, and how often each was called."
    made = []

    def maker(name):
        def make(shared):
            made.append((name, shared.seed))
            if name in fails:
                raise MoEExpertError('as if the power had failed')
            return {name: logistic_regression(shared.data)}

        return make

    monkeypatch.setattr(study_runs, 'MAKERS', {n: (maker(n), (n,)) for n in ('one', 'two')})
    return made


def test_an_interrupted_study_goes_on(tiny, tmp_path, monkeypatch):
    runs = [
        MethodRun('tiny', 1000 + i, 100 + i, m, epochs=100)
        for i in range(2)
        for m in ('one', 'two')
    ]
    ledger, made = Ledger(tmp_path / 'rows'), counting(monkeypatch, fails=['two'])
    with pytest.raises(MoEExpertError, match='power'):
        study_runs.run_missing(runs, ledger, cache_dir=tmp_path)
    assert made == [('one', 100), ('two', 100)] and len(ledger.rows()) == 1
    made = counting(monkeypatch)
    assert study_runs.run_missing(runs, Ledger(tmp_path / 'rows'), cache_dir=tmp_path) == []
    assert made == [('two', 100), ('one', 101), ('two', 101)]
    before = ledger.rows()
    for path in ledger.runs.glob('*.json'):
        path.unlink()
    after = Ledger(tmp_path / 'rows').rows()
    pd.testing.assert_frame_equal(before, after, check_dtype=False, rtol=1e-8)
    assert study_runs.run_missing(runs, ledger, cache_dir=tmp_path) == [] and len(made) == 3
    monkeypatch.setattr(moe_expert, '__version__', '99.0')
    assert ledger.missing(runs) == runs  # rows of another version do not count


def test_a_confirmatory_call_is_on_record_even_if_it_fails(tiny, tmp_path, monkeypatch):
    counting(monkeypatch, fails=['one'])
    ledger = Ledger(tmp_path / 'rows')
    runs = [MethodRun('tiny', 20, 0, 'one', phase='confirmatory')]
    assert study_runs.run_missing(runs, ledger, cache_dir=tmp_path, hours=0) == runs
    assert ledger.confirmatory_calls() == []  # nothing was to be started
    with pytest.raises(MoEExpertError, match='power'):
        study_runs.run_missing(runs, ledger, cache_dir=tmp_path)
    (entry,) = ledger.confirmatory_calls()
    assert (entry['runs'], entry['variants'], entry['settings']) == (1, ['tiny'], ['main'])
    assert entry['design'] == study_ledger.source_digest()


def test_the_digest_covers_what_can_change_a_score():
    names = set(study_ledger.decisive_modules())
    package = Path(moe_expert.__file__).parent
    for room in ('scores', 'experts', 'mixture'):
        modules = {p.stem for p in (package / room).glob('*.py')} - {'__init__'}
        assert {f'moe_expert.{room}.{m}' for m in modules} <= names, room
    assert {'moe_expert.datasets', 'moe_expert.trainer', 'moe_expert.tune_experts'} <= names
    assert {'moe_expert.study.conditions', 'moe_expert.study.methods'} <= names
    aside = ('moe_expert.report', 'moe_expert.study.tables', 'moe_expert.study.statistics')
    assert not [n for n in names if n.startswith(aside)]


def test_another_source_has_another_digest(monkeypatch, tmp_path):
    before = study_ledger.source_digest()
    assert before == study_ledger.source_digest.__wrapped__()
    changed = tmp_path / 'metrics.py'
    changed.write_text('changed = True')
    real = study_ledger._module_file
    is_metrics = 'moe_expert.scores.metrics'.__eq__
    monkeypatch.setattr(
        study_ledger, '_module_file', lambda n: changed if is_metrics(n) else real(n)
    )
    assert study_ledger.source_digest.__wrapped__() != before


def test_no_other_room_imports_the_study():
    package = Path(moe_expert.__file__).parent
    for path in package.rglob('*.py'):
        if path.parent.name != 'study' and path.name != '_modidx.py':
            assert 'moe_expert.study' not in path.read_text(encoding='utf-8'), path
            assert 'from .study' not in path.read_text(encoding='utf-8'), path


def test_rows_of_files_and_of_the_csv_are_the_same(tmp_path):
    "To the last digit: two methods that are level in one are not apart in the other."
    ledger, rng = Ledger(tmp_path), np.random.default_rng(0)
    for i, value in enumerate(rng.normal(size=300) / 3):
        texts = dict(name=f'r{i:03}', version='1', commit='', fingerprint='', design='', note='')
        ledger.add(texts | dict(utility=float(value), n_trials=i))
    files = ledger.rows()
    ledger.write_csv()
    for f in ledger.runs.glob('*.json'):
        f.unlink()
    assert len(files) == 300
    pd.testing.assert_frame_equal(files, Ledger(tmp_path).rows(), check_exact=True)


def test_a_damaged_row_is_named(tmp_path):
    ledger = Ledger(tmp_path)
    (ledger.runs / 'x.json').write_text('{"name": ')
    with pytest.raises(ArtifactError, match='x.json'):
        ledger.rows()


def test_no_method_depends_on_test_labels(shared, tmp_path):
    pytest.importorskip('fairlearn')
    other = SharedConditions(
        **{k: getattr(shared, k) for k in ('variant', 'split_seed', 'seed', 'n_trials', 'epochs')},
        cache_dir=tmp_path / 'other',
    )
    other.data.y[other.data.test_mask] = 1 - other.data.y[other.data.test_mask]
    args = shared.data.x, shared.data.edge_index
    for name, (make, _) in study_runs.MAKERS.items():
        if name != 'mixture':  # tests/test_trainer.py has this test for `MoETrainer`
            ((_, a),), ((_, b),) = make(shared).items(), make(other).items()
            assert torch.equal(a.probabilities(*args), b.probabilities(*args)), name


def test_stage_3_of_a_setting_is_the_trainers(tiny, tmp_path, monkeypatch):
    "The trainer tries the same ways and finds the same winner, whose row has a different name."
    ways = tuple(
        FineTuneSettings(lr, lr, epochs=30, val_every=5, pull=pull)
        for lr in (1e-3, 1e-2)
        for pull in (0.0, 5.0)
    )
    setting = study_plan.MixtureSetting('several ways', stage3=ways)
    monkeypatch.setitem(study_plan.MIXTURE_SETTINGS, 'ways', setting)
    budget = dict(n_trials=1, epochs=100)
    shared = SharedConditions('tiny', 1000, 100, setting='ways', cache_dir=tmp_path, **budget)
    made = study_methods.mixture_in_setting(shared)
    assert set(made) == set(setting.methods) and 'pull' in shared.notes['moe_finetuned']
    options = dict(device='cpu', settings=MoESettings(fine_tuning=ways), **budget)
    one = MoETrainer(shared.data, None, tmp_path / 'trainer', 100, **options)
    one.tune_gate(1)
    assert one.fine_tune()['kept']  # else there is nothing to see
    args = shared.data.x, shared.data.edge_index
    assert torch.equal(made['moe_finetuned'].probabilities(*args), one.mixture.probabilities(*args))
    assert not torch.equal(made['moe'].probabilities(*args), one.mixture.probabilities(*args))
    runs = study_runs.planned_runs('development', ['tiny'], [100], [1000], settings=['ways'])
    assert [r.method for r in runs] == list(setting.methods)


def test_a_missing_fairlearn_is_reported_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fairlearn', None)
    runs = [MethodRun('tiny', 1000, 100, m, epochs=100) for m in ('single_network', 'expgrad_dp')]
    with pytest.raises(MoEExpertError, match='pip install'):
        study_runs.run_missing(runs, Ledger(tmp_path / 'rows'), cache_dir=tmp_path)
    assert not (tmp_path / 'tiny-split1000-seed100-epochs100').exists()


def test_shapley_values_against_all_orders():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(6, 2)), rng.normal(size=(2, 2))
    f = lambda r: 1 / (1 + np.exp(-(np.einsum('ni,ij,nj->n', r, a, r) + r @ [1.0, -2.0])))
    values = study_conditions.shapley_values(f, x, 1)  # a pair is all orders of two
    np.testing.assert_allclose(values, by_all_orders(f, x), atol=1e-12)
    x, a = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    f = lambda r: np.tanh(np.einsum('ni,ij,nj->n', r, a, r) / 4)
    sampled = study_conditions.shapley_values(f, x, 400)
    np.testing.assert_allclose(sampled, by_all_orders(f, x), atol=0.05)
    np.testing.assert_allclose(sampled.sum(1), f(x) - f(0 * x), atol=1e-12)


def by_all_orders(f, x):
    "Shapley values by the definition: mean step over all orders."
    out = np.zeros_like(x)
    orders = list(itertools.permutations(range(x.shape[1])))
    for order in orders:
        for i, k in enumerate(order):
            before, after = np.zeros_like(x), np.zeros_like(x)
            before[:, order[:i]], after[:, order[: i + 1]] = x[:, order[:i]], x[:, order[: i + 1]]
            out[:, k] += (f(after) - f(before)) / len(orders)
    return out


def test_masking_of_the_adapter_touches_one_feature_of_one_row():
    data = make_synthetic(60, 4, avg_degree=4)
    seen = []

    def predict(rows, groups):
        seen.append((rows.copy(), groups))
        return np.full(len(rows), 0.5)

    predictor, nodes = Predictor(predict, data.sens), torch.tensor([5, 3, 8])
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
        of_class = train[data.y[train] == c]
        balanced.sens[of_class] = torch.arange(len(of_class)) % 2
    config = [TrainConfig(lr=1e-2, seed=3)]
    (plain,) = train_population(balanced, config, PLAIN, settings=settings)
    evaluator = Evaluator(balanced, 'val')
    tolerances = {study_methods.CFATrainer: 1e-9, study_methods.ReweighedTrainer: 1e-2}
    for trainer, tolerance in tolerances.items():  # with reweighing, odd cells weigh almost 1
        made = trainer(balanced, config, settings, torch.device('cpu'), 0)
        (model,) = run_training(made, config, PLAIN, evaluator, None, settings)
        for k, v in plain.population.params.items():
            torch.testing.assert_close(model.population.params[k], v, atol=tolerance, rtol=0)


@pytest.mark.parametrize('trainer', [study_methods.CFATrainer, study_methods.ReweighedTrainer])
def test_losses_of_all_nodes_refuse_minibatches(trainer):
    data, settings = make_synthetic(200, 6), TrainSettings(batch_size=20)
    with pytest.raises(MoEExpertError, match='all 100 training nodes at once, not 20'):
        trainer(data, [TrainConfig(lr=1e-2)], settings, torch.device('cpu'), 0)


def test_sliced_distance_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1, 30, 3)), rng.normal(size=(1, 21, 3)) + 1
    directions = rng.normal(size=(3, 5))
    q = (np.arange(32) + 0.5) / 32
    expected = np.mean(
        [(np.quantile(a[0] @ d, q) - np.quantile(b[0] @ d, q)) ** 2 for d in directions.T]
    )
    got = study_methods.sliced_distance(*(torch.as_tensor(v) for v in (a, b, directions)))
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_chance_is_the_mean_over_all_ways_to_hand_out_the_groups():
    "Eight people: all 56 ways to make three of them a group, against the sampled ones."
    data = make_synthetic(200, 4, seed=1)
    cells = {(1, 0): 4, (1, 1): 2, (0, 0): 1, (0, 1): 1}
    nodes = torch.cat(
        [((data.y == y) & (data.sens == s)).nonzero()[:n, 0] for (y, s), n in cells.items()]
    )
    record = Evaluator(data, nodes).record(logistic_regression(data))
    size = int(record.sens.sum())
    every = []
    for group in itertools.combinations(range(8), size):
        sens = torch.zeros(8, dtype=torch.long)
        sens[list(group)] = 1
        assert 0 < int(record.y[sens == 1].sum()) and 0 < int(record.y[sens == 0].sum())
        scores = dataclasses.replace(record, sens=sens).scores()
        every.append({k: v.item() for k, v in scores.items()})
    sampled = study_conditions.chance_gaps(record, 4000)
    assert len({e['fair_result'] for e in every}) > 3
    for name in study_ledger.CHANCE_SCORES:
        exact = np.mean([e[name] for e in every])
        assert sampled[f'chance_{name}'] == pytest.approx(exact, abs=0.01)
    few = study_conditions.chance_gaps(record, 20)
    assert few == study_conditions.chance_gaps(record, 20)
    assert few != study_conditions.chance_gaps(record, 20, seed=1)


def test_holm_against_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(5) ** 3
        adjusted = study_statistics.holm(p)
        for alpha in (0.01, 0.05, 0.2):
            rejected = set()
            for i, k in enumerate(np.argsort(p)):
                if p[k] > alpha / (len(p) - i):
                    break
                rejected.add(int(k))
            assert set(np.flatnonzero(adjusted <= alpha)) == rejected


def row(method, seed, score, variant='german', split=20):
    where = dict(setting=MAIN, n_trials=30, epochs=2000, variant=variant, split_seed=split)
    scores = dict(final_score=score, utility=score, fair_result=0.0, fair_procedure=0.0)
    return where | dict(seed=seed, method=method) | scores


def test_only_pairs_are_compared():
    scores = {'a': {0: 0.5, 1: 0.7, 2: 9.0}, 'b': {0: 0.4, 1: 0.8, 3: -9.0}}
    rows = pd.DataFrame([row(m, seed, v) for m, by in scores.items() for seed, v in by.items()])
    pair = study_statistics.paired_differences(rows, 'a', 'b').iloc[0]
    assert (pair.pairs, pair.wins) == (2, 1)
    assert pair['mean'] == pytest.approx(0) and pair.low < 0 < pair.high
    assert study_statistics.paired_differences(rows, 'a', 'absent').empty


def test_dominance_asks_for_all_three_aims():
    rows = pd.DataFrame([row('moe_finetuned', 0, 0.5), row('better', 0, 0.6), row('more', 0, 0.9)])
    rows[['fair_result', 'fair_procedure']] = [[0.2, 0.2], [0.1, 0.1], [0.1, 0.3]]
    assert study_statistics.dominators(rows) == {'german': ['better']}


def test_an_ablation_without_a_floor_accepts_what_the_released_setting_refuses(shared):
    assert shared.floor.utility > 0.5
    shared.setting = 'no-floor'
    _, best = study_methods.tune_network(shared, EXPERTS['expert2'], 2)
    assert best['constraints'] == [0.0] and best['feasible']
