"""A user's tables: cards, encoding, missing values, groups, splits, graphs, names, new people.

What is tested here is what a user sees: the `Data` and the error messages.
"""

import json
import sys
import warnings
from dataclasses import fields
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, same_edges
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler
from torch_geometric.data import Data

from moe_expert.data.audit import data_card
from moe_expert.data.cards import Card, read_card
from moe_expert.data.columns import encode
from moe_expert.data.doors import from_data
from moe_expert.data.drafts import write_card
from moe_expert.data.graph import similarity_graph
from moe_expert.data.own import from_frame
from moe_expert.data.split import standard_split
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import canonical_name, load_dataset
from moe_expert.errors import ArtifactError, DataError, DataWarning
from moe_expert.report.run import run_report
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.records import load_expert

SAID = dict(label='repaid', positive='yes', sensitive='origin', privileged='here')


def make_people(n=240, gaps=True):
    rng = np.random.default_rng(5)
    people = pd.DataFrame(
        {
            'income': rng.lognormal(3, 0.5, n).round(2),
            'debts': rng.poisson(2, n),
            'job': rng.choice(['clerk', 'cook', 'smith'], n),
            'owner': rng.random(n) < 0.5,
            'origin': rng.choice(['here', 'north', 'south'], n, p=[0.5, 0.3, 0.2]),
            'sex': rng.choice(['f', 'm'], n),
        }
    )
    people['repaid'] = np.where(
        people.income / 20 - people.debts / 2 + rng.logistic(size=n) > 0, 'yes', 'no'
    )
    if gaps:
        people.loc[rng.choice(n, 20, replace=False), 'income'] = np.nan
        people.loc[rng.choice(n, 15, replace=False), 'job'] = None
    return people


@pytest.fixture
def people():
    return make_people()


@pytest.fixture
def whole():
    return make_people(gaps=False)


own = partial(from_frame, **SAID)


# ---- features, groups and outcomes against pandas and scikit-learn


def test_features_equal_pandas_and_scikit_learn(people):
    data = own(people, missing='impute', threshold=0.8)
    train = data.train_mask.numpy()
    job = SimpleImputer(strategy='most_frequent').fit(
        people[['job']].to_numpy(object, na_value=np.nan)[train]
    )
    income = SimpleImputer(strategy='median').fit(people[['income']][train].to_numpy())
    expected = pd.concat(
        [
            pd.Series(income.transform(people[['income']].to_numpy())[:, 0], name='income'),
            people.debts,
            pd.get_dummies(
                pd.Series(job.transform(people[['job']].to_numpy(object, na_value=np.nan))[:, 0]),
                prefix='job',
                prefix_sep='=',
                dtype=float,
            ),
            people.owner.astype(float),
            (people.origin == 'here').astype(float),
            pd.get_dummies(people.sex, prefix='sex', prefix_sep='=', dtype=float),
        ],
        axis=1,
    )
    assert data.feature_names == list(expected.columns)
    scaler = MinMaxScaler((-1, 1), clip=True).fit(expected.to_numpy()[train])
    assert np.allclose(data.x.numpy(), scaler.transform(expected.to_numpy()), atol=1e-6)
    low, high = scaler.data_min_, scaler.data_max_
    assert (
        data.n_clipped
        == int(((expected.to_numpy() < low) | (expected.to_numpy() > high)).sum())
        > 0
    )
    assert torch.equal(data.edge_index, similarity_graph(expected.to_numpy(), 0.8))
    assert (
        data.y.tolist() == (people.repaid == 'yes').astype(int).tolist()
        and data.sens.tolist() == (people.origin == 'here').astype(int).tolist()
    )
    masks = [
        m.nonzero().flatten().numpy() for m in (data.train_mask, data.val_mask, data.test_mask)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(masks, standard_split(data.y, 10**6)))


def test_new_people_are_encoded_as_the_old_ones_were(people):
    data = own(people, missing='impute')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        shuffled = (
            people[people.columns[::-1]].drop(columns='repaid').assign(unasked=1)
        )  # other order, no label, a column more
        assert torch.equal(encode(shuffled, data), data.x)
        assert torch.equal(encode(people.to_dict('records'), data.recipe), data.x)
    assert json.loads(json.dumps(data.recipe)) == data.recipe  # plain data, exact through JSON
    with pytest.warns(DataWarning, match='1 of 9 values lie outside'):
        x = encode(people.head(1).assign(income=1e9), data)
    assert x[0, 0] == 1


