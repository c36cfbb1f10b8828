"""Files and data frames as raw columns: dialects, formats, types, and what is refused."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_expert.data import reading
from moe_expert.data.catalogue import is_path
from moe_expert.data.reading import (
    TABLES,
    Reader,
    is_table,
    make_reader,
    propose_reader,
    raw_table,
    read_table,
    table_suffix,
)
from moe_expert.errors import DataError, DataWarning

BOM = b'\xef\xbb\xbf'


@pytest.fixture
def write(tmp_path):
    "Write a file, return its path."

    def to(content, name='t.csv'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


def held(table):
    "Columns as lists, with None for each kind of missing value."
    return {
        n: [None if pd.isna(v) else v for v in table.frame[n].tolist()] for n in table.frame.columns
    }


def refused(call, *said):
    "The message of the package's error: one line that holds each of these texts."
    with warnings.catch_warnings():
        warnings.simplefilter('error', ResourceWarning)
        with pytest.raises(DataError) as caught:
            call()
    message = str(caught.value)
    assert '\n' not in message
    for text in said:
        assert text in message, message
    return message


def from_line(message):
    "The entries of the reader that a message proposes."
    (line,) = yaml.safe_load('[' + message[message.index('reader: ') :] + ']')
    return line['reader']


# --- Texts ---------------------------------------------------------------------------------


def test_cells_are_what_is_written(write):
    path = write('id,a1c,code,ratio\n007,None,1.0,1e3\n010,NA,1,"1,400"\n011,nan,,"say ""no"""\n')
    table = read_table(path)
    assert held(table) == {
        'id': ['007', '010', '011'],
        'a1c': ['None', 'NA', 'nan'],
        'code': ['1.0', '1', None],
        'ratio': ['1e3', '1,400', 'say "no"'],
    }
    assert {t.kind for t in table.frame.dtypes} == {'O'}
    assert table.frame['code'].tolist()[2] is None
    assert table.rows.tolist() == [0, 1, 2] and table.n_file == 3 and not table.changed


def test_one_code_stays_one_text_in_a_long_file(write):
    "pandas would type the first chunk as numbers and the second as text."
    n = 70_000
    path = write('race,y\n' + '1.0,0\n' * n + 'unknown,1\n')
    assert set(read_table(path).frame['race']) == {'1.0', 'unknown'}


def test_blanks_are_trimmed_and_counted(write):
    path = write('age, work\n31, ?\n42 ,State\n43,  \n')
    table = read_table(path)
    assert held(table) == {'age': ['31', '42', '43'], 'work': ['?', 'State', None]}
    assert table.changed == {'age': {'trimmed': 1}, 'work': {'trimmed': 2}}
    raw = read_table(path, {'trim': False})
    assert held(raw) == {'age': ['31', '42 ', '43'], ' work': [' ?', 'State', '  ']}
    assert not raw.changed


def test_blanks_before_quotation_marks(write):
    table = read_table(write('a, b\n1, "x, ""y"""\n2, z\n'))
    assert held(table) == {'a': ['1', '2'], 'b': ['x, "y"', 'z']}


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_line_ends(write, end):
    text = end.join(['a,b', '1,"x\ny"', '2,z', ''])
    assert held(read_table(write(text))) == {'a': ['1', '2'], 'b': ['x\ny', 'z']}


def test_mixed_line_ends_and_blank_lines(write):
    table = read_table(write('a,b\r\n1,x\r2,y\n\n3,z'))
    assert held(table) == {'a': ['1', '2', '3'], 'b': ['x', 'y', 'z']}
    assert table.notes == {'blank lines': '1; they are no rows'}


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_a_byte_order_mark_says_the_encoding(write, encoding):
    table = read_table(write('größe,y\n1,é\n'.encode(encoding)))
    assert held(table) == {'größe': ['1'], 'y': ['é']}


def test_a_wrong_encoding_names_byte_line_and_cure(write):
    path = write('city,y\nBonn,1\nMálaga,0\n'.encode('latin-1'))
    message = refused(lambda: read_table(path), 't.csv', 'line 3', '0xe1')
    assert from_line(message) == {'encoding': 'latin-1'} == propose_reader(path)[0]
    assert held(read_table(path, from_line(message)))['city'] == ['Bonn', 'Málaga']
    path = write(('x,y\n' + 'a,1\n' * 5000 + 'é,1\n').encode('latin-1'))
    refused(lambda: read_table(path), 'line 5002')
    assert propose_reader(path)[0] == {'encoding': 'latin-1'}
    refused(
        lambda: read_table(write('x,y\n1,2\n'), {'encoding': 'utf-16'}), 'not written in utf-16'
    )
    path = write('note,y\n10 €,1\n'.encode('cp1252'))
    assert from_line(refused(lambda: read_table(path))) == {'encoding': 'cp1252'}
    path = write(BOM + 'é,y\n1,2\n'.encode())
    refused(lambda: read_table(path, {'encoding': 'latin-1'}), 'byte order mark', 'utf-8')


