"""What a cell means: one rule per column, against decimal, datetime and hand-made examples."""

import datetime as dt
import json
import os
import re
import time
import warnings
from dataclasses import replace
from decimal import Decimal, InvalidOperation

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_expert.data.cards import Card
from moe_expert.data.columns import (
    at_rows,
    column_recipe,
    encode,
    encode_raw,
    feature_names,
    groups_of,
    label_rule,
    outcomes_of,
    reduce_groups,
)
from moe_expert.data.kinds import (
    KINDS,
    LEFT_OUT,
    MISSING_TEXTS,
    card_text,
    is_id_name,
    looks_like,
    make_kind,
    normal_text,
    normal_texts,
    read_again,
    read_column,
    spelling_variants,
)
from moe_expert.errors import DataError, DataWarning

EXAMPLES = int(os.environ.get('MOE_EXPERT_EXAMPLES', 300))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(MANY, max_examples=EXAMPLES // 3)


def texts(values, name='x'):
    return pd.Series(list(values), name=name, dtype=object)


def read(values, kind=None, name='x', **options):
    kind = None if kind is None else make_kind(kind)
    return read_column(texts(values, name), kind=kind, **options)


# ---- canonical texts


@pytest.mark.parametrize(
    'values, canonical',
    [
        ((1, 1.0, '1', '1.0', '1.', '+1', True, np.int8(1), np.float32(1), Decimal('1.00')), '1'),
        ((2.5, '2.50', '+2.5', np.float32(2.5), Decimal('2.50')), '2.5'),
        ((0, -0.0, '0', '-0', '0.0', '.0', False), '0'),
        ((-0.5, '-.5', '-0.50'), '-0.5'),
        (('007',), '007'),
        (('1e3',), '1e3'),
        (('00',), '00'),
        ((pd.Timestamp('2020-03-01'), dt.date(2020, 3, 1), dt.datetime(2020, 3, 1)), '2020-03-01'),
        ((1e20, '100000000000000000000', 10**20), '100000000000000000000'),
        (('a b', 'a b'), 'a b'),
    ],
)
def test_one_value_has_one_text(values, canonical):
    assert {normal_text(v) for v in values} == {canonical}


@FEW
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.integers(0, 4))
def test_a_canonical_text_is_the_same_number_as_short_as_possible(value, zeros):
    text = format(value, 'f') + '0' * zeros
    short = normal_text(text)
    assert Decimal(short) == value and normal_text(short) == short
    assert not re.search(r'\.\d*0$|\.$|^\+|^-0$', short)


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_has_the_text_of_all_its_digits(value):
    assert float(normal_text(value)) == value
    assert normal_text(normal_text(value)) == normal_text(value)


def test_containers_do_not_change_canonical_texts():
    for column in (
        pd.Series([1, 2, None]),
        pd.Series([1, 2, None], dtype='Int64'),
        pd.Series(['1.0', '2', None], dtype=object),
        pd.Series(['1', '2.0', None], dtype='string'),
        pd.Series([1, '2', pd.NA], dtype=object),
        pd.Series(pd.Categorical(['1', '2', None])),
        pd.Series([Decimal('1.0'), 2, float('nan')], dtype=object),
    ):
        assert normal_texts(column).tolist() == ['1', '2', None], column.dtype
    for cell in ([1], {'a': 1}, b'1', np.array([1])):
        with pytest.raises(DataError, match=r"column 'x', row 1 holds a \w+: a cell must be"):
            normal_texts(pd.Series(['1', cell], name='x', dtype=object))


# ---- numbers


PLAIN = ('-1', '1.5', '1e-3', '+3', '.5', '5.', '0', '-0', '1E5', '1e308', '-1e308', '0.10')
NO_NUMBERS = ('inf', 'nan', '007', '1_000', '0x1', '١٢', '1,5', '1 2', '--1', '1e', 'e1', '+', '½')


def test_plain_numbers_are_read_as_python_reads_them():
    reading = read(PLAIN)
    assert reading.kind == 'number' and reading.values.tolist() == [float(t) for t in PLAIN]
    assert reading.changed == {} and reading.values.dtype == float
    for text in NO_NUMBERS:
        try:
            found = read([*PLAIN, text])
        except DataError as e:
            assert repr(text) in str(e) or text in ('1,5', '1 2')
        else:
            missing = text in MISSING_TEXTS
            assert missing or found.kind == 'category', text


@FEW
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, unique=True))
def test_every_float_survives_its_text(values):
    for column in (pd.Series(values, name='x'), texts(map(repr, values))):
        reading = read_column(column)
        assert reading.kind == 'number' and reading.values.tolist() == values
        assert sum(reading.changed.values()) == sum(
            Decimal(normal_text(t)) != Decimal(repr(float(t))) for t in column if isinstance(t, str)
        )


@pytest.mark.parametrize('bad', ['1e999', '-1e400', '9' * 400, 'inf', '-Infinity'])
def test_numbers_that_are_not_finite_are_named_with_their_row(bad):
    with pytest.raises(DataError, match=rf"row 42 holds '{bad}', which is not finite"):
        read_column(texts(['1', bad, '2']), rows=[40, 42, 43])
    with pytest.raises(DataError, match='row 42 holds .*not finite'):
        read_column(pd.Series([1.0, float(bad), 2.0], name='x'), rows=[40, 42, 43])
    known = read_column(texts(['1', bad, '2']), codes=[bad])
    assert known.values.isna().tolist() == [False, True, False]


def styled(value, decimal, thousands, mark, before):
    "A Decimal in a style; written here without the package."
    whole, _, part = format(abs(value), 'f').partition('.')
    if thousands:
        groups = []
        while whole:
            whole, group = whole[:-3], whole[-3:]
            groups.insert(0, group)
        whole = thousands.join(groups)
    body = whole + (decimal + part if part else '')
    body = f'{mark} {body}' if before and mark else f'{body}{mark}'
    return ('-' if value < 0 else '') + body


