"Groups of any number: from cards, tables, arrays and graphs to `sens`."

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from moe_expert.data.assembly import attribute_codes, attribute_names, group_columns
from moe_expert.data.audit import audit, data_card, gap_table
from moe_expert.data.cards import Card, make_card
from moe_expert.data.columns import joined_groups, reduce_groups
from moe_expert.data.drafts import draft_card
from moe_expert.data.split import check_positives, check_split
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import DataError, DataWarning
from moe_expert.own_data import encode

N = 800
SAID = dict(label='paid', positive='yes', sensitive='race', dataset_name='loans')


def people(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            'income': rng.normal(size=n).round(3),
            'race': rng.choice(['White', 'Black', 'Asian', 'Other'], n, p=[0.5, 0.3, 0.17, 0.03]),
            'sex': rng.choice(['f', 'm'], n),
            'age': rng.integers(18, 80, n),
            'weight': rng.uniform(0.5, 2, n).round(2),
            'paid': rng.choice(['yes', 'no'], n),
        }
    )


def own(frame, **more):
    return load_dataset(frame, **(SAID | more))


def sizes(data):
    return {c['group']: c['what'] for c in data.groups_report['cells']}


PARTS = ('train', 'val', 'test')


def test_each_value_is_a_group_and_every_one_is_listed():
    frame = people()
    data = own(frame, min_group=1)
    names = sorted(frame.race.unique())
    assert data.group_names == names and data.sens_name == 'race' and data.sens.ndim == 1
    assert [names[s] for s in data.sens] == frame.race.tolist()
    assert attribute_names(data) == [('race', names)] and 'small groups' not in data.notes
    for cell, name in zip(data.groups_report['cells'], names):
        assert cell['group'] == name and cell['people'] == (frame.race == name).sum()
        for part in PARTS:
            rows = data[f'{part}_mask'].numpy()
            assert cell[part] == (frame.race[rows] == name).sum()
    assert data.feature_names[1:5] == [f'race={v}' for v in names]
    assert group_columns(data) == ['race']


@pytest.mark.parametrize('how, fate', [('merge', 'merged into other'), ('leave_out', 'left out')])
def test_small_groups_are_merged_or_left_out_and_named(how, fate):
    frame = people()
    frame.loc[:30, 'race'] = 'Native'
    data = own(frame, min_group=9, small_groups=how)
    small = {g for g, what in sizes(data).items() if what.startswith(fate)}
    counts = pd.DataFrame(
        {p: frame.race[data[f'{p}_mask'].numpy()].value_counts() for p in PARTS}
    ).fillna(0)
    assert small == set(counts.index[counts.min(1) < 9]) and len(small) == 2
    assert all(g in data.notes['small groups'] for g in small)
    gone = frame.race.isin(small).to_numpy()
    if how == 'merge':
        assert data.group_names[-1] == 'other' and (data.sens[gone] == 3).all()
    else:
        assert (data.sens[gone] == -1).all() and 'other' not in data.group_names
    assert (data.sens[~gone] >= 0).all() and data.num_nodes == N  # all stay as people
    card = data_card(data)
    assert ('all', 'not compared') in card.index or how == 'merge'


def test_one_small_group_cannot_be_merged_and_two_groups_are_left_alone():
    data = own(people(), min_group=20)
    assert sizes(data)['Other'].startswith('left out') and (data.sens == -1).any()
    frame = people().assign(race=['a'] * 30 + ['b'] * (N - 30))
    assert own(frame, min_group=100).group_names == ['a', 'b']
    with pytest.raises(DataError, match='fewer than two groups of race can be compared'):
        own(people(), min_group=300)