def test_the_benchmarks_have_a_recipe_too(data_dir):
    german = load_dataset('german', data_dir=data_dir)
    raw = pd.read_csv(data_dir / 'german' / 'german.csv')
    assert torch.equal(encode(raw, german), german.x)
    offline, made = load_dataset('bail', edition='offline'), make_synthetic(60)
    for data in (offline, made):
        frame = pd.DataFrame(
            (data.x.double().numpy() + 1) / 2 * (data.x_max - data.x_min).numpy()
            + data.x_min.numpy(),
            columns=data.feature_names,
        )
        frame[data.sens_name] = frame[data.sens_name].round()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DataWarning)  # rounding at the ends of the range
            assert torch.allclose(encode(frame, data), data.x, atol=1e-6)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(job='pilot'), "column 'job', row 0 holds 'pilot'.*clerk, cook, smith"),
        (dict(origin='east'), "'origin', row 0 holds 'east'"),
        (dict(income='much'), "'income', row 0 holds 'much'"),
        (dict(debts=None), "'debts', row 0 is missing .*nothing to fill"),
        (dict(income=np.inf), 'finite'),
    ],
)
def test_new_people_that_cannot_be_encoded(people, change, message):
    data = own(people, missing='impute')
    person = (
        people.drop(columns='repaid').iloc[0].to_dict() | {'income': 20.0, 'job': 'cook'} | change
    )
    if change == dict(debts=None):
        with_gap = data.recipe | {'columns': [c | {'fill': None} for c in data.recipe['columns']]}
        with pytest.raises(DataError, match=message):
            encode([person], with_gap)
    else:
        with pytest.raises(DataError, match=message):
            encode([person], data)


def test_other_categories_and_missing_columns(people):
    data = own(people, missing='impute')
    person = people.drop(columns='repaid').iloc[0].to_dict() | {'income': 20.0, 'job': 'pilot'}
    x = encode([person], data, unknown='other')
    assert x[
        0, [data.feature_names.index(f'job={j}') for j in ('clerk', 'cook', 'smith')]
    ].tolist() == [-1, -1, -1]
    del person['debts'], person['sex']
    with pytest.raises(DataError, match='lacks 2 of 6 columns: debts, sex'):
        encode([person], data)
    for wrong in (None, {}, {'columns': []}):
        with pytest.raises(DataError, match='recipe must be'):
            encode([person], wrong)


@pytest.mark.parametrize(
    'column, positive, members',
    [
        ([0, 1] * 120, 1, {1}),
        ([False, True] * 120, True, {True}),
        (['0', '1'] * 120, 0, {'0'}),
        ([1.0, 2.0] * 120, 2, {2.0}),
        ([1, 2, 3] * 80, [2, 3], {2, 3}),
        (list(range(240)), {'min': 100}, set(range(100, 240))),
        (list(range(240)), {'min': 50, 'max': 150}, set(range(50, 151))),
    ],
)
def test_labels_and_groups_by_rule(whole, column, positive, members):
    expected = [int(v in members) for v in column]
    sides = dict(positive=positive)
    if isinstance(positive, list):
        sides |= dict(negative=sorted(set(column) - members))
    assert own(whole.assign(repaid=column), **sides).y.tolist() == expected
    data = from_frame(
        whole.assign(origin=column),
        label='repaid',
        positive='yes',
        sensitive='origin',
        privileged=positive,
    )
    assert data.sens.tolist() == expected
    assert torch.equal(
        encode(whole.assign(origin=column).iloc[data.train_mask.numpy()], data),
        data.x[data.train_mask],
    )


def test_each_value_is_a_group_unless_the_card_names_one(whole):
    data = own(whole, privileged=None)
    assert data.group_names == ['here', 'north', 'south'] and set(data.sens.tolist()) == {0, 1, 2}
    assert data.notes['groups by'] == 'origin: here, north, south (a group each)'
    data = own(whole, privileged=['here', 'north'])
    assert (
        data.group_names == ['south', 'here or north']
        and data.notes['groups by'] == 'origin: here, north (group 1) against south (group 0)'
    )
    assert own(whole, group_names=['migrant', 'native']).group_names == ['migrant', 'native']