@FEW
@given(
    st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1, max_size=8),
    st.sampled_from([('.', ','), (',', '.'), ('.', ' '), (',', ' '), ('.', "'"), (',', None)]),
    st.sampled_from(['', '$', '€', 'EUR', '%', 'kr']),
    st.booleans(),
)
def test_stated_styles_give_the_number_that_was_written(values, style, mark, before):
    decimal, thousands = style
    entry = {'kind': 'number', 'decimal': decimal} | ({'thousands': thousands} if thousands else {})
    entry |= {'marks': mark} if mark else {}
    written = [styled(v, decimal, thousands, mark, before) for v in values]
    reading = read(written, entry)
    assert reading.values.tolist() == [float(v) for v in values]
    plain = [re.fullmatch(r'-?(0|[1-9]\d*)(\.\d*)?', w) is not None for w in written]
    assert reading.changed.get('marks removed', 0) == plain.count(False)
    again = read_again(texts(written[:1]), json.loads(json.dumps(reading.params)))
    assert again.tolist() == [float(values[0])]


@pytest.mark.parametrize(
    'entry, text, number',
    [
        ({'marks': '()'}, '(1200)', -1200),
        ({'marks': ['()', '$'], 'thousands': ','}, '($1,200.50)', -1200.5),
        ({'marks': '-'}, '12-', -12),
        ({'marks': '−'}, '−12', -12),
        ({'marks': '$'}, '-$3', -3),
        ({'marks': '$'}, '$-3', -3),
        ({'thousands': ' '}, '1\u00a0400', 1400),
        ({'thousands': ' '}, '1\u202f400', 1400),
        ({'thousands': "'"}, '1’400', 1400),
        ({}, '007', 7),
        ({'thousands': ','}, '1,23', None),
        ({'thousands': ','}, '1,2345', None),
        ({'thousands': ','}, '0,123', None),
        ({'thousands': ','}, ',123', None),
        ({'thousands': '.'}, '1.5', None),
        ({'decimal': ','}, '1.5', None),
        ({'marks': '()'}, '(-5)', None),
        ({'marks': '()'}, '(5', None),
        ({'marks': ['-']}, '-5-', None),
        ({}, '$5', None),
        ({}, '5-', None),
        ({}, '(5)', None),
        ({}, '- 5', None),
    ],
)
def test_marks(entry, text, number):
    kind = {'kind': 'number', **entry}
    if number is None:
        with pytest.raises(DataError, match=r'row 1 holds .*no number as the card describes'):
            read(['1', text], kind)
    else:
        assert read(['1', text], kind).values.tolist() == [1, number]


@pytest.mark.parametrize(
    'cells, line',
    [
        (['1.400,50', '900'], '{x: {kind: number, thousands: "."}}'),
        (['1.400.000', '900'], '{x: {kind: number, thousands: "."}}'),
        (['1,4', '2,85'], '{x: {kind: number, decimal: ","}}'),
        (['$1400', '$2800'], '{x: {kind: number, marks: ["$"]}}'),
        (['14%', '3%'], '{x: {kind: number, marks: ["%"]}}'),
        (['1 400', '20'], '{x: {kind: number, thousands: " "}}'),
        (["1'400.5", '20'], '{x: {kind: number, thousands: "\'"}}'),
        (
            ['1,400', '2,800'],
            '{x: {kind: number, thousands: ","}} or kinds: {x: {kind: number, dec',
        ),
        (['$1,234.50', '($20.00)'], '{x: {kind: number, thousands: ",", marks: ["$", "()"]}}'),
        (['01.03.2020', '13.03.2020'], '{x: {kind: date, format: "%d.%m.%Y"}} .its age in days'),
        (['2020-01-31', '2020-02-01'], '{x: {kind: date, format: "%Y-%m-%d"}}'),
        (['03/13/2020', '1/2/2020'], '{x: {kind: date, format: "%m/%d/%Y"}}'),
        (['13/03/2020', '1/2/2020'], '{x: {kind: date, format: "%d/%m/%Y"}}'),
        (['1 Mar 2020', '12 May 2021'], '{x: {kind: date, format: "%d %b %Y"}}'),
        (['2020-01-31 10:00:00', '2020-02-01 11:00:00'], 'format: "%Y-%m-%d %H:%M:%S"'),
        (['5', '6', '7', 'unknown'], 'na_values: {x: [unknown]}, or kinds: {x: category}'),
        (['$5', '$6', '$7', 'free'], 'kinds: {x: {kind: number, marks: .*na_values: {x: .free.}'),
    ],
)
def test_what_is_recognised_is_an_error_whose_line_works(cells, line):
    with pytest.raises(DataError, match=re.sub(r'([$()\[\]{}])', r'\\\1', line)) as refusal:
        read(cells, where='loans')
    assert "loans: column 'x'" in str(refusal.value) and '\n' not in str(refusal.value)
    import yaml

    lines = re.findall(r'(kinds|na_values): (\{x: (?:\{.*?\}|\[.*?\]|\w+)\})', str(refusal.value))
    assert len(lines) >= 2
    codes = [yaml.safe_load(t)['x'] for k, t in lines if k == 'na_values']
    for key, text in lines:
        entry = yaml.safe_load(text)['x']
        if key == 'kinds':
            read(cells, entry, codes=codes[0] if codes else None)
        elif len(lines) == 2:
            read(cells, codes=entry)


def test_what_can_be_read_in_two_ways_says_so():
    with pytest.raises(DataError, match="written in different ways .row 0: '1,5', row 2: '1.5'"):
        read(['1,5', '3', '1.5'])
    with pytest.raises(DataError, match='more than one way'):
        read(['1,500', '1.500'])
    with pytest.raises(DataError, match='which comes first, day or month.*%d/%m/%Y.*%m/%d/%Y'):
        read(['01/02/2020', '03/04/2020'])
    with pytest.raises(DataError, match="do not exist .*row 0: '31.02.2020'"):
        read(['31.02.2020', '01.02.2020'])
    with pytest.raises(DataError, match='more than one unit'):
        read(['$5', '€6'])
    assert any('three decimals' in f for f in read(['1.400', '2.800', '900']).flags)
    assert not read(['1.400', '2.8', '900']).flags and not read(['0.512', '0.431']).flags
    assert any('dates without marks' in f for f in read(['20200131', '20200201']).flags)
    assert any('beyond 2^53' in f for f in read(['9007199254740993', '9007199254740999']).flags)
    assert read(['9007199254740993', '9007199254740992']).changed == {'digits lost': 1}
    big = pd.Series([2**53 + 1, 2**53 + 2], name='x')
    assert read_column(big).changed == {'digits lost': 1}


