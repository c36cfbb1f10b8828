"""The pages of the documentation: links work, pages can be found, no sentence calls a model fair.

Their code is run by tests/docs.
"""

import ast
import json
import re
import sys

import pytest
from conftest import ROOT

sys.path[:0] = [str(ROOT / '.ci'), str(ROOT / 'docs')]
import build_site

PAGES = sorted(
    [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), ROOT / 'moe_expert' / 'EXPERT_TUNING_README.md']
)
NOTEBOOKS = sorted(ROOT.glob('nbs/*.ipynb'))


def anchors(path):
    "What GitHub makes of the headings."
    headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), flags=re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    prose = re.sub(r'```.*?```', '', path.read_text(encoding='utf-8'), flags=re.S)
    for link in re.findall(r'\]\(([^)\s]+)\)', prose):
        if re.match(r'https?://', link):
            continue
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f'{path.name}: {link}'
        assert not anchor or anchor in anchors(target), f'{path.name}: {link}'


def test_every_page_of_docs_is_found_from_its_index():
    index = (ROOT / 'docs' / 'README.md').read_text(encoding='utf-8')
    missing = [
        p.name
        for p in ROOT.glob('docs/*.md')
        if p.name != 'README.md' and f']({p.name})' not in index
    ]
    assert not missing, f'docs/README.md has no link to {missing}'


def test_readme_fits_two_screens():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(readme.split()) <= 650 and len(readme.splitlines()) <= 120


def test_every_numbered_notebook_is_found_from_how_it_works():
    page = (ROOT / 'docs' / 'how_it_works.md').read_text(encoding='utf-8')
    missing = [p.name for p in NOTEBOOKS if p.name[0].isdigit() and f'../nbs/{p.name}' not in page]
    assert not missing, f'docs/how_it_works.md has no link to {missing}'


# --- How results are described. As in Fairlearn's guide: say what differs, among whom, how
# uncertain; never that a model is fair.

VERDICT = (
    r'(?:fair|unbiased|bias-free|free of (?:bias|discrimination)|non-discriminatory|debiased|'
    r'discrimination-free)'
)
CLAIM = re.compile(
    rf'\b(?:is|are|was|were|be|being|becomes?|stays?|remains?|makes? \w+(?: \w+)?|guarantees?|'
    rf'ensures?)\s+'
    rf'(?:now|more|truly|really|provably|completely|both)?\s*{VERDICT}\b|'
    rf'\b{VERDICT} (?:models?(?! explanations)|classifiers?|experts?|predictors?|decisions?)\b',
    re.I,
)
DENIED = re.compile(
    r'\b(?:not|no|never|nor|none|cannot|trivially|instead of|whether)\b|n\'t\b|"the model is fair"',
    re.I,
)
UNDER_A_DENIAL = {  # sentences whose denial is in the heading above them
    'that a model is fair.': 'What this report cannot say',
}


def claims(text):
    "Sentences that say of a model that it is fair, and do not deny it."
    plain = re.sub(r'[*`_]', '', text)
    sentences = re.split(r'(?<=[.!?])\s|\n\s*\n|\n\s*[-|#>]', plain)
    found = [
        ' '.join(s.split()).strip('- ')
        for s in sentences
        if CLAIM.search(s) and not DENIED.search(s)
    ]
    return [s for s in found if s not in UNDER_A_DENIAL]