@pytest.mark.parametrize(
    'content, said',
    [
        (b'', 'empty'),
        (b'\n \n', 'empty'),
        (BOM, 'empty'),
        ('a,b\n', 'no rows'),
        ('a,b\n1,2\x00\n', 'NUL'),
        ('a,b\n1,"2\n3,4\n', 'line 2: a quotation mark is opened and never closed'),
        ('a,b\n1,"2"3\n', 'line 2'),
        ('a,b\n1,2\n1,2,3\n', 'row 1 (line 3) has 3 cells, the header 2'),
        ('a,b\n1,2\n1\n', 'row 1 (line 3) has 1 cell, the header 2'),
        ('a,b\n"1\n2",2\n1\n', 'row 1 (line 4) has 1 cell, the header 2'),
        ('a,b\n1,2\n1,2,\n', 'the line ends with a separator'),
        ('a,b\n1,2,\n1,2\n', 'the lines before it end with a separator'),
        ('a,b\n0,1,2\n1,1,2\n', 'row number'),
        ('a,,c\n1,2,3\n', 'column 2 of 3 has no name'),
        (',\n1,2\n', 'no column with a name'),
        (',a\nx,3\ny,4\n', 'column 1 of 2 has no name'),
        ('a,a\n1,2\n', "2 columns have the same name, 'a'"),
        ('a, a\n1,2\n', "2 columns have the same name, 'a'"),
        (b'\x1f\x8b\x08', 'gzip'),
        (b'PK\x03\x04', '.xlsx'),
        ('<!DOCTYPE html>', 'web page'),
    ],
)
def test_faults_of_a_text(write, content, said):
    path = write(content)
    refused(lambda: read_table(path), str(path), said)


def test_a_separator_at_the_end_of_every_line(write):
    table = read_table(write('a,b\n1,2,\n3,4,\n'))
    assert held(table) == {'a': ['1', '3'], 'b': ['2', '4']} and 'trailing separator' in table.notes
    table = read_table(write('a,b,\n1,2,\n3,4,\n'))
    assert held(table) == {'a': ['1', '3'], 'b': ['2', '4']} and 'empty columns' in table.notes
    said = {'header': False, 'columns': ['a', 'b']}
    assert held(read_table(write('1,2,\n3,4,\n'), said)) == {'a': ['1', '3'], 'b': ['2', '4']}


def test_a_header_in_the_middle_is_left_out_and_rows_keep_their_numbers(write):
    path = write('id,y\n7,a\nid,y\n8,b\n id ,y\n')
    with pytest.warns(DataWarning, match='rows 1, 3 repeat the header'):
        table = read_table(path)
    assert held(table) == {'id': ['7', '8'], 'y': ['a', 'b']}
    assert table.rows.tolist() == [0, 2] and table.n_file == 4
    assert table.notes == {'rows left out': 'rows 1, 3 repeat the header'}


def test_rows_of_xlsx_are_those_of_csv(tmp_path, write):
    book = openpyxl.Workbook()
    for row in (['id', 'y'], [7, 'a'], ['id', 'y'], [None, None], [8, 0]):
        book.active.append(row)
    book.active['B5'] = datetime.timedelta(1)
    book.save(tmp_path / 't.xlsx')
    with pytest.warns(DataWarning, match='row 1 repeats'):
        refused(lambda: read_table(tmp_path / 't.xlsx'), "column 'y', row 2 holds a timedelta")


@pytest.mark.parametrize('name', ['', 'Unnamed: 0'])
def test_an_index_column_is_left_out_and_named(write, name):
    path = write(f'{name},x\n0,5\n1,6\n')
    table = read_table(path)
    assert held(table) == {'x': ['5', '6']} and "'Unnamed: 0'" in table.notes['index column']
    for asked in ({'wanted': ['Unnamed: 0', 'x']}, {'drop': ['Unnamed: 0']}):
        assert list(read_table(path, **asked).frame) == ['Unnamed: 0', 'x']
    frame = pd.read_csv(path)
    assert list(raw_table(frame).frame) == ['x'] == list(raw_table(pl.from_pandas(frame)).frame)


def test_a_saved_index_is_left_out_twice(write):
    frame = pd.DataFrame({'x': ['a', 'b']})
    path = write(frame.to_csv())
    twice = pd.read_csv(path).to_csv()
    assert list(read_table(write(twice)).frame) == ['x']
    assert list(raw_table(pd.DataFrame({'Unnamed: 0': [0.0, 1.0], 'x': [1, 2]})).frame) == ['x']
    named = write('x,Unnamed: 1\n5,0\n6,1\n')
    assert list(read_table(named).frame) == ['x', 'Unnamed: 1'], 'not in front: no index'


def test_twins_in_drop(write):
    path = write('score,age,score\n4,41,9\n')
    assert refused(lambda: read_table(path), 'drop: [score]')
    table = read_table(path, drop=['score'])
    assert held(table) == {'score': ['4'], 'age': ['41']} and 'score' in table.notes['twin columns']
    assert list(read_table(path, drop='score').frame) == ['score', 'age']


# --- Dialects ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, entries, first',
    [
        ('x;sex;y\n0;f;1\n', {'separator': ';'}, ['0', 'f', '1']),
        ('x\ty\n0\t1\n', {'separator': '\t'}, ['0', '1']),
        ('x|y\n0|1\n', {'separator': '|'}, ['0', '1']),
        ('x  y z\n0 1   a\n', {'separator': 'blanks'}, ['0', '1', 'a']),
        ('x;y\n1,5;2\n3;4\n', {'separator': ';', 'decimal': ','}, ['1,5', '2']),
        (
            'x;y\n1.400,5;2\n3;4\n',
            {'separator': ';', 'decimal': ',', 'thousands': '.'},
            ['1.400,5', '2'],
        ),
        ('Title\n\nx;y\n1;2\n3;4\n', {'separator': ';', 'skip': 1}, ['1', '2']),
        ('# one\n# two\nx,y,z\n1,2,3\n3,4,5\n', {'comment': '#'}, ['1', '2', '3']),
        ('sep=;\nx;y\n1;2\n', {'skip': 1, 'separator': ';'}, ['1', '2']),
        ('sep=,\nx,y\n1,2\n', {'skip': 1}, ['1', '2']),
        ('A 6 x\nB 48 x\nA 7 y\n', {'separator': 'blanks', 'header': False}, ['A', '6', 'x']),
    ],
)
def test_a_wrong_dialect_is_an_error_with_the_line_that_mends_it(write, text, entries, first):
    path = write(text)
    assert propose_reader(path)[0] == entries
    assert len(propose_reader(path)[1]) == len(entries)
    message = refused(lambda: read_table(path, wanted=['y']), str(path))
    assert from_line(message) == entries
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_table(path, from_line(message)).frame.iloc[0].tolist() == first