def test_models_need_not_see_the_group(whole):
    data = own(whole, sensitive_as_feature=False)
    assert 'origin' not in data.feature_names and data.sens.sum() > 0
    assert torch.equal(
        encode(whole.drop(columns=['origin', 'repaid']).iloc[data.train_mask.numpy()], data),
        data.x[data.train_mask],
    )


# ---- gaps


def test_gaps_are_an_error_unless_somebody_says_otherwise(people):
    first = int(np.flatnonzero(people.income.isna())[0])
    with pytest.raises(
        DataError,
        match=r'35 values are missing \(income: 20, job: 15\); '
        rf"the first one is in column 'income', row {first}",
    ):
        own(people)
    assert own(people, drop=['income', 'job']).num_nodes == 240  # what is not used may have gaps


def test_dropped_rows(people):
    edges = np.column_stack([np.arange(239), np.arange(1, 240)])
    data = own(people, missing='drop', edges=edges)
    kept = np.flatnonzero(people[['income', 'job']].notna().all(axis=1))
    assert (
        data.num_nodes == len(kept)
        and data.y.tolist() == (people.repaid[kept] == 'yes').astype(int).tolist()
    )
    expected = {(i, i + 1) for i in range(len(kept) - 1) if kept[i + 1] == kept[i] + 1}
    assert {(i, j) for i, j in data.edge_index.T.tolist() if i < j} == expected
    assert (
        f'{240 - len(kept)} of 240 rows left out' in data.notes['missing values']
        and 'edges of left-out rows' in data.notes['graph from']
    )


def test_labels_and_groups_are_never_imputed(people):
    people.loc[3, 'origin'] = None
    with pytest.raises(DataError, match="'origin', row 3 is missing .*rows: {origin: {not:"):
        own(people, missing='impute')
    known = {'origin': {'not': ['']}}
    assert own(people, missing='impute', rows=known).num_nodes == 239
    people.loc[[1, 2], 'repaid'] = None
    with pytest.raises(DataError, match="'repaid', row 1 is missing .*unlabelled"):
        own(people, missing='impute', rows=known)
    data = own(people, missing='impute', rows=known | {'repaid': {'not': ['']}})
    assert data.num_nodes == 237 and data.notes['rows'].startswith('237 of 240 rows')
    kept = own(people, missing='impute', rows=known, unlabelled=[''])
    assert kept.num_nodes == 239 and kept.y[[1, 2]].tolist() == [-1, -1]
    parts = kept.train_mask | kept.val_mask | kept.test_mask
    assert not parts[[1, 2]].any() and parts.sum() == 237
    assert kept.notes['without outcome'].startswith('2 people')
    assert data_card(data).attrs['notes']['missing values'] == data.notes['missing values']


def test_values_that_mean_not_known(whole):
    coded = whole.assign(
        debts=whole.debts.where(whole.index % 7 != 0, 999),
        income=whole.income.astype(object).where(whole.index % 5 != 0, '?'),
    )
    with pytest.raises(DataError, match='48 values are missing .income: 48'):
        own(coded)
    counted = own(coded, missing='impute')  # 999 stays a number, and is pointed out
    changed = counted.column_report[0]['changed']
    assert changed['missing code'] == changed['imputed'] == 48
    assert any('999' in flag and 'na_values: {debts: [999]}' in flag for flag in counted.flags)
    data = own(coded, na_values=['?', 999], missing='impute')
    assert data.feature_names[:2] == ['income', 'debts'] and data.x_max[1] < 20
    with pytest.warns(DataWarning, match='na_values 998 do not occur'):
        own(whole, na_values=[998])


def test_nothing_to_impute_from(whole):
    empty = own(whole.assign(income=np.nan))
    assert 'income' not in empty.feature_names and 'income' in empty.notes['columns left out']
    train = own(whole).train_mask.numpy()
    with pytest.raises(DataError, match="'income' has no value in the training rows"):
        own(whole.assign(income=whole.income.where(~train)), missing='impute')
    with pytest.raises(DataError, match='every row lacks a value'):
        gaps = whole.assign(income=whole.income.where(train), debts=whole.debts.where(~train))
        own(gaps, missing='drop')