def test_words_of_digits_stay_words():
    zips = read(['01067', '80331', '01067'])
    assert zips.kind == 'category' and zips.values.tolist() == ['01067', '80331', '01067']
    assert read(['01067', '80331'], 'number').changed == {'leading zeros removed': 1}
    for words in (['1.2.3', '1.10', '2.0.1'], ['A1', 'A2'], ['10:30', '11:00'], ['18-25', '26-35']):
        assert read(words).kind == 'category'


# ---- what is missing


def test_usual_words_for_not_known_among_numbers_are_counted():
    words = [t for t in MISSING_TEXTS if t]
    reading = read([*map(str, range(20)), *words, None])
    assert reading.kind == 'number' and reading.changed == {'missing code': len(words)}
    assert reading.values.isna().sum() == len(words) + 1
    values = read(['>8', 'None', 'Norm', None])
    assert values.kind == 'category' and values.values.tolist() == ['>8', 'None', 'Norm', None]
    assert values.changed == {} and any('na_values: {x: ["None"]}' in f for f in values.flags)
    with pytest.raises(DataError, match="but for 'None' in 2 rows"):
        read(['1', '2', '3', 'None', 'None'], codes=[])
    assert read(['1', '2', 'None'], 'category', codes=[]).values.tolist() == ['1', '2', 'None']


@pytest.mark.parametrize('code', [-9, -9.0, '-9', '-9.0'])
def test_codes_are_compared_by_canonical_text(code):
    for column in (texts(['1', '-9.0', '4']), pd.Series([1.0, -9, 4], name='x')):
        reading = read_column(column, codes=[code, 'z'])
        assert reading.values.isna().tolist() == [False, True, False]
        assert reading.changed == {'missing code': 1} and reading.seen == ('-9',)
    assert read(['a', '-9', 'b'], codes=[code]).values.tolist() == ['a', None, 'b']


def test_a_code_is_not_taken_for_a_number_in_another_style():
    reading = read(['999.000', '999', '1.500'], {'kind': 'number', 'thousands': '.'}, codes=[999])
    assert reading.values.tolist()[::2] == [999000, 1500] and np.isnan(reading.values[1])


def test_outliers_are_flagged_as_possible_codes():
    for cells, code in (
        ([20, 30, 90, 999, 999], 999),
        ([0, 3, 7, -1], -1),
        ([1, 2, 5, 9, 9, 4], 9),
        ([120, 80, 9999, 9999], 9999),
    ):
        for column in (pd.Series(cells, name='x'), texts(map(str, cells))):
            assert any(f'x: {code} (' in f for f in read_column(column).flags), cells
    for cells in ([-3, -1, 0, 4], list(range(100)), [1, 2, 3, 8, 9, 7], [-1.5, -1, 2]):
        assert not [f for f in read_column(pd.Series(cells, name='x')).flags if 'not known' in f]


def test_true_and_false_are_one_and_zero():
    assert read(['True', 'false', 'NA']).values.tolist()[:2] == [1, 0]
    assert read(['TRUE', 'False']).changed == {'true and false as 1 and 0': 2}
    typed = read_column(pd.Series([True, False], name='x'))
    assert typed.kind == 'number' and typed.values.tolist() == [1, 0] and typed.changed == {}
    assert read(['true', 'false', 'maybe']).values.tolist() == ['true', 'false', 'maybe']


def test_spellings_are_merged_only_if_the_card_says_so():
    cells = ['No', 'no', 'Yes', 'no', None]
    reading = read(cells)
    assert reading.values.tolist() == cells and 'same: {x: {"No": "no"}}' in reading.flags[0]
    merged = read(cells, same={'No': 'no'})
    assert merged.values.tolist() == ['no', 'no', 'Yes', 'no', None]
    assert merged.changed == {'merged': 1} and not merged.flags
    assert read_again(texts(['No']), merged.params).tolist() == ['no']


def test_columns_that_say_nothing_are_left_out():
    for cells, kind in (
        (['a'] * 3, 'constant'),
        ([None] * 3, 'missing'),
        (['1', '1.0'], 'constant'),
    ):
        reading = read(cells)
        assert reading.kind == kind and reading.kind in LEFT_OUT
        assert reading.values.dtype == object
    assert read(['?', '?']).kind == 'constant' and read(['?', '?'], codes=['?']).kind == 'missing'
    assert read(['a', None]).kind == 'category' and read(['4', None]).kind == 'number'
    assert read_column(pd.Series([4.0, 4], name='x')).kind == 'constant'
    with pytest.raises(DataError, match='has 51 different texts; a category has at most 50'):
        read([f'n{k}' for k in range(51)])
    assert read([f'n{k}' for k in range(50)]).kind == 'category'


# ---- dates


@pytest.mark.parametrize(
    'format',
    ['%Y-%m-%d', '%d.%m.%Y', '%m/%d/%Y', '%d %b %Y', '%B %d, %Y', '%Y%m%d', '%d/%m/%Y %H:%M:%S'],
)
def test_dates_against_strptime(format):
    moments = [dt.datetime(1000 + 37 * k, 1 + k % 12, 1 + k, k % 24, 5, 9) for k in range(28)]
    names = 'January February March April May June July August September October November December'

    def written(m):  # without the language of the computer
        fields = format.replace('%B', names.split()[m.month - 1])
        fields = fields.replace('%b', names.split()[m.month - 1][:3])
        fields = fields.replace('%Y', f'{m.year:04}').replace('%m', f'{m.month:02}')
        for part, value in (('%d', m.day), ('%H', m.hour), ('%M', m.minute), ('%S', m.second)):
            fields = fields.replace(part, f'{value:02}')
        return fields

    cells = [written(m) for m in moments]
    reading = read(cells, {'kind': 'date', 'format': format})
    exact = [m if '%H' in format else dt.datetime.combine(m, dt.time()) for m in moments]
    expected = [(max(exact) - m).total_seconds() / 86400 for m in exact]
    assert np.allclose(reading.values, expected, atol=1e-5, rtol=0)
    assert reading.changed == {'date to days': 28}
    stated = read(cells, {'kind': 'date', 'format': format, 'as_of': '2020-01-31'})
    shift = (dt.datetime(2020, 1, 31) - max(exact)).total_seconds() / 86400
    assert np.allclose(stated.values, np.array(expected) + shift, atol=1e-5, rtol=0)
    again = read_again(texts(cells[:1]), json.loads(json.dumps(reading.params)))
    assert again.iloc[0] == pytest.approx(reading.values[0], abs=1e-4)


