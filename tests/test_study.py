"""The study: no row is lost or mixed up, and no method sees test labels.

Substitutes and statistics are checked against a second way to compute them.
"""

import dataclasses
import importlib.util
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
from moe_expert.experts.specs import ExpertSpec
from moe_expert.experts.trainers import TrainConfig, TrainSettings
from moe_expert.experts.training import run_training, train_population
from moe_expert.parameters import defaults
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

PLAIN = ExpertSpec('plain', 'plain', 'utility')


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(study_plan.STUDY_SETS, 'tiny', study_plan.StudySet('synthetic-200', 'tiny'))


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
    assert (entry['runs'], entry['datasets'], entry['analyses']) == (1, ['tiny'], ['main'])
    assert entry['design'] == study_ledger.source_digest()


def test_the_digest_covers_what_can_change_a_score():
    names = set(study_ledger.decisive_modules())
    package, only_read = Path(moe_expert.__file__).parent, ('reading', 'verify', 'cells', 'packs')
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


@pytest.mark.slow
def test_no_method_depends_on_test_labels(shared, tmp_path):
    pytest.importorskip('fairlearn')
    other = SharedConditions(
        **{k: getattr(shared, k) for k in ('dataset', 'split_seed', 'seed', 'n_trials', 'epochs')},
        cache_dir=tmp_path / 'other',
    )
    other.data.y[other.data.test_mask] = 1 - other.data.y[other.data.test_mask]
    args = shared.data.x, shared.data.edge_index
    for name, (make, _) in study_runs.MAKERS.items():
        if name != 'mixture':  # tests/test_trainer.py has this test for `MoETrainer`
            ((_, a),), ((_, b),) = make(shared).items(), make(other).items()
            assert torch.equal(a.probabilities(*args), b.probabilities(*args)), name


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


@pytest.mark.slow
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


def test_families_are_the_unit_over_data_sets():
    means = pd.Series(dict(bail=0.06, german=0.02, math=0.1, por=0.0))
    found = study_statistics.family_verdict(means)
    units = [0.06, 0.02, 0.05]
    expected = stats.ttest_1samp(units, 0)
    interval = expected.confidence_interval(0.95)
    assert (found['low'], found['high']) == pytest.approx((interval.low, interval.high))
    assert found['p_better'] == pytest.approx(1 - expected.pvalue / 2)
    assert (found['families'], found['verdict']) == (3, 'better')
    twice = pd.concat([means, pd.Series({'german-original': 0.02, 'german-new': 0.02})])
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
            ratio = dict(bail=4719 / 100, german=250 / 100, math=100 / 197, por=163 / 324)[dataset]
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


def row(method, seed, score, dataset='german', split=2000):
    where = dict(analysis=MAIN, n_trials=30, epochs=2000, dataset=dataset, split_seed=split)
    scores = dict(final_score=score, utility=score, fair_result=0.0, fair_procedure=0.0)
    return where | dict(seed=seed, method=method) | scores


def test_only_pairs_are_compared():
    scores = {'a': {0: 0.5, 1: 0.7, 2: 9.0}, 'b': {0: 0.4, 1: 0.8, 3: -9.0}}
    rows = pd.DataFrame([row(m, seed, v) for m, by in scores.items() for seed, v in by.items()])
    pairs = study_statistics.paired_differences(rows, 'a', 'b')
    assert pairs.to_numpy() == pytest.approx([0.1, -0.1])
    assert list(pairs.index) == [('german', 2000, 0), ('german', 2000, 1)]
    assert study_statistics.paired_differences(rows, 'a', 'absent').empty


def test_dominance_asks_for_all_three_aims():
    rows = pd.DataFrame([row('crossfit', 0, 0.5), row('better', 0, 0.6), row('more', 0, 0.9)])
    rows[['fair_result', 'fair_procedure']] = [[0.2, 0.2], [0.1, 0.1], [0.1, 0.3]]
    assert study_statistics.dominators(rows) == {'german': ['better']}


# --- The plan, its order, and what is below the floor