# ---- tables that cannot be read as meant


@pytest.mark.parametrize(
    'change, options, message',
    [
        (lambda f: f, dict(label='repayed'), "no column 'repayed' .label.. Did you mean 'repaid'"),
        (lambda f: f, dict(sensitive='sx', privileged='f'), "Did you mean 'sex'"),
        (lambda f: f, dict(positive='Yes'), r"'Yes' does not occur in 'repaid', which holds 'yes'"),
        (lambda f: f, dict(privileged=['here', 'nowhere']), "'nowhere' does not occur in 'origin'"),
        (lambda f: f, dict(privileged=['here', 'north', 'south']), 'puts all 240 rows on one side'),
        (lambda f: f, dict(privileged={'min': 3}), 'a range needs numbers'),
        (lambda f: f, dict(privileged={'over': 3}), 'a range is'),
        (lambda f: f.assign(repaid='yes'), {}, "label 'repaid' is 'yes' in every row"),
        (
            lambda f: f.assign(repaid=['yes', 'no', 'partly'] * 80),
            {},
            "label 'repaid' has 3 values.*negative: ..no., partly.",
        ),
        (lambda f: f.assign(origin='here'), {}, "'origin' is 'here' in every row"),
        (
            lambda f: f.assign(name=[f'p{k}' for k in range(240)]),
            {},
            "'name' has 240 different texts.*kinds: {name: id}",
        ),
        (
            lambda f: f.assign(born=pd.date_range('2000-01-01', periods=240)),
            {},
            "'born' holds dates: kinds: {born: date}",
        ),
        (
            lambda f: f.assign(income=f.income.where(f.index != 9, np.inf)),
            {},
            "'income', row 9 holds inf",
        ),
        (lambda f: pd.concat([f, f[['sex']]], axis=1), {}, "the same name, 'sex'"),
        (lambda f: f.assign(**{'sex=f': range(240)}), {}, 'two features have the same name: sex=f'),
        (
            lambda f: f,
            dict(drop=['income', 'debts', 'job', 'owner', 'sex']),
            'no column is left to learn from',
        ),
        (
            lambda f: f,
            dict(drop='origin'),
            "'origin' is the sensitive attribute; sensitive_as_feature",
        ),
        (lambda f: f, dict(drop='jobs'), "no column 'jobs' .drop.. Did you mean 'job'"),
        (lambda f: f, dict(edges=[[0, 240]]), 'edges: edge 0 .*numbered 0 to 239'),
        (lambda f: f, dict(edges='no.txt'), 'edge list no.txt does not exist'),
        (
            lambda f: f.assign(part='later'),
            dict(split={'column': 'part'}),
            "split column 'part', row 0 holds 'later'",
        ),
        (lambda f: f, dict(split={'train': 0.5, 'column': 'sex'}), 'where the column names none'),
        (lambda f: f, dict(split={'train': 0.8, 'validation': 0.2}), 'leave a rest'),
        (
            lambda f: f.assign(origin=['here'] + ['north'] * 239),
            {},
            'part .* has no node with origin = 1 .of 1 in the data',
        ),
        (lambda f: f, dict(missing='guess'), 'missing must be one of error, drop, impute'),
        (lambda f: f, dict(scale_on='test'), 'scale_on'),
        (lambda f: f, dict(senitive='a'), "unknown entry 'senitive'. Did you mean 'sensitive'"),
        (lambda f: f, dict(group_names='ab'), 'two different names'),
    ],
)
def test_tables_and_cards_that_cannot_be_meant(whole, change, options, message):
    with pytest.raises(DataError, match=message):
        own(change(whole), **options)


@pytest.mark.parametrize(
    'name',
    [
        '../x',
        'a/b',
        'a\\b',
        '..',
        '',
        '.hidden',
        'x' * 65,
        'a b',
        'bail',
        'Recidivism',
        'synthetic-9',
        None,
        3,
    ],
)
def test_names_become_file_names(whole, name):
    with pytest.raises(DataError, match='name'):
        own(whole, dataset_name=name)