def test_one_column_is_shown(write):
    path = write('school;sex;y\nGP;f;1\n')
    message = refused(lambda: read_table(path))
    assert message == f'{path}: found one column \'school;sex;y\': reader: {{separator: ";"}}'
    path = write('a,b\n1,2\n', 't.tsv')
    assert from_line(refused(lambda: read_table(path))) == {'separator': ','}
    path = write('"x,y"\n"1,2"\n')
    refused(lambda: read_table(path, wanted=['y']), "'x,y'", 'quotation marks around whole lines')
    path = write('x;y\n' + '1;2\n' * 20 + '1;2;3\n')
    assert from_line(refused(lambda: read_table(path))) == {'separator': ';'}
    refused(lambda: read_table(path, {'separator': ';'}), 'row 20')
    assert held(read_table(write('a\n1\n2\n'))) == {'a': ['1', '2']}, 'a single column may be one'


@pytest.mark.parametrize(
    'text',
    [
        '39, State-gov, Male\n50, Private, Male\n38, State-gov, Female\n',
        '1,2,2\n3,4,5\n',
        'p,x,s\ne,x,s\np,y,s\n',
    ],
)
def test_a_first_line_of_data(write, text):
    path = write(text)
    message = refused(lambda: read_table(path), 'looks like data', 'header: false, columns')
    assert message and propose_reader(path)[0] == {'header': False}
    assert len(read_table(path, {'header': False}).frame) == text.count('\n')
    names = {'columns': ['a', 'b', 'c']}
    assert list(read_table(path, names).frame) == ['a', 'b', 'c']
    assert len(read_table(path, names | {'header': False}).frame) == text.count('\n')


@pytest.mark.parametrize(
    'text',
    ['0,1,2\n5,6,7\n', '1990,1991\n5,6\n', 'x,y\n1,2\n', 'a,1\n1,2\n', 'yes,no\n1,0\n'],
)
def test_names_that_could_be_data(write, text):
    path = write(text)
    assert list(read_table(path).frame) == text.split('\n')[0].split(',')
    assert propose_reader(path) == ({}, [])


def test_twin_numbers_are_no_header(write):
    assert 'header: false' in refused(lambda: read_table(write('0,5,5\nx,y,z\n')))


def test_entries_of_the_reader(write):
    path = write('! note\nid x\n1 2\n! note\n3 4\n', 't.txt')
    table = read_table(path, {'separator': 'blanks', 'comment': '!'})
    assert (
        held(table) == {'id': ['1', '3'], 'x': ['2', '4']} and '2 lines' in table.notes['comments']
    )
    table = read_table(
        path, {'separator': 'blanks', 'skip': 1, 'columns': ['a', 'b'], 'comment': '!'}
    )
    assert held(table) == {'a': ['1', '3'], 'b': ['2', '4']}
    both = {'separator': 'blanks', 'header': False, 'comment': '!'}
    assert list(read_table(path, both).frame) == ['column 1', 'column 2']
    refused(lambda: read_table(path, both | {'columns': ['a']}), 'columns has 1 names', '2 cells')
    refused(lambda: read_table(path, both | {'columns': list('abc')}), 'columns has 3 names')
    refused(lambda: read_table(path, {'sheet': 'x'}), 'sheet means nothing')


@pytest.mark.parametrize(
    'entries, said',
    [
        ({'seperator': ';'}, "Did you mean 'separator'?"),
        ({'separator': ''}, 'separator must be'),
        ({'separator': 1}, 'separator must be'),
        ({'decimal': ';'}, 'decimal must be'),
        ({'thousands': '1'}, 'thousands must be'),
        ({'decimal': ',', 'thousands': ','}, 'the same mark'),
        ({'encoding': 'utf-9'}, 'encoding must be'),
        ({'encoding': 8}, 'encoding must be'),
        ({'header': 0}, 'header must be'),
        ({'columns': 'a'}, 'columns must be'),
        ({'columns': ['a', 'a']}, 'columns must be'),
        ({'columns': [1, 2]}, 'columns must be'),
        ({'skip': -1}, 'skip must be'),
        ({'skip': True}, 'skip must be'),
        ({'comment': ''}, 'comment must be'),
        ({'sheet': -1}, 'sheet must be'),
        ({'trim': 'yes'}, 'trim must be'),
        (';', 'must be a mapping'),
        ([1], 'must be a mapping'),
    ],
)
def test_wrong_entries_of_the_reader(entries, said):
    refused(lambda: make_reader(entries, 'card.yaml'), 'card.yaml', said)


def test_endings(write):
    assert [table_suffix(Path(f'a{t}.gz')) for t in TABLES] == list(TABLES)
    assert all(is_path(f'people{t}') and is_path(f'people{t}.gz') for t in TABLES)
    path = write('a,b\n1,2\n', 't.tst')
    assert from_line(refused(lambda: read_table(path), '.tst')) == {'separator': ','}
    assert propose_reader(path)[0] == {'separator': ','}
    assert held(read_table(path, {'separator': ','})) == {'a': ['1'], 'b': ['2']}
    refused(lambda: read_table(path.parent / 'no.csv'), 'does not exist')
    refused(lambda: read_table(path.parent), 'does not exist')
    refused(lambda: read_table(7), 'not 7')


