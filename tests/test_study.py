"""The study: no row is lost or mixed up, and no method sees test labels.

Substitutes and statistics are checked against a second way to compute them.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, special, stats
from scipy.special import gamma

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
from moe_expert.study import tables as study_tables
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
    package, only_read = Path(moe_expert.__file__).parent, ('reading', 'verify', 'cells')
    for room in ('scores', 'experts', 'mixture'):
        modules = {p.stem for p in (package / room).glob('*.py')} - {'__init__', *only_read}
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


@pytest.mark.slow
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
    clouds, directions = [torch.as_tensor(v) for v in (a, b)], torch.as_tensor(directions)
    got = study_methods.sliced_distance(clouds, directions)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_study_methods_with_several_groups_against_brute_force():
    rng, directions = np.random.default_rng(1), torch.randn(3, 5, dtype=torch.double)
    hidden = torch.as_tensor(rng.normal(size=(2, 90, 3)))
    y, sens = (torch.as_tensor(rng.integers(low, high, 90)) for low, high in ((0, 2), (-1, 3)))
    of = lambda c, g: hidden[:, (y == c) & (sens == g)]
    pairs = list(itertools.combinations(range(3), 2))
    each = lambda c, pair: study_methods.sliced_distance([of(c, g) for g in pair], directions)
    expected = sum(each(c, pair) for c in (0, 1) for pair in pairs) / len(pairs)
    got = study_methods.class_distance(hidden, y, sens, directions)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    both = study_methods.class_distance(hidden, y, torch.stack([sens, sens], 1), directions)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-12)

    weights = study_methods.reweighing(y, sens).numpy()
    known = (sens >= 0).numpy()
    assert (weights[~known] == 1).all() and weights[known].mean() == pytest.approx(1)
    y, sens = y.numpy()[known], sens.numpy()[known]
    for g in range(3):  # after weighting, the classes have the same shares in every group
        inside = sens == g
        share = np.average(y[inside], weights=weights[known][inside])
        assert share == pytest.approx(y.mean(), abs=1e-12)


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


def t_density(d, df, mean, scale):
    "Of a t distribution, written out."
    norm = gamma((df + 1) / 2) / (gamma(df / 2) * np.sqrt(df * np.pi) * scale)
    return norm * (1 + ((d - mean) / scale) ** 2 / df) ** (-(df + 1) / 2)


def test_the_verdict_against_numerical_integration():
    "Probabilities and the interval of the posterior, integrated from its density."
    rng, words = np.random.default_rng(0), set()
    area = lambda low, high, *of: integrate.quad(t_density, low, high, of, epsabs=1e-12)[0]
    for df in (1, 2, 9):
        for mean, scale in zip(rng.normal(0, 0.02, 20), np.geomspace(0.0005, 0.03, 20)):
            found = study_statistics.verdict(mean, scale, df, 0.01)
            above = 0.5 + area(0, mean, df, mean, scale)
            inside = area(-0.01, mean, df, mean, scale) + area(mean, 0.01, df, mean, scale)
            assert found['p_better'] == pytest.approx(above, abs=1e-7)
            assert found['p_equivalent'] == pytest.approx(inside, abs=1e-7)
            covered = 2 * area(mean, found['high'], df, mean, scale)
            assert covered == pytest.approx(0.95, abs=1e-6)
            reached = {
                'practically equivalent': inside >= 0.95,
                'better': above >= 0.95,
                'worse': above <= 0.05,
                'undecided': True,
            }
            assert found['verdict'] == next(word for word, is_so in reached.items() if is_so)
            words.add(found['verdict'])
    assert words == set(study_statistics.WORDS)


def test_no_word_without_its_probability():
    "One split, one family or no spread of a family: nothing is decided."
    for df, scale in ((0, 0.01), (9, float('nan')), (-1, 0.0)):
        found = study_statistics.verdict(0.5, scale, df, 0.01)
        assert found['verdict'] == 'undecided' and np.isnan(found['p_better'])
    at_edge = stats.t.ppf(0.95, 9)
    for factor, word in ((0.999, 'undecided'), (1.001, 'better')):
        assert study_statistics.verdict(at_edge * factor, 1, 9, 0.01)['verdict'] == word
        opposite = study_statistics.verdict(-at_edge * factor, 1, 9, 0.01)['verdict']
        assert opposite == word.replace('better', 'worse')


def test_the_correlated_t_against_its_closed_form():
    "Statistic and p of Nadeau and Bengio's corrected resampled t test, written out."
    d, n_train, n_test = np.random.default_rng(1).normal(0.02, 0.02, 10), 90, 30
    found = study_statistics.data_set_verdict(d, n_test / n_train)
    variance = sum((x - d.sum() / 10) ** 2 for x in d) / 9
    t = (d.sum() / 10) / np.sqrt((1 / 10 + n_test / n_train) * variance)
    assert found['p_better'] == pytest.approx(special.stdtr(9, t), abs=1e-12)
    assert found['splits'] == 10
    plain = study_statistics.data_set_verdict(d, 0)
    one_sided = stats.ttest_1samp(d, 0, alternative='greater')
    assert plain['p_better'] == pytest.approx(1 - one_sided.pvalue, abs=1e-12)
    assert found['high'] - found['low'] > 2 * (plain['high'] - plain['low'])


def test_corrected_intervals_cover_where_naive_ones_do_not():
    "Two fixed rules and ten overlapping test parts: what is estimated is known exactly."
    rng, n, J = np.random.default_rng(0), 80, 10
    covered = {0.0: 0, 0.5: 0}
    for _ in range(700):
        right = rng.random((2, n)) < [[0.75], [0.65]]  # of each rule, about each person
        gaps = right[0].astype(float) - right[1]
        parts = [gaps[rng.permutation(n)[: n // 4]].mean() for _ in range(J)]  # half is trained on
        for ratio in covered:
            found = study_statistics.data_set_verdict(parts, ratio)
            covered[ratio] += found['low'] <= 0.1 <= found['high']
    naive, corrected = (covered[r] / 700 for r in (0.0, 0.5))
    assert naive < 0.85 and 0.93 < corrected < 0.985, (naive, corrected)


def test_sizes_of_splits_are_those_of_the_data(data_dir):
    facts = json.loads((data_dir / 'facts.json').read_text())
    for name, sizes in study_statistics.SPLIT_SIZES.items():
        split = facts[name]['split']
        assert sizes == (split['train']['n'], split['test']['n']), name
    assert {v.dataset for v in study_plan.VARIANTS.values()} == set(study_statistics.SPLIT_SIZES)


def test_families_are_the_unit_over_data_sets():
    means = pd.Series(dict(bail=0.06, german=0.02, math=0.1, por=0.0))
    found = study_statistics.family_verdict(means)
    units = [0.06, 0.02, 0.05]
    expected = stats.ttest_1samp(units, 0)
    interval = expected.confidence_interval(0.95)
    assert (found['low'], found['high']) == pytest.approx((interval.low, interval.high))
    assert found['p_better'] == pytest.approx(1 - expected.pvalue / 2)
    assert (found['families'], found['verdict']) == (3, 'better')
    twice = pd.concat([means, pd.Series({'math-leakfree': 0.05, 'german-new': 0.02})])
    assert study_statistics.family_verdict(twice) == pytest.approx(found)
    alone = study_statistics.family_verdict(means[['math', 'por']])
    assert (alone['families'], alone['verdict']) == (1, 'undecided')


def test_signed_ranks_against_all_signs():
    units = pd.Series({f'd{i}': v for i, v in enumerate((0.05, -0.01, 0.03, 0.02, 0.07))})
    ranks = units.abs().rank()
    signs = np.array(list(itertools.product((0, 1), repeat=5)))
    sums, observed = signs @ ranks, ranks[units > 0].sum()
    p = 2 * min((sums >= observed).mean(), (sums <= observed).mean())
    assert study_statistics.signed_rank_p(units) == pytest.approx(min(p, 1))
    assert np.isnan(study_statistics.signed_rank_p(0 * units))


def test_the_hierarchical_model_against_a_grid():
    "The posterior of μ and τ on a grid, with every family's own mean integrated out."
    means, errors = (
        pd.Series(dict(zip(('bail', 'german', 'por'), v)))
        for v in ((0.05, 0.02, 0.09), (0.02, 0.05, 0.03))
    )
    mu, tau = np.linspace(-4, 4, 8001)[:, None], ((np.arange(400) + 0.5) / 400)[None]
    density = 1.0
    for y, s in zip(means, errors):
        density = density * stats.norm.pdf(y, mu, np.sqrt(s**2 + tau**2))
    of_mu = density.sum(1)
    of_mu[mu[:, 0] == 0] /= 2
    got = study_statistics.hierarchical_probabilities(means, errors)
    assert got[0] == pytest.approx(of_mu[mu[:, 0] >= 0].sum() / of_mu.sum(), abs=2e-3)
    inside = np.abs(mu[:, 0]) <= 0.03 + 1e-9
    assert got[1] == pytest.approx(of_mu[inside].sum() / of_mu.sum(), abs=5e-3)
    one = study_statistics.hierarchical_probabilities(means[:1], errors[:1])
    assert np.isnan(one).all()


def test_seeds_of_a_split_count_once():
    "Ten seeds on one split are one value of the verdict, not ten."
    scores = {(20, s): 0.5 + 0.02 * s for s in range(10)} | {(21, 0): 0.6, (22, 0): 0.55}
    rows = pd.DataFrame(
        [
            row(m, seed, v if m == 'moe_finetuned' else 0.4, 'por', split)
            for (split, seed), v in scores.items()
            for m in ('moe_finetuned', 'b')
        ]
    )
    (found,) = study_statistics.data_set_verdicts(rows).to_dict('records')
    expected = study_statistics.data_set_verdict([0.19, 0.2, 0.15], 163 / 324)
    assert {k: found[k] for k in expected} == pytest.approx(expected)


def test_no_interval_over_seeds_against_a_method_without_a_seed():
    rows = pd.DataFrame(
        [row('moe_finetuned', s, 0.5 + 0.01 * s) for s in range(5)]
        + [row('fixed', s, 0.4) for s in range(5)]
        + [row('seeded', s, 0.4 + 0.001 * s) for s in range(5)]
    )
    table = study_statistics.seed_differences
    fixed, seeded = (table(rows, 'moe_finetuned', m).iloc[0] for m in ('fixed', 'seeded'))
    assert np.isnan([fixed.low, fixed.high]).all() and fixed['mean'] == pytest.approx(0.12)
    assert seeded.low > 0
    assert not [c for c in table(rows, 'moe_finetuned', 'seeded') if c == 'p' or 'p_' in c]


def test_the_chapter_on_teachers_says_what_its_rows_say(repo_root):
    "Its verdicts are typed, because the rule stands in a later chapter."
    cells = json.loads((repo_root / 'benchmarks' / 'gate_results.json').read_text())['cells']
    chapter = json.loads((repo_root / 'nbs' / '54_teachers.ipynb').read_text(encoding='utf-8'))
    prose = ' '.join(
        ''.join(c['source']).replace('\n', ' ')
        for c in chapter['cells']
        if c['cell_type'] == 'markdown'
    )
    said = dict(reinforce='undecided', reinforce_node='practically equivalent', crossfit='worse')
    said |= {'uniform': 'worse', 'best by validation': 'undecided', 'best_start': 'undecided'}
    said |= dict(val_half='undecided')
    for name, word in said.items():
        scores = [
            (c['dataset'], (c['variants'] | c['references'])[name]['test'], c['variants']['direct'])
            for c in cells
        ]
        by = pd.Series([s - d['test'] for _, s, d in scores], [n for n, _, _ in scores])
        found = study_statistics.family_verdict(by.groupby(level=0).mean())
        assert found['verdict'] == word, name
        mean, low, high = (study_tables.signed(found[k]) for k in ('mean', 'low', 'high'))
        assert f'{mean} [{low}, {high}]' in prose, name
        for dataset, d in by.groupby(level=0):
            ratio = study_statistics.split_ratio(dataset)
            assert study_statistics.data_set_verdict(d, ratio)['verdict'] == 'undecided', name


def test_sentences_say_what_the_verdicts_say():
    rows = [
        ('moe', 0.001, 0.0005),
        ('cfa_loss', -0.04, 0.018),
        ('expert1', 0.02, 0.05),
        ('expert3', 0.08, 0.01),
    ]
    verdicts = pd.DataFrame(
        [dict(other=o, **study_statistics.verdict(m, s, 9, 0.01)) for o, m, s in rows]
    )
    found = study_tables.verdict_sentences(verdicts)
    assert list(found) == ['better', 'worse', 'practically equivalent', 'undecided']
    assert found['better'].startswith('**better than** expert3 (+0.080 [+0.057, +0.103], P(better)')
    assert (
        "CFA's loss (−0.040 [−0.081, +0.001], P(worse) 0.97; its interval includes 0)"
        in (found['worse'])
    )
    assert 'P(equivalent) > 0.99' in found['practically equivalent']
    assert 'expert1' in found['undecided'] and 'P(better)' in found['undecided']
    assert '[' in study_tables.verdict_sentences(verdicts, probability=False)['undecided']


def row(method, seed, score, variant='german', split=20):
    where = dict(setting=MAIN, n_trials=30, epochs=2000, variant=variant, split_seed=split)
    scores = dict(final_score=score, utility=score, fair_result=0.0, fair_procedure=0.0)
    return where | dict(seed=seed, method=method) | scores


def test_only_pairs_are_compared():
    scores = {'a': {0: 0.5, 1: 0.7, 2: 9.0}, 'b': {0: 0.4, 1: 0.8, 3: -9.0}}
    rows = pd.DataFrame([row(m, seed, v) for m, by in scores.items() for seed, v in by.items()])
    pairs = study_statistics.paired_differences(rows, 'a', 'b')
    assert pairs.to_numpy() == pytest.approx([0.1, -0.1])
    assert list(pairs.index) == [('german', 20, 0), ('german', 20, 1)]
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
