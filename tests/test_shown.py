"Names and texts from files are text everywhere: in HTML, Markdown, figures and on a terminal."

import ast
import base64
import gc
import html
import io
import json
import re
import unicodedata
from html.parser import HTMLParser

import matplotlib.cbook
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from matplotlib.text import Text
from nbconvert.filters import markdown2html
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from moe_expert.audit_predictions import audit_page, audit_predictions
from moe_expert.cli import main
from moe_expert.data.shown import POLICY, as_html, in_figure, in_markdown
from moe_expert.errors import DataError, visible, without_passwords
from moe_expert.report.index import write_index
from moe_expert.report.look import Notice, Notices, Picture, Sentences, panels, table
from moe_expert.report.pages import notebook_path, page
from moe_expert.run_expert_tuning import messages, one_line
from moe_expert.trainer import MoETrainer
from moe_expert.tuning.artifacts import read_json, write_json
from moe_expert.tuning.folder import ExpertFiles

EVIL = (
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '$x$',
    '$x^\\bad$ and \\(y\\)',
    'a | b',
    '`b` **c** _d_',
    '](javascript:alert(1))',
    '[go](javascript:alert(1))',
    '\u202egnp.exe',
    'red \x1b[31m',
    '# h\n- x',
    '"><b onclick=x()>',
)
NAUGHTY = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]')


TURNING = set('LRE RLE LRO RLO PDF LRI RLI FSI PDI'.split())


class Elements(HTMLParser):
    "What a browser would make of HTML: its elements, attributes and text."

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ['']
        self.feed(text.replace('\r\n', '\n').replace('\r', '\n'))  # as browsers do first
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.text.append('')

    def handle_endtag(self, tag):
        self.text.append('')

    def handle_data(self, data):
        self.text[-1] += data

    @property
    def formulas(self):  # of MathJax, which looks within the text between two tags
        return [t for t in self.text if re.search(r'\$[^$]+\$|\\\\[(\[]|\\\\begin', t)]


READ = {'alt', 'aria-label', 'data-label'}  # attributes that are only ever read as text


def assert_inert(text):
    "No scripts, handlers, commands in links or formulas, and nothing that a terminal obeys."
    found = Elements(text)
    assert not {'script', 'iframe', 'object', 'embed', 'base', 'form'} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith('on')
        assert name in READ or 'javascript' not in (value or '').lower()[:20]
        assert tag != 'img' or name != 'src' or value.startswith('data:')
    assert not NAUGHTY.search(text)
    return found


# --- the functions -----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.sampled_from(EVIL)))
def test_every_text_is_shown_as_it_is(text):
    shown = Elements(f'<p>{as_html(text)}</p>')
    assert ''.join(shown.text) == visible(text).replace('\r\n', '\n').replace('\r', '\n')
    assert set(shown.tags) <= {'p', 'span'} and not shown.formulas
    assert not matplotlib.cbook.is_math_text(in_figure(text))
    assert in_figure(text).replace(r'\$', '$') == visible(text)
    for c in visible(text):  # by the Unicode database
        assert c in '\t\n\r' or unicodedata.category(c) not in ('Cc', 'Cs', 'Zl', 'Zp')
        assert unicodedata.bidirectional(c) not in tuple(
            'LRE RLE LRO RLO PDF LRI RLI FSI PDI'.split()
        )


@pytest.mark.parametrize('text', EVIL)
def test_a_text_in_markdown(text):
    made = str(markdown2html(f'It is {in_markdown(text)}, in <code>{in_markdown(text)}</code>.'))
    shown = assert_inert(made)
    assert set(shown.tags) <= {'p', 'span', 'code'} and not shown.formulas
    assert ''.join(shown.text).count(' '.join(visible(text).split())) == 2


def test_emoji_and_other_scripts_stay():
    for text in ('👩\u200d🔬 🏴', 'ü ß 漢字', 'עברית', 'می\u200cخواهم', 'a\tb\r\nc'):
        assert visible(text) == text


def test_errors_show_what_they_quote():
    error = DataError('no column \x1b[31m\u202e at https://me:pass@word@host/x')
    assert str(error) == r'no column \x1b[31m\u202e at https://me:***@host/x'
    assert without_passwords('postgresql://me:a b@h') == 'postgresql://me:***@h'
    assert without_passwords('at http://h:80/a, c@d') == 'at http://h:80/a, c@d'