def texts():
    "(where, text) of what people read: pages, prose of the notebooks, strings of the package."
    for path in PAGES:
        yield path.name, path.read_text(encoding='utf-8')
    for path in NOTEBOOKS:
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] == 'markdown':
                yield path.name, ''.join(c['source'])
    for path in sorted((ROOT / 'moe_expert').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


def test_nothing_claims_that_a_model_is_fair():
    found = [f'{where}: {sentence}' for where, text in texts() for sentence in claims(text)]
    assert not found, '\n'.join(found)
    notebooks = ' '.join(text for where, text in texts() if where.endswith('.ipynb'))
    assert all(heading in notebooks for heading in UNDER_A_DENIAL.values())


@pytest.mark.parametrize(
    'text, wrong',
    [
        ('The mixture is fair.', True),
        ('expert2 is *provably fair* to both groups.', True),
        ('A fair classifier came out.', True),
        ('The gate makes the model fair.', True),
        ('All three experts are unbiased', True),
        ('a debiased model', True),
        ('A small difference does not make a model fair.', False),
        ('It is trivially "fair".', False),
        ('fair_result is 0.04', False),
        ('No sentence says that a model *is fair*.', False),
        ('result fairness', False),
        ('the fairest point', False),
    ],
)
def test_the_search_for_claims_finds_them(text, wrong):
    assert bool(claims(text)) == wrong


# --- The site: what .ci/build_site.py makes of a page, and the faults that it sees.


# --- How methods are compared: in the words of the study's verdicts, which stand between marks that
# docs/study_tables.py fills. By hand nobody writes that a method beats another.

TOO_STRONG = re.compile(
    r'\bclearly (?:better|worse|above|below|ahead)\b|\bsignificant(?:ly)?\b|\boutperform\w*|'
    r'\bbeat(?:s|en|ing)?\b|\bsuperior\b|\bis (?:\*)?level(?:\*)? with\b|\bare (?:all )?level\b|'
    r'\bahead of (?:it|them|the)\b|(?<!may be )\bno better than\b|\bas good as\b|\bproves? that\b',
    re.I,
)
MADE = re.compile(r'<!-- (\w+): made by docs/study_tables.py -->.*?<!-- end of \1 -->', re.S)
QUOTED = '"expert2 beats expert3"'  # of the sentences not to say, in docs/reading_a_report.md


def too_strong(text):
    "Words that need an interval or a named test, outside of what is made from the rows."
    prose = re.sub(r'```.*?```', '', MADE.sub('', text).replace(QUOTED, ''), flags=re.S)
    return [m.group() for m in TOO_STRONG.finditer(prose)]


def test_no_word_is_stronger_than_a_verdict():
    texts = {p.name: p.read_text(encoding='utf-8') for p in PAGES}
    texts |= {p.name: p.read_text(encoding='utf-8') for p in ROOT.glob('benchmarks/*.md')}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        prose = (''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        texts[path.name] = '\n\n'.join(prose)
    found = {name: words for name, text in texts.items() if (words := too_strong(text))}
    assert not found, found


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('The gate beats the uniform mixture.', ['beats']),
        ('It is level with the network, not ahead of\nthem.', ['is level with']),
        ('A clearly better gate; significantly so.', ['clearly better', 'significantly']),
        ('<!-- a: made by docs/study_tables.py -->It beats.<!-- end of a -->', []),
        ('Whether it is better is undecided.', []),
    ],
)
def test_the_search_for_strong_words_finds_them(text, words):
    assert too_strong(text) == words


def test_resources_of_other_hosts_and_dead_links_are_seen(tmp_path):
    (tmp_path / 'a.html').write_text('<a href="b.html">b</a><script src="x.js"></script>')
    (tmp_path / 'x.js').touch()
    (tmp_path / 'b.html').write_text(
        '<script defer src="https://cdn.example.org/x.js"></script><img src="//example.org/i.png">'
        '<link rel="stylesheet" href="https://example.org/s.css"><a href="nowhere.html">no</a>'
        '<style>@font-face {src: url("https://example.org/f.woff")}</style>'
        '<link rel="canonical" href="https://example.org/b"><a href="https://example.org">site</a>'
    )
    assert [fault.split(maxsplit=1)[1] for fault in build_site.faults(tmp_path)] == [
        'loads https://cdn.example.org/x.js',
        'loads //example.org/i.png',
        'loads https://example.org/s.css',
        'loads https://example.org/f.woff',
        'links to nowhere.html',
    ]


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path):
    def code(text, *outputs):
        return {'cell_type': 'code', 'source': text, 'outputs': list(outputs)}

    plot = {'output_type': 'display_data', 'data': {'image/png': 'aGFsbG8='}}
    table = {'output_type': 'execute_result', 'data': {'text/html': '<table>\n\n</table>'}}
    text = {'output_type': 'stream', 'text': ['1 < 2']}
    cells = [
        {'cell_type': 'markdown', 'source': '# Title'},
        code('#| export\nx = 1', plot),
        code('#| hide\nsecret = 2'),
        code('x', table, text),
    ]
    path = tmp_path / '01_x.ipynb'
    path.write_text(json.dumps({'cells': cells}))
    page = build_site.notebook_page(path, tmp_path / '01_x.md')
    assert page.startswith(
        '# Title\n\n<p class="cell-label">in the package</p>\n\n```python\nx = 1'
    )
    assert (tmp_path / '01_x_1.png').read_bytes() == b'hallo' and 'src="01_x_1.png"' in page
    assert (
        'secret' not in page and '<pre>1 &lt; 2</pre>' in page and page.count('in the package') == 1
    )
    assert '\n\n' not in page[page.index('<table>') :].strip(), 'a blank line would end the block'


def test_the_drawing_of_rooms_is_drawn():
    arrows = ['study --> report', 'report --> mixture', 'study --> mixture']
    page = '```mermaid\nflowchart TD\n' + '\n'.join(arrows) + '\n```\n'
    drawing = re.sub(r'```mermaid\n(.*?)```', build_site.room_drawing, page, flags=re.S)
    assert drawing.count('<rect') == 3 and drawing.count('marker-end') == 3
