"The command `audit`: any file of predictions to a table, a page and JSON, without PyTorch."

import base64
import errno
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from moe_expert import cli
from moe_expert.audit_predictions import audit_page, audit_predictions
from moe_expert.errors import DataError
from moe_expert.scores.cells import cells, groups_schema


def frame(n=1_000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            'name': np.arange(n),
            'repaid': rng.integers(0, 2, n),
            'score': rng.random(n).round(3),
            'sex': rng.choice(['f', 'm'], n),
            'race': rng.choice(['NA', 'b', '', 'not stated'], n, p=[0.5, 0.4, 0.05, 0.05]),
            'w': rng.uniform(0.5, 2, n).round(2),
        }
    )


@pytest.mark.parametrize('form', ['csv', 'tsv', 'csv.gz', 'parquet', 'bom', 'frame'])
def test_all_forms_give_the_table_of_the_arrays(form, tmp_path):
    people = frame()
    path = tmp_path / f'people.{form.replace("bom", "csv")}'
    if form == 'frame':
        path = people
    elif form == 'parquet':
        people.to_parquet(path)
    else:
        encoding = 'utf-8-sig' if form == 'bom' else 'utf-8'
        people.to_csv(path, index=False, sep='\t' if form == 'tsv' else ',', encoding=encoding)
    audit = audit_predictions(
        path, 'repaid', 'score', ['sex', 'race'], weight='w', unknown=['not stated'], threshold=0.4
    )
    groups = people[['sex', 'race']].replace({'race': {'': None, 'not stated': None}})
    there = cells(people.repaid, groups, p1=people.score, threshold=0.4, sample_weight=people.w)
    pd.testing.assert_frame_equal(audit.table, there)
    assert 'NA' in there.loc['race'].index  # a group may be called so


def test_texts_give_the_table_of_the_numbers(tmp_path, capsys):
    people = frame().assign(said=lambda p: (p.score > 0.5).astype(int))
    plain = audit_predictions(people, 'repaid', 'said', ['sex'])
    words = people.assign(**{n: people[n].map({0: 'no', 1: 'yes'}) for n in ('repaid', 'said')})
    told = audit_predictions(words, 'repaid', 'said', ['sex'], positive='yes')
    pd.testing.assert_frame_equal(told.table, plain.table)
    assert told.about['positive'] == 'yes' and 'repaid = yes' in ' '.join(told.words)
    words.rename(columns={'sex': 'sex, as told'}).to_csv(tmp_path / 'p.csv', index=False)
    command = ['audit', str(tmp_path / 'p.csv'), '--label', 'repaid', '--prediction', 'said']
    command += ['--groups', '"sex, as told"']
    assert cli.main([*command, '--positive', 'yes']) == 0
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "'repaid' holds 'no', 'yes'" in capsys.readouterr().err


def test_decisions_have_no_calibration_unless_a_threshold_says_that_they_are_probabilities():
    people = frame().assign(said=lambda p: (p.score > 0.5).astype(int))
    made = audit_predictions(people, 'repaid', 'said', ['sex'])
    assert not any('calibration' in c for c in made.table) and made.about['threshold'] is None
    assert made.about['predictions'] == 'decisions'
    asked = audit_predictions(people, 'repaid', 'said', ['sex'], threshold=0.5)
    assert any('calibration' in c for c in asked.table)
    true = people.assign(said=people.said.astype(bool))
    pd.testing.assert_frame_equal(
        audit_predictions(true, 'repaid', 'said', ['sex']).table, made.table
    )