# --- outputs of a report -----------------------------------------------------------------


@pytest.mark.parametrize('text', EVIL)
def test_tables_notices_and_sentences(text):
    made = table(pd.DataFrame({text: [text]}, index=[text]), caption=text)
    for shown in (made, Notices([Notice(text, text)]), Sentences([text])):
        found = assert_inert(shown._repr_html_())
        assert not found.formulas and not NAUGHTY.search(repr(shown))


def test_a_title_from_a_result_file():
    figure, _ = panels({'expert1': {'title': r'$\frac$ \x1b \u202e $'}})
    assert figure._repr_png_().startswith(b'\x89PNG')


@pytest.fixture(scope='module')
def evil(tmp_path_factory):
    "A table and a card full of such names, tuned and tested: (card, folder of the results)."
    folder = tmp_path_factory.mktemp('evil')
    rng, n = np.random.default_rng(0), 200
    names = [EVIL[i] for i in (0, 2, 3, 7, 8, 9)]
    people = pd.DataFrame({name: rng.normal(size=n).round(2) for name in names})
    groups = ['<b onclick=x()>$a$', '$x^\\bad$ \u202e|`z`']
    people['](javascript:alert(2)) $g$'] = rng.choice(groups, n)
    outcome = people.iloc[:, 0] + (people.iloc[:, -1] == groups[0]) + rng.normal(size=n) > 0.5
    people['$y$ <b>'] = outcome.astype(int)
    people.to_csv(folder / 'people.csv', index=False)
    card = dict(name='evil', table='people.csv', label='$y$ <b>')
    card |= dict(sensitive='](javascript:alert(2)) $g$', privileged=groups[0])
    (folder / 'card.yaml').write_text(json.dumps(card))
    options = dict(dataset=str(folder / 'card.yaml'), cache_dir=str(folder / 'out'), epochs=40)
    trainer = MoETrainer(**options, use_cached_experts=False, n_trials=1)
    trainer.run(n_trials=1, fine_tune=False)
    return folder / 'card.yaml', folder / 'out'


def executed(name, given, monkeypatch):
    "The outputs of a shipped notebook in this process, as a notebook."
    cells, figures, threshold = [], [], gc.get_threshold()
    monkeypatch.setattr(Picture, '_repr_png_', lambda self: (figures.append(self), drawn(self))[1])

    def show(*things):
        for thing in things:
            data, about = DisplayFormatter().format(thing)
            if 'image/png' in data:
                data['image/png'] = base64.b64encode(data['image/png']).decode()
            output = new_output('display_data', data, metadata=about)
            cells.append(new_code_cell('', outputs=[output]))

    space = {'display': show}
    for cell in json.loads(notebook_path(name).read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code' and 'save_notebook' not in ''.join(cell['source']):
            *lines, last = ast.parse(''.join(cell['source'])).body
            exec(compile(ast.Module(lines, []), 'cell', 'exec'), space)
            if isinstance(last, ast.Expr):
                result = eval(compile(ast.Expression(last.value), 'cell', 'eval'), space)
                show(*([] if result is None else [result]))
            else:
                exec(compile(ast.Module([last], []), 'cell', 'exec'), space)
            if 'parameters' in cell['metadata'].get('tags', []):
                space |= given
    assert gc.get_freeze_count() > 100_000  # libraries and data: nothing looks through them again
    gc.set_threshold(*threshold)
    gc.unfreeze()
    return new_notebook(cells=cells), figures


def drawn(figure):
    "A figure, and no text in it is a formula or holds a control character."
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=30)
    for text in figure.findobj(Text):
        assert not matplotlib.cbook.is_math_text(text.get_text()), text
        assert not NAUGHTY.search(text.get_text().replace('\n', '')), text
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings('error:Glyph')
@pytest.mark.parametrize('name', ['tune.ipynb', 'moe.ipynb'])
def test_reports_about_a_hostile_table(evil, monkeypatch, name):
    card, folder = evil
    given = dict(dataset=str(card), cache_dir=str(folder), read_only=True)
    notebook, figures = executed(name, given, monkeypatch)
    assert len(figures) > 3
    shown = ''
    for cell in notebook.cells:
        for kind, data in cell.outputs[0]['data'].items():
            if kind == 'text/html':
                assert not assert_inert(data).formulas
            if kind == 'text/markdown':
                assert not assert_inert(str(markdown2html(data))).formulas
            if kind.startswith('text/'):
                assert not NAUGHTY.search(data)
                shown += data
    assert html.escape(EVIL[0]) in shown and r'u202e' in shown
    text = page(notebook, '<script>$x$ \u202e')
    assert_inert(text.replace(POLICY, ''))
    assert text.count(POLICY) == 1 and text.index(POLICY) < text.index('<title>')