def test_asking_for_endings_imports_nothing_heavy():
    code = (
        'import sys, moe_expert.data.catalogue as c\nassert c.is_path("a.dta")\n'
        'assert not {"pandas", "numpy"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


# --- Compressed files ----------------------------------------------------------------------


def packed(content, kind, path):
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('__MACOSX/._t.csv', 'x')
            archive.writestr('t.csv', content)
        return
    pack = {'gz': gzip.compress, 'bz2': bz2.compress, 'xz': lzma.compress}[kind]
    path.write_bytes(pack(content))


@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz', 'zip'])
def test_compressed_files(tmp_path, kind, monkeypatch):
    path = tmp_path / f't.csv.{kind}'
    packed(b'a,b\n1,2\n', kind, path)
    assert held(read_table(path)) == {'a': ['1'], 'b': ['2']}
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    refused(lambda: read_table(path), str(path))
    path.write_bytes(b'a,b\n1,2\n')
    refused(lambda: read_table(path), str(path))
    packed(b'a,b\n' + b'1,2\n' * 100_000, kind, path)
    monkeypatch.setattr(reading, '_MOST_BYTES', 100_000)
    refused(lambda: read_table(path), 'unpacks to more than')


def test_an_archive_of_several_files(tmp_path):
    with zipfile.ZipFile(tmp_path / 't.csv.zip', 'w') as archive:
        archive.writestr('a.csv', 'x')
        archive.writestr('b.csv', 'x')
    refused(lambda: read_table(tmp_path / 't.csv.zip'), 'a.csv, b.csv')


@pytest.mark.parametrize('name', ['t.parquet', 't.feather', 't.xlsx', 't.dta'])
def test_compressed_containers(tmp_path, name):
    frame = pd.DataFrame({'a': [1.5, 2], 'b': ['x', 'y']})
    plain = tmp_path / name
    save(frame, plain)
    packed(plain.read_bytes(), 'gz', tmp_path / f'{name}.gz')
    assert held(read_table(tmp_path / f'{name}.gz')) == frame.to_dict('list')


# --- Formats -------------------------------------------------------------------------------


def save(frame, path):
    "Write a DataFrame by the library that owns the format."
    kind = table_suffix(path)
    if kind in ('.parquet', '.pq'):
        frame.to_parquet(path, index=False)
    elif kind == '.feather':
        frame.to_feather(path)
    elif kind == '.arrow':
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    elif kind == '.xlsx':
        frame.to_excel(path, index=False)
    elif kind == '.dta':
        frame.to_stata(path, write_index=False)
    elif kind in ('.jsonl', '.ndjson'):
        frame.to_json(path, orient='records', lines=True, double_precision=15)
    elif kind == '.arff':
        kinds = ['numeric' if pd.api.types.is_numeric_dtype(t) else 'string' for t in frame.dtypes]
        lines = [f"@attribute '{c}' {k}" for c, k in zip(frame, kinds)]
        body = frame.astype(object).where(frame.notna(), '?')
        cells = [[v if v == '?' else repr(v) for v in row] for row in body.values.tolist()]
        text = ['@relation t', *lines, '@data', *(','.join(row) for row in cells)]
        path.write_text('\n'.join(text))
    else:
        frame.to_csv(path, index=False, sep='\t' if kind == '.tsv' else ',')


PEOPLE = pd.DataFrame(
    {
        'ratio': [0.1, 1 / 3, np.nan, -2.5e-7],
        'age': [31, 42, 27, 55],
        'code': ['007', 'NA', 'None', 'l\'été, "x"'],
        'note': ['a', None, 'b', 'c'],
        'flag': [1, 0, 1, 1],
    }
)


@pytest.mark.parametrize('ending', TABLES)
def test_every_format_says_the_same(tmp_path, ending):
    path = tmp_path / f't{ending}'
    save(PEOPLE, path)
    table = read_table(path)
    assert list(table.frame) == list(PEOPLE)
    assert table.rows.tolist() == [0, 1, 2, 3] and not table.changed
    found = held(table)
    for name in ('code', 'note'):
        assert found[name] == [None if pd.isna(v) else v for v in PEOPLE[name]]
    for name in ('ratio', 'age', 'flag'):
        numbers = [np.nan if v is None else float(v) for v in found[name]]
        if ending in ('.jsonl', '.ndjson'):  # pandas writes 15 digits
            np.testing.assert_allclose(numbers, PEOPLE[name], rtol=0, atol=1e-15)
        else:
            np.testing.assert_array_equal(numbers, PEOPLE[name])


@pytest.mark.parametrize(
    'convert',
    [
        lambda f: f,
        pl.from_pandas,
        lambda f: pl.from_pandas(f).lazy(),
        pa.Table.from_pandas,
        lambda f: pa.RecordBatch.from_pandas(f),
        lambda f: f.astype(object).where(f.notna(), None).to_dict('records'),
        lambda f: f.convert_dtypes(),
        lambda f: f.convert_dtypes(dtype_backend='pyarrow'),
        lambda f: f.set_index(pd.Index([9, 3, 3, 1])),
    ],
    ids=['pandas', 'polars', 'lazy', 'arrow', 'batch', 'dicts', 'nullable', 'pyarrow', 'indexed'],
)
def test_every_table_in_memory_says_the_same(convert):
    given_ = convert(PEOPLE)
    assert is_table(given_)
    table = raw_table(given_)
    assert table.rows.tolist() == [0, 1, 2, 3] and table.frame.index.equals(pd.RangeIndex(4))
    kinds = {n: t.kind for n, t in table.frame.dtypes.items()}
    assert kinds == {'ratio': 'f', 'age': 'i', 'code': 'O', 'note': 'O', 'flag': 'i'}
    expected = PEOPLE.astype(object).where(PEOPLE.notna(), None).to_dict('list')
    assert held(table) == expected
    assert table.frame['note'].tolist()[1] is None


DAY = datetime.date(2026, 1, 31)


@pytest.mark.parametrize(
    'column, cells, kind',
    [
        (pd.Series([1, None], dtype='Int64'), [1, None], 'f'),
        (pd.Series([2**60 + 1, None], dtype='Int64'), [str(2**60 + 1), None], 'O'),
        (pd.Series([2**60 + 1, 2]), [2**60 + 1, 2], 'i'),
        (pd.Series([1, 2], dtype='uint8'), [1, 2], 'i'),
        (pd.Series([True, False]), [True, False], 'b'),
        (pd.Series([True, None], dtype='boolean'), ['True', None], 'O'),
        (pd.Series([True, None], dtype=object), ['True', None], 'O'),
        (pd.Series([0.1, 2.5], dtype='float32'), [0.1, 2.5], 'f'),
        (pd.Series([0.1, None], dtype='Float32'), [0.1, None], 'f'),
        (pd.Series([0.1, 2.5], dtype='float16'), [0.1, 2.5], 'f'),
        (pd.Series([' a', '', None]), ['a', None, None], 'O'),
        (pd.Series([' a', 'a', None], dtype='category'), ['a', 'a', None], 'O'),
        (pd.Series(pd.Categorical([2, 1, None], [1, 2])), ['2', '1', None], 'O'),
        (pd.Series([1, 'x', 2.0, True, None], dtype=object), ['1', 'x', '2.0', 'True', None], 'O'),
        (pd.Series([1, 2.5, None], dtype=object), [1, 2.5, None], 'f'),
        (pd.Series([2**60 + 1, 'x'], dtype=object), [str(2**60 + 1), 'x'], 'O'),
        (pd.Series([decimal.Decimal('1.50'), None], dtype=object), ['1.50', None], 'O'),
        (pd.Series([decimal.Decimal('1E+2')], dtype=object), ['100'], 'O'),
        (pd.Series([np.float32(0.1), 'x'], dtype=object), ['0.1', 'x'], 'O'),
        (pd.Series([DAY, None], dtype=object), [pd.Timestamp(DAY), None], 'M'),
        (pd.Series([DAY, 'x'], dtype=object), ['2026-01-31', 'x'], 'O'),
        (pd.Series([datetime.time(9, 30)], dtype=object), ['09:30:00'], 'O'),
        (pd.Series(pd.to_datetime(['2026-01-31'])), [pd.Timestamp(DAY)], 'M'),
        (
            pd.Series(pd.to_datetime(['2026-01-31 00:30']).tz_localize('Asia/Tokyo')),
            [pd.Timestamp('2026-01-31 00:30')],
            'M',
        ),
        (pd.Series(pd.period_range('2026-01', periods=1, freq='M')), ['2026-01'], 'O'),
        (pd.Series(pd.cut([1], [0, 10])), ['(0, 10]'], 'O'),
        (pd.Series(pd.arrays.SparseArray([0, 0, 1])), [0, 0, 1], 'i'),
        (pd.Series([None, None], dtype=object), [None, None], 'O'),
        (pd.Series([np.nan, np.nan]), [None, None], 'f'),
        (pd.Series([1e308, -1e308, np.inf]), [1e308, -1e308, np.inf], 'f'),
    ],
)
def test_types_of_pandas(column, cells, kind):
    table = raw_table(pd.DataFrame({'x': column}))
    assert held(table)['x'] == cells
    found = table.frame['x'].dtype.kind
    assert ('i' if found == 'u' else found) == kind


def test_trimmed_cells_of_a_category_are_counted():
    frame = pd.DataFrame({'x': pd.Series([' a', 'a', ' a'], dtype='category')})
    assert raw_table(frame).changed == {'x': {'trimmed': 2}}


@pytest.mark.parametrize(
    'value, kind',
    [
        ([1], 'list'),
        ({'a': 1}, 'dict'),
        ({1}, 'set'),
        ((1, 2), 'tuple'),
        (b'x', 'bytes'),
        (1j, 'complex'),
        (np.arange(2), 'ndarray'),
        (datetime.timedelta(1), 'timedelta'),
        (object(), 'object'),
    ],
)
def test_cells_that_no_table_can_hold(value, kind):
    refused(lambda: raw_table([{'x': 'a'}, {'x': value}], 'people'), 'people', "'x', row 1", kind)


@pytest.mark.parametrize(
    'frame, said',
    [
        (pd.DataFrame({'x': pd.to_timedelta([1, 2])}), "column 'x', row 0"),
        (pd.DataFrame({'x': [1j]}), "column 'x', row 0"),
        (pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([('a', 1), ('a', 2)])), 'levels'),
        (pd.DataFrame([[1, 2]], columns=['a', 'a']), 'same name'),
        (pd.DataFrame([[1, 2]], columns=[1, '1']), 'same name'),
        (pd.DataFrame([['x', 2]], columns=[None, 'a']), 'no name'),
        (pd.DataFrame([['x', 2]], columns=[np.nan, 'a']), 'no name'),
        (pd.DataFrame({'a': []}), 'no rows'),
        (pd.DataFrame(), 'no rows'),
        (pl.DataFrame({'x': [[1, 2]]}), "column 'x', row 0"),
        (pl.DataFrame({'x': [datetime.timedelta(1)]}), "column 'x', row 0"),
        (pl.DataFrame({'x': [b'a']}), "column 'x', row 0"),
        (pa.table({'x': [[1], [2]]}), "column 'x', row 0"),
        (pa.table([[1], [2]], names=['x', 'x']), 'same name'),
        ([], 'is a list'),
        ('t.csv', 'is a str'),
        (np.zeros((2, 2)), 'is a ndarray'),
    ],
)
def test_tables_in_memory_that_are_refused(frame, said):
    refused(lambda: raw_table(frame, 'people'), 'people', said)


