"The table by category and by intersection, against Fairlearn, SciPy and brute force."

import itertools
import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from moe_expert.errors import ScoreInputError
from moe_expert.scores import cells as room
from moe_expert.scores.cells import CALIBRATION, cells, cells_in_words, groups_json, groups_schema


def people(n=2_000, seed=0):
    "Outcomes, probabilities, weights and two attributes with unknown values."
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            'sex': rng.choice(['female', 'male'], n),
            'race': rng.choice(['a', 'b', 'c', 'd', None], n, p=[0.5, 0.3, 0.16, 0.01, 0.03]),
        }
    )
    y = rng.integers(0, 2, n)
    p1 = (0.3 + 0.3 * y + 0.2 * (frame.sex == 'male') + rng.normal(0, 0.2, n)).clip(0, 1)
    return y, p1.to_numpy(), frame, rng.uniform(0.2, 3, n)


@pytest.mark.parametrize('weighted', [False, True])
def test_rates_are_those_of_fairlearn(weighted):
    from fairlearn import metrics as fairlearn
    from sklearn.metrics import accuracy_score

    y, p1, frame, weight = people()
    frame = frame.fillna('none')
    table = cells(y, frame, p1=p1, threshold=0.6, sample_weight=weight if weighted else None)
    base = lambda y, d, sample_weight=None: np.average(y, weights=sample_weight)
    rates = {
        'selection rate': fairlearn.selection_rate,
        'true positive rate': fairlearn.true_positive_rate,
        'false positive rate': fairlearn.false_positive_rate,
        'accuracy': accuracy_score,
        'base rate': base,
    }
    weights = {'sample_weight': weight}
    for columns, name in ((['sex'], 'sex'), (['race'], 'race'), (['sex', 'race'], 'sex × race')):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            there = fairlearn.MetricFrame(
                metrics=rates,
                y_true=y,
                y_pred=(p1 >= 0.6).astype(int),
                sensitive_features=frame[columns],
                sample_params=dict.fromkeys(rates, weights) if weighted else None,
            )
        here = table.loc[name]
        assert len(here) == len(there.by_group)
        for group, row in there.by_group.iterrows():
            group = ' × '.join(group) if isinstance(group, tuple) else group
            assert np.abs(here.loc[group, list(rates)].astype(float) - row).max() <= 1e-12
        overall = table.iloc[0][list(rates)].astype(float)
        assert np.abs(overall - there.overall).max() <= 1e-12


@pytest.mark.parametrize('weighted', [False, True])
def test_calibration_and_shares_are_plain_means(weighted):
    y, p1, frame, weight = people()
    weight = weight if weighted else np.ones(len(y))
    table = cells(y, frame, p1=p1, sample_weight=weight)
    for (name, group), row in table.iloc[1:].iterrows():
        known = frame[name.split(' × ')].notna().all(axis=1)
        own = frame[name.split(' × ')].agg(' × '.join, axis=1) if known.all() else None
        own = frame[name.split(' × ')].fillna('?').agg(' × '.join, axis=1) if own is None else own
        mask = ~known if group == 'unknown' else known & (own == group)
        assert row['people'] == mask.sum() and row['with outcome 1'] == y[mask].sum()
        assert abs(row['share'] - weight[mask].sum() / weight.sum()) <= 1e-12
        off = np.average(p1[mask], weights=weight[mask]) - np.average(y[mask], weights=weight[mask])
        assert abs(row[CALIBRATION] - off) <= 1e-12
        assert row[f'{CALIBRATION} low'] <= off <= row[f'{CALIBRATION} high']


def test_intervals_of_shares_are_those_of_scipy():
    from scipy.stats import binomtest

    y, p1, frame, _ = people(300)
    table = cells(y, frame, p1=p1)
    about = {'selection rate': 'people', 'true positive rate': 'with outcome 1'}
    for (rate, n), (_, row) in itertools.product(about.items(), table.iterrows()):
        if row[n]:
            there = binomtest(round(row[rate] * row[n]), row[n]).proportion_ci(method='wilson')
            assert abs(row[f'{rate} low'] - there.low) <= 1e-12
            assert abs(row[f'{rate} high'] - there.high) <= 1e-12