def test_equal_opportunity_must_exist(whole):
    # everybody of group 0 with outcome 1 trains: validation could not be scored
    part = np.where(whole.index % 2 == 0, 'validation', 'test')
    part[((whole.origin != 'here') & (whole.repaid == 'yes')).to_numpy()] = 'train'
    part[:12] = 'train'
    with pytest.raises(
        DataError, match="nobody of the group 'not here' in the validation part has outcome 1"
    ):
        own(whole.assign(part=part), split={'column': 'part'})


# ---- splits and scaling


def test_a_split_of_ones_own(whole):
    part = np.resize(['train', 'Validation', 'test', 'train'], 240)
    data = own(whole.assign(part=part), split={'column': 'part'})
    assert (
        data.train_mask.tolist() == (part == 'train').tolist()
        and data.val_mask.tolist() == (part == 'Validation').tolist()
    )
    assert (
        'part' not in data.feature_names
        and data.split_seed == 'given'
        and data.notes['split'] == 'given by the column part'
    )
    other = own(whole.assign(part=np.roll(part, 1)), split={'column': 'part'})
    assert other.fingerprint != data.fingerprint


def test_fractions_and_seeds(whole):
    data = own(whole, split={'train': 0.6, 'validation': 0.2, 'seed': 3})
    for c in (0, 1):
        n = int((data.y == c).sum())
        assert [int((m & (data.y == c)).sum()) for m in (data.train_mask, data.val_mask)] == [
            int(0.6 * n),
            int(0.8 * n + 1e-9) - int(0.6 * n),
        ]
    assert (
        data.split_seed == 3
        and own(whole, split={'seed': 3}, split_seed=4).split_seed == 4
        and own(whole).split_seed == 20
    )
    given = dict(edges=[[0, 1], [3, 4]])
    assert (
        own(whole, **given).fingerprint == own(whole, split_seed=1, **given).fingerprint
    )  # content, not split: the seed is recorded on its own
    # neighbours are those of the features as they are scaled, on the training rows
    assert own(whole).fingerprint != own(whole, split_seed=1).fingerprint
    assert (
        own(whole, scale_on='all').n_clipped == 0
        and own(whole, scale_on='all').fingerprint != own(whole).fingerprint
    )


def test_units_need_not_decide_who_is_similar(whole):
    cents = whole.assign(income=whole.income * 100)
    raw = partial(own, similarity='raw')
    assert not torch.equal(raw(whole).edge_index, raw(cents).edge_index)
    for rule in ({}, dict(similarity='scaled')):  # the default is 10 neighbours, on scaled columns
        assert torch.equal(own(whole, **rule).edge_index, own(cents, **rule).edge_index)
    (flag,) = [f for f in raw(cents).flags if 'squared distances' in f]
    assert flag.startswith('income makes ') and 'similarity: scaled' in flag


def test_further_groups_for_the_report(whole):
    whole.loc[4, 'sex'] = None
    data = own(whole, report_by=['sex', 'income'], drop=['sex'])
    sex = data.other_groups['sex']
    assert (
        sex['values'] == ['f', 'm', 'missing']
        and sex['codes'][4] == 2
        and 'sex=f' not in data.feature_names
    )
    assert (
        len(data.other_groups['income']['values']) == 4
        and data.other_groups['income']['codes'].bincount().tolist() == [60] * 4
    )


# ---- cards, files, graphs


@pytest.fixture
def folder(whole, tmp_path):
    whole.to_csv(tmp_path / 'people.csv', index=False)
    (tmp_path / 'card.yaml').write_text(
        'name: loans\ntable: people.csv\n' + '\n'.join(f'{k}: {v}' for k, v in SAID.items())
    )
    return tmp_path