def test_types_of_polars():
    frame = pl.DataFrame(
        {
            'i': pl.Series([1, None], dtype=pl.Int32),
            'big': pl.Series([2**60 + 1, None], dtype=pl.Int64),
            'f': pl.Series([0.1, None], dtype=pl.Float32),
            'b': [True, None],
            'c': pl.Series(['x ', None], dtype=pl.Categorical),
            'e': pl.Series(['x', None], dtype=pl.Enum(['x'])),
            'd': [DAY, None],
            'm': [decimal.Decimal('1.50'), None],
            'n': pl.Series([None, None]),
        }
    ).with_columns(t=pl.col('d').cast(pl.Datetime).dt.replace_time_zone('Asia/Tokyo'))
    table = raw_table(frame)
    day = [pd.Timestamp(DAY), None]
    assert held(table) == {
        'i': [1, None],
        'big': [str(2**60 + 1), None],
        'f': [0.1, None],
        'b': ['True', None],
        'c': ['x', None],
        'e': ['x', None],
        'd': day,
        'm': ['1.50', None],
        'n': [None, None],
        't': day,
    }
    assert table.changed == {'c': {'trimmed': 1}}


def test_types_of_arrow(tmp_path):
    table = pa.table(
        {
            'i': pa.array([1, None], pa.int32()),
            'big': pa.array([2**60 + 1, None], pa.int64()),
            'f': pa.array([0.1, None], pa.float32()),
            'b': pa.array([True, False]),
            'c': pa.array(['x', None]).dictionary_encode(),
            'd': pa.array([DAY, None]),
            'm': pa.array([decimal.Decimal('1.50'), None]),
            's': pa.array(['NA', None], pa.large_string()),
            't': pa.array([datetime.datetime(2026, 1, 31), None], pa.timestamp('us', 'UTC')),
            'n': pa.nulls(2),
        }
    )
    day = [pd.Timestamp(DAY), None]
    expected = {
        'i': [1, None],
        'big': [str(2**60 + 1), None],
        'f': [0.1, None],
        'b': [True, False],
        'c': ['x', None],
        'd': day,
        'm': ['1.50', None],
        's': ['NA', None],
        't': day,
        'n': [None, None],
    }
    assert held(raw_table(table)) == expected
    pa.parquet.write_table(table, tmp_path / 't.parquet')
    assert held(read_table(tmp_path / 't.parquet')) == expected
    pyarrow.feather.write_feather(table.drop_columns(['n']), tmp_path / 't.feather')
    assert held(read_table(tmp_path / 't.feather')) == {
        k: v for k, v in expected.items() if k != 'n'
    }