def test_limits_are_those_of_the_chapter_on_intervals():
    from moe_expert.scores.intervals import wilson

    for share, n in ((0.0, 5), (0.3, 10), (0.5, 2), (0.03, 400), (1.0, 7)):
        assert np.abs(np.subtract(room.share_limits(share, n), wilson(share, n))).max() <= 1e-12


def koopman(x, n, y, m):
    "The score interval of a ratio by brute force (Koopman, 1984)."
    ratios = np.exp(np.linspace(-4, 4, 80_001))
    a, b, c = (n + m) * ratios, -(n * ratios + x + m + y * ratios), x + y
    q = (-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)
    p = ratios * q
    score = (x / n - ratios * y / m) ** 2 / (p * (1 - p) / n + ratios**2 * q * (1 - q) / m)
    inside = ratios[score <= room.Z**2]
    return inside.min(), inside.max()


@pytest.mark.parametrize('counts', [(30, 100, 60, 150), (5, 40, 20, 60), (200, 900, 500, 1000)])
def test_ratio_intervals_are_near_the_score_interval(counts):
    x, n, y, m = counts
    here, there = room.ratio_limits(x / n, n, y / m, m), koopman(*counts)
    assert np.abs(np.log(here) - np.log(there)).max() < 0.1


def test_ratio_intervals_of_many_cells_are_wider_upwards_alone():
    two, many = (room.ratio_limits(0.2, 30, 0.5, 40, k) for k in (2, 20))
    assert many[0] == two[0] and many[1] > two[1]


@pytest.mark.parametrize('groups, least', [(2, 0.925), (5, 0.935), (20, 0.925)])
def test_ratios_to_the_most_selected_cell_are_covered(groups, least):
    "Where all cells have the same rate, and where they differ."
    rng = np.random.default_rng(0)
    n = np.resize([15, 40, 200], groups)
    for spread in (0.0, 0.5):
        rate, covered = 0.4 * (1 - spread * rng.permutation(groups) / groups), []
        for x in rng.binomial(n, rate, (400, groups)):
            best = (x / n).argmax()
            others = np.arange(groups) != best
            share = (x / n)[others]
            low, high = room.ratio_limits(share, n[others], x[best] / n[best], n[best], groups)
            truth = rate[others] / rate[best]
            covered.append(((low <= truth) & (truth <= high)).mean())
        assert np.mean(covered) >= least


def test_chance_is_that_of_all_relabellings():
    "Every way to deal 6 selected people out to cells of 3, 4 and 5."
    sizes, selected = np.array([3, 4, 5]), np.array([3, 2, 1])
    owner = np.repeat(range(3), sizes)

    def distances(counts):
        rates = counts / sizes
        best = max(range(3), key=lambda k: (rates[k], sizes[k]))
        return (rates[best] - rates) / np.sqrt(1 / sizes[best] + 1 / sizes)

    own, reached = distances(selected), []
    for chosen in itertools.combinations(range(12), 6):
        counts = np.bincount(owner[list(chosen)], minlength=3)
        reached.append(distances(counts).max() >= own - 1e-9)
    assert np.abs(room.chance_of_gap(sizes, selected) - np.mean(reached, 0)).max() < 0.02


def test_chance_of_two_groups_agrees_with_fisher_and_with_many_cells_it_is_careful():
    from scipy.stats import fisher_exact

    for a, b in ((20, 29), (12, 30), (25, 26)):
        there = fisher_exact([[a, 50 - a], [b, 50 - b]]).pvalue
        assert abs(room.chance_of_gap(np.array([50, 50]), np.array([a, b]))[0] - there) < 0.02
    rng, false = np.random.default_rng(0), 0
    for selected in rng.binomial(30, 0.4, (200, 12)):
        false += room.chance_of_gap(np.full(12, 30), selected).min() < 0.05
    assert false <= 20  # 10 expected


def test_weights_of_one_change_no_bit():
    y, p1, frame, _ = people()
    plain, weighted = (cells(y, frame, p1=p1, sample_weight=w) for w in (None, np.ones(len(y))))
    pd.testing.assert_frame_equal(plain, weighted, check_exact=True)