def test_typed_dates_do_not_overflow():
    days = ['1066-10-14', '2020-01-31', '2300-01-01', 'NaT']
    column = pd.Series(np.array(days, dtype='datetime64[s]'), name='since')
    reading = read_column(column, kind=make_kind('date'))
    last = dt.date(2300, 1, 1).toordinal()
    expected = [last - dt.date.fromisoformat(d).toordinal() for d in days[:3]]
    assert reading.values[:3].tolist() == expected and np.isnan(reading.values[3])
    assert reading.params['as_of'] == '2300-01-01' and reading.changed == {'date to days': 3}
    assert read(days[:3], 'date').values.tolist() == expected
    zoned = pd.Series(pd.to_datetime(['2020-01-01', '2020-01-02'], utc=True), name='x')
    zoned = zoned.dt.tz_convert('Asia/Tokyo')
    assert read_column(zoned, kind=make_kind('date')).values.tolist() == [1, 0]
    with pytest.raises(DataError, match="column 'since' holds dates: kinds: {since: date}"):
        read_column(column)


@pytest.mark.parametrize('text', ['31.02.2020', '29.02.2021', '00.01.2020', '1.13.2020', 'soon'])
def test_days_that_do_not_exist(text):
    with pytest.raises(DataError, match=f"row 1 holds '{text}', which is no date"):
        read(['01.02.2020', text], {'kind': 'date', 'format': '%d.%m.%Y'})


# ---- the card


@pytest.mark.parametrize(
    'entry, message',
    [
        ('nubmer', "unknown kind 'nubmer'. Did you mean 'number'"),
        (3, 'a kind is a word'),
        ({}, 'a kind is a word'),
        ({'kind': 'category', 'decimal': ','}, "'decimal' has no meaning for kind category"),
        ({'kind': 'number', 'format': '%Y'}, "'format' has no meaning"),
        ({'kind': 'number', 'decimal': ';'}, 'decimal must be'),
        ({'kind': 'number', 'thousands': 'x'}, 'thousands must be'),
        ({'kind': 'number', 'thousands': ',', 'decimal': ','}, 'cannot mark both'),
        ({'kind': 'number', 'marks': [3]}, 'marks must be signs'),
        ({'kind': 'number', 'marks': 4}, 'marks must be a text or a list'),
        ({'kind': 'date', 'format': '%d.%m'}, 'is no format of a date'),
        ({'kind': 'date', 'format': '%Q'}, 'is no format of a date'),
        ({'kind': 'date', 'format': 3}, 'format must be a text'),
        ({'kind': 'date', 'as_of': 'today'}, 'as_of must be a date'),
    ],
)
def test_kinds_that_cannot_be_meant(entry, message):
    with pytest.raises(DataError, match=message):
        make_kind(entry, 'loans: kinds: x')


@pytest.mark.parametrize('kind', KINDS)
def test_the_card_wins(kind):
    cells = ['2020-01-01', '2020-01-03'] if kind == 'date' else ['1', '02']
    reading = read(cells, kind)
    assert reading.kind == kind and 'the card' in reading.why
    assert (reading.values.dtype == float) == (kind in ('number', 'date'))
    if kind in ('id', 'category', 'drop', 'weight', 'afterwards'):
        assert reading.values.tolist() == cells and reading.changed == {}


@FEW
@given(st.recursive(
    st.text(max_size=8) | st.integers(-99, 99),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
))  # fmt: skip
def test_proposed_lines_are_yaml(value):
    import yaml

    assert yaml.safe_load(card_text(value)) == value


# ---- every cell that changes is counted


WRITTEN = st.one_of(
    st.sampled_from(['?', 'NA', 'unknown', '-', 'None', 'nan', 'n/a', 'true', 'False', 'No', 'no']),
    st.integers(-10, 1000).map(str),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(-999, 999, places=2).map(str),
    st.floats(allow_nan=False).map(repr),
    st.integers(0, 10**7).map('{:,}'.format),
    st.integers(0, 99).map('{:03}'.format),
    st.integers(1, 99).map('{}%'.format),
    st.dates().map(str),
    st.text(max_size=6),
    st.text('0123456789.,-+eE %$()', max_size=7),
)
FAMILIES = st.one_of(
    st.lists(st.none() | WRITTEN, min_size=1, max_size=9),
    *(
        st.lists(st.none() | st.sampled_from(['?', 'NA', 'unknown']) | one, min_size=1, max_size=9)
        for one in (
            st.integers(-10, 1000).map(str),
            st.decimals(-999, 999, places=3).map(str),
            st.text('0123456789.,-+eE', max_size=6),
            st.dates().map(str),
            st.sampled_from(['true', 'False', 'TRUE', '1', 'x']),
            st.floats().map(repr),
            st.integers(2**52, 2**54).map(str),
        )
    ),
)
CARD = st.fixed_dictionaries(
    {},
    optional={
        'codes': st.lists(st.sampled_from(['?', -1, 5, 'unknown', 'true']), max_size=2),
        'same': st.dictionaries(
            st.sampled_from(['No', 'NA', '5', '?']), st.sampled_from(['no', '7'])
        ),
        'kind': st.sampled_from(
            [
                *('number', 'category', 'id', 'date'),
                {'kind': 'number', 'decimal': ','},
                {'kind': 'number', 'thousands': ',', 'marks': ['%', '$', '()']},
            ]
        ),
        'role': st.sampled_from(['feature', 'label', 'group', 'other']),
        'decimal': st.just(','),
    },
)


def canonical(text):
    "The canonical text of a cell; written here without the package."
    if re.fullmatch(r'[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)', text):
        short = format(Decimal(text), 'f')
        short = short.rstrip('0').rstrip('.') if '.' in short else short
        return '0' if Decimal(text) == 0 else short
    return text