def test_the_index_in_a_parquet_file(tmp_path):
    frame = pd.DataFrame({'x': ['a', 'b']}, index=[5, 3])
    frame.to_parquet(tmp_path / 't.parquet')
    table = read_table(tmp_path / 't.parquet')
    assert list(table.frame) == ['x'] and 'index' in table.notes['index column']
    frame.rename_axis('id').to_parquet(tmp_path / 't.parquet')
    assert held(read_table(tmp_path / 't.parquet')) == {'x': ['a', 'b'], 'id': [5, 3]}


def test_stata(tmp_path):
    frame = pd.DataFrame(
        {
            'race': pd.Categorical(['white', 'black', None]),
            'age': [31, 42, 27],
            'since': pd.to_datetime(['2026-01-31', None, '2025-01-31']),
            'brief': np.array([0.1, np.nan, 0.3], dtype=np.float32),
            'missing': pd.array([pd.NA, 1, 2], dtype='Int32'),
        }
    )
    frame.to_stata(tmp_path / 't.dta', write_index=False, convert_dates={'since': 'td'})
    table = read_table(tmp_path / 't.dta')
    assert held(table) == {
        'race': ['white', 'black', None],
        'age': [31, 42, 27],
        'since': [pd.Timestamp('2026-01-31'), None, pd.Timestamp('2025-01-31')],
        'brief': [0.1, None, 0.3],
        'missing': [None, 1, 2],
    }


def workbook(path, *rows, title='people'):
    book = openpyxl.Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(path)
    return book


def test_excel(tmp_path):
    path = tmp_path / 't.xlsx'
    day = datetime.datetime(2026, 1, 31)
    book = workbook(
        path,
        ['id', 'x', 'since', 'ok', 2020],
        ['007', 1, day, True, 5],
        [],
        [None, 'b ', day, False, 6],
    )
    table = read_table(path)
    assert held(table) == {
        'id': ['007', None],
        'x': ['1', 'b'],
        'since': [pd.Timestamp(day)] * 2,
        'ok': [True, False],
        '2020': [5, 6],
    }
    assert table.changed == {'x': {'trimmed': 1}}
    book.create_sheet('notes')
    book.save(path)
    assert len(read_table(path).frame) == 2, 'an empty sheet is none'
    book['notes'].append(['a', 'b'])
    book['notes'].append([1, 2])
    book.save(path)
    message = refused(lambda: read_table(path), "'people', 'notes'")
    assert from_line(message) == {'sheet': 'people'} == propose_reader(path)[0]
    assert held(read_table(path, {'sheet': 'notes'})) == {'a': [1], 'b': [2]}
    assert held(read_table(path, {'sheet': 1})) == {'a': [1], 'b': [2]}
    refused(lambda: read_table(path, {'sheet': 'x'}), "no sheet 'x'")
    refused(lambda: read_table(path, {'sheet': 2}), 'no sheet 2')
    refused(lambda: read_table(path, {'separator': ';'}), 'separator means nothing')