def test_every_way_gives_the_same(whole, folder, monkeypatch):
    expected = from_frame(whole, dataset_name='loans', **SAID)
    (folder / 'sub').mkdir()
    (folder / 'sub' / 'x.json').write_text(
        json.dumps(dict(name='loans', table='../people.parquet', **SAID))
    )
    whole.to_parquet(folder / 'people.parquet')
    whole.to_csv(folder / 'people.tsv.gz', index=False, sep='\t')
    monkeypatch.chdir(folder)
    for source in (
        folder,
        folder / 'card.yaml',
        str(folder / 'card.yaml'),
        'card.yaml',
        './',
        folder / 'sub',
        'sub/x.json',
    ):
        data = load_dataset(source)
        assert (
            data.fingerprint == expected.fingerprint
            and data.name == 'loans' == canonical_name(source)
            and torch.equal(data.x, expected.x)
        )
    assert load_dataset(whole, **SAID).name == 'own'
    for table in ('people.csv', 'people.parquet', 'people.tsv.gz'):
        data = load_dataset(table, **SAID)
        assert data.fingerprint == expected.fingerprint and data.name == 'people' == canonical_name(
            table
        )
    assert (
        load_dataset(folder, drop='job', split_seed=7).drop == ['job']
        and load_dataset(folder, split_seed=7).split_seed == 7
    )
    assert (
        load_dataset(folder, threshold=0.95).num_edges != expected.num_edges
    )  # what is said goes before the card


def test_words_that_yaml_takes_for_truth_values(folder):
    (folder / 'words.yaml').write_text(
        'label: repaid\npositive: yes\nsensitive: origin\nprivileged: no\n'
        'sensitive_as_feature: false\n'
    )
    card = read_card(folder / 'words.yaml')
    assert card.positive == 'yes' and card.privileged == 'no' and card.sensitive_as_feature is False


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('a.yaml', 'label: [', 'is not YAML'),
        ('a.json', '{"label": ', 'is not JSON'),
        ('a.yaml', '- 1', 'is no card'),
        ('a.yaml', '', 'is no card'),
        ('a.yaml', 'label: x', 'sensitive must name a column'),
        ('a.yaml', 'label: x\nsensitive: s\nlabel: y', 'stands twice'),
        ('a.yaml', 'label: x\nsensitive: s\nthreshhold: 1', "Did you mean 'threshold'"),
        ('a.yaml', 'label: x\nsensitive: s', 'names no table'),
        ('a.yaml', 'label: x\nsensitive: s\ntable: gone.csv', 'gone.csv does not exist'),
        ('a.yaml', 'label: x\nsensitive: s\ntable: a.yaml', 'does not end as a table'),
        ('a.yaml', '!!python/object/apply:os.system ["true"]', 'is not YAML'),
        ('a.docx', '', 'neither a card'),
        ('a.csv', 'x,y', 'write a card'),
        ('a.yaml', 'label: x\nsensitive: s\nname: ../../etc/x', 'cannot be part of a file name'),
        ('a.parquet', 'no', 'write a card'),
    ],
)
def test_cards_that_cannot_be_read(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as e:
        load_dataset(tmp_path / name)
    assert name.split('.')[0] in str(e.value)


def test_paths_that_lead_nowhere(tmp_path, folder):
    for path in (tmp_path / 'no' / 'card.yaml', 'no/such/folder', 'loans.yaml'):
        with pytest.raises(
            DataError, match='does not exist.*Known data sets: bail, german, math, por'
        ):
            load_dataset(path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='there is none'):
        canonical_name(tmp_path / 'empty')
    for name in ('a.yaml', 'b.yaml'):
        (tmp_path / 'empty' / name).write_text('label: x\nsensitive: s')
    with pytest.raises(DataError, match='there are 2 .a.yaml, b.yaml'):
        canonical_name(tmp_path / 'empty')
    with pytest.raises(DataError, match='data_dir='):
        load_dataset(folder, data_dir=folder)
    with pytest.raises(DataError, match='edition'):
        load_dataset(folder, edition='offline')
    with pytest.raises(DataError, match='label: only for your own data'):
        load_dataset('bail', edition='offline', label='RECID')
    with pytest.raises(DataError, match='cannot be read as a table'):
        (tmp_path / 'no.parquet').write_text('no')
        load_dataset(tmp_path / 'no.parquet', **SAID)


def test_a_known_name_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / 'synthetic-60').mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_dataset('synthetic-60').edition == 'synthetic'
    (tmp_path / 'loans').mkdir()
    with pytest.raises(DataError, match='folder loans should hold one card'):
        load_dataset('loans')