@pytest.mark.parametrize(
    'column, value, said',
    [
        ('repaid', '', "'repaid' must hold the outcomes 0 and 1, but row 7 (from 0) is empty"),
        ('repaid', '2', "row 7 (from 0) holds '2'"),
        ('repaid', 'yes', "row 7 (from 0) holds 'yes' (1 such rows)"),
        ('score', '1.01', "probabilities or decisions in [0, 1], but row 7 (from 0) holds '1.01'"),
        ('score', '-0.1', 'row 7 (from 0)'),
        ('score', '', 'row 7 (from 0) is empty'),
        ('w', '0', 'must hold weights above 0, but row 7 (from 0)'),
        ('w', 'inf', 'must hold weights above 0, but row 7 (from 0)'),
    ],
)
def test_a_wrong_cell_is_named_with_its_row(column, value, said, tmp_path, capsys):
    people = frame(50).astype(str)
    people.loc[7, column] = value
    people.to_csv(tmp_path / 'p.csv', index=False)
    with pytest.raises(DataError) as err:
        audit_predictions(tmp_path / 'p.csv', 'repaid', 'score', ['sex'], weight='w')
    assert said in str(err.value)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(label='repayed'), "label: unknown column 'repayed'. Did you mean 'repaid'?"),
        (dict(groups=['sex', 'rase']), "groups: unknown column 'rase'. Did you mean 'race'?"),
        (dict(weight='x'), "weight: unknown column 'x'"),
        (dict(groups=['sex', 'repaid']), 'two roles have the same name: repaid'),
        (dict(groups=[]), 'name the columns of one attribute or more'),
    ],
)
def test_wrong_columns_are_refused(change, said, tmp_path):
    frame(50).to_csv(tmp_path / 'p.csv', index=False)
    frame(50).to_parquet(tmp_path / 'p.parquet')
    right = dict(label='repaid', prediction='score', groups=['sex'])
    for table in (tmp_path / 'p.csv', tmp_path / 'p.parquet', frame(50)):
        with pytest.raises(DataError) as err:
            audit_predictions(table, **right | change)
        assert said in str(err.value)


@pytest.mark.parametrize(
    'name, text, said',
    [
        ('p.csv', 'repaid;score;sex\n1;0.3;f\n', 'is the file separated by commas?'),
        ('p.csv', 'repaid,score,sex,sex\n1,0.3,f,f\n', 'two columns have the same name: sex'),
        ('p.csv', 'repaid,score,sex\n', 'has no rows'),
        ('p.csv', 'repaid,score,sex\n1,0.3,f\n1,0.3,f,9,9\n', 'cannot be read as a table'),
        ('p.csv', 'repaid,score,sex\n1,0.3,f,9\n', 'cannot be read as a table'),
        ('p.csv', '', 'cannot be read as a table'),
        ('p.parquet', 'no', 'cannot be read as a table'),
        ('p.docx', 'no', 'predictions are read from csv'),
        (None, '', 'cannot be read as a table'),
    ],
)
def test_files_that_are_no_table_are_refused(name, text, said, tmp_path):
    path = tmp_path / (name or 'nothing.csv')
    if name:
        path.write_text(text)
    with pytest.raises(DataError) as err:
        audit_predictions(path, 'repaid', 'score', ['sex'])
    assert said in str(err.value)


def test_the_command_prints_and_writes(tmp_path, capsys):
    import jsonschema

    frame().to_csv(tmp_path / 'p.csv', index=False)
    asked = ['audit', str(tmp_path / 'p.csv'), '--label', 'repaid', '--prediction', 'score']
    asked += ['--groups', 'sex,race', '--unknown', 'not stated', '--min_group', '20']
    files = ['--json', str(tmp_path / 'g.json'), '--page', str(tmp_path / 'g.html')]
    assert cli.main([*asked, *files]) == 0
    out = capsys.readouterr().out
    assert 'Worst off by sex × race' in out and f'Written: {tmp_path / "g.html"}' in out
    assert max(map(len, out.splitlines())) <= 120 + len(str(tmp_path))
    made = json.loads((tmp_path / 'g.json').read_text(encoding='utf-8'))
    jsonschema.validate(made, groups_schema())
    assert made['about']['min_group'] == 20 and made['about']['unknown'] == ['not stated']
    page = (tmp_path / 'g.html').read_text(encoding='utf-8')
    assert all(word.replace('“', '“') in page for word in made['words'][:1])
    assert cli.main([*asked, '--json', str(tmp_path / 'no' / 'g.json')]) == 1
    assert 'cannot be written' in capsys.readouterr().err


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    made = audit_predictions(frame(), 'repaid', 'score', ['sex'])
    (tmp_path / 'g.json').write_text('old')
    (tmp_path / 'link.html').symlink_to(tmp_path / 'g.html')
    made.write(page_file=tmp_path / 'link.html')
    assert (tmp_path / 'link.html').is_symlink() and '<table' in (tmp_path / 'g.html').read_text()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(DataError, match='g.json cannot be written: .*No space left on device'):
        made.write(tmp_path / 'g.json')
    assert (tmp_path / 'g.json').read_text() == 'old'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['g.html', 'g.json', 'link.html']