def test_crossed_and_separate():
    frame = people(3000)
    crossed = own(frame, sensitive=['sex', 'race'], min_group=1)
    assert crossed.sens_name == 'sex × race' and crossed.sens.ndim == 1
    pairs = [' × '.join(p) for p in zip(frame.sex, frame.race)]
    assert [crossed.group_names[s] for s in crossed.sens] == pairs
    apart = own(frame, sensitive=['sex', 'race'], groups='separate', min_group=1)
    assert apart.sens_name == 'sex, race' and apart.sens.shape == (3000, 2)
    assert apart.group_names == [['f', 'm'], sorted(frame.race.unique())]
    assert [name for name, _ in attribute_names(apart)] == ['sex', 'race']
    for data in (crossed, apart):
        codes = attribute_codes(data)
        assert [['f', 'm'][s] for s in codes['sex']] == frame.sex.tolist()
        assert data.other_groups['race']['values'] == sorted(frame.race.unique())
        assert set(group_columns(data)) == {'race', 'sex'}
    assert crossed.fingerprint != apart.fingerprint
    # the features are those of a single attribute
    assert crossed.feature_names == apart.feature_names
    assert own(frame, report_by=['race'], sensitive='sex').feature_names == apart.feature_names


def test_order_of_rows_columns_and_names_changes_nothing():
    frame = people().assign(part=np.resize(['train', 'test', 'train', 'validation'], N))
    more = dict(sensitive=['sex', 'race'], split={'column': 'part'}, min_group=5)
    one = own(frame, **more)
    order = np.random.default_rng(1).permutation(N)
    two = own(frame.iloc[order].iloc[:, ::-1], **more)
    assert one.group_names == two.group_names
    assert torch.equal(one.sens[order], two.sens)
    names = {'White': 'A', 'Black': 'Z', 'Asian': 'M'}
    three = own(frame.replace({'race': names}), **more)
    turned = {' × '.join(p): ' × '.join((p[0], names.get(p[1], p[1]))) for p in
              itertools.product('fm', ['White', 'Black', 'Asian', 'Other'])}  # fmt: skip
    old = [one.group_names[s] if s >= 0 else '' for s in one.sens]
    new = [three.group_names[s] if s >= 0 else '' for s in three.sens]
    assert [turned.get(g, g) for g in old] == new
    other_way = own(frame, **(more | dict(sensitive=['race', 'sex'])))
    assert torch.equal((other_way.sens < 0), (one.sens < 0))


def test_bands_privileged_and_unknown_in_one_card():
    frame = people()
    frame.loc[::10, 'race'] = 'Unknown'
    frame.loc[5::10, 'race'] = None
    said = dict(
        sensitive=['race', 'age'],
        bands={'age': [25, 45]},
        privileged={'race': 'White'},
        unknown=['Unknown', 'missing'],
        min_group=1,
    )
    data = own(frame, **said)
    assert data.group_names[0] == 'not White × under 25' and len(data.group_names) == 6
    gone = frame.race.isna() | (frame.race == 'Unknown')
    assert (data.sens[gone.to_numpy()] == -1).all() and int((data.sens < 0).sum()) == gone.sum()
    assert f'{gone.sum()} people are counted, not compared' in data.notes['group unknown']
    age = np.digitize(frame.age, [25, 45])
    race = (frame.race == 'White').to_numpy()
    known = ~gone.to_numpy()
    assert (data.sens.numpy() == 3 * race + age)[known].all()
    assert 'age' in data.feature_names and 'race=missing' in data.feature_names
    new = pd.DataFrame({'income': [0.0], 'race': [None], 'sex': ['f'], 'age': [30], 'weight': [1]})
    assert encode(new, data).shape == (1, data.x.shape[1])  # a missing group does not stop it
    with pytest.warns(DataWarning, match="unknown 'Unkown' does not occur in race"):
        own(people(), unknown='Unkown')


def test_weights():
    frame = people()
    data = own(frame, weight='weight')
    assert data.weight.dtype == torch.float64 and data.weight.tolist() == frame.weight.tolist()
    assert 'weight' not in data.feature_names
    assert getattr(own(frame, drop='weight'), 'weight', None) is None
    assert own(frame, weight='weight', kinds={'weight': 'weight'}).weight.sum() == data.weight.sum()
    for value in (0, -1, 'x', np.inf):
        wrong = frame.astype({'weight': object})
        wrong.loc[[3, 9], 'weight'] = value
        with pytest.raises(DataError, match="'weight'.*row 3"):
            own(wrong, weight='weight')
    frame.loc[7, 'weight'] = np.nan
    with pytest.raises(DataError, match="'weight', row 7 is missing .1 such"):
        own(frame, weight='weight', missing='impute')


