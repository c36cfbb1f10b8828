"""Drafts of cards: what they propose, what they ask, and that they can be read and loaded."""

import csv
import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from moe_expert import cli
from moe_expert.data.cards import read_card
from moe_expert.data.drafts import (
    WIDTH,
    auc_of,
    draft_card,
    likely_positive,
    on_card,
    outcome_part,
    shares,
    silent_values,
)
from moe_expert.data.reading import quoted
from moe_expert.errors import DataError
from moe_expert.own_data import load_own, write_card

ASK = dict(label='y', sensitive='sex')


def made_up(n=240):
    "Sixteen columns, each of a kind of its own."
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, n)
    day = pd.Timestamp('2019-02-01') + pd.to_timedelta(rng.integers(0, 900, n), unit='D')
    amount = rng.integers(1_000, 99_000, n)
    return pd.DataFrame(
        {
            'case_id': [f'c{k:04}' for k in rng.permutation(n)],
            'customer_id': rng.permutation(np.repeat(np.arange(70_000, 70_000 + n // 2), 2)),
            'income': [f'{v:,}' for v in amount],
            'balance': rng.permutation(n) * 13 - 400,  # whole numbers that all differ
            'fee': [f'${v / 7:.2f}' for v in amount],
            'share': [f'{v % 97}%' for v in amount],
            'since': day.strftime('%d.%m.%Y'),
            'debts': np.where(rng.random(n) < 0.1, 999, rng.poisson(2, n)),
            'tests': rng.choice(['1.5', '2', '?'], n, p=[0.6, 0.3, 0.1]),
            'job': rng.choice(['clerk', 'Clerk', 'cook', 'unknown'], n, p=[0.4, 0.1, 0.4, 0.1]),
            'lab': rng.choice(['None', 'low', 'high'], n, p=[0.6, 0.2, 0.2]),
            'region_code': rng.integers(1, 6, n),
            'fnlwgt': rng.integers(10_000, 900_000, n),
            'country': 'here',
            'closed_on': np.where(y == 1, '2021', ''),
            'remark': [f'{a} and {b} said so' for a, b in rng.integers(0, 60, (n, 2))],
            'sex': rng.choice(['f', 'm'], n),
            'y': np.where(y == 1, 'yes', 'no'),
        }
    )


@pytest.fixture
def table(tmp_path):
    made_up().to_csv(tmp_path / 'people.csv', index=False)
    return tmp_path / 'people.csv'


def drafted(frame, folder, name='t.csv', **said):
    "The draft of a table, and the entries that it holds."
    path = Path(folder) / name
    frame.to_csv(path, index=False)
    draft = draft_card(path, **(ASK | said), path=Path(folder) / 'card.yaml', overwrite=True)
    return draft, yaml.safe_load(draft.text)


# ---- what a draft proposes


def test_every_kind_of_column_is_proposed_as_what_it_is(table):
    draft = draft_card(table, **ASK)
    entries = yaml.safe_load(draft.text)
    assert (entries['positive'], entries['negative']) == ('yes', 'no')
    assert entries['person'] == 'customer_id'
    kinds = entries['kinds']
    assert kinds.pop('remark') in ('drop', 'id')  # texts that cannot be categories
    assert kinds == {
        'case_id': 'id',
        'income': {'kind': 'number', 'thousands': ','},
        'fee': {'kind': 'number', 'marks': ['$']},
        'share': {'kind': 'number', 'marks': ['%']},
        'since': {'kind': 'date', 'format': '%d.%m.%Y'},
    }
    assert entries['na_values'] == {'debts': [999], 'tests': ['?'], 'job': ['unknown']}
    assert entries['same'] == {'job': {'Clerk': 'clerk'}}
    for question in (
        '# privileged: "?"',
        '# missing: impute',
        '  # region_code: category  # ?',
        '  # fnlwgt: weight  # ?',
        '  # closed_on: afterwards\n  #     ? its gaps have an AUC of 1.000',
        '  # lab: ["None"]  # ? or values: ',
        "# left out by rule: country ('here' in every row)",
        '#   gaps of closed_on: AUC 1.000',
    ):
        assert question in draft.text, question


def test_every_line_has_its_reason_and_fits(table):
    draft = draft_card(table, **ASK)
    lines = draft.text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for k, line in enumerate(lines):
        if line.startswith('  ') and ': ' in line.split('#')[0] and '""' not in line:
            beside = '  # ' in line[line.index(':') :]
            assert beside or lines[k + 1].strip().startswith('#     '), line
    listed = [line for line in lines if line.startswith('#   ') and ': AUC 0' in line]
    assert len(listed) == 4  # and one of 1.000


@pytest.mark.parametrize('name', ['balance', 'amount', 'salary', 'code', 'x', 'paid', 'valid'])
@pytest.mark.parametrize('kind', ['whole', 'fraction', 'thousands', 'currency', 'comma', 'typed'])
def test_amounts_are_never_identifiers(name, kind, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.permutation(np.arange(1_000, 1_000 + 200 * 37, 37))
    written = {
        'whole': values,
        'fraction': values / 8,
        'thousands': [f'{v * 100:,}' for v in values],
        'currency': [f'€ {v}' for v in values],
        'comma': [f'{v},25' for v in values],
        'typed': values.astype(float),
    }[kind]
    frame = pd.DataFrame({name: written, 'sex': [*'fm'] * 100, 'y': rng.integers(0, 2, 200)})
    entries = drafted(frame, tmp_path)[1]
    kind = entries.get('kinds', {}).get(name, 'number')
    assert (kind if isinstance(kind, str) else kind['kind']) == 'number'
    assert 'drop' not in entries and 'person' not in entries


@pytest.mark.parametrize(
    'codes, value, expected',
    [
        (['3', '4', '5', '-1'], '-1', [-1]),
        (['3', '4', '5', '9999'], '9999', [9999]),
        (['a', 'b', '?'], '?', ['?']),
        (['a', 'b', 'unknown'], 'unknown', ['unknown']),
        (['a', 'b', 'n/a'], 'n/a', ['n/a']),
        (['1.5', '2', '-'], '-', ['-']),
        (['6', '7', '9'], '9', None),  # a scale may well end with 9
        (['70', '80', '99'], '99', None),
        (['a', 'b', 'none'], 'none', None),  # perhaps a value
    ],
)
def test_missing_codes_by_column(codes, value, expected, tmp_path):
    rng = np.random.default_rng(1)
    column = rng.choice(codes, 300, p=[*[0.9 / (len(codes) - 1)] * (len(codes) - 1), 0.1])
    frame = pd.DataFrame({'v': column, 'w': rng.permutation(column)})
    frame = frame.assign(sex=rng.choice([*'fm'], 300), y=rng.integers(0, 2, 300))
    draft, entries = drafted(frame, tmp_path)
    assert entries.get('na_values') == (expected and {'v': expected, 'w': expected})
    n = (column == value).sum()
    if expected:
        assert f'  v: {on_card(expected)}  # {on_card(value)}: {n} rows' in draft.text
        assert 'missing: impute or drop?' in draft.questions


def test_codes_as_frequent_as_values_are_a_question(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({'days': rng.choice([-1, 3, 9, 12], 300, p=[0.7, 0.1, 0.1, 0.1])})
    frame = frame.assign(sex=rng.choice([*'fm'], 300), y=rng.integers(0, 2, 300))
    draft, entries = drafted(frame, tmp_path)
    assert 'na_values' not in entries and '#   days: [-1]  # ? or values' in draft.text


def test_leaks_by_value_and_by_gap_are_proposed_and_left_in(tmp_path):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 400)
    frame = pd.DataFrame(
        {
            'near': y + rng.normal(0, 0.1, 400).round(3),
            'word': np.where(y == 1, 'late', 'in time'),
            'when': np.where(y == 1, rng.integers(1, 400, 400).astype(str), ''),
            'fine': rng.normal(size=400).round(2),
            'sex': rng.choice([*'fm'], 400),
            'y': y,
        }
    )
    draft, entries = drafted(frame, tmp_path)
    assert 'kinds' not in entries and 'drop' not in entries
    for name in ('near', 'word', 'when'):
        assert f'#   {name}: afterwards  # ? ' in draft.text
    assert 'fine: afterwards' not in draft.text and '#   fine: AUC 0.5' in draft.text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=30, max_size=80))
def test_auc_agrees_with_scikit_learn(rows):
    score = np.array([s for s, _ in rows], dtype=float)
    y = np.array([int(one) for _, one in rows])
    if min(y.sum(), (1 - y).sum()) < 5:
        assert np.isnan(auc_of(score, y))
        return
    auc = roc_auc_score(y, score)
    assert auc_of(score, y) == pytest.approx(max(auc, 1 - auc))
    values = pd.Series([f'v{int(s)}' for s in score])
    means = shares(values, y)
    for value, n in values.value_counts().items():
        if n >= 10:
            assert means[values == value] == pytest.approx(y[values == value].mean())


def test_columns_that_repeat_each_other(tmp_path):
    rng = np.random.default_rng(1)
    level = rng.integers(0, 4, 300)
    frame = pd.DataFrame({'level': level, 'again': level, 'word': [[*'abcd'][k] for k in level]})
    frame = frame.assign(sex=rng.choice([*'fm'], 300), y=rng.integers(0, 2, 300))
    draft, entries = drafted(frame.assign(gender=frame.sex), tmp_path)
    assert 'kinds' not in entries
    assert '#   level: drop  # ? equals again in all rows' in draft.text
    assert '#   word: drop  # ? says the same as again in other words' in draft.text
    assert '#   gender: drop  # ? equals sex in all rows' in draft.text


def test_a_split_that_the_table_has(tmp_path):
    frame = made_up()[['debts', 'sex', 'y']]
    parts = np.array(['train', 'test', 'Train'])[np.arange(240) % 3]
    entries = drafted(frame.assign(part=parts), tmp_path)[1]
    assert entries['split'] == {'column': 'part', 'validation': 0.25}
    whole = np.array(['train', 'val', 'test'])[np.arange(240) % 3]
    assert drafted(frame.assign(part=whole), tmp_path)[1]['split'] == {'column': 'part'}


# ---- outcome and groups


@pytest.mark.parametrize(
    'values, positive, negative, unlabelled, asked',
    [
        ('1 0', 1, 0, None, False),
        ('1.0 0.0', 1, 0, None, False),
        ('1 -1', 1, -1, None, False),
        ('1 0 -1', 1, 0, [-1], False),
        ('1 2', 2, 1, None, True),
        ('yes no', 'yes', 'no', None, False),
        ('Y N', 'Y', 'N', None, False),
        ('yes no ?', 'yes', 'no', ['?'], False),
        ('True False', 1, 0, None, False),
        ('>50K <=50K', '>50K', '<=50K', None, False),
        ('good bad', 'good', 'bad', None, False),
        ('A B', 'B', 'A', None, True),
        ('won lost drawn', 'won', ['drawn', 'lost'], None, True),
    ],
)
def test_both_sides_of_a_label(values, positive, negative, unlabelled, asked, tmp_path):
    frame = pd.DataFrame({'y': values.split() * 30})
    n = len(frame)
    frame = frame.assign(sex=np.arange(n) // 3 % 2, x=np.arange(n) % 17)
    draft, entries = drafted(frame, tmp_path)
    found = [entries.get(k) for k in ('positive', 'negative', 'unlabelled')]
    assert found == [positive, negative, unlabelled]
    assert ('?' in draft.text.split('positive: ')[1].split('\n')[0].split('#')[1]) == asked
    assert any(q.startswith('positive') for q in draft.questions) == asked
    texts = frame.y.str.replace('.0', '', regex=False).replace({'True': '1', 'False': '0'})
    placed = [str(v) for side in found if side is not None for v in np.atleast_1d(side)]
    assert sorted(placed) == sorted(texts.unique())  # every value has one place


def test_values_that_the_call_names():
    label = pd.Series(['a', 'b', 'c', '?'] * 5, name='y')
    said = {line.key: line.value for line in outcome_part(label, ['a', 'c']).lines}
    assert said['positive'] == ['a', 'c'] and said['negative'] == 'b'
    assert said['unlabelled'] == ['?']
    said = {line.key: line.value for line in outcome_part(label, ['?']).lines}
    assert said['positive'] == '?' and said['negative'] == ['a', 'b', 'c']
    for wrong, message in ((['d'], "'d' does not occur"), ([*'abc'] + ['?'], 'on one side')):
        with pytest.raises(DataError, match=message):
            outcome_part(label, wrong)
    assert likely_positive(['2', '1']) == (['2'], False) and silent_values({'-1': 5, '0': 3}) == []


def test_a_label_of_many_numbers_needs_a_range(tmp_path):
    frame = made_up()[['debts', 'sex']].assign(y=np.arange(240) % 21)
    draft, entries = drafted(frame, tmp_path)
    assert list(entries['positive']) == ['min'] and 'negative' not in entries
    assert 'positive: from which y on does the outcome count as 1?' in draft.questions
    assert drafted(frame, tmp_path, positive={'min': 10})[1]['positive'] == {'min': 10}
    with pytest.raises(DataError, match='positive= says which'):
        drafted(frame.assign(y=[f'v{k}' for k in range(240)]), tmp_path)


def test_spellings_of_a_label_are_merged_before_it_is_placed(tmp_path):
    frame = made_up()[['debts', 'sex']]
    frame['y'] = ['>50K', '<=50K', '>50K', '<=50K.', '>50K.', '<=50K'] * 40
    for positive in (None, '>50K', '>50K.'):
        entries = drafted(frame, tmp_path, positive=positive)[1]
        assert (entries['positive'], entries['negative']) == ('>50K', '<=50K')
        assert entries['same'] == {'y': {'<=50K.': '<=50K', '>50K.': '>50K'}}


def test_spellings_that_may_be_two_values_are_a_question(tmp_path):
    frame = made_up()[['sex', 'y']].assign(grade=['A', 'A-', 'B', 'B-'] * 60)
    assert 'same' not in drafted(frame, tmp_path)[1]


def test_the_privileged_group_is_never_guessed(tmp_path):
    frame = made_up()[['debts', 'sex', 'y']].assign(age=np.arange(240) % 50 + 18)
    draft, entries = drafted(frame, tmp_path)
    assert 'privileged' not in entries and draft.questions[0].startswith('privileged: which value')
    assert drafted(frame, tmp_path, privileged='m')[1]['privileged'] == 'm'
    by_age = drafted(frame, tmp_path, sensitive='age')[0]
    assert '# privileged: "?"' in by_age.text and 'bands: {age: [' in by_age.text
    assert 'which age makes group 1, from 18 to 67? A range' in by_age.text
    for wrong, message in (('x', 'does not occur'), (['f', 'm'], 'in one group')):
        with pytest.raises(DataError, match=message):
            drafted(frame, tmp_path, privileged=wrong)
    draft.write()
    assert load_own(draft.path, missing='impute').group_names == ['f', 'm']


# ---- files


def test_the_same_draft_from_every_kind_of_file(tmp_path):
    frame = made_up()
    frame.to_csv(tmp_path / 't.csv', index=False)
    frame.to_csv(tmp_path / 't.tsv', index=False, sep='\t')
    frame.to_csv(tmp_path / 't.csv.gz', index=False, sep=';')
    frame.replace('', None).to_parquet(tmp_path / 't.parquet')
    frame.to_excel(tmp_path / 't.xlsx', index=False)
    texts = []
    for kind in ('csv', 'tsv', 'csv.gz', 'parquet', 'xlsx'):
        text = draft_card(tmp_path / f't.{kind}', **ASK).text
        body = text.split('# -- the outcome')
        assert ('separator: ";"' in body[0]) == (kind == 'csv.gz')
        texts.append(body[1])
    assert len(set(texts)) == 1


def test_the_order_of_rows_and_columns_changes_no_proposal(tmp_path):
    frame = made_up()
    entries = drafted(frame, tmp_path)[1]
    shuffled = frame.sample(frac=1, random_state=5)
    assert drafted(shuffled, tmp_path)[1] == entries
    turned = drafted(frame[frame.columns[::-1]], tmp_path)
    assert turned[1] == entries
    assert sorted(turned[0].questions) == sorted(drafted(frame, tmp_path)[0].questions)


def test_a_file_without_names_or_with_twins(tmp_path):
    lines = [f'{k % 29 + 20},{"fm"[k % 2]},{["yes", "no"][k // 3 % 2]}' for k in range(58)]
    (tmp_path / 'a.data').write_text('\n'.join(dict.fromkeys(lines)) + '\n')
    said = dict(label='column 3', sensitive='column 2')
    text = draft_card(tmp_path / 'a.data', **said).text
    assert '  header: false' in text and '  # columns: [column 1, column 2, column 3]  # ?' in text
    (tmp_path / 'b.csv').write_text('score,sex,y,score\n4,f,1,5\n3,m,0,4\n' * 20)
    draft = draft_card(tmp_path / 'b.csv', **ASK)
    assert yaml.safe_load(draft.text)['drop'] == ['score'] and 'two columns' in draft.text
    (tmp_path / 'c.csv').write_text('x,sex,y,y\n4,f,1,5\n3,m,0,4\n' * 20)
    with pytest.raises(DataError, match="'y' has a role"):
        draft_card(tmp_path / 'c.csv', **ASK)


def test_decimal_marks_that_do_not_hold_for_all_columns(tmp_path):
    rows = 'a;b;sex;y\n' + '1,5;3;f;1\n2,25;4;m;0\n3,75;5;f;1\n' * 20
    (tmp_path / 't.csv').write_text(rows)
    entries = yaml.safe_load(draft_card(tmp_path / 't.csv', **ASK).text)
    assert entries['reader'] == {'separator': ';', 'decimal': ','} and 'kinds' not in entries
    (tmp_path / 't.csv').write_text(rows.replace(';3;', ';3.5;'))
    entries = yaml.safe_load(draft_card(tmp_path / 't.csv', **ASK).text)
    assert entries['reader'] == {'separator': ';'}
    assert entries['kinds'] == {'a': {'kind': 'number', 'decimal': ','}}


def test_names_of_data_sets(tmp_path):
    frame = made_up()[['debts', 'sex', 'y']]
    for file, name in (('german.csv', 'german-own'), ('my data (1).csv', 'my-data-1')):
        assert drafted(frame, tmp_path, file)[1]['name'] == name
    with pytest.raises(DataError, match='comes with the package'):
        draft_card(tmp_path / 'german.csv', **ASK, name='german', overwrite=True)


def test_nothing_is_written_over_or_in_vain(table):
    path = write_card(table, **ASK)
    assert path.name == 'card.yaml' and read_card(path).label == 'y'
    with pytest.raises(DataError, match='exists'):
        write_card(table, **ASK)
    other = table.parent / 'other.yaml'
    for wrong, message in (
        (dict(label='yy'), "no column 'yy'"),
        (dict(label='sex'), 'same column'),
        (dict(positive='maybe'), 'does not occur'),
        (dict(missing='ignore'), 'missing must be one of'),
        (dict(name='a/b'), 'name'),
    ):
        with pytest.raises(DataError, match=message):
            write_card(table, **(ASK | wrong), path=other)
    assert not other.exists()
    with pytest.raises(DataError, match='cannot be written'):
        write_card(table, **ASK, path=table.parent / 'no' / 'card.yaml')


def test_a_card_is_replaced_whole_or_not_at_all(table, monkeypatch):
    path = write_card(table, **ASK)
    before = path.read_text()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(DataError, match='card.yaml cannot be written: .*No space left'):
        write_card(table, **ASK, name='other', overwrite=True)
    assert path.read_text() == before and not list(path.parent.glob('.*'))


# ---- names and values of any kind


TEXTS = st.text(
    st.characters(codec='utf-8', exclude_characters='\r\x00', exclude_categories=['Cs']),
    min_size=1,
    max_size=12,
).map(str.strip)


@settings(max_examples=200, deadline=None)
@given(st.recursive(TEXTS, lambda v: st.lists(v) | st.dictionaries(TEXTS, v), max_leaves=8))
def test_values_are_read_back_as_they_are(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'card.yaml')
        path.write_text(f'label: a\nsensitive: b\nabout: {{v: {on_card(value)}}}', encoding='utf-8')
        found = read_card(path).about['v']

    def as_texts(v):
        if isinstance(v, dict):
            return {k: as_texts(w) for k, w in v.items()}
        return [as_texts(w) for w in v] if isinstance(v, list) else str(v)

    assert as_texts(found) == value
    assert '\n' not in on_card(value) and on_card(value).isprintable()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(TEXTS.filter(lambda t: t and not t.isdigit()), min_size=3, max_size=3, unique=True),
    st.lists(st.sampled_from('yes no #1 it\'s "q" a:b - [x] {y} ä\u2028z'.split(' ')), min_size=2,
             max_size=2, unique=True),
)  # fmt: skip
def test_drafts_of_odd_names_and_values_are_read_back(names, values):
    label, group, other = (f'{n} {k}' for k, n in zip('abc', names))
    label, group, other = (' '.join(n.split('\n')) for n in (label, group, other))
    rows = [(values[k % 2], values[k // 2 % 2], k % 7) for k in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, 't.tsv')
        with table.open('w', newline='', encoding='utf-8') as file:
            csv.writer(file, delimiter='\t').writerows([(label, group, other), *rows])
        card = read_card(
            write_card(table, label=label, sensitive=group, positive=values[0], missing='drop')
        )
    assert (card.label, card.sensitive) == (label, group)
    assert (card.positive, card.negative) == tuple(values)


def test_escapes():
    assert quoted('a\x7fb\u2028c\U000e0001') == '"a\\u007fb\\u2028c\\U000e0001"'
    assert on_card('-0') == '"-0"' and on_card('12345678901234567') == '"12345678901234567"'


# ---- the command


def test_the_command_writes_the_draft_and_says_what_it_asks(table, capsys):
    asked = ['card', str(table), '--label', 'y', '--sensitive', 'sex']
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    card = table.parent / 'card.yaml'
    assert out.startswith(f'Draft: {card}\n') and f'moe-expert datasets {card}' in out
    assert 'person: customer_id' in out and 'privileged: which value or values of sex' in out
    assert card.read_text() == draft_card(table, **ASK, overwrite=True).text
    more = ['--privileged', 'm', '--positive', 'yes', '--name', 'loans', '--overwrite']
    assert cli.main([*asked, *more, '--path', str(table.parent / 'b.yaml')]) == 0
    card = read_card(table.parent / 'b.yaml')
    assert (card.privileged, card.positive, card.name) == ('m', 'yes', 'loans')


@pytest.mark.parametrize(
    'words, said',
    [
        ([], 'table and label and sensitive must be given'),
        (['T'], 'label and sensitive must be given'),
        (['T', '--label', 'yy', '--sensitive', 'sex'], "no column 'yy'"),
        (['T', '--label', 'y', '--sensitive', 'sex', '--privileged', 'x'], "'x' does not occur"),
        (['no.csv', '--label', 'y', '--sensitive', 'sex'], 'no.csv does not exist'),
        (
            ['T', '--label', 'y', '--sensitive', 'sex', '--positive', '{min: a}'],
            'positive must be a value',
        ),
    ],
)
def test_what_is_wrong_is_one_line(words, said, table, capsys):
    with pytest.raises(SystemExit, match='2'):
        cli.main(['card', *(str(table) if w == 'T' else w for w in words)])
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and said.lower() in err.lower()
    assert not (table.parent / 'card.yaml').exists()


# ---- a draft whose questions are answered can be loaded


def test_the_draft_of_every_kind_of_column_loads(table):
    path = write_card(table, **ASK)
    data = load_own(path, privileged='m', missing='impute')
    names = set(data.feature_names)
    assert {'income', 'fee', 'share', 'since', 'debts', 'tests', 'balance', 'job=clerk'} <= names
    assert not {'case_id', 'customer_id', 'country', 'job=Clerk', 'job=unknown'} & names
    assert data.num_nodes == 240


@pytest.mark.parametrize('missing', ['drop', 'impute'])
def test_people_without_a_group_or_an_outcome(missing, tmp_path):
    frame = made_up()[['debts', 'sex', 'y']]
    frame.loc[[3, 50], 'sex'], frame.loc[[7, 60, 61], 'sex'] = '', '?'
    frame.loc[[10, 11], 'y'] = ''
    draft, entries = drafted(frame, tmp_path, missing=missing)
    assert entries['rows'] == {'sex': {'not': ['?', '']}} and entries['unlabelled'] == ['']
    assert 'sex' not in entries['na_values']
    assert any(q.startswith('rows: may 5 of the people') for q in draft.questions)
    data = load_own(draft.write(), privileged='m')
    gone = 5 + (frame.debts == 999).drop([3, 50, 7, 60, 61]).sum() * (missing == 'drop')
    assert data.num_nodes == 240 - gone and (data.y == -1).sum() in (1, 2)


def test_a_mark_may_be_a_group(tmp_path):
    frame = made_up()[['debts', 'y']].assign(sex=['-', 'x'] * 120)
    entries = drafted(frame, tmp_path)[1]
    assert entries['na_values']['sex'] == [] and 'rows' not in entries


def test_blocks_of_proposals_that_are_off(tmp_path):
    "The reasons below such lines are comments too, and without the marks the lines are a card."
    frame = made_up()[['sex', 'y', 'closed_on']].assign(x=np.arange(240) % 31 / 7)
    frame = frame.rename(columns={'closed_on': 'the day on which the account was closed for good'})
    text = drafted(frame, tmp_path)[0].text
    assert '\n# kinds:\n#   the day on' in text and '\x01' not in text
    block = text[text.index('# kinds:') : text.index('# -- missing')]
    assert all(line.startswith('#') for line in block.strip().splitlines())
    assert block.count('# ') == len(block.strip().splitlines())


def test_counts_are_of_the_rows_that_the_card_keeps(tmp_path):
    rng, n = np.random.default_rng(4), 300
    frame = pd.DataFrame(
        {
            'age': np.where(rng.random(n) < 0.1, 999, rng.integers(18, 70, n)),
            'sex': rng.choice(['f', 'm', '?'], n, p=[0.5, 0.3, 0.2]),
            'y': rng.integers(0, 2, n),
        }
    )
    frame.to_csv(tmp_path / 't.csv', index=False)
    card = write_card(tmp_path / 't.csv', label='y', sensitive='sex', privileged='m')
    text, kept = card.read_text(), frame[frame.sex != '?']
    assert f'# Counts are of the {len(kept)} rows that have a group.' in text
    assert f'Missing: age ({(kept.age == 999).sum()})' in text
    assert f'positive: 1  # {kept.y.sum()} rows count as 1' in text
    card.write_text(text.replace('# missing: impute', 'missing: impute'))
    data = load_own(card)
    assert (data.num_nodes, int(data.y.sum())) == (len(kept), int(kept.y.sum()))
    assert int(data.gaps['age'].sum()) == (kept.age == 999).sum()


def test_a_label_of_amounts_gets_its_kind(tmp_path):
    pay = np.random.default_rng(4).random(200) * 9000
    frame = pd.DataFrame({'a': pay[::-1], 'g': ['v', 'w'] * 100, 'y': [f'{v:,.1f}' for v in pay]})
    frame.to_csv(tmp_path / 't.csv', index=False)
    card = write_card(
        tmp_path / 't.csv', label='y', sensitive='g', privileged='w', positive={'min': 4000}
    )
    assert 'y: {kind: number, thousands: ","}' in card.read_text()
    assert load_own(card).y.sum() == (pay.round(1) >= 4000).sum()


@pytest.mark.parametrize('name', ['loan', 'order', 'id_amount', 'account'])
def test_numbers_whose_name_may_be_that_of_an_amount_stay(name, tmp_path):
    frame = pd.DataFrame({name: np.arange(80) * 50, 'g': ['v', 'w'] * 40, 'y': [0, 0, 1, 1] * 20})
    frame.to_csv(tmp_path / 't.csv', index=False)
    card = write_card(tmp_path / 't.csv', label='y', sensitive='g', privileged='w')
    assert f'#   {name}: id' in card.read_text() and name in load_own(card).feature_names


def test_codes_beside_a_word_for_not_known(tmp_path):
    ages = ['unknown', '-1', *map(str, range(20, 60))] * 5
    n = len(ages)
    frame = pd.DataFrame({'age': ages, 'g': ['v', 'w'] * (n // 2), 'y': np.arange(n) // 2 % 2})
    frame.to_csv(tmp_path / 't.csv', index=False)
    card = write_card(tmp_path / 't.csv', label='y', sensitive='g', privileged='w')
    assert 'age: [unknown, -1]' in card.read_text()