def test_parquet_without_pyarrow(folder, whole, monkeypatch):
    whole.to_parquet(folder / 'people.parquet')

    for name in [m for m in sys.modules if m.split('.')[0] == 'pyarrow']:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r'pip install "moe_expert\[parquet\]"'):
        load_dataset(folder / 'people.parquet', **SAID)


def test_edges_from_a_file(folder):
    (folder / 'friends.txt').write_text('0 1\n1 2\n2 1\n5 5\n')
    (folder / 'card.yaml').write_text((folder / 'card.yaml').read_text() + '\nedges: friends.txt\n')
    data = load_dataset(folder)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    with pytest.warns(DataWarning, match='edge list is kept without job'):
        assert load_dataset(folder, drop='job').num_edges == 4


def test_the_same_edges_are_the_same_data_at_every_door(folder):
    table = make_people(gaps=False)
    edges = similarity_graph(table[['income', 'debts']].to_numpy(), 0.8)
    x, y = (torch.tensor(v.to_numpy()) for v in (table[['income', 'debts']], table.repaid == 'yes'))
    sens = torch.tensor((table.origin == 'here').to_numpy()).long()
    frames, graphs = [], []
    for form in same_edges(edges).values():
        frames.append(from_frame(table, edges=np.asarray(form).T, **SAID))
        graph = Data(x=x, y=y.long(), sens=sens, edge_index=form)
        graphs.append(load_dataset(graph, dataset_name='friends'))
    changed = []
    for form in same_edges(edges).values():
        loaded = graphs[0].clone()
        loaded.edge_index = form
        changed.append(load_dataset(loaded))
    assert load_dataset(graphs[0]) is graphs[0]
    for loaded in (frames, graphs, changed):
        assert all(torch.equal(data.edge_index, edges) for data in loaded)
        assert len({data.fingerprint for data in loaded}) == 1