def test_the_index_of_result_files_by_strangers(evil, tmp_path):
    for path in evil[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    files = ExpertFiles(tmp_path, 'evil')
    for path in (files.results('expert1'), files.results('expert2')):
        record = read_json(path)
        title = ' '.join(EVIL)
        write_json(path, record | dict(title=title, n_feasible=EVIL[0]))
    text = write_index(tmp_path).read_text()
    found = assert_inert(text)
    assert POLICY in text and not found.formulas
    assert html.escape(EVIL[0]) in text


def test_the_page_of_an_audit():
    people = pd.DataFrame(
        {'y': [0, 1] * 60, '$p$': [0, 1, 1] * 40, '$g$': ['$\\bad$', '\x1b'] * 60}
    )
    text = audit_page(audit_predictions(people, 'y', '$p$', ['$g$']))
    found = assert_inert(text)
    assert POLICY in text and r'$\bad$' in ''.join(found.text) and not found.formulas


@pytest.mark.parametrize(
    'made',
    [
        '<script>alert(1)</script>',
        '<script>alert(1)',
        '<SCRIPT/x>alert(1)</SCRIPT >',
        '<img src=x onerror=alert(1)>',
        '<svg onload=alert(1)><a xlink:href="javascript:alert(1)">x</a></svg>',
        '<a href="java\nscript:alert(1)">x</a>',
        '<a href="&#106;avascript&colon;alert(1)">x</a>',
        '<a href=" vbscript:x">x</a><a href="data:text/html,<script>x</script>">x</a>',
        '<iframe srcdoc="<script>x</script>"></iframe><object data="x"></object><embed src="x">',
        '<meta http-equiv="refresh" content="0;url=javascript:alert(1)"><base href="//x.org">',
        '<form action="javascript:alert(1)"><button formaction="javascript:x">x</button></form>',
        '<noscript><p title="</noscript><img src=x onerror=alert(1)>"></noscript>',
        '<math><a xlink:href="javascript:alert(1)">x</a></math><link rel=x href="//x.org">',
        'plain \x1b[31m &#27; &#x202e; \u202e',
    ],
)
def test_a_page_of_any_notebook(made):
    outputs = [new_output('display_data', {'text/html': made})]
    outputs += [new_output('stream', name='stdout', text=made)]
    cells = [new_code_cell('', outputs=outputs), new_markdown_cell(f'[a](javascript:x()) {made}')]
    text = page(new_notebook(cells=[*cells, new_markdown_cell('*after*')]), 'title')
    found = assert_inert(text.replace(POLICY, ''))
    assert ('meta', 'http-equiv', 'refresh') not in found.attributes
    assert 'link' not in found.tags and '<em>after</em>' in text


# --- the terminal ------------------------------------------------------------------------


def test_what_a_command_prints(evil, capsys):
    assert main(['datasets', str(evil[0])]) == 0
    people = str(evil[0].parent / 'people.csv')
    said = ['--prediction', '\x1b\u202e', '--groups', '$x$']
    assert main(['audit', people, '--label', '$y$ <b>', *said]) == 1
    shown = capsys.readouterr()
    for text in shown:
        assert not NAUGHTY.search(text.replace('\n', ''))
    assert r'red \x1b[31m' in shown.out and r'\u202egnp.exe' in shown.out


def test_warnings_and_the_log(capsys):
    import logging

    told = '\x1b[31m \u202e postgresql://me:secret@host'
    with messages(verbose=False):
        logging.getLogger('moe_expert.tuning.trials').warning('lost %s', told)
    assert one_line(told) == r'\x1b[31m \u202e postgresql://me:***@host'
    assert capsys.readouterr().err == f'lost {one_line(told)}\n'


def test_wrong_arguments_are_shown_without_passwords(capsys):
    with pytest.raises(SystemExit):
        main(['tune', '--storge', 'postgresql://me:my@secret@host/moe\x1b'])
    told = capsys.readouterr().err
    assert 'secret' not in told and '***' in told and '\x1b' not in told