@pytest.mark.parametrize(
    'more, message',
    [
        (dict(sensitive='age'), 'bands: {age: .….} cuts them'),
        (dict(sensitive='age', bands={'age': ['x']}), 'bands: age: give the numbers'),
        (dict(bands={'race': [3]}), "'race', row 0 holds .*, which is no number"),
        (dict(bands={'sex': [3]}), "bands: 'sex' is no sensitive column"),
        (dict(sensitive='age', bands={'age': [25]}, privileged={'min': 3}), 'leave one of them'),
        (dict(group_names=['a', 'b']), 'group_names are for two groups'),
        (dict(sensitive=['race', 'sx']), "no column 'sx' .sensitive.. Did you mean 'sex'"),
        (dict(sensitive=['race', 'sex'], privileged='f'), 'privileged must say of which of race'),
        (dict(sensitive=['race', 'race']), 'sensitive must name different columns'),
        (dict(sensitive=['race', 3]), 'sensitive must name a column'),
        (dict(sensitive=['race', 'paid']), 'label and sensitive are the same column'),
        (dict(groups='both'), 'groups must be one of crossed, separate'),
        (dict(small_groups='drop'), 'small_groups must be one of merge, leave_out'),
        (dict(min_group=0), 'min_group must be a whole number of at least 1'),
        (dict(weight='race'), 'weight: .race. is the label or the sensitive attribute'),
        (dict(weight='wight'), "no column 'wight' .weight.. Did you mean 'weight'"),
    ],
)
def test_what_is_refused(more, message):
    with pytest.raises(DataError, match=message):
        own(people(), **more)


def test_a_missing_cell_is_refused_with_its_cure():
    frame = people()
    frame.loc[[4, 9], 'race'] = None
    with pytest.raises(DataError, match="'race', row 4 is missing .2 such.*unknown: missing"):
        own(frame)


def test_two_values_are_two_groups_as_with_privileged():
    frame = people()
    plain, named = own(frame, sensitive='sex'), own(frame, sensitive='sex', privileged='m')
    assert plain.group_names == named.group_names == ['f', 'm']
    assert plain.fingerprint == named.fingerprint and torch.equal(plain.x, named.x)
    assert plain.recipe == named.recipe


def test_arrays_of_every_form_make_the_same_groups():
    frame = people()[['sex', 'race']]
    columns = [frame.sex, frame.race]
    wanted, names = reduce_groups(frame, min_group=1)
    pairs = [' × '.join(p) for p in zip(frame.sex, frame.race)]
    assert [names[s] for s in wanted] == pairs
    forms = (
        frame.to_numpy(),
        columns,
        [c.tolist() for c in columns],
        [c.to_numpy() for c in columns],
        frame.to_numpy().tolist(),
        frame.to_dict('records'),
    )
    for form in forms:
        sens, found = reduce_groups(form, min_group=1)
        assert np.array_equal(sens, wanted) and found == names
    apart, both = reduce_groups(columns, groups='separate', min_group=1)
    assert apart.shape == (N, 2) and both[0] == ('f', 'm')
    codes = pd.factorize(frame.race, sort=True)[0]
    assert np.array_equal(apart[:, 1], codes)
    assert np.array_equal(reduce_groups(torch.tensor(codes), min_group=1)[0], codes)
    one, found = reduce_groups(frame.race, ['White', 'Black'])
    assert found == ('not White or Black', 'White or Black')
    assert np.array_equal(one, frame.race.isin(['White', 'Black']))