def test_a_pipe_is_written_to(tmp_path):
    made, pipe = audit_predictions(frame(), 'repaid', 'score', ['sex']), tmp_path / 'pipe'
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    made.write(pipe)
    reader.join(10)
    assert json.loads(read[0]) == made.json() and pipe.is_fifo()


def test_missing_arguments_end_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['audit', 'p.csv', '--label', 'y'])
    assert end.value.code == 2
    assert 'prediction and groups must be given' in capsys.readouterr().err


def test_the_page_loads_nothing_and_escapes_everything():
    people = frame().rename(columns={'sex': '<b>sex', 'repaid': '<i>&y'})
    people['<b>sex'] = people['<b>sex'] + '"><script>alert(1)</script>'
    page = audit_page(audit_predictions(people, '<i>&y', 'score', ['<b>sex', 'race']))
    for raw in ('<script', '<b>sex', '<i>&y', '://'):
        assert raw not in page
    assert '&lt;script&gt;' in page
    (image,) = re.findall(r'<img [^>]*>', page)
    assert re.search(r' alt="[^"<>]{80,}"', image) and 'src="data:image/png;base64,' in image
    assert not re.findall(r'<(?:link|iframe|object|embed)\b', page)


@pytest.mark.parametrize(
    'name, widths', [('a', [400, 950]), ('a group with a very long name indeed', [950])]
)
def test_a_phone_gets_a_picture_of_its_own_where_names_leave_room(name, widths):
    people = frame().assign(sex=lambda p: np.where(p['sex'] == p['sex'].iloc[0], name, 'b'))
    page = audit_page(audit_predictions(people, 'repaid', 'score', ['sex']))
    drawn = [base64.b64decode(d) for d in re.findall(r'data:image/png;base64,([^"]+)', page)]
    width = lambda png: int.from_bytes(png[16:20], 'big') / 2
    assert [round(width(png)) for png in drawn] == widths


def test_a_page_of_very_many_cells_has_no_picture():
    people = frame(3_000)
    people['sex'] = np.arange(3_000) // 15
    page = audit_page(audit_predictions(people, 'repaid', 'score', ['sex']))
    assert '<img' not in page and 'No picture' in page


def test_torch_is_not_loaded_and_each_person_is_counted_in_few_passes(tmp_path):
    "What keeps the command fast: no PyTorch, one reading of the file, few passes."
    frame().to_csv(tmp_path / 'p.csv', index=False)
    code = f"""
import sys
import numpy as np, pandas as pd
from moe_expert import cli
passes, read = [0], []
bincount, read_csv = np.bincount, pd.read_csv
def counted(*args, **kwargs):
    passes[0] += len(args[0]) == 1000
    return bincount(*args, **kwargs)
def noted(*args, **kwargs):
    read.append(kwargs.get('nrows'))
    return read_csv(*args, **kwargs)
np.bincount, pd.read_csv = counted, noted
assert cli.main(['audit', {str(tmp_path / 'p.csv')!r}, '--label', 'repaid', '--prediction', 'score',
                 '--groups', 'sex,race', '--page', {str(tmp_path / 'p.html')!r}]) == 0
heavy = {{'torch', 'scipy', 'sklearn', 'optuna', 'torch_geometric'}} & set(sys.modules)
print(heavy, passes[0], read)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    heavy, passes, read = re.fullmatch(r'(set\(\)|\{.*\}) (\d+) (.*)', last).groups()
    assert heavy == 'set()' and read == '[1, None]'
    assert 0 < int(passes) <= 4 * 8  # everybody, sex, race and both crossed