def test_faults_of_excel(tmp_path):
    path = tmp_path / 't.xlsx'
    book = workbook(path, ['a', 'b'], [1, 2], [3, 4])
    book.active['B3'] = '=B2+1'
    book.save(path)
    refused(lambda: read_table(path), 'cell B3 holds a formula without a value')
    book.active['B3'] = 4
    book.active.merge_cells('A2:A3')
    book.save(path)
    refused(lambda: read_table(path), 'A2:A3')
    workbook(path, ['Report'], ['a', 'b'], [1, 2])
    refused(lambda: read_table(path), 'column 2 of 2 has no name')
    assert held(read_table(path, {'skip': 1})) == {'a': [1], 'b': [2]}
    workbook(path, ['a', 'a'], [1, 2])
    refused(lambda: read_table(path), 'same name')
    workbook(path)
    refused(lambda: read_table(path), 'empty')
    workbook(path, ['a', 'b'])
    refused(lambda: read_table(path), 'no rows')
    workbook(path, [39, 'Private', 39], [50, 'State', 13], [38, 'Private', 7])
    refused(lambda: read_table(path), 'looks like data')
    named = {'header': False, 'columns': ['a', 'b', 'c']}
    assert held(read_table(path, named))['a'] == [39, 50, 38]
    refused(lambda: read_table(path, {'header': False, 'columns': ['a', 'b']}), '2 names')


def test_values_of_formulas(tmp_path):
    "openpyxl stores no values, so one is put into the sheet as Excel would."
    path = tmp_path / 't.xlsx'
    book = workbook(path, ['a'], [1], [2])
    book.active['A3'] = '=A2+1'
    book.save(path)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, 'w') as new:
        for name in old.namelist():
            new.writestr(
                name, old.read(name).replace(b'<v />', b'<v>2</v>').replace(b'<v></v>', b'<v>2</v>')
            )
    path.write_bytes(out.getvalue())
    assert held(read_table(path)) == {'a': [1, 2]}


def test_arff(write):
    path = write(
        "% about\n@RELATION people\n\n@attribute age NUMERIC\n@attribute 'marital status' {single, "
        "'not said', \"?\"}\n@attribute since date 'yyyy-MM-dd'\n@attribute name string\n@DATA\n"
        "31,'not said',2026-01-31,'it\\'s, me'\n?,?,?,?\n1e-1, '?' ,\"2026-01-30\",NA\n",
        't.arff',
    )
    assert held(read_table(path)) == {
        'age': [31, None, 0.1],
        'marital status': ['not said', None, '?'],
        'since': ['2026-01-31', None, '2026-01-30'],
        'name': ["it's, me", None, 'NA'],
    }


@pytest.mark.parametrize(
    'body, said',
    [
        ('@data\n{0 31}\n', 'sparse'),
        ('@data\n31\n', 'line 5: it has 1 cells, the header 2'),
        ('@data\n31,m\n', "column 'sex', row 0 holds 'm'"),
        ('@data\nx,f\n', "column 'age', row 0 holds 'x'"),
        ("@data\n31,'f\n", 'line 5'),
        ('@attribute s relational\n@data\n', 'relational'),
        ('@attribute\n@data\n', 'line 4'),
        ('', 'no @data'),
        ('@data\n', 'no rows'),
    ],
)
def test_faults_of_arff(write, body, said):
    text = f'@relation t\n@attribute age numeric\n@attribute sex {{f}}\n{body}'
    refused(lambda: read_table(write(text, 't.arff')), 't.arff', said)


def test_json_lines(write):
    path = write(
        '{"i": 1, "f": 0.1, "t": "NA", "b": true, "m": 1}\n\n'
        '{"i": 2, "t": null, "b": false, "m": "x"}\n',
        't.jsonl',
    )
    table = read_table(path)
    assert held(table) == {
        'i': [1, 2],
        'f': [0.1, None],
        't': ['NA', None],
        'b': [True, False],
        'm': ['1', 'x'],
    }
    assert [t.kind for t in table.frame.dtypes] == list('ifObO')


@pytest.mark.parametrize(
    'text, said',
    [
        ('{"a": 1}\n{"a": [1]}\n', "column 'a', row 1 holds a list"),
        ('{"a": 1}\n{"a": {"b": 1}}\n', "column 'a', row 1 holds a dict"),
        ('[{"a": 1}]\n', 'line 1'),
        ('{"a": 1}\n{"a": 1\n', 'line 2'),
        ('{"a": 1, "a": 2}\n', "'a' stands twice"),
        ('\n', 'empty'),
        ('{}\n', 'no rows'),
    ],
)
def test_faults_of_json_lines(write, text, said):
    refused(lambda: read_table(write(text, 't.jsonl')), 't.jsonl', said)