def test_a_graph_in_a_sparse_matrix_is_not_ignored():
    data = Data(x=torch.randn(200, 3), y=torch.arange(200) % 2, sens=torch.arange(200) // 2 % 2)
    ring = torch.stack([torch.arange(200), torch.arange(200).roll(1)])
    linked = torch.zeros(200, 200).index_put(tuple(ring), torch.ones(200))
    data.adj_t = (linked + linked.T).to_sparse()
    assert load_dataset(data, dataset_name='friends').num_edges == 400
    data.adj_t, data.edge_index = None, torch.tensor([[0], [200]])
    with pytest.raises(DataError, match=r'friends: edge_index: .*0, 200'):
        load_dataset(data, dataset_name='friends')


def test_a_drafted_card_fits_its_table(people, tmp_path):
    people.assign(id=range(240), letter=[f'words, {k} of them' for k in range(240)]).to_csv(
        tmp_path / 'people.csv', index=False
    )
    path = write_card(tmp_path / 'people.csv', **SAID, missing='impute')
    card = read_card(tmp_path)
    assert path.name == 'card.yaml' and card.name == 'people'
    assert card.kinds == {'id': 'id', 'letter': 'id'}
    assert (
        load_dataset(tmp_path).fingerprint
        == own(people, missing='impute', dataset_name='people').fingerprint
    )
    with pytest.raises(DataError, match='exists'):
        write_card(tmp_path / 'people.csv', **SAID)
    for wrong, message in (
        (dict(label='repayed'), 'Did you mean'),
        (dict(privileged='away'), 'does not occur'),
        (dict(positive=1), 'does not occur'),
    ):
        with pytest.raises(DataError, match=message):
            write_card(tmp_path / 'people.csv', **(SAID | wrong), path=tmp_path / 'x.yaml')
    assert not (tmp_path / 'x.yaml').exists()


# ---- PyG


def test_a_graph_of_ones_own():
    torch.manual_seed(0)
    n = 120
    raw = Data(
        x=torch.randn(n, 3),
        y=torch.arange(n) % 2,
        sens=torch.arange(n) // 2 % 2,
        edge_index=torch.tensor([[0, 1, 1, 3], [1, 2, 1, 0]]),
    )
    data = from_data(raw)
    assert data.edge_index.T.tolist() == [[0, 1], [0, 3], [1, 0], [1, 2], [2, 1], [3, 0]]
    scaler = MinMaxScaler((-1, 1), clip=True).fit(raw.x[data.train_mask].numpy())
    assert np.allclose(data.x.numpy(), scaler.transform(raw.x.numpy()), atol=1e-6)
    assert (
        data.feature_names == ['x0', 'x1', 'x2']
        and load_dataset(raw).fingerprint == data.fingerprint
    )
    raw.train_mask, raw.val_mask, raw.test_mask = (torch.arange(n) % 3 == k for k in range(3))
    raw.feature_names = ['y', 'sens', 'z']  # names that would collide
    masked = load_dataset(raw, dataset_name='mine', drop='z')
    assert (
        torch.equal(masked.val_mask, raw.val_mask)
        and masked.feature_names == ['y', 'sens']
        and masked.name == 'mine'
    )
    raw.val_mask = raw.train_mask
    with pytest.raises(DataError, match='node 0 is in more than one'):
        from_data(raw)
    assert load_dataset(data) is data
    with pytest.raises(DataError, match='x0 cannot be dropped'):
        load_dataset(data, drop=['x0'])


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(sens=None), 'no sens'),
        (dict(y=torch.ones(7)), 'do not fit together'),
        (dict(y=torch.arange(60) % 3), '3 values'),
        (dict(edge_index=torch.tensor([[0], [60]])), 'numbered 0 to 59'),
        (dict(train_mask=torch.ones(60, dtype=torch.bool)), 'must all be there'),
        (dict(x=torch.full((60, 2), torch.nan)), 'missing'),
        (dict(feature_names=['a']), 'do not fit together'),
    ],
)
def test_graphs_that_do_not_fit(change, message):
    fields = (
        dict(x=torch.randn(60, 2), y=torch.arange(60) % 2, sens=torch.arange(60) // 2 % 2) | change
    )
    with pytest.raises(DataError, match=message):
        from_data(Data(**fields))


# ---- what uses the data


def test_the_tuner_takes_a_card_and_its_checkpoint_encodes_new_people(folder, whole, tmp_path):
    tuner = ExpertTuner(folder / 'card.yaml', cache_dir=tmp_path / 'experts', epochs=60)
    tuner.tune_expert('expert1', 2)
    expert, payload = load_expert(tmp_path / 'experts', 'loans', 'expert1')
    train = tuner.data.train_mask
    x = encode(whole.drop(columns='repaid').iloc[train.numpy()], payload)
    assert torch.equal(x, tuner.data.x[train])
    assert torch.allclose(
        expert.probabilities(x), expert.probabilities(tuner.data.x)[:, train], atol=1e-12
    )
    again = ExpertTuner(
        whole, cache_dir=tmp_path / 'experts', epochs=60, dataset_name='loans', **SAID
    )
    assert again.record == tuner.record
    with pytest.raises(ArtifactError, match='fingerprint'):
        ExpertTuner(folder, cache_dir=tmp_path / 'experts', epochs=60, drop=['job'])


@pytest.mark.slow
def test_the_report_of_a_card(folder, tmp_path):
    (folder / 'card.yaml').write_text(
        (folder / 'card.yaml').read_text() + '\nreport_by: [sex]\nabout: {source: made up}\n'
    )
    place = dict(cache_dir=str(tmp_path / 'experts'))
    ExpertTuner(folder / 'card.yaml', epochs=20, **place).tune_all_experts(1)
    path = run_report(folder / 'card.yaml', groups=['income'], **place)
    assert path.name == 'loans_experts_tuning_report.ipynb'
    text = path.read_text()
    for part in ('equalized odds difference', 'made up', 'north, south (group 0)', 'sex', 'income'):
        assert part in text


def test_cards_are_values():
    assert (
        Card('y', 's', drop='a') == Card('y', 's', drop=['a']) and Card('y', 's').folder.name == ''
    )


def test_the_template_is_a_card_with_every_entry():
    card = read_card(ROOT / 'docs' / 'data_card_template.yaml')
    text = (ROOT / 'docs' / 'data_card_template.yaml').read_text()
    assert card.name == 'loans' and all(
        f'\n{f.name}:' in text or f'# {f.name}:' in text for f in fields(Card) if f.name != 'folder'
    )