def is_changed(raw, value):
    "Does a value say something else than the cell?"
    if raw is None:
        assert value is None or value != value
        return False
    if isinstance(value, float):
        try:
            exact = Decimal(raw.strip())
        except InvalidOperation:
            return True
        ascii_digits = re.fullmatch(r'[-+]?[0-9.]+([eE][-+]?[0-9]+)?', raw.strip())
        if (
            value != value
            or raw != raw.strip()
            or not ascii_digits
            or re.match(r'[-+]?0[0-9]', raw.strip())
        ):
            return True
        lost = exact != Decimal(repr(value)) and (value == 0 or abs(value) >= 2**53)
        return float(exact) != value or lost
    return value != canonical(raw)


def as_number(text):
    "The number of a constant column, such as '0' where '0E0' was written; other texts as they are."
    return float(text) if re.fullmatch(r'-?[0-9.]+|-?[0-9.]+e[-+][0-9]+', text) else text


@MANY
@given(FAMILIES, CARD)
def test_no_cell_changes_without_being_counted(cells, card):
    options = card | ({'kind': make_kind(card['kind'])} if 'kind' in card else {})
    try:
        reading = read_column(texts(cells), **options)
    except DataError as e:
        assert "column 'x'" in str(e) and '\n' not in str(e).replace(repr('\n'), '')
        return
    values = reading.values.tolist()
    if reading.kind == 'constant' and not any(re.match('[-+]?0[0-9]', c) for c in cells):
        values = [as_number(v) for v in values]
    changed = [is_changed(raw, value) for raw, value in zip(cells, values)]
    merged = reading.changed.get('merged', 0)  # a merged cell may also be a missing code
    assert sum(changed) <= sum(reading.changed.values()) <= sum(changed) + merged
    if not merged:
        assert sum(reading.changed.values()) == sum(changed)
    if reading.values.dtype == float:
        assert np.isfinite(reading.values.dropna()).all()
    json.dumps(reading.params)