@pytest.mark.parametrize(
    'ending', [t for t in TABLES if t not in ('.csv', '.tsv', '.txt', '.data')]
)
@pytest.mark.parametrize('content', [b'', b'nothing of the kind\n', b'PK\x03\x04' + b'\0' * 40])
def test_files_that_are_not_what_they_say(write, ending, content):
    path = write(content, f't{ending}')
    refused(lambda: read_table(path), str(path))


@pytest.mark.parametrize('ending', ['.parquet', '.feather', '.xlsx', '.dta'])
def test_damaged_files(tmp_path, ending):
    "Bytes are cut and changed: the table is read, or the error is the package's own."
    path = tmp_path / f't{ending}'
    save(PEOPLE, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    errors = 0
    for _ in range(25):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data) // 2, len(data))])
        try:
            read_table(path)
        except DataError as e:
            errors += 1
            assert str(path) in str(e) and '\n' not in str(e)
    assert errors > 20


@pytest.mark.parametrize(
    'ending, package, extra',
    [
        ('.parquet', 'pyarrow', 'parquet'),
        ('.feather', 'pyarrow', 'parquet'),
        ('.xlsx', 'openpyxl', 'excel'),
    ],
)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, ending, package, extra):
    path = tmp_path / f't{ending}'
    save(PEOPLE, path)
    for name in [n for n in sys.modules if n.split('.')[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: read_table(path), f'pip install "moe_expert[{extra}]"')


def test_entries_that_mean_nothing_for_a_format(tmp_path):
    save(PEOPLE, tmp_path / 't.parquet')
    for entries in ({'separator': ';'}, {'header': False}, {'encoding': 'latin-1'}, {'sheet': 0}):
        refused(
            lambda e=entries: read_table(tmp_path / 't.parquet', e),
            f'{[*entries][0]} means nothing',
        )
    assert read_table(tmp_path / 't.parquet', {'decimal': ','}).n_file == 4


def test_many_numbers_stay_numbers():
    "A large table must not become texts: it is a matter of memory."
    x = np.random.default_rng(0).normal(size=(200_000, 10))
    table = raw_table(pd.DataFrame(x).rename(columns=str))
    assert set(table.frame.dtypes) == {np.dtype('float64')}
    np.testing.assert_array_equal(table.frame.to_numpy(), x)


# --- Properties ----------------------------------------------------------------------------

WORDS = st.sampled_from(
    ['NA', 'None', 'nan', '?', '007', '1.0', '1', '', ' ', 'a,b', '"', ';', '\t']
)
TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=6)
CELLS = st.one_of(WORDS, TEXT)


@st.composite
def tables(draw):
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6))


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=tables(), separator=st.sampled_from(',;\t|'), end=st.sampled_from(['\n', '\r\n']))
def test_any_texts_come_back(tmp_path, rows, separator, end):
    "Written by Python's csv, read back cell by cell, apart from blanks that are counted."
    names = [f'name {k}' for k in range(len(rows[0]))]
    path = tmp_path / 't.csv'
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([names, *rows])
    # a line of one blank cell is a blank line, and no row
    kept = [r for r in rows if len(r) > 1 or r[0].strip()]
    if not kept:
        refused(lambda: read_table(path, {'separator': separator}), 'no rows')
        return
    table = read_table(path, {'separator': separator})
    for k, name in enumerate(names):
        cells = [row[k] for row in kept]
        assert table.frame[name].tolist() == [c.strip() or None for c in cells]
        trimmed = sum(c != c.strip() for c in cells)
        assert table.changed.get(name, {}).get('trimmed', 0) == trimmed


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=80), st.text('ab1,;"\n\r\t |#', max_size=60).map(str.encode)
    )
)
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / 't.csv'
    path.write_bytes(content)
    for call in (lambda: read_table(path), lambda: propose_reader(path)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', DataWarning)
                call()
        except DataError as e:
            assert str(path) in str(e) and '\n' not in str(e) and '\r' not in str(e)


FLOATS = st.floats(width=32, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_short_floats_are_what_was_written(values):
    short = np.array(values, dtype=np.float32)
    found = raw_table(pd.DataFrame({'x': short})).frame['x'].to_numpy()
    assert found.tolist() == [float(str(v)) for v in short]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT), min_size=1))
def test_any_cells_of_a_record(cells):
    "Each cell is missing, a number of the same value, or the text of the cell."
    found = raw_table([{'x': c} for c in cells]).frame['x'].tolist()
    for cell, got in zip(cells, found):
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
            assert pd.isna(got)
        elif isinstance(got, str):
            assert got == str(cell).strip()
        else:
            assert got == cell and not pd.isna(got)


def test_reader_is_read_from_yaml():
    entries = yaml.safe_load('{separator: ";", decimal: ",", columns: [a, b], header: false}')
    assert make_reader(entries) == Reader(';', ',', columns=('a', 'b'), header=False)
    assert make_reader(json.loads('{}')) == Reader() == make_reader(None)


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('name', ['Müller', 'Smith'])
def test_utf_16_without_a_mark_gets_a_cure_that_works(encoding, name, tmp_path):
    path = tmp_path / 't.csv'
    path.write_text(f'age,name\n31,{name}\n', encoding=encoding)
    for reader in ({}, {'encoding': 'latin-1'}, {'encoding': 'utf-16'}):
        with pytest.raises(DataError, match=f'encoding: {encoding}'):
            read_table(path, reader)
    assert read_table(path, {'encoding': encoding}).frame.name.tolist() == [name]


def test_twins_with_a_role_cannot_be_dropped():
    frame = pd.DataFrame([[1, 2, 3]], columns=['a', 'g', 'g'])
    with pytest.raises(DataError, match='rename one of them$'):
        raw_table(frame, wanted=('g',))
