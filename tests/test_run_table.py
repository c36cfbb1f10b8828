"`moe-expert run` on a table: its card, the results at the end, the page, and a limit of time."

import json
import webbrowser

import numpy as np
import pandas as pd
import pytest

from moe_expert import cli
from moe_expert.data.cards import read_card
from moe_expert.data.own_card import own_card
from moe_expert.errors import DataError, ReportError
from moe_expert.tuning.time_limit import Clock

SAID = dict(label='approve', sensitive='race')


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, n = np.random.default_rng(0), 240
    people = pd.DataFrame(
        {'income': rng.lognormal(3, 0.5, n).round(1), 'race': rng.choice(['white', 'black'], n)}
    )
    score = people.income + 4 * (people.race == 'white') + rng.normal(0, 4, n)
    people['approve'] = np.where(score > 22, 'yes', 'no')
    path = tmp_path / 'people.csv'
    people.to_csv(path, index=False)
    return path


@pytest.fixture
def without_reports(monkeypatch, tmp_path):
    "Reports take half a minute each: here they are names of files."
    made = []

    def make_report(given, dataset, expert, **more):
        made.append((dataset, expert))
        return tmp_path / f'{expert}_report.ipynb'

    monkeypatch.setattr(cli, 'make_report', make_report)
    return made


def test_from_a_table_to_results_and_page(table, without_reports, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, 'open', lambda url: not opened.append(url))
    command = 'run people.csv --label approve --sensitive race --epochs 50 --quiet'.split()
    assert cli.main([*command, '--time_limit', '0', '--open']) == 0
    out = capsys.readouterr().out
    card = table.parent / 'card.yaml'
    assert read_card(card).name == 'people' and without_reports == [
        ('card.yaml', 'all'),
        ('card.yaml', 'mixture'),
    ]
    places = [out.index(words) for words in (
        'Card: card.yaml (drafted now', 'privileged: which value', 'expert1', 'mixture, fine-tuned',
        'Report of the mixture: ', 'All reports: ')]  # fmt: skip
    assert places == sorted(places)
    assert opened == [(table.parent / 'mixture_report.html').as_uri()]
    folder = table.parent / 'weights' / 'moe_experts'
    for what in ('expert1', 'expert3', 'gate'):
        record = json.loads((folder / f'people_{what}_tuning_results.json').read_text())
        assert record['stopped'] == {'time_limit': 0, 'done': 1, 'wanted': 30}
    assert out.count('The time limit ended the search of expert1 after 1 of 30 trials.') == 1
    assert out.count('Before you use this:') == out.count('Files in ') == 1  # not after each stage

    edited = card.read_text().replace('# Draft of a card', '# Checked by hand: a card')
    card.write_text(edited)
    before = {p.name: p.read_bytes() for p in folder.glob('*.pt')}
    assert cli.main([*command, '--time_limit', '0']) == 0
    out = capsys.readouterr().out
    assert 'Card: card.yaml (edited since it was drafted, and used as it is)' in out
    assert card.read_text() == edited
    assert {p.name: p.read_bytes() for p in folder.glob('*.pt')} == before

    def stops(*args, **kwargs):
        raise ReportError('the report stopped')

    monkeypatch.setattr(cli, 'make_report', stops)
    assert cli.main([*command, '--time_limit', '0']) == 1
    out, err = capsys.readouterr()
    assert 'mixture, fine-tuned' in out and 'the report stopped' in err


@pytest.mark.parametrize(
    'words, says',
    [
        ('people.csv', 'give label='),
        ('people.csv --label approve', 'is a table: say --sensitive too'),
        ('people.csv --label aprove --sensitive race', "Did you mean 'approve'"),
        ('nowhere.csv --label approve --sensitive race', 'does not exist'),
        ('bail --label recid --sensitive race', '--label is for a table, and bail is none'),
        ('bail --privileged white', '--privileged has no effect without --label'),
    ],
)
def test_wrong_tables_are_one_line(table, words, says, capsys):
    code = 0
    try:
        code = cli.main(['run', *words.split()])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code in (1, 2) and err.count('\n') == 1 and (says in err or 'is a table' in err)
    assert not (table.parent / 'card.yaml').exists()


def test_a_card_that_contradicts_the_options_is_not_used(table, tmp_path):
    own_card(table, tmp_path / 'spare', **SAID, privileged='white')
    card = tmp_path / 'card.yaml'
    before = card.read_text()
    assert own_card(table, tmp_path / 'spare', **SAID).state == 'edited'  # says more than these
    for wrong in (dict(privileged='black'), dict(positive='no'), dict(name='others')):
        with pytest.raises(DataError, match=f'used as it is: {next(iter(wrong))} is'):
            own_card(table, tmp_path / 'spare', **SAID, **wrong)
    assert card.read_text() == before and not (tmp_path / 'spare').exists()


def test_a_damaged_card_is_named_and_kept(table, tmp_path):
    card = tmp_path / 'card.yaml'
    card.write_text('label: [')
    with pytest.raises(DataError, match='card.yaml'):
        own_card(table, tmp_path / 'spare', **SAID)
    assert card.read_text() == 'label: ['


def test_a_time_limit_stops_the_drawing_and_the_same_call_continues(tmp_path):
    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.tune_experts import ExpertTuner

    tuner = ExpertTuner(make_synthetic(200, seed=0), cache_dir=tmp_path, epochs=50)
    first = tuner.tune_expert('expert1', n_trials=4, time_limit=0)
    assert (first['n_trials'], first['best_trial'], first['stopped']['wanted']) == (1, 0, 4)
    all_of_them = tuner.tune_expert('expert1', n_trials=4, time_limit=600)
    assert all_of_them['n_trials'] == 4 and 'stopped' not in all_of_them
    assert all_of_them['trials'][0]['params'] == first['trials'][0]['params']


def test_the_clock_is_not_asked_without_a_limit(monkeypatch):
    clock = Clock()
    monkeypatch.setattr('time.monotonic', lambda: 1 / 0)
    assert clock.left() is None and clock.share(3) is None and not clock.is_over


@pytest.mark.slow
def test_everything_from_a_table_with_reports(table, capsys):
    command = 'run people.csv --label approve --sensitive race --epochs 50 --preset quick -q'
    assert cli.main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith('method '))
    assert max(map(len, lines[start : lines.index('', start)])) <= 100
    assert lines[-2].startswith('Report of the mixture: ')
    page = (table.parent / lines[-2].split(': ')[1]).read_text()
    assert '<html' in page and 'the models predict approve = 1 (yes), which' in page
