"""The audit: what was planted is found and named, noise is not, and no test node has a say."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from moe_expert.data.assembly import column_report, group_columns, group_note, whole_columns
from moe_expert.data.audit import audit, column_table, columns_text, data_card, gap_table
from moe_expert.data.own import from_frame
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.report import people

N = 600


def noise(seed=0, n=N, d=12):
    "Columns that say nothing: half of them numbers, half 0/1."
    data, rng = make_synthetic(n, d, seed=seed), np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).clip(-1, 1)
    x[:, d // 2 :] = np.sign(x[:, d // 2 :])
    data.x, data.recipe = torch.tensor(x, dtype=torch.float32), None
    data.feature_names, data.edition = [f'c{k}' for k in range(d)], 'own'
    data.gaps = {'c0': torch.tensor(rng.random(n) < 0.05)}
    return data


def planted(seed=0, **columns):
    "Noise, with some columns replaced."
    data = noise(seed)
    for name, values in columns.items():
        column = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        data.x[:, data.feature_names.index(name)] = column
    return data


def categories(data, code, values):
    "The data set with one more column, of categories."
    one_hot = 2.0 * (torch.as_tensor(code)[:, None] == torch.arange(len(values))) - 1
    job = {'name': 'job', 'kind': 'category', 'values': values}
    numbers = [{'name': n, 'kind': 'number'} for n in data.feature_names]
    data.recipe = {'columns': [*numbers, job], 'x_min': [], 'x_max': []}
    data.feature_names = [*data.feature_names, *(f'job={v}' for v in values)]
    data.x = torch.cat([data.x, one_hot], 1)
    return data


def found(data, topic):
    "The columns of the findings about a topic."
    return [f.columns for f in audit(data).findings if f.topic == topic]


def text_of(data, topic):
    (text,) = [f.text for f in audit(data).findings if f.topic == topic]
    return text


def rng(seed=0):
    return np.random.default_rng(1000 + seed)


# --- Noise -------------------------------------------------------------------------------


@pytest.mark.parametrize('n', [60, 200])
def test_noise_is_neither_a_leak_nor_a_proxy(n):
    for seed in range(6):
        done = audit(noise(seed, n))
        assert not [f for f in done.findings if f.topic in ('leak', 'look', 'group', 'columns')]


def test_nothing_to_flag_is_said_only_where_nothing_was_found():
    assert audit(noise()).flags == [] and repr(people.data_notices(noise())) == (
        'Nothing to flag here.'
    )
    few = noise(0, 60)  # 15 validation people
    assert 'leaks may be missed' in text_of(few, 'few')
    blind = noise()
    blind.y = torch.where(blind.val_mask, 1, blind.y)
    assert 'could not be checked: all validation people have the same outcome' in text_of(
        blind, 'few'
    )
    for data in (few, blind):
        assert 'Nothing to flag' not in repr(people.data_notices(data))


# --- Leaks -------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(3))
def test_a_column_that_records_the_outcome(seed):
    y = noise(seed).y.numpy()
    data = planted(seed, c3=0.2 * rng(seed).standard_normal(N) - y)
    assert found(data, 'leak') == [('c3',)] and not found(data, 'look')
    auc = roc_auc_score(y[data.val_mask], -data.x[data.val_mask, 3])
    leaks = audit(data).leaks
    assert leaks.loc['c3', 'auc'] == pytest.approx(auc, abs=1e-12)
    assert f'AUC {auc:.3f}' in text_of(data, 'leak')
    assert 'kinds: {c3: afterwards}' in text_of(data, 'leak')
    with_it = audit(data).checks.query('about == "outcome"')
    assert with_it['check'].str.contains('all columns but c3').any()


def test_columns_worth_a_look():
    y = noise().y.numpy()
    data = planted(c3=y + 0.65 * rng().standard_normal(N))
    auc = roc_auc_score(y[data.val_mask], data.x[data.val_mask, 3])
    assert 0.85 <= auc < 0.95 and found(data, 'leak') == []
    assert found(data, 'look') == [('c3',)] and f'{auc:.3f}' in text_of(data, 'look')


def test_the_gaps_of_a_column_are_the_outcome():
    data = noise()
    gap = (data.y == 0).numpy() ^ (rng().random(N) < 0.02)
    data.gaps = {'c4': torch.tensor(gap)}
    assert found(data, 'leak') == [('c4',)]
    auc = roc_auc_score(data.y[data.val_mask] == 0, gap[data.val_mask])
    assert audit(data).leaks.loc['c4', 'gaps'] == pytest.approx(auc, abs=1e-12)
    text = text_of(data, 'leak')
    assert text.startswith('c4: where it is missing tells the outcomes apart (AUC 0.9')
    assert 'kinds: {c4: afterwards}' in text


def test_a_column_that_only_some_of_one_outcome_have():
    data = noise()
    data.gaps = {'c4': ~((data.y == 1) & torch.tensor(rng().random(N) < 0.3))}
    assert audit(data).leaks.loc['c4', 'gaps'] < 0.75  # an AUC that nobody would notice
    assert found(data, 'leak') == [('c4',)]
    assert 'who have it have outcome 1' in text_of(data, 'leak')


@pytest.mark.parametrize('seed', range(3))
def test_two_columns_whose_exclusive_or_is_the_outcome(seed):
    y = noise(seed).y.numpy() == 1
    a = rng(seed).random(N) < 0.5
    data = planted(seed, c8=np.where(a, 1, -1), c9=np.where(a ^ y, 1, -1))
    assert audit(data).leaks['auc'].max() < 0.85
    assert found(data, 'leak') == [('c8', 'c9')]
    assert 'kinds: {c8: afterwards, c9: afterwards}' in text_of(data, 'leak')


def test_columns_whose_sum_is_the_outcome():
    y, w = noise().y.numpy(), 3 * rng().standard_normal((N, 3))
    w += ((2 * y - 1) * 1.5 - w.sum(1))[:, None] / 3
    data = planted(c1=w[:, 0], c2=w[:, 1], c3=w[:, 2])
    assert audit(data).leaks['auc'].max() < 0.95
    (columns,) = found(data, 'leak')
    assert set(columns) == {'c1', 'c2', 'c3'}


@pytest.mark.parametrize('spread', [10, 100, 1000])
def test_a_small_difference_of_two_columns_is_the_outcome(spread):
    y, before = noise().y.numpy(), spread * rng().standard_normal(N)
    after = before + (2 * y - 1) * rng(1).uniform(0.5, 1.5, N)
    data = planted(c1=before / spread / 4, c2=after / spread / 4)
    assert audit(data).leaks['auc'].max() < 0.85
    (columns,) = found(data, 'leak')
    assert set(columns) == {'c1', 'c2'}


def test_gaps_that_are_the_group_are_in_the_sentence_too():
    data = noise()
    gap = data.sens == 1
    data.x[gap, 0], data.gaps = 0.0, {'c0': gap}
    data.feature_names, data.x = data.feature_names[:-1], data.x[:, :-1]
    assert 'guess it with AUC 1.00' in audit(data).sees_group


def test_a_column_whose_extremes_are_the_outcome():
    y, z = noise().y.numpy(), rng().uniform(0.1, 1, N)
    data = planted(c3=np.where(y == 1, 1 + z, z) * rng(1).choice([-1, 1], N))
    assert audit(data).leaks.loc['c3', 'auc'] < 0.7 and found(data, 'leak') == [('c3',)]


def test_categories_are_judged_as_a_whole():
    data = noise()
    code = rng().permutation(12)[data.y.numpy() * 6 + rng(1).integers(0, 6, N)]
    data = categories(data, code, [chr(97 + k) for k in range(12)])
    names = data.feature_names[12:]
    val, y = data.val_mask, data.y
    single = [roc_auc_score(y[val], data.x[val, 12 + k]) for k in range(len(names))]
    assert max(max(a, 1 - a) for a in single) < 0.7
    assert found(data, 'leak') == [('job',)] and whole_columns(data)['job'] == [*range(12, 24)]


def test_all_columns_together_are_judged_by_scikit_learn():
    data = make_synthetic(N, 12)
    x, y, train, val = data.x.numpy(), data.y.numpy(), data.train_mask, data.val_mask
    scaled = StandardScaler().fit(x[train])
    linear = LogisticRegression(max_iter=2000).fit(scaled.transform(x[train]), y[train])
    n = int(train.sum())
    trees = HistGradientBoostingClassifier(
        min_samples_leaf=min(20, n // 20), early_stopping=False, random_state=0
    ).fit(x[train], y[train])
    checks = audit(data).checks.query('about == "outcome"').set_index('check')['auc']
    expected = roc_auc_score(y[val], linear.decision_function(scaled.transform(x[val])))
    assert checks['all columns, logistic regression'] == pytest.approx(expected, abs=1e-3)
    expected = roc_auc_score(y[val], trees.decision_function(x[val]))
    assert checks['all columns, boosted trees'] == pytest.approx(expected, abs=1e-9)


def test_no_test_node_and_nobody_without_an_outcome_has_a_say():
    data = planted(c3=noise().y.numpy() + 0.2 * rng().standard_normal(N))
    blind = data.clone()
    blind.y = torch.where(data.test_mask, 1 - data.y, data.y)
    blind.x = torch.where(data.test_mask[:, None], -1.0, data.x)
    assert audit(blind).flags == audit(data).flags
    pd.testing.assert_frame_equal(audit(blind).checks, audit(data).checks)
    unknown = data.clone()
    unknown.y = torch.where(data.val_mask & (torch.arange(N) % 2 == 0), -1, data.y)
    judged = (unknown.val_mask & (unknown.y >= 0)).numpy()
    auc = roc_auc_score(unknown.y[judged], unknown.x[judged, 3])
    assert audit(unknown).leaks.loc['c3', 'auc'] == pytest.approx(auc, abs=1e-12)


def test_the_order_of_people_and_columns_changes_little():
    y = noise().y.numpy() == 1
    a = rng().random(N) < 0.5
    data = planted(c8=np.where(a, 1, -1), c9=np.where(a ^ y, 1, -1))
    mixed, order = data.clone(), torch.randperm(N, generator=torch.manual_seed(1))
    for key in ('x', 'y', 'sens', 'train_mask', 'val_mask', 'test_mask'):
        mixed[key] = data[key][order]
    mixed.gaps = {c: g[order] for c, g in data.gaps.items()}
    mixed.x, mixed.feature_names = mixed.x.flip(1), data.feature_names[::-1]
    assert [set(c) for c in found(mixed, 'leak')] == [{'c8', 'c9'}]
    ours, theirs = (audit(d).leaks['auc'].sort_index() for d in (data, mixed))
    pd.testing.assert_series_equal(ours, theirs, atol=1e-12)


# --- The group ---------------------------------------------------------------------------


@pytest.mark.parametrize('code', [lambda s: s, lambda s: 1 - s, lambda s: 3 * s + 1])
def test_the_group_under_another_name(code):
    data = planted(c2=code(noise().sens.numpy()))
    assert group_columns(data) == ['c2'] and found(data, 'group') == [('c2',)]
    assert audit(data).sees_group == "yes: column 'c2' holds the group, under another name"
    assert 'sensitive_as_feature: false alone does not hide it' in text_of(data, 'group')
    assert people.data_facts(data).loc['do models see the group?', ''].startswith('yes: column')


def test_a_finer_column_holds_the_group():
    data = noise()
    race = np.where(data.sens == 1, rng().integers(0, 2, N), rng().integers(2, 6, N))
    data = categories(data, race, list('abcdef'))
    assert group_columns(data) == ['job'] and found(data, 'group') == [('job',)]
    data.sens[data.train_mask.nonzero()[0]] = 1 - data.sens[data.train_mask.nonzero()[0]]
    assert group_columns(data) == []  # one person is enough


def test_the_group_as_a_feature_is_said_but_not_flagged():
    data = make_synthetic(N, 12, proxy_bias=0)
    assert group_note(data) == "yes: column 'group' is the group"
    assert audit(data).sees_group == group_note(data) and not found(data, 'group')
    assert 'group' not in audit(data).proxies.index


def test_proxies_of_the_group():
    s = noise().sens.numpy()
    data = planted(c3=s + 0.2 * rng().standard_normal(N), c4=s + rng(1).standard_normal(N))
    assert found(data, 'group') == [('c3',)] and group_columns(data) == []
    best = audit(data).proxies['auc']
    assert list(best.index[:2]) == ['c3', 'c4'] and len(people.proxy_table(data)) == 5
    auc = roc_auc_score(s[data.val_mask], data.x[data.val_mask, 4])
    assert best['c4'] == pytest.approx(auc, abs=1e-12)
    assert audit(data).sees_group.startswith('not directly; all columns guess it with AUC 1.00')


def test_categories_that_give_the_group_away_are_named():
    data = noise()
    job = np.where(data.sens == 1, 0, 1)
    job[rng().random(N) < 0.02] = 2
    job[:30] = rng(1).integers(0, 3, 30)
    data = categories(data, job, ['husband', 'wife', 'other'])
    text = text_of(data, 'group')
    assert found(data, 'group') == [('job',)] and 'through job (' in text
    assert 'husband' in text and 'wife' in text and 'other' not in text


def test_two_columns_that_give_the_group_away_together():
    s = noise().sens.numpy() == 1
    a = rng().random(N) < 0.5
    data = planted(c8=np.where(a, 1, -1), c9=np.where(a ^ s, 1, -1))
    assert found(data, 'group') == [('c8', 'c9')] and not found(data, 'leak')


# --- Gaps and columns --------------------------------------------------------------------


def test_heavy_imputing_is_flagged():
    data, people_ = noise(), torch.arange(N)
    men = data.sens == 1
    data.gaps = {
        'c0': people_ % 5 == 0,  # a fifth
        'c1': people_ % 6 == 0,  # less, the same in both groups
        'c2': men & (people_ % 4 == 0),  # a tenth, all in one group
    }
    gaps = gap_table(data)
    assert gaps['flagged'].to_dict() == {'c0': True, 'c1': False, 'c2': True}
    share = (data.gaps['c2'] & men).sum().item() / men.sum().item()
    assert gaps.loc['c2', data.group_names[1]] == pytest.approx(share, abs=1e-12)
    assert found(data, 'gaps') == [('c0',), ('c2',)]
    data.flags = ['c0: 20 % imputed; drop: [c0]']
    assert found(data, 'gaps') == [('c2',)]  # the other was said already
    assert audit(data).flags[-1] == data.flags[0]


def test_columns_that_say_the_same():
    education = rng().integers(0, 6, N)
    data = planted(c3=rng().permutation(6)[education], c4=np.ones(N))
    data.x[:, 6] = -data.x[:, 1]
    data = categories(data, education, list('abcdef'))
    assert found(data, 'columns') == [('c1', 'c6'), ('c3', 'job'), ('c4',)]
    data.x[0, 6] += 0.5
    data.x[torch.where(data.train_mask)[0][0], 6] += 0.5
    assert ('c1', 'c6') not in found(data, 'columns')


def test_what_the_reading_has_flagged_is_told():
    data = noise()
    data.flags = ['c7: -1 stands in 12 rows; na_values: {c7: [-1]} makes it missing']
    assert audit(data).flags == data.flags
    assert 'na_values' in repr(people.data_notices(data))


# --- Tables ------------------------------------------------------------------------------


def test_every_data_set_has_a_table_of_its_columns():
    data = make_synthetic(N, 6, drop=['c1'])
    table = column_table(data)
    assert list(table.columns) == ['role', 'kind', 'rule', 'features', 'missing', 'changed']
    assert dict(table['role']) == {
        **{'y': 'label', 'group': 'group', 'c0': 'feature', 'c2': 'feature'},
        **{'b0': 'feature', 'b1': 'feature', 'c1': 'left out'},
    }
    assert table['features'].sum() == len(data.feature_names)
    row = dict(column='age', role='feature', kind='number', why='all 300 values are numbers')
    row |= dict(features=1, missing=3, changed={'trimmed': 1200, 'missing code': 3, 'merged': 0})
    data.column_report = [row]
    assert column_report(data) == [row]
    assert column_table(data).loc['age', 'changed'] == 'trimmed: 1,200, missing code: 3'
    assert 'trimmed: 1,200' in people.columns_table(data)._repr_html_()
    assert 'trimmed: 1,200' in data_card(data)._repr_html_()


def test_the_table_of_a_terminal_keeps_its_width_and_says_what_it_left_out():
    data = make_synthetic(N, 60)
    table = column_table(data).assign(rule='a rule that takes more than one line ' * 4)
    text = columns_text(table, 80, 40, ' (--columns shows them all)')
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == '… and 21 more columns (--columns shows them all)'
    whole = columns_text(table, 80, None)
    assert all(name in whole for name in table.index) and '…' not in whole


def test_people_without_an_outcome_are_counted_but_have_no_base_rate():
    data = make_synthetic(N, 6)
    unknown = torch.arange(N) % 10 == 0
    data.y = torch.where(unknown, -1, data.y)
    for part in ('train', 'val', 'test'):
        data[f'{part}_mask'] &= ~unknown
    card = data_card(data)
    assert card.attrs['unlabelled'] == card.attrs['in_no_part'] == 60
    assert card.loc['all', 'nodes'].sum() == N and card.loc['no part', 'nodes'].sum() == 60
    here = (data.y >= 0) & (data.sens == 1)
    rate = card.loc[('all', data.group_names[1]), 'base rate']
    assert rate == pytest.approx(data.y[here].double().mean().item(), abs=1e-12)
    assert people.data_facts(data).loc['people without an outcome', ''] == '60'


def test_the_audit_is_computed_once_per_content(monkeypatch):
    from moe_expert.data import audit as room

    calls = []
    real = room._all_checks
    monkeypatch.setattr(room, '_all_checks', lambda data: calls.append(1) or real(data))
    data = noise(77)
    people.data_notices(data), people.audit_table(data), people.proxy_table(data)
    assert len(calls) == 1
    data.x[0, 0] += 1
    audit(data)
    data.flags = ['something']
    assert audit(data).flags[-1] == 'something' and len(calls) == 3


# --- The benchmarks, and a table ---------------------------------------------------------


def test_the_benchmarks(data_dir):
    leaks = {'bail': [('TIME',)], 'german': [], 'math': [('G2',)], 'por': [('G2',)]}
    group = {'bail': 'WHITE', 'german': 'Gender', 'math': 'sex', 'por': 'sex'}
    for name, columns in leaks.items():
        data = load_dataset(name, data_dir=data_dir)
        assert found(data, 'leak') == columns, name
        assert audit(data).sees_group == f'yes: column {group[name]!r} is the group'
        if columns:
            text = text_of(data, 'leak')
            assert f"drop=['{columns[0][0]}']" in text and 'as in the benchmark' in text
        assert set(column_table(data)['rule']) == {'as in the benchmark'}
    dropped = load_dataset('math', data_dir=data_dir, drop=['G2'])
    assert found(dropped, 'leak') == []


def test_a_table_with_a_leak_in_its_gaps_and_a_joint_one():
    r = rng()
    y = r.random(N) < 0.5
    table = pd.DataFrame({'age': r.integers(18, 70, N), 'group': r.choice(['g', 'h'], N)})
    table['grade'] = np.where(y, r.choice(['F1', 'M1'], N), None)
    late = r.random(N) < 0.5
    table['end'] = np.where(late, 900, 300) + r.integers(0, 200, N)
    table['event'] = (late ^ y).astype(int)
    table['y'] = y.astype(int)
    data = from_frame(
        table, label='y', sensitive='group', privileged='g', missing='impute', name='made-up'
    )
    data.gaps = {'grade': torch.tensor(table['grade'].isna().to_numpy())}
    assert found(data, 'leak') == [('grade',), ('end', 'event')]