def test_arrays_name_what_is_small_and_unknown():
    race = people().race
    with pytest.warns(DataWarning, match='Other .*left out'):
        sens, names = reduce_groups(race, min_group=60)
    assert (sens[race == 'Other'] == -1).all() and names == ('Asian', 'Black', 'White')
    race[::3] = None
    with pytest.raises(DataError, match='row 0 is missing'):
        reduce_groups(race)
    sens, _ = reduce_groups(race, unknown='missing', min_group=1)
    assert (sens[::3] == -1).all() and (np.delete(sens, np.s_[::3]) >= 0).all()
    parts = {'train': np.arange(400), 'val': np.arange(400, N)}
    late = np.array(['a', 'b'] * 200 + ['a', 'b', 'c', 'c'] * 100)
    with pytest.warns(DataWarning, match='c .200.: left out: nobody in train'):
        sens, names = reduce_groups(late, parts=parts)
    assert names == ('a', 'b')


def test_graphs_of_pyg():
    rng = np.random.default_rng(0)
    sens = torch.tensor(np.stack([rng.integers(0, 3, N), rng.integers(0, 2, N)], 1))
    graph = Data(x=torch.rand(N, 3), y=torch.tensor(rng.integers(0, 2, N)), sens=sens)
    crossed, apart = load_dataset(graph), load_dataset(graph, groups='separate')
    assert torch.equal(crossed.sens, sens[:, 0] * 2 + sens[:, 1]) and torch.equal(apart.sens, sens)
    graph.sens, graph.weight = sens[:, 0].clone(), torch.rand(N) + 0.5
    graph.sens[:50] = -1
    data = load_dataset(graph)
    assert torch.equal(data.sens, graph.sens) and len(data.group_names) == 3
    assert torch.allclose(data.weight, graph.weight.double())
    assert set(load_dataset(graph, unknown=[]).sens.tolist()) == {0, 1, 2, 3}  # -1 is a group
    graph.sens = torch.eye(3)[sens[:, 0]]
    with pytest.raises(DataError, match='one-hot'):
        load_dataset(graph)
    with pytest.raises(DataError, match='of a PyG Data it is data.weight'):
        load_dataset(graph, weight='w')


def test_a_split_names_what_it_lacks():
    y, sens = np.arange(60) % 2, np.arange(60) % 3
    parts = [np.arange(k, 60, 3 * 2 + 1) for k in range(3)]
    names = {'label': 'y', 'sens': 's'}
    check_split(y, sens, parts, names, 20)
    check_split(y, np.stack([sens, y], 1), parts, names, 20)
    some = np.where((sens == 2) & np.isin(np.arange(60), parts[1]), 0, sens)
    with pytest.warns(DataWarning, match='the validation part .* has no node with s = 2'):
        check_split(y, some, parts, names, 20)
    with pytest.raises(DataError, match='has no node with s = 1'):
        check_split(y, np.where(np.isin(np.arange(60), parts[1]), 0, sens), parts, names, 20)
    found = check_positives(y * (sens != 2), sens, parts, 'abc', 'toy')
    assert len(found) == 2 and "group 'c'" in found[0]
    with pytest.raises(DataError, match="nobody of the group 'b'"):
        check_positives(y * (sens == 0), sens, parts, 'abc', 'toy')


def test_crossing_too_many_values_is_refused():
    from moe_expert.data.columns import Groups

    many = Groups(np.arange(40), {}, tuple(map(str, range(40))), '')
    with pytest.raises(DataError, match='make 1,600 groups when crossed'):
        joined_groups({'a': many, 'b': many}, 'crossed', 'toy')


def test_forty_groups():
    frame = people(4000).assign(race=np.arange(4000) % 40)
    with pytest.raises(DataError, match='holds 40 values'):
        own(frame)
    data = own(frame.assign(race=[f'g{k:02}' for k in frame.race]))
    assert len(data.group_names) == 40 and data.sens.max() == 39


