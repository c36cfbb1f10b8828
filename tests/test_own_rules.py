"""What a card may say about rows, persons, parts and columns, and that nothing is done unsaid."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx

from moe_expert.data import own
from moe_expert.data.own import from_frame
from moe_expert.datasets import load_dataset
from moe_expert.errors import DataError, DataWarning

SAID = dict(label='y', sensitive='sex', privileged='m')


def make_people(n=200, seed=3):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            'income': rng.lognormal(3, 0.5, n).round(1),
            'job': rng.choice(['clerk', 'cook', 'smith'], n),
            'sex': rng.choice(['f', 'm'], n),
            'y': rng.integers(0, 2, n),
        }
    )


@pytest.fixture
def people():
    return make_people()


# ---- nothing is done unsaid

MESSY = """id,pay,rate,since,job,lab,kept,weight,sex,y
007,"1.400","1,5",01.03.2020, cook,None,a,3.5,f,0
008,"2.800","2,5",02.03.2020,Cook,>8,a,2.5,m,1
009,"?","1,5",03.03.2020,smith ,Norm,a,1.5,f,1
010,"900",NA,04.03.2020,smith,None,a,0.5,m,0
"""


def test_every_cell_that_changes_meaning_is_counted(tmp_path):
    body = MESSY.splitlines()
    rows = [f'{k:03d},' + body[1 + k % 4].split(',', 1)[1] for k in range(80)]
    (tmp_path / 'people.csv').write_text('\n'.join([body[0], *rows]))
    data = load_dataset(
        tmp_path / 'people.csv',
        **SAID,
        kinds={
            'id': 'id',
            'pay': {'kind': 'number', 'thousands': '.'},
            'rate': {'kind': 'number', 'decimal': ','},
            'since': {'kind': 'date', 'format': '%d.%m.%Y'},
            'weight': 'weight',
        },
        same={'job': {'Cook': 'cook'}},
        missing='impute',
    )
    report = {c['column']: c for c in data.column_report}
    assert list(report) == body[0].split(',')
    assert {c: r['kind'] for c, r in report.items()} == {
        'id': 'id',
        'pay': 'number',
        'rate': 'number',
        'since': 'date',
        'job': 'category',
        'lab': 'category',
        'kept': 'constant',
        'weight': 'weight',
        'sex': 'category',
        'y': 'category',
    }
    assert {c: r['changed'] for c, r in report.items() if r['changed']} == {
        # '1.400' and '2.800' are not what they seem; '900' is; '?' is not known
        'pay': {'marks removed': 40, 'missing code': 20, 'imputed': 20},
        'rate': {'marks removed': 60, 'missing code': 20, 'imputed': 20},
        'since': {'date to days': 80},
        'job': {'trimmed': 40, 'merged': 20},  # ' cook', 'smith '
    }
    left_out = [c for c, r in report.items() if r['role'] == 'left out']
    assert left_out == ['id', 'kept', 'weight']
    assert (
        data.notes['columns left out'].count(';') == 0 and 'kept' in data.notes['columns left out']
    )
    assert [f for f in data.feature_names if f.startswith(('job', 'lab'))] == [
        *('job=cook', 'job=smith'),
        *('lab=>8', 'lab=None', 'lab=Norm'),  # the word None is a value here
    ]
    assert {c: int(g.sum()) for c, g in data.gaps.items()} == {'pay': 20, 'rate': 20}
    raw = (data.x[:, 0].double() + 1) / 2 * (data.x_max[0] - data.x_min[0]) + data.x_min[0]
    assert sorted(set(raw.round().tolist())) == [900, 1400, 2800]
    assert any("'None'" in flag and 'na_values' in flag for flag in data.flags)


@pytest.mark.parametrize('suffix', ['.csv', '.tsv', '.parquet', '.feather', '.xlsx', '.jsonl'])
def test_the_form_of_the_file_changes_no_number(people, tmp_path, suffix):
    path = tmp_path / f'people{suffix}'
    people.loc[4, 'income'] = np.nan
    write = {
        '.csv': lambda: people.to_csv(path, index=False),
        '.tsv': lambda: people.to_csv(path, index=False, sep='\t'),
        '.parquet': lambda: people.to_parquet(path),
        '.feather': lambda: people.to_feather(path),
        '.xlsx': lambda: people.to_excel(path, index=False),
        '.jsonl': lambda: people.to_json(path, orient='records', lines=True),
    }
    write[suffix]()
    said = SAID | dict(missing='impute', dataset_name='people')
    data, expected = load_dataset(path, **said), from_frame(people, **said)
    assert data.fingerprint == expected.fingerprint
    assert data.feature_names == expected.feature_names


def test_order_of_rows_and_columns_changes_no_neighbour(people):
    mixed = people.sample(frac=1, random_state=1)
    given = ['train', 'validation', 'test', 'train']
    part = pd.Series(np.resize(given, len(people)), index=people.index, name='part')
    said = SAID | dict(split={'column': 'part'})
    one = from_frame(people.join(part), **said)
    two = from_frame(mixed.join(part)[['part', 'y', 'job', 'sex', 'income']], **said)
    row = {name: k for k, name in enumerate(mixed.index)}
    ends = {frozenset((row[a], row[b])) for a, b in one.edge_index.T.tolist()}
    assert ends == {frozenset(e) for e in two.edge_index.T.tolist()}


# ---- rows


def test_rows_by_conditions(people):
    data = from_frame(people, **SAID, rows={'income': {'min': 20}, 'job': ['cook', 'smith']})
    expected = people[(people.income >= 20) & people.job.isin(['cook', 'smith'])]
    assert data.num_nodes == len(expected) and data.y.tolist() == expected.y.tolist()
    assert data.notes['rows'].startswith(f'{len(expected)} of 200 rows')
    groups = people.assign(sex=np.resize(['f', 'm', 'x'], 200))
    two = from_frame(groups, **SAID, rows={'sex': {'not': 'x'}})
    assert two.group_names == ['f', 'm'] and two.num_nodes == 134


@pytest.mark.parametrize(
    'rows, message',
    [
        ({'jobb': 'cook'}, "no column 'jobb' .rows.. Did you mean 'job'"),
        ({'job': 'cok'}, "rows: job: 'cok' does not occur. Did you mean 'cook'"),
        ({'income': {'min': 'x'}}, 'a condition is'),
        ({'income': {'least': 3}}, 'a condition is'),
        ({'income': {'min': 1e6}}, 'no row fulfils'),
        ('income > 3', 'rows must be a mapping'),
    ],
)
def test_conditions_that_cannot_be(people, rows, message):
    with pytest.raises(DataError, match=message):
        from_frame(people, **SAID, rows=rows)


# ---- labels


def test_people_without_outcome_stay_and_do_not_count(people):
    people['y'] = np.resize([1, 0, -1, 0], 200)
    with pytest.raises(DataError, match=r'positive: \[1\], negative: \[0\], unlabelled: \[-1\]'):
        from_frame(people, **SAID, positive=1)
    data = from_frame(people, **SAID, positive=1, negative=0, unlabelled=[-1])
    assert data.num_nodes == 200 and data.y.tolist() == people.y.tolist()
    parts = (data.train_mask | data.val_mask | data.test_mask).numpy()
    assert parts.tolist() == (people.y >= 0).tolist()
    assert data.notes['without outcome'] == '50 people (y: -1)'
    assert data.notes['label 0'] == 'y: 0' and data.notes['label 1'] == 'y: 1'
    linked = to_networkx(data).degree
    assert all(linked[k] > 0 for k in np.flatnonzero(people.y == -1))


# ---- persons and parts


def test_rows_of_a_person_share_a_part(people):
    people['who'] = np.resize([f'p{k}' for k in range(60)], 200)
    data = from_frame(people, **SAID, person='who')
    parts = np.stack([m.numpy() for m in (data.train_mask, data.val_mask, data.test_mask)])
    assert parts.sum(0).tolist() == [1] * 200
    table = pd.DataFrame({'who': people.who, 'part': parts.argmax(0)})
    assert (table.groupby('who').part.nunique() == 1).all() and table.part.nunique() == 3
    assert 'who' not in data.feature_names and 'one part' in data.notes['split']
    assert from_frame(people, **SAID, kinds={'who': 'id'}).fingerprint != data.fingerprint
    people.loc[5, 'who'] = None
    with pytest.raises(DataError, match="'who', row 5"):
        from_frame(people, **SAID, person='who', missing='impute')


def test_a_given_split_must_not_tear_persons_apart(people):
    people['who'] = np.resize(np.arange(100), 200)
    people['part'] = np.where(people.index < 120, 'train', 'test')
    with pytest.raises(DataError, match='80 persons have rows in more than one given part.*row'):
        from_frame(people, **SAID, person='who', split={'column': 'part'})


@pytest.mark.parametrize('first', [10**18, 10**16, 1])
def test_long_ids_of_persons_are_not_rounded(people, tmp_path, first):
    people['who'] = [str(first + k // 4) for k in range(200)]
    people.to_csv(tmp_path / 'people.csv', index=False)
    long = load_dataset(tmp_path / 'people.csv', **SAID, person='who')
    short = from_frame(people.assign(who=[f'p{k // 4}' for k in range(200)]), **SAID, person='who')
    assert long.fingerprint == short.fingerprint


@pytest.mark.parametrize('text', ['NA', '?'])
def test_people_without_an_id_are_not_one_person(people, text):
    people['who'] = [text if k % 9 == 0 else f'p{k // 4}' for k in range(200)]
    with pytest.raises(DataError, match='in 23 rows .first in row 0.*na_values: .who: '):
        from_frame(people, **SAID, person='who')
    assert from_frame(people, **SAID, person='who', na_values={'who': []}).num_nodes == 200
    stated = dict(na_values={'who': [text]}, missing='drop')
    assert from_frame(people, **SAID, person='who', **stated).num_nodes == 177


@pytest.mark.parametrize(
    'values, cure',
    [
        (['0', '0', '1'], {'0': 'train', '1': 'test'}),
        ([False, False, True], {'0': 'train', '1': 'test'}),
        (['TR', 'TR', 'TE'], {'TE': 'test', 'TR': 'train'}),
        (['train', 'dev', 'test'], {'dev': 'validation'}),
        (['train', 'NA', 'test'], {'NA': 'none'}),
    ],
)
def test_values_of_a_split_column_can_be_translated(people, values, cure):
    people['part'] = np.resize(np.array(values, dtype=object), 200)
    said = SAID | dict(split={'column': 'part'})
    with pytest.raises(DataError, match='for example same: ') as error:
        from_frame(people, **said)
    assert yaml.safe_load(str(error.value).split('same: ')[1]) == {'part': cure}
    data = from_frame(people, **said, same={'part': cure})
    assert data.test_mask.nonzero().flatten().tolist() == list(range(2, 200, 3))


@pytest.mark.parametrize('part, lacking', [('train', 'test'), ('test', 'training')])
def test_a_given_part_without_anybody(people, part, lacking):
    with pytest.raises(DataError, match=f'nobody .* {lacking} part: the column part must say'):
        from_frame(people.assign(part=part), **SAID, split={'column': 'part'})


def test_what_a_given_part_lacks_is_not_cured_by_a_seed(people):
    people['part'] = np.where(people.index < 120, 'train', 'test')
    people = people[(people.part == 'train') | (people.sex == 'f')]
    with pytest.raises(DataError, match='test part .*as given.*: change the given split'):
        from_frame(people, **SAID, split={'column': 'part'})


def test_validation_comes_from_the_training_part(people, tmp_path):
    people['part'] = np.where(people.index < 120, 'train', 'test')
    said = SAID | dict(split={'column': 'part', 'validation': 0.3, 'seed': 4})
    data = from_frame(people, **said)
    assert data.test_mask.nonzero().flatten().tolist() == list(range(120, 200))
    assert (data.train_mask | data.val_mask).sum() == 120 and data.split_seed == 4
    shares = [float(data.val_mask[:120][data.y[:120] == c].double().mean()) for c in (0, 1)]
    assert shares == pytest.approx([0.3, 0.3], abs=0.02)
    bare = people.drop(columns='part')
    bare.head(120).to_csv(tmp_path / 'a.csv', index=False)
    bare.tail(80).to_csv(tmp_path / 'b.csv', index=False)
    two = load_dataset(
        tmp_path / 'a.csv', **SAID, test_table='b.csv', split={'validation': 0.3, 'seed': 4}
    )
    assert two.fingerprint == data.fingerprint
    with pytest.raises(DataError, match='names 40 validation rows already'):
        parts = np.resize(['train', 'train', 'val', 'test', 'test'], 200)
        from_frame(people.assign(part=parts), **said)


def test_rows_in_no_part_are_named(people):
    part = pd.Series(np.resize(['train', 'val', 'test', None], 200), dtype=object)
    data = from_frame(people.assign(part=part), **SAID, split={'column': 'part'})
    assert data.num_nodes == 200 and '50 rows are in no part' in data.notes['split']


def test_two_files_must_have_the_same_columns(people, tmp_path):
    people.to_csv(tmp_path / 'a.csv', index=False)
    people.rename(columns={'job': 'work'}).to_csv(tmp_path / 'b.csv', index=False)
    with pytest.raises(DataError, match=r'test_table.*job, work .*drop: \[job, work\]'):
        load_dataset(tmp_path / 'a.csv', **SAID, test_table='b.csv')
    both = load_dataset(tmp_path / 'a.csv', **SAID, test_table='b.csv', drop=['job', 'work'])
    assert both.feature_names == ['income', 'sex'] and both.num_nodes == 400
    people.drop(columns='y').to_csv(tmp_path / 'b.csv', index=False)
    with pytest.raises(DataError, match='y in one of them only: add what lacks$'):
        load_dataset(tmp_path / 'a.csv', **SAID, test_table='b.csv')


def test_rows_of_the_second_file_are_named_as_in_it(people):
    wrong = people.astype({'income': object})
    wrong.loc[7, 'income'] = 'much'
    with pytest.raises(DataError, match='row 207.*row 207 is row 7 of test_table'):
        load_dataset(people, **SAID, test_table=wrong)
    with pytest.raises(DataError, match='row 7') as error:
        load_dataset(wrong, **SAID, test_table=people)
    assert 'test_table' not in str(error.value)


# ---- edges


def test_edges_name_people_by_id(people, tmp_path):
    rng = np.random.default_rng(0)
    people['who'] = rng.permutation(200)
    ends = rng.choice(200, (300, 2))
    ends = ends[ends[:, 0] != ends[:, 1]]
    np.savetxt(tmp_path / 'e.txt', ends, fmt='%d')
    people.to_csv(tmp_path / 'people.csv', index=False)
    said = SAID | dict(edges='e.txt', kinds={'who': 'id'}, directed='both')
    with pytest.raises(DataError, match='edges_by: who'):
        load_dataset(tmp_path / 'people.csv', **said)
    row = {w: k for k, w in enumerate(people.who)}
    expected = {frozenset((row[a], row[b])) for a, b in ends}
    data = load_dataset(tmp_path / 'people.csv', **said, edges_by='who')
    assert {frozenset(e) for e in data.edge_index.T.tolist()} == expected
    by_row = load_dataset(tmp_path / 'people.csv', **said, edges_by='row')
    assert {frozenset(e) for e in by_row.edge_index.T.tolist()} == {frozenset(e) for e in ends}
    some = load_dataset(
        tmp_path / 'people.csv', **said, edges_by='who', rows={'job': ['cook', 'smith']}
    )
    kept = np.flatnonzero(people.job != 'clerk')
    assert {frozenset(kept[list(e)]) for e in some.edge_index.T.tolist()} == {
        e for e in expected if e <= set(kept)
    }


def test_words_above_ids_are_a_header(people, tmp_path):
    people['who'] = [f'p{k:03d}' for k in range(200)]
    said = SAID | dict(edges_by='who', edges=tmp_path / 'friends.csv')
    lines = ['p000,p001', 'p001,p002', 'p005,p000']
    graphs = []
    for header in ([], ['who,friend']):
        (tmp_path / 'friends.csv').write_text('\n'.join([*header, *lines]))
        graphs.append(from_frame(people, **said))
    assert graphs[0].edge_index.equal(graphs[1].edge_index) and graphs[0].num_edges == 6
    assert 'header: line 1: who, friend' in graphs[1].notes['graph from']
    (tmp_path / 'friends.csv').write_text('\n'.join(['p777,p888', *lines]))
    with pytest.raises(DataError, match='line 1 names p777'):
        from_frame(people, **said)


def test_the_nodes_of_a_graph_are_its_rows_whatever_its_columns_hold():
    n = 200
    x = torch.stack([torch.randperm(n, generator=torch.manual_seed(0)), torch.arange(n) ** 2], 1)
    ring = torch.stack([torch.arange(n), torch.arange(n).roll(1)])
    groups = dict(y=torch.arange(n) % 2, sens=torch.arange(n) // 2 % 2)
    data = load_dataset(Data(x=x.double(), edge_index=ring, **groups), dataset_name='ring')
    assert {frozenset(e) for e in data.edge_index.T.tolist()} == {
        frozenset(e) for e in ring.T.tolist()
    }


def test_columns_that_name_nobody_are_not_searched(people, monkeypatch):
    "A measurement differs in all rows too; as texts, a large table of them took hours."
    people['height'] = np.random.default_rng(0).normal(size=200)
    people['who'] = np.random.default_rng(1).permutation(200)
    seen, search = [], own.edge_list

    def watched(edges, **said):
        seen.extend(said['candidates'])
        return search(edges, **said)

    monkeypatch.setattr(own, 'edge_list', watched)
    with pytest.raises(DataError, match='edges_by: who'):
        from_frame(people, **SAID, edges=[[0, 199]])
    assert seen == ['who']
    assert from_frame(people, **SAID, edges=[[0, 199]], edges_by='row').num_edges == 2


def test_the_rule_is_refused_before_it_grows():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 2, (6000, 3)), columns=list('abc'))
    table['sex'], table['y'] = rng.choice(['f', 'm'], 6000), rng.integers(0, 2, 6000)
    with pytest.raises(DataError, match='max_edges'):
        from_frame(table, **SAID, threshold=0.8, max_edges=100_000)
    degree = np.bincount(from_frame(table, **SAID).edge_index[0].numpy())
    assert degree.max() <= 30 and degree.min() >= 10


# ---- columns that say the same


def test_equal_columns_are_named(people):
    twin = people.assign(wage=people.income)
    data = from_frame(twin, **SAID)
    assert 'income and wage are equal in every row: drop: [wage]' in data.flags
    assert any('income and wage' in f for f in from_frame(twin, **SAID, drop=['income']).flags)
    with pytest.raises(DataError, match="the same name, 'job'"):
        from_frame(pd.concat([people, people[['job']]], axis=1), **SAID)


def test_whether_models_see_the_group_is_found_in_the_data(people):
    hidden = SAID | dict(sensitive_as_feature=False)
    assert from_frame(people, **hidden).notes['group is a feature'].startswith('no')
    coded = people.assign(code=people.sex.map({'f': 7, 'm': 3}))
    assert "'code'" in from_frame(coded, **hidden).notes['group is a feature']


def test_a_code_that_never_occurs_is_pointed_out(people):
    with pytest.warns(DataWarning, match='na_values income: 9999 do not occur'):
        from_frame(people, **SAID, na_values={'income': [9999]})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        from_frame(people, **SAID, na_values={'job': []})


# ---- what a stranger writes


def test_rows_read_a_column_as_the_rest_of_the_card_does(people):
    pay = np.random.default_rng(5).integers(500, 9000, len(people))
    age = np.where(np.arange(len(people)) % 9 == 0, 'unknown', 20 + np.arange(len(people)) % 50)
    frame = people.assign(
        pay=[f'{v:,}'.replace(',', '.') for v in pay],
        age=age,
        job=np.where(np.arange(len(people)) % 2, 'Cook', people.job),
        own=np.where(people.income > 20, 'true', 'false'),
    )
    said = SAID | dict(kinds={'pay': {'kind': 'number', 'thousands': '.'}}, missing='drop')
    said |= dict(na_values={'age': ['unknown']}, same={'job': {'Cook': 'cook'}})
    known = age != 'unknown'
    for rows, expected in (
        ({'pay': {'min': 2000}}, (pay >= 2000) & known),
        ({'age': {'max': 40}}, pd.to_numeric(frame.age, errors='coerce') <= 40),
        ({'job': ['cook']}, frame.job.isin(['Cook', 'cook']) & known),
        ({'own': [True]}, (frame.own == 'true') & known),
    ):
        assert from_frame(frame, **said, rows=rows).num_nodes == int(expected.sum()), rows
    with pytest.raises(DataError, match='min and max compare numbers'):
        from_frame(frame, **(said | {'kinds': {'pay': 'date'}}), rows={'pay': {'min': 1}})


def test_the_line_for_a_missing_group_works_when_followed(people):
    frame = people.assign(sex=people.sex.where(np.arange(len(people)) % 7 > 0, '?'))
    said = SAID | dict(na_values={'sex': ['?']})
    for missing in ('error', 'impute'):
        with pytest.raises(DataError, match=r'row 0 is missing .*rows: \{sex: \{not: \["\?"\]\}\}'):
            from_frame(frame, **said, missing=missing)
        data = from_frame(frame, **said, missing=missing, rows={'sex': {'not': ['?']}})
        assert data.num_nodes == (frame.sex != '?').sum()


def test_codes_in_a_range_of_label_or_group_are_pointed_out(people):
    score = np.where(np.arange(len(people)) % 9 == 0, -1, np.arange(len(people)) % 21)
    frame, said = people.assign(y=score), SAID | dict(positive={'min': 10})
    found = [f for f in from_frame(frame, **said).flags if 'unlabelled: [-1]' in f]
    assert len(found) == 1 and f'{(score == -1).sum()} rows' in found[0]
    assert not [f for f in from_frame(frame, **said, unlabelled=[-1]).flags if f.startswith('y: ')]
    age = np.where(np.arange(len(people)) % 9 == 0, 999, 18 + np.arange(len(people)) % 60)
    said = dict(label='y', sensitive='age', privileged={'min': 25})
    flags = from_frame(people.assign(age=age), **said).flags
    assert any('age: 999' in f and 'rows: {age: {not: [999]}}' in f for f in flags)


def test_a_column_that_is_constant_in_the_rows_that_stay(people):
    five = ['' if k < 5 else '5' for k in range(len(people))]
    data = from_frame(people.assign(five=five), **SAID, missing='drop')
    (entry,) = [c for c in data.column_report if c['column'] == 'five']
    assert 'five' not in data.feature_names and entry['kind'] == 'constant'
    assert data.num_nodes == len(people) - 5


def test_label_and_group_cannot_be_left_out_by_kinds(people):
    for column, kind in (('y', 'weight'), ('sex', 'id'), ('y', 'drop')):
        with pytest.raises(DataError, match=f'kinds: {column}: {kind} leaves a column out'):
            from_frame(people, **SAID, kinds={column: kind})


def test_proposals_for_a_label_can_be_followed(people):
    zeros = people.assign(y=np.where(people.y == 1, '01', '00'))
    with pytest.raises(DataError, match=r'positive: \["01"\], negative: \["00"\]'):
        from_frame(zeros, **SAID)
    nines = people.assign(y=np.where(np.arange(len(people)) % 5 == 0, 9, people.y))
    with pytest.raises(DataError, match=r'negative: \[0\], unlabelled: \[9\]'):
        from_frame(nines, **SAID, positive=1)
    pay = people.assign(y=[f'$ {v:,.1f}' for v in 100 * people.income])
    kind = {'kind': 'number', 'thousands': ',', 'marks': ['$']}
    with pytest.raises(DataError, match='a range needs numbers.*kinds: .y: .kind: number'):
        from_frame(pay, **SAID, positive={'min': 2000})
    data = from_frame(pay, **SAID, positive={'min': 2000}, kinds={'y': kind})
    assert data.y.sum() == (100 * people.income >= 2000).sum()
    days = people.assign(y=pd.date_range('2020', periods=len(people)).strftime('%Y-%m-%d'))
    with pytest.raises(DataError, match='at most 50 values') as e:
        from_frame(days, **SAID)
    assert len(str(e.value)) < 1000