def test_no_number_depends_on_names_or_order():
    y, p1, frame, weight = people()
    numbers = lambda t: t.drop(columns='what').select_dtypes('number')
    before = cells(y, frame, p1=p1, sample_weight=weight)
    renamed = frame.replace({'sex': {'female': 'z', 'male': 'y'}, 'race': {'a': 'q'}})
    order = np.random.default_rng(1).permutation(len(y))
    after = cells(y[order], renamed.iloc[order], p1=p1[order], sample_weight=weight[order])
    back = {'z': 'female', 'y': 'male', 'q': 'a'}
    keys = [(n, ' × '.join(back.get(v, v) for v in g.split(' × '))) for n, g in after.index]
    after.index = pd.MultiIndex.from_tuples(keys, names=after.index.names)
    pd.testing.assert_frame_equal(numbers(after.loc[before.index]), numbers(before), rtol=1e-12)
    assert (after.loc[before.index, 'four fifths'] == before['four fifths']).all()


@pytest.mark.parametrize(
    'groups',
    [
        lambda f: f,
        lambda f: {'sex': f.sex.tolist(), 'race': f.race.tolist()},
        lambda f: f.astype('category'),
        lambda f: f.astype('string'),
    ],
)
def test_forms_of_groups_are_one(groups):
    y, p1, frame, _ = people(500)
    pd.testing.assert_frame_equal(cells(y, groups(frame), p1=p1), cells(y, frame, p1=p1))


def test_arrays_and_series_get_names():
    y, p1, frame, _ = people(500)
    names = lambda g: list(dict.fromkeys(cells(y, g, p1=p1).index.get_level_values(0)))[1:]
    assert names(frame.sex) == ['sex'] and names(frame.sex.to_numpy()) == ['group']
    both = ['attribute 1', 'attribute 2', 'attribute 1 × attribute 2']
    assert names(frame.to_numpy()) == both
    three = cells(y, frame.assign(k=np.arange(500) % 3), p1=p1).loc['sex × race × k']
    assert three['people'].sum() == 500 and 'female × a × 0' in three.index


def test_numbers_as_groups_are_compared_by_their_text():
    group = [1, 1.0, 2, 2] * 10
    assert cells([1, 0] * 20, {'g': group}, [1] * 40).loc['g'].index.tolist() == ['1', '2']
    unknown = cells([1, 0] * 20, {'g': ['x', ' 9', '9', ''] * 10}, [1] * 40, unknown=[9])
    assert unknown.loc[('g', 'unknown'), 'people'] == 30


def test_small_and_rare_cells_are_named_and_not_compared():
    group = ['a'] * 500 + ['b'] * 480 + ['c'] * 12 + ['d'] * 8
    decision = [1] * 250 + [0] * 730 + [1] * 12 + [0] * 8
    table = cells(decision, {'g': group}, decision).loc['g']
    assert table['what'].tolist() == ['compared'] * 3 + ['left out: fewer than 10 people']
    assert table.loc['a', 'impact ratio'] == 0.5 and np.isnan(table.loc['d', 'impact ratio'])
    table = cells(decision, {'g': group}, decision, min_share=0.02).loc['g']
    assert table.loc['c', 'what'] == 'left out: less than 2 % of the people'
    assert table.loc['a', 'four fifths'] == 'most selected'
    words = cells_in_words(cells(decision, {'g': group}, decision, min_share=0.02))
    assert any('(fewer than 10 people): d (8).' in s for s in words)
    assert any('(less than 2 % of the people): c (12).' in s for s in words)


def test_four_fifths_is_exact_and_ties_have_ratio_one():
    sizes, selected = {'a': 100, 'b': 100, 'c': 50}, {'a': 30, 'b': 24, 'c': 15}
    group = np.repeat(list(sizes), list(sizes.values()))
    decision = np.concatenate([np.arange(sizes[g]) < selected[g] for g in sizes]).astype(int)
    table = cells(decision, {'g': group}, decision).loc['g']
    assert table['four fifths'].tolist() == ['most selected', 'at least 4/5', 'at least 4/5']
    assert table.loc['c', 'impact ratio'] == 1 and table.loc['c', 'impact ratio high'] > 1