def test_families_and_splits_are_those_of_the_rules():
    families = pd.Series({n: known.family for n, known in study_plan.STUDY_SETS.items()})
    sizes = families.value_counts()
    assert len(sizes) == 14 and sizes[sizes > 1].to_dict() == dict(german=3, bail=2, student=2)
    pairs = study_plan.split_seed_pairs('confirmatory')
    assert pairs == [(2000 + i, 2000 + i) for i in range(10)]
    assert study_plan.split_seed_pairs('development') == [(1000 + i, 100 + i) for i in range(10)]
    analyses, sets = study_plan.ANALYSES, study_plan.STUDY_SETS
    assert (
        analyses['with-leak'] == tuple(n for n in sets if sets[n].leak) == ('bail', 'math', 'por')
    )
    assert set(sets) - set(analyses['labels-100']) == {'bail', 'german', 'ricci'}


@pytest.mark.parametrize('n', [1, 2, 3])
def test_after_every_tenth_no_method_is_more_than_a_row_ahead(n):
    "Of each process by itself; and together nothing is done twice or left out."
    everything = study_runs.planned_runs('confirmatory')
    parts = [study_runs.planned_runs('confirmatory', part=f'{k}/{n}') for k in range(1, n + 1)]
    names = [r.name for part in parts for r in part]
    assert len(names) == len(set(names)) and set(names) == {r.name for r in everything}
    keys = {(r.analysis, r.dataset, r.method) for r in everything}
    for part in parts:
        for tenth in range(1, 11):
            done = part[: len(part) * tenth // 10]
            counts = dict.fromkeys(keys, 0)
            for r in done:
                counts[r.analysis, r.dataset, r.method] += 1
            assert max(counts.values()) - min(counts.values()) <= 1, tenth
    assert all(abs(len(part) - len(parts[0])) <= 200 for part in parts)


def test_pairs_of_a_data_set_belong_to_one_process():
    "Methods of a pair share trials and checkpoints, so two processes never write the same files."
    one, two = (study_runs.planned_runs('confirmatory', part=f'{k}/2') for k in (1, 2))
    assert not {r.conditions for r in one} & {r.conditions for r in two}


def test_the_first_labels_are_nested_and_balanced():
    data = make_synthetic(400, 4, seed=1)
    few, more = (study_conditions.first_labels(data, n, 2000) for n in (20, 60))
    assert (few.train_mask <= more.train_mask).all() and (more.train_mask <= data.train_mask).all()
    assert [int((few.train_mask & (data.y == c)).sum()) for c in (0, 1)] == [10, 10]
    assert torch.equal(few.val_mask, data.val_mask) and torch.equal(few.x, data.x)
    other = study_conditions.first_labels(data, 20, 2001)
    assert not torch.equal(other.train_mask, few.train_mask)


def test_below_the_floor_the_constant_counts(shared):
    "By the validation scores alone: what the test says does not matter."
    model = logistic_regression(shared.data)
    scores = shared.validation.scores(model)
    shared.judged['y'] = scores | {
        k: 0 * v + 1 for k, v in scores.items() if k in ('utility', 'auc')
    }
    shared.judged['x'] = {k: v * 0 for k, v in scores.items()}
    good, bad = (shared.score_row(name, model) for name in 'yx')
    assert not good['below_floor'] and bad['below_floor']
    assert bad['own_final_score'] == good['final_score'] == good['own_final_score']
    test = shared.data.test_mask
    share = shared.data.y[test].double().mean().item()
    majority = shared.data.y[shared.data.train_mask].double().mean() >= 0.5
    f1 = 2 * share / (1 + share) if majority else 0
    expected = ((share if majority else 1 - share) + f1 + 0.5) / 3
    assert bad['final_score'] == pytest.approx(expected, abs=1e-9)
    assert bad['fair_result'] == 0 and bad['fair_procedure'] == pytest.approx(0, abs=1e-12)


def test_refitted_methods_judge_validation_nodes_out_of_fold(shared):
    "A changed label of a validation node never changes what is predicted about it."
    data = shared.data
    fit = lambda nodes: study_methods._as_function(study_methods._regression_of(data, nodes))
    before = study_methods._out_of_fold(shared, fit)
    nodes = study_methods._taught(data)
    parts = study_methods.equal_parts(nodes, data, study_methods.FOLDS, shared.seed)
    for part in parts:
        held = torch.isin(nodes, part)
        model = logistic_regression(with_training(data, nodes[~held]))
        expected = model.probabilities(data.x, None, nodes[held])[0].numpy()
        np.testing.assert_allclose(before[held.numpy()], expected, atol=1e-12)
    assert sorted(torch.cat(parts).tolist()) == nodes.tolist()


def with_training(data, nodes):
    other = data.clone()
    other.train_mask = torch.zeros_like(data.train_mask)
    other.train_mask[nodes] = True
    return other


def test_a_shift_moves_the_threshold_to_one_half():
    p, t = np.array([0.0, 0.1, 0.2, 0.305, 0.355, 0.8, 0.9, 1.0]), 0.3
    logit = special.logit(p) - special.logit(t)
    np.testing.assert_allclose(study_methods.shifted(p, t), special.expit(logit), atol=1e-12)
    y, sens = torch.tensor([0] * 4 + [1] * 4), torch.tensor([0, 1] * 4)
    best = study_methods.best_threshold(p, y, sens)
    assert 0.305 < best < 0.355  # all decisions right; ½ would miss one


# --- Claims


def test_holm_against_the_closure_of_bonferroni():
    "By definition: rejected if every set of hypotheses that holds it is rejected by Bonferroni."
    rng = np.random.default_rng(0)
    for k in range(1, 6):
        p = rng.random(k) ** 3
        if k > 2:
            p[1] = p[0]  # a tie
        for i, corrected in enumerate(study_statistics.holm(p)):
            sets = [
                [i, *rest]
                for size in range(k)
                for rest in itertools.combinations([j for j in range(k) if j != i], size)
            ]
            closed = max(min(1, len(s) * min(p[s])) for s in sets)
            assert corrected == pytest.approx(closed, abs=1e-12)


def test_holm_against_statsmodels():
    from statsmodels.stats import multitest

    p = np.random.default_rng(1).random(9) ** 2
    expected = multitest.multipletests(p, method='holm')[1]
    np.testing.assert_allclose(study_statistics.holm(p), expected, atol=1e-12)


def claim_rows(leads, families=None):
    "Rows of all data sets in which `crossfit` leads each other method by so much."
    names = [n for n in study_plan.STUDY_SETS if families is None or families(n)]
    rng, made = np.random.default_rng(0), []
    for name in names:
        for split in range(2000, 2004):
            level = 0.5 + rng.normal(0, 0.05)
            for method in study_plan.COMPARED_METHODS:
                score = level - leads.get(method, 0.1) * (method != 'crossfit')
                score += rng.normal(0, 1e-3)
                made.append(row(method, split, score, name, split))
    rows = pd.DataFrame(made).assign(n_train=100, n_val=50, n_test=50, own_final_score=0.5)
    return rows.assign(
        taught=['all' if m in study_plan.TAUGHT_BY_ALL else 'train' for m in rows.method]
    )


@pytest.mark.slow
def test_claims_are_decided_as_they_were_fixed():
    leads = dict(single_crossfit=0.0, cfa_crossfit=-0.1, random_forest=-0.05)
    found = study_statistics.claim_table(claim_rows(leads))
    outcome = found.set_index('other').outcome
    assert study_statistics.claim_outcome(found) == 'met'
    assert outcome['random_forest'] == 'not met' and outcome['cfa_loss'] == 'met'
    assert outcome['single_crossfit'] == 'practically equivalent'
    assert outcome['cfa_crossfit'] == 'worse' and outcome['threshold_refit'] == 'better'
    rank = study_statistics.claim_table(claim_rows(leads), 'rank').set_index('other')
    assert rank.outcome['cfa_crossfit'] == 'worse' and rank.p_equivalent.isna().all()
    lost = study_statistics.claim_table(claim_rows(leads | dict(moe=-0.1)))
    assert study_statistics.claim_outcome(lost) == 'not met'  # one of four
    some = study_statistics.claim_table(claim_rows(leads, lambda n: n != 'nba'))
    assert set(some.outcome) == {'not tested yet'}


def test_the_ratio_of_two_classes_is_that_of_the_fewer_labels():
    rows = claim_rows({}, lambda n: n == 'nba')
    ratio = lambda *methods: study_statistics.split_ratio(rows, methods)
    assert ratio('crossfit', 'single_crossfit') == pytest.approx(50 / 150)
    assert ratio('crossfit', 'moe') == ratio('moe') == pytest.approx(50 / 100)


def test_labels_100_takes_the_main_rows_of_sets_with_no_more():
    rows = claim_rows({}).assign(phase='confirmatory')
    again = rows[rows.dataset == 'nba'].assign(analysis='labels-100')
    found = study_statistics.analysis_rows(pd.concat([rows, again]), 'labels-100')
    assert set(found.dataset) == {'bail', 'german', 'ricci', 'nba'}
    assert (found[found.dataset == 'nba'].analysis == 'labels-100').all()


@pytest.fixture
def pages(repo_root, monkeypatch, tmp_path):
    "docs/study_tables.py, for rows in another folder."
    path = repo_root / 'docs/study_tables.py'
    spec = importlib.util.spec_from_file_location('study_tables_page', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'STUDY', tmp_path)
    return module


def test_the_page_says_nothing_of_claims_before_the_last_row(pages, tmp_path):
    "Nobody can stop the study, or change it, by what its first rows seem to say."
    ledger = Ledger(tmp_path)
    planned = pages.planned_runs('confirmatory', n_trials=pages.TRIALS)
    assert len(planned) == len({r.name for r in planned}) == 7200
    rows = [
        dataclasses.asdict(r) | {'name': r.name, 'version': moe_expert.__version__} for r in planned
    ]
    pd.DataFrame(rows[:-1]).to_csv(ledger.csv, index=False)
    texts, figures = pages.pages()
    assert figures == {} and '7,199 of 7,200 rows' in texts[pages.PAGE]
    for words in ('**met**', '**not met**', '**better**', '**undecided**', '!['):
        assert all(words not in texts[p] for p in (pages.PAGE, pages.APPENDIX))
    pd.DataFrame(rows).to_csv(ledger.csv, index=False)
    assert pages.waiting(ledger) == ''


def test_rows_that_are_run_again_are_compared(pages, tmp_path):
    "A score that differs, or is gone, is named; rows that were not run again do not count."
    scores = dict.fromkeys(pages.COMPOSITES, 0.5)
    runs = pages.planned_runs('confirmatory', n_trials=pages.TRIALS)[:3]
    rows = [
        dataclasses.asdict(r) | scores | dict(name=r.name, version=moe_expert.__version__)
        for r in runs
    ]
    again = tmp_path / 'again'
    again.mkdir()

    def write(folder, rows):
        pd.DataFrame(rows).to_csv(Ledger(folder).csv, index=False)

    write(tmp_path, rows)
    write(again, rows[:2])
    assert pages.compared(again).startswith('2 rows, the same scores')
    for other in (0.5 + 1e-6, None):
        write(again, [rows[0], rows[1] | dict(utility=other)])
        with pytest.raises(SystemExit, match=f'1 of 2 rows differ:\n(.*\n)*{rows[1]["name"]}'):
            pages.compared(again)
    write(again, [rows[0] | dict(name='another')])
    with pytest.raises(SystemExit, match='no row of the study'):
        pages.compared(again)


@pytest.mark.parametrize(
    ('outcome', 'words'), [('met', 'is `crossfit`'), ('not met', 'stays `one`')]
)
def test_claim_a_decides_the_default(pages, outcome, words):
    found = pd.DataFrame(dict(claim=['A', 'A', 'B'], outcome=['met', outcome, 'worse']))
    assert words in pages.by_default(found)


def test_a_verdict_stands_beside_an_outcome_that_does_not_tell_it(pages):
    lines = pd.DataFrame(
        [('met', 'better'), ('not met', 'undecided'), ('not met', 'better'), ('not met', 'worse')]
        + [('not met', 'practically equivalent'), ('undecided', 'undecided')],
        columns=['outcome', 'verdict'],
    )
    told = [pages.outcome_words(line) for line in lines.itertuples()]
    assert told[:3] == ['**met**', '**not met**', '**not met**'] and told[5] == '**undecided**'
    assert told[3:5] == ['**not met**, worse', '**not met**, practically equivalent']


def test_what_rests_on_the_rule_of_the_floor_is_said(pages):
    names = dict(claim=['A', 'B', 'B'], other=['moe', 'random_forest_refit', 'expgrad_refit'])
    by_rule = pd.DataFrame(names | dict(outcome=['met', 'better', 'better']))
    without = pd.DataFrame(names | dict(outcome=['not met', 'undecided', 'better']))
    (told,) = pages.no_longer(by_rule, without)
    assert told.endswith(': **undecided** against a random forest with a threshold, refitted.')
    assert pages.no_longer(by_rule, by_rule) == []


def test_the_default_of_stage_3_is_what_the_study_says(pages, repo_root):
    found = pages.statistics.claim_table(
        pages.statistics.analysis_rows(pages.Ledger(repo_root / 'docs/study').rows())
    )
    assert f'`{defaults("train")["ways"]}`' in pages.by_default(found)


def test_the_page_is_short(repo_root):
    assert len((repo_root / 'docs/study.md').read_text(encoding='utf-8').split()) <= 1500