def test_the_audit_names_the_group_that_is_told_best():
    frame = people()
    frame['job'] = np.where(frame.race == 'Black', 'cook', 'smith')
    data = own(frame, sensitive_as_feature=False, min_group=1)
    found = audit(data)
    assert found.proxies.loc['job', 'group'] == 'race = Black'
    assert any('who is race = Black through job' in f for f in found.flags)
    assert 'race = Black' in found.sees_group
    apart = own(frame, sensitive=['race', 'sex'], groups='separate', sensitive_as_feature=False)
    assert any('who is race = Black through job' in f for f in audit(apart).flags)
    assert ('train', 'sex: f') in data_card(apart).index
    two = audit(own(frame, sensitive='sex'))
    assert 'group' not in two.proxies.columns and 'group' not in two.checks.columns


def test_gaps_by_group():
    frame = people()
    frame.loc[(frame.race == 'Asian') & (np.arange(N) % 2 == 0), 'income'] = np.nan
    table = gap_table(own(frame, missing='impute', min_group=1))
    asian = frame.income.isna()[frame.race == 'Asian'].mean()
    assert table.loc['income', 'Asian'] == pytest.approx(asian, abs=1e-12)
    assert table.loc['income', 'White'] == 0 and table.loc['income', 'flagged']


def test_a_draft_of_several_columns_loads(tmp_path):
    frame = people().assign(home=np.resize(['here', 'there', 'prefer not to say'], N))
    frame.to_csv(tmp_path / 't.csv', index=False)
    draft = draft_card(
        tmp_path / 't.csv',
        label='paid',
        sensitive=['sex', 'home', 'age'],
        groups='separate',
        unknown='missing',
        weight='weight',
    )
    data = load_dataset(draft.write())
    assert attribute_names(data)[0] == ('sex', ['f', 'm'])
    home = [what for g, what in sizes(data).items() if g == 'unknown']
    assert home == ['unknown'], data.groups_report
    assert len(data.group_names[2]) == 4 and data.weight is not None
    assert any('bands: where is age to be cut' in q for q in draft.questions)


def test_a_card_survives_reading_and_merging(tmp_path):
    frame = people()
    frame.to_csv(tmp_path / 't.csv', index=False)
    (tmp_path / 'card.yaml').write_text(
        'name: loans\ntable: t.csv\nlabel: paid\npositive: "yes"\nsensitive: [sex, race]\n'
        'privileged: {sex: m}\nmin_group: 1\nweight: weight\ndrop: []\n'
    )
    data = load_dataset(tmp_path)
    more = dict(sensitive=['sex', 'race'], privileged={'sex': 'm'}, min_group=1, weight='weight')
    assert data.fingerprint == own(frame, **more).fingerprint
    one = load_dataset(tmp_path, sensitive='sex')  # what the card says of two does not hold
    assert one.group_names == ['f', 'm'] and one.weight is not None
    assert make_card({'label': 'y', 'sensitive': ('a',)}) == Card('y', 'a')


def test_synthetic_people_in_many_groups():
    data = make_synthetic(4000, groups=5, group_bias=3, seed=1)
    rates = [data.y[data.sens == s].double().mean() for s in range(5)]
    assert rates == sorted(rates) and rates[-1] - rates[0] > 0.2
    assert data.group_names == [f'group {k}' for k in range(5)]
    row = {**dict.fromkeys(data.feature_names[:-1], 0), 'group': 4}
    assert encode([row], data)[0, -1] == 1
    for wrong in (1, 300):
        with pytest.raises(DataError):
            make_synthetic(4000, groups=wrong)


@pytest.mark.parametrize(
    'name, more, k',
    [
        ('law', dict(sensitive=['race', 'male']), 4),
        ('compas', dict(privileged=None, min_group=2), 6),
        pytest.param('adult', dict(sensitive=['sex', 'race']), 10, marks=pytest.mark.slow),
    ],
)
def test_the_catalogue_in_all_groups(name, more, k, public):
    data = load_dataset(name, data_dir=public, **more)
    assert len(data.group_names) == k and set(data.sens.tolist()) == set(range(k))
    cells = data.groups_report['cells']
    assert sum(c['people'] for c in cells) == data.num_nodes
    for part in PARTS:
        assert sum(c[part] for c in cells) == int(data[f'{part}_mask'].sum())
    assert min(c[p] for c in cells for p in PARTS) >= data.groups_report['min_group']