def test_nobody_selected_nobody_known_and_one_group_are_said():
    y, group = [1, 0] * 20, ['a', 'b'] * 20
    for decision, groups, said in (
        ([0] * 40, group, 'predicted for nobody'),
        ([1] * 40, group, 'equally often'),
        ([1] * 40, ['a'] * 40, 'fewer than two groups'),
        ([1] * 40, [None] * 40, 'fewer than two groups'),
    ):
        table = cells(y, {'g': groups, 'h': group}, decision)
        words = cells_in_words(table)
        assert any(said in s for s in words) and not any('nan' in s for s in words)
        room.cells_text(table)
        groups_json(table)


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(y=[0, 2]), 'y must be 0 or 1, but row 1 holds 2'),
        (dict(y=['0', '1']), 'y must be one column of the numbers'),
        (dict(decision=[0.5, 1]), 'decision must be 0 or 1, but row 0 holds 0.5'),
        (dict(decision=None), 'pass the decisions, or p1'),
        (dict(p1=[0.5, np.nan]), 'p1 must hold probabilities in [0, 1], but row 1 holds nan'),
        (dict(sample_weight=[1, 0]), 'above 0, but row 1 holds 0'),
        (dict(sample_weight=[1, np.inf]), 'above 0, but row 1 holds inf'),
        (dict(sample_weight=[1]), 'y has 2 people, sample_weight 1'),
        (dict(groups={'g': ['a']}), 'y has 2 people, g 1'),
        (dict(groups={}), 'groups need one column or more'),
        (dict(groups=pd.DataFrame([['a', 'b']] * 2, columns=['g', 'g'])), 'a name of its own'),
        (dict(y=[], decision=[], groups={'g': []}), 'y has 0 people'),
    ],
)
def test_wrong_input_is_refused(wrong, said):
    right = dict(y=[0, 1], groups={'g': ['a', 'b']}, decision=[0, 1])
    with pytest.raises(ScoreInputError) as err:
        cells(**right | wrong)
    assert said in str(err.value)


def test_json_fits_the_schema_and_the_schema_refuses_others():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(groups_schema())
    valid = jsonschema.Draft202012Validator(groups_schema()).is_valid
    y, p1, frame, weight = people(400)
    for options in (
        dict(p1=p1),
        dict(decision=y),
        dict(decision=0 * y),
        dict(p1=p1, sample_weight=weight),
    ):
        made = json.loads(json.dumps(groups_json(cells(y, frame, **options)), allow_nan=False))
        assert valid(made)
    for change in (
        lambda m: m.pop('words'),
        lambda m: m.update(more=1),
        lambda m: m['everybody'].update(people=-1),
        lambda m: m['attributes'][0]['cells'][0].update(what='fine'),
        lambda m: m['attributes'][0]['cells'][0]['impact_ratio'].update(four_fifths='fine'),
    ):
        broken = json.loads(json.dumps(made))
        change(broken)
        assert not valid(broken)
    cell = made['attributes'][-1]['cells'][0]
    row = cells(y, frame, p1=p1, sample_weight=weight).loc['sex × race'].iloc[0]
    assert cell['rates']['selection_rate']['value'] == row['selection rate']


def test_forty_cells_are_drawn_each_with_its_label():
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    n = 4_000
    groups = {'a': rng.integers(0, 8, n), 'b': rng.integers(0, 5, n)}
    table = cells(rng.integers(0, 2, n), groups, rng.integers(0, 2, n))
    figure = Figure(room.picture_size(table), layout='constrained')
    room.draw_cells(figure, table)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[2].get_yticklabels()]
    tops = sorted((b.y0, b.y1) for b in boxes)
    assert len(boxes) == 40 and all(a[1] <= b[0] for a, b in zip(tops, tops[1:]))
    assert min(b.x0 for b in boxes) >= 0


def test_no_torch_is_loaded():
    code = 'import sys, moe_expert.scores.cells; print({"torch", "scipy"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == 'set()', done.stderr