@MANY
@given(FAMILIES, CARD, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_and_one_row_is_read_as_all(cells, card, rng):
    options = card | ({'kind': make_kind(card['kind'])} if 'kind' in card else {})
    order = list(range(len(cells)))
    rng.shuffle(order)
    shuffled = texts([cells[k] for k in order])
    try:
        reading = read_column(texts(cells), **options)
    except DataError:
        with pytest.raises(DataError):
            read_column(shuffled, **options)
        return
    other = read_column(shuffled, **options)
    for name in ('kind', 'why', 'changed', 'flags', 'params', 'seen'):
        assert getattr(other, name) == getattr(reading, name), name
    same = reading.values.iloc[order].reset_index(drop=True)
    pd.testing.assert_series_equal(other.values, same)
    if reading.kind in ('number', 'date', 'category'):
        params = json.loads(json.dumps(reading.params))
        pd.testing.assert_series_equal(read_again(texts(cells), params), reading.values)
        for k in range(len(cells)):
            alone = read_again(texts([cells[k]]), params)
            pd.testing.assert_series_equal(alone, reading.values.iloc[[k]].reset_index(drop=True))


@FEW
@given(FAMILIES, st.sampled_from(['x', 'id', 'fnlwgt', 'zip_code', 'number']))
def test_a_proposal_never_fails_and_its_entry_can_be_read(cells, name):
    proposal = looks_like(texts(cells, name))
    for entry in (proposal.kind, *proposal.others):
        if entry is not None:
            codes = None if not proposal.codes else list(proposal.codes)
            read(cells, entry, name=name, codes=codes)


# ---- proposals


def test_identifiers_need_a_name():
    for name in (
        'id',
        'id_student',
        'case_id',
        'EmpID',
        'userId',
        'policy number',
        'file_nr',
        'uuid',
    ):
        assert is_id_name(name), name
    for name in (
        'paid',
        'valid',
        'casino',
        'income',
        'note',
        'covid',
        'number_of_children',
        'humid',
    ):
        assert not is_id_name(name), name
    rng = np.random.default_rng(0)
    unique = pd.Series(rng.permutation(1000))
    assert looks_like(unique.rename('income')).kind is None
    assert looks_like(unique.rename('person_id')).kind == 'id'
    assert looks_like(pd.Series(rng.integers(0, 10**6, 500), name='id_student')).kind == 'id'
    assert looks_like(pd.Series(rng.normal(size=500), name='case_number')).kind is None
    assert any('counts the rows' in n for n in looks_like(unique.rename('row')).notes) or (
        looks_like(unique.rename('position')).notes
    )
    assert looks_like(texts([f'person {k}' for k in range(100)], 'name')).kind == 'id'
    repeated = looks_like(pd.Series(np.repeat(np.arange(100), 5), name='patient_id'))
    assert repeated.kind == 'id' and repeated.question


def test_names_of_people_and_weights_are_flagged_where_they_are_read():
    rng = np.random.default_rng(0)
    students = read_column(pd.Series(rng.integers(0, 10**6, 500), name='id_student'))
    assert students.kind == 'number'
    assert any('person: id_student' in f and 'id_student: id' in f for f in students.flags)
    assert any('kinds: {fnlwgt: weight}' in f for f in read(['1', '2', '3'], name='fnlwgt').flags)
    assert not read_column(pd.Series(rng.integers(0, 9, 500), name='number')).flags


def test_weights_and_codes_are_questions():
    values = pd.Series(np.random.default_rng(0).integers(1000, 9000, 300))
    for name in ('fnlwgt', 'perwt', 'sample_weight', 'survey weight', 'pwgt'):
        proposal = looks_like(values.rename(name))
        assert (proposal.kind, proposal.question) == ('weight', True), name
    for name in ('weight', 'birth_weight', 'height'):
        assert looks_like(values.rename(name)).kind is None, name
    codes = pd.Series([1, 2, 3, 4] * 50)
    for name in ('job_type', 'zip', 'region', 'state'):
        assert looks_like(codes.rename(name)).kind == 'category', name
        assert looks_like(codes.rename(name)).question
    assert looks_like(codes.rename('rooms')).kind is None
    assert looks_like(texts(['01', '02', '10'] * 9, 'k')).kind == 'category'


def test_missing_codes_and_spellings_are_proposed_with_counts():
    proposal = looks_like(pd.Series([20, 31, 47, 999, 999, -1], name='age'))
    assert set(proposal.codes) == {'999', '-1'} and '2 rows' in proposal.codes['999']
    proposal = looks_like(texts(['3', '4', '8', '?', 'unknown', 'x1'], 'ca'))
    assert {'?', 'unknown'} <= set(proposal.codes)
    proposal = looks_like(texts(['3', '4', '8', '?'], 'ca'))
    assert proposal.sure == ('?',) and proposal.kind is None
    words = ['No', 'no', 'Yes', 'yes.', 'Zürich', 'Zurich', 'a-b', 'a_b']
    assert len(looks_like(texts(words)).same) == 4
    assert looks_like(texts(['?', 'NA', '7', '8,5', '9'])).kind == {
        'kind': 'number',
        'decimal': ',',
    }


# ---- labels


def label(values, **options):
    return read_column(texts(values, 'y'), role='label', **options)


def card(**entries):
    return Card('y', 's', **entries)


@pytest.mark.parametrize(
    'cells, entries, y',
    [
        (['0', '1', '1.0'], {}, [0, 1, 1]),
        (['True', 'false', 'TRUE'], {}, [1, 0, 1]),
        (['True', 'false'], {'positive': False}, [0, 1]),
        (['True', 'false', 'unsure'], {'positive': True, 'negative': [False, 'unsure']}, [1, 0, 0]),
        (['a', 'b'], {'positive': 'b'}, [0, 1]),
        (['1', '2', '3'], {'positive': [3], 'negative': [1, 2]}, [0, 0, 1]),
        (['1', '-1', '0'], {'positive': 1, 'unlabelled': [-1]}, [1, -1, 0]),
        (['1', '?', '0'], {'unlabelled': '?'}, [1, -1, 0]),
        (['1', '?', '0'], {'positive': 1, 'negative': [0, '?']}, [1, 0, 0]),
        (['4', '9.5', '12'], {'positive': {'min': 9.5}}, [0, 1, 1]),
        (['4', '9', '12', '-1'], {'positive': {'min': 9}, 'unlabelled': -1}, [0, 1, 1, -1]),
        (
            ['>50K', '<=50K', '>50K.'],
            {'positive': ['>50K', '>50K.'], 'negative': '<=50K'},
            [1, 0, 1],
        ),
    ],
)
def test_outcomes(cells, entries, y):
    assert outcomes_of(label(cells), card(**entries), 'toy').tolist() == y
    rule = label_rule(label(cells), card(**entries), np.array(y))
    assert rule.startswith('y: ') and '(1) against' in rule
    assert (-1 in y) == ('without a label' in rule)


@pytest.mark.parametrize(
    'cells, entries, message',
    [
        (['1', '2'], {}, r'other than 0 and 1 need positive.*positive: \[1\], negative: \[2\]'),
        (['-1', '1'], {}, r'need positive.*positive: \[1\], negative: \[-1\]'),
        (['yes', 'no'], {}, r'need positive.*positive: \["yes"\], negative: \["no"\]'),
        (['1', '0', '-1'], {'positive': 1}, r'negative: \[0\], unlabelled: \[-1\]'),
        (['a', 'b', 'c'], {'positive': ['a']}, "'b', 'c' are on neither side"),
        (['a', 'b', 'c'], {'positive': ['a', 'b']}, r"'c' is on neither .*negative: \[c\]"),
        (['a', 'b', 'unknown'], {'positive': 'a'}, r'negative: \[b\], unlabelled: \[unknown\]'),
        (
            ['>50K', '<=50K', '>50K.', '<=50K.'],
            {'positive': '>50K'},
            r'4 values.*positive: \[">50K", ">50K."\], negative: \["<=50K", "<=50K."\].*'
            r'same: \{y: \{"<=50K.": "<=50K", ">50K.": ">50K"\}\}',
        ),
        (['0', '1', '?'], {}, r"says '\?' in 1 row .*row 12\).*unlabelled: \[.\?.\]"),
        (['0', '1', None], {}, "'y', row 12 is missing"),
        (['a', 'b', 'b'], {'positive': 'c'}, "'c' does not occur"),
        (['a', 'b', 'b'], {'positive': 'a', 'negative': 'c'}, "'c' does not occur"),
        (['a', 'b', 'b'], {'positive': 'a', 'negative': ['a', 'b']}, 'both positive and negative'),
        (['a', 'b', 'b'], {'positive': 'a', 'unlabelled': 'a'}, 'a label and unlabelled'),
        (['a', 'b', 'b'], {'positive': ['a', 'b']}, 'on one side'),
        (['a', 'a', 'a'], {'positive': 'a'}, 'in every row'),
        (['4', '9', 'x'], {'positive': {'min': 5}}, "needs numbers, but 'y', row 12 holds 'x'"),
        (['4', '9', '7'], {'positive': {'min': 8}, 'negative': {'max': 5}}, 'row 12 .*neither'),
        (['4', '9', '7'], {'positive': {'over': 8}}, 'a range is'),
    ],
)  # fmt: skip
def test_outcomes_that_nobody_has_said(cells, entries, message):
    with pytest.raises(DataError, match=message) as refusal:
        reading = replace(label(cells), rows=np.arange(10, 10 + len(cells)))
        outcomes_of(reading, card(**entries), 'toy')
    assert '\n' not in str(refusal.value)


def test_the_proposed_lines_give_the_right_label():
    import yaml

    cells = ['>50K', '<=50K', '>50K.', '<=50K.', '>50K']
    with pytest.raises(DataError) as refusal:
        outcomes_of(label(cells), card(positive='>50K'), 'toy')
    line = re.search(r'name both sides (.*?); some', str(refusal.value))[1]
    sides = yaml.safe_load('{' + line + '}')
    assert outcomes_of(label(cells), card(**sides), 'toy').tolist() == [1, 0, 1, 0, 1]
    same = {'>50K.': '>50K', '<=50K.': '<=50K'}
    merged = label(cells, same=same)
    assert merged.changed == {'merged': 2}
    for positive in ('>50K', '>50K.'):
        assert outcomes_of(merged, card(positive=positive), 'toy').tolist() == [1, 0, 1, 0, 1]


def test_an_unlabelled_value_that_never_occurs_is_warned_about():
    with pytest.warns(DataWarning, match="unlabelled '-1' does not occur"):
        outcomes_of(label(['0', '1']), card(unlabelled=-1), 'toy')


# ---- groups


@pytest.mark.parametrize(
    'column',
    [
        pd.Series([1.0, 2.0, 1.0], name='s'),
        texts(['1.0', '2', '1'], 's'),
        pd.Series([1, 2, 1], dtype='Int64', name='s'),
        pd.Series(pd.Categorical(['1', '2', '1']), name='s'),
        pd.Series([1, '2', Decimal(1)], dtype=object, name='s'),
    ],
)
@pytest.mark.parametrize('privileged', [1, 1.0, '1', '1.0', [1], ['1.0'], {'max': 1}])
def test_a_group_is_the_same_however_it_is_written(column, privileged):
    groups = groups_of(read_column(column, role='group'), card(privileged=privileged), 'toy')
    assert groups.sens.tolist() == [1, 0, 1]
    recipe = {'name': 's', 'fill': None, **groups.coding}
    recipe = json.loads(json.dumps(recipe))
    for new in ([1, 2], ['1.0', '2.0'], [1.0, 2.0], [Decimal(1), 2]):
        assert encode_raw(pd.DataFrame({'s': new}), [recipe]).tolist() == [[1], [0]]


def test_groups_that_may_be_missing_are_asked_for():
    cells = ['a', 'b', '?', 'a']
    reading = read_column(texts(cells, 's'), role='group')
    with pytest.raises(DataError, match=r"says '\?' in 1 row .*row 7.*na_values: {s: \[.\?.\]}"):
        groups_of(replace(reading, rows=np.arange(5, 9)), card(privileged='a'), 'toy')
    for entries in (dict(na_values={'s': []}, privileged='a'), dict(privileged=['a', '?'])):
        groups = groups_of(reading, card(**entries), 'toy')
        assert groups.sens.tolist() == [1, 0, int('?' in entries['privileged']), 1]
    known = read_column(texts(cells, 's'), role='group', codes=['?'])
    with pytest.raises(DataError, match='row 2 is missing'):
        groups_of(known, card(privileged='a'), 'toy')
    kept = at_rows(known, np.array([0, 1, 3]))
    assert groups_of(kept, card(privileged='a'), 'toy').sens.tolist() == [1, 0, 1]
    assert kept.rows.tolist() == [0, 1, 3]


def containers(values):
    "The same values in every container that people use."
    import polars
    import pyarrow

    holes = np.ma.masked_array([str(v) for v in values], mask=[v is None for v in values])
    yield from (list(values), tuple(values), np.array(values, dtype=object), holes)
    yield from (pd.Series(values), pd.Series(values, dtype='string'), pd.DataFrame({'s': values}))
    yield from (pd.Series(pd.Categorical(values)), np.array(values, dtype=object)[:, None])
    yield from (polars.Series(values), polars.DataFrame({'s': values}), pyarrow.array(values))
    yield from (
        pyarrow.chunked_array([values]),
        pyarrow.table({'s': values}),
        [[v] for v in values],
    )
    yield pd.Index(values)


def test_groups_come_in_any_container():
    for values in containers(['f', 'm', 'f', 'x']):
        sens, names = reduce_groups(values, privileged=['m', 'x'])
        assert sens.tolist() == [0, 1, 0, 1] and names == ('f', 'm or x'), type(values)
    for values in (
        torch.tensor([0, 1, 0]),
        torch.tensor([[0], [1], [0]]),
        np.array([False, True, False]),
    ):
        assert reduce_groups(values)[0].tolist() == [0, 1, 0]
    assert reduce_groups([9, 10])[0].tolist() == [0, 1]  # the larger number, not the later text
    for wrong in ('fm', 3, {'a': 1}, None, [[1, 2], [1]], [[1, 2], 3], np.ones((3, 0))):
        with pytest.raises(DataError, match='one value per person'):
            reduce_groups(wrong)
    for wrong in (np.ones((3, 2)), [[1, 2], [1, 2]], pd.DataFrame({'a': [1], 'b': [2]})):
        with pytest.raises(DataError, match='in every row: both values must occur'):
            reduce_groups(wrong)


def test_a_missing_group_is_refused_in_every_container():
    for values in containers(['f', 'm', None, 'f', None]):
        with pytest.raises(DataError, match=r'row 2 is missing.*2 rows'):
            reduce_groups(values, privileged='m')
    for gap in (
        np.nan,
        pd.NA,
        pd.NaT,
        'nan',
        'None',
        'NA',
        '<NA>',
        '',
        ' ',
        'NaN',
        np.float32('nan'),
    ):
        for more in ({}, {'privileged': 'm'}):
            with pytest.raises(DataError, match='row 1 is missing'):
                reduce_groups(['f', gap, 'm'], **more)
    with pytest.raises(DataError, match='row 1 is missing .it says .nan'):
        reduce_groups(np.array(['f', np.nan, 'm']))
    for column in (
        pd.Series([0, None, 1], dtype='Int64'),
        pd.Series([0.0, np.nan, 1]),
        np.ma.masked_equal([0, 9, 1], 9),
    ):
        with pytest.raises(DataError, match='row 1 is missing'):
            reduce_groups(column)
    assert reduce_groups(['NA', 'EU'], privileged='NA')[0].tolist() == [1, 0]  # North America


# ---- recipes and new people


def learnt(frame, kinds=None, **options):
    readings = {
        c: read_column(
            frame[c], kind=make_kind(kinds[c]) if c in (kinds or {}) else None, **options
        )
        for c in frame
    }
    train = np.arange(len(frame))
    return [column_recipe(r, train, True, 'toy') for r in readings.values()], readings


def test_new_people_are_read_by_the_same_rules():
    frame = pd.DataFrame(
        {
            'income': ['1.400,5', '900', '2.000'],
            'since': ['01.03.2020', '31.12.2019', '05.01.2020'],
            'owner': ['True', 'false', 'TRUE'],
            'job': ['clerk', 'Clerk', 'smith'],
            'zip': ['007', '010', '007'],
        }
    )
    kinds = {
        'income': {'kind': 'number', 'thousands': '.'},
        'since': {'kind': 'date', 'format': '%d.%m.%Y'},
    }
    columns, _ = learnt(frame, kinds)
    columns = json.loads(json.dumps(columns))
    assert feature_names(columns) == [
        *('income', 'since', 'owner', 'job=Clerk', 'job=clerk', 'job=smith', 'zip=007', 'zip=010')
    ]
    raw = encode_raw(frame, columns)
    assert raw[0].tolist() == [1400.5, 0, 1, 0, 1, 0, 1, 0]
    assert raw[1, :3].tolist() == [900, 61, 0]
    for k in range(3):
        assert encode_raw(frame.iloc[[k]], columns).tolist() == raw[[k]].tolist()
    recipe = {'columns': columns, 'x_min': raw.min(0), 'x_max': raw.max(0)}
    whole = encode(frame, recipe)
    import polars
    import pyarrow

    for people in (
        frame.to_dict('records'),
        polars.from_pandas(frame),
        pyarrow.Table.from_pandas(frame),
    ):
        assert torch.equal(encode(people, recipe), whole), type(people)
    assert encode(frame.iloc[:0], recipe).shape == (0, 8)
    typed = frame.assign(
        since=pd.to_datetime(frame.since, format='%d.%m.%Y'), owner=[True, False, True]
    )
    assert torch.equal(encode(typed, recipe), whole)
    for column, value, message in (
        ('income', '1,400.5', "'income', row 1 holds '1,400.5', which is no number"),
        ('since', '2020-03-01', "'since', row 1 holds '2020-03-01', which is no date"),
        ('job', 'pilot', "'job', row 1 holds 'pilot'.*known: Clerk, clerk, smith"),
        ('zip', '7', "'zip', row 1 holds '7'"),
        ('owner', 'maybe', "'owner', row 1 holds 'maybe'"),
    ):
        with pytest.raises(DataError, match=message):
            changed = frame[column].tolist()
            changed[1] = value
            encode(frame.assign(**{column: changed}), recipe)


def test_gaps_of_new_people_are_filled_from_the_training_rows_or_refused():
    frame = pd.DataFrame({'a': ['1', '?', '9', '5'], 'b': ['x', 'y', None, 'y']})
    columns, readings = learnt(frame)
    assert [c['fill'] for c in columns] == [5, 'y']
    assert encode_raw(pd.DataFrame({'a': ['NA'], 'b': [None]}), columns).tolist() == [[5, 0, 1]]
    strict = [column_recipe(r, np.arange(4), False, 'toy') for r in readings.values()]
    with pytest.raises(DataError, match="'a', row 0 is missing .*nothing to fill"):
        encode_raw(pd.DataFrame({'a': ['?'], 'b': ['x']}), strict)
    with pytest.raises(DataError, match='no value in the training rows'):
        column_recipe(readings['b'], np.array([2]), True, 'toy')


def test_recipes_of_earlier_versions_still_encode():
    old = [
        {'name': 'age', 'kind': 'number', 'fill': 30.0},
        {'name': 'job', 'kind': 'category', 'values': ['1.0', ' clerk', '2'], 'fill': None},
        {'name': 's', 'kind': 'codes', 'codes': {'f': 0, 'm': 1}, 'fill': None},
        {'name': 'points', 'kind': 'range', 'min': 3, 'fill': None},
    ]
    people = pd.DataFrame({'age': [None, 41], 'job': ['1.0', 2], 's': ['m', 'f'], 'points': [1, 5]})
    assert encode_raw(people, old).tolist() == [[30, 1, 0, 0, 1, 0], [41, 0, 0, 1, 0, 1]]
    clerk = people.assign(job='clerk')
    assert encode_raw(clerk, old)[:, 1:4].tolist() == [[0, 1, 0]] * 2
    with pytest.raises(DataError, match="row 0 holds 'old'"):
        encode_raw(people.assign(age='old'), old)


# ---- speed


def test_long_columns_are_read_at_once():
    rng = np.random.default_rng(0)
    numbers = pd.Series(rng.normal(size=1_000_000), name='x')
    written = texts([f'{v:.4f}' for v in rng.normal(size=50_000)])
    for column, most in ((numbers, 0.5), (written, 1.0)):
        start = time.process_time()
        assert read_column(column).kind == 'number'
        assert time.process_time() - start < most
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert looks_like(written).kind is None


@pytest.mark.parametrize('format', ['%Y-%m', '%m/%Y', '%b-%Y', '%b-%y'])
def test_months_are_dates(format):
    months = pd.date_range('2018-01-01', periods=30, freq='31D').strftime(format)
    with pytest.raises(DataError, match=re.escape(f'format: "{format}"')):
        read_column(pd.Series(months, name='issued', dtype=object))
    school = pd.Series(['2017-18', '2018-19'] * 9, name='year')
    assert read_column(school).kind == 'category'


def test_dates_that_mean_none_are_pointed_out():
    days = pd.date_range('2018-01-01', periods=30).strftime('%Y-%m-%d').tolist()
    column = pd.Series([*days, '9999-12-31', '1900-01-01'], name='since')
    flags = read_column(column, kind=make_kind('date')).flags
    assert [f.split(' (')[0] for f in flags] == ['since: 1900-01-01', 'since: 9999-12-31']
    assert not read_column(pd.Series(days, name='since'), kind=make_kind('date')).flags


def test_codes_with_and_without_zeros_may_be_one_value():
    assert spelling_variants({'01': 90, '02': 80, '1': 2}) == {'1': '01'}
    assert spelling_variants({'10': 9, '1': 2, '0': 3}) == {}


@pytest.mark.parametrize(
    'texts, entry, values',
    [
        (['36 months', '60 months', '1 month'], {'marks': ['month', 'months']}, [36, 60, 1]),
        (['73k', '41k', '8k'], {'marks': ['k']}, [73, 41, 8]),
        (['1,5 kg', '2,25 kg', '3 kg'], {'decimal': ',', 'marks': ['kg']}, [1.5, 2.25, 3]),
    ],
)
def test_numbers_with_a_unit_in_words_are_asked_about(texts, entry, values):
    column = pd.Series(texts * 4, name='term')
    with pytest.raises(DataError, match=r'kinds: \{term: \{kind: number, .*category'):
        read_column(column)
    assert looks_like(column).kind == {'kind': 'number'} | entry
    read = read_column(column, kind=make_kind({'kind': 'number'} | entry))
    assert read.values.tolist() == values * 4 and read.changed == {'marks removed': 12}


@pytest.mark.parametrize(
    'texts',
    [
        ['10th', '11th', '12th'],
        ['5A', '7A', '9A'],
        ['1 child', '2 children'],
        ['3 kg', '4 lb', '5 kg'],
    ],
)
def test_what_only_begins_with_a_number_is_a_category(texts):
    assert read_column(pd.Series(texts * 4, name='level')).kind == 'category'
