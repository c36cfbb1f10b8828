"""Build the site from chapters and documents: `python .ci/build_site.py`; it lies in build/site.

The pages keep the places that their files have in the repository, so that links between them hold.
Nothing on them comes from another host: MathJax is taken from an installed package, the drawing of
the rooms is made here, and fonts are those of the reader's machine. `check` makes sure of that.
"""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / 'build'
SOURCE, SITE, EXAMPLE = BUILD / 'site-source', BUILD / 'site', BUILD / 'example'
sys.path.insert(0, str(ROOT / 'docs'))
import chapters  # noqa: E402
import rooms  # noqa: E402

PAGES = {  # title in the navigation -> page
    'Home': 'README.md',
    'From a table to a page': 'docs/quick_start.md',
    'For researchers': 'docs/for_researchers.md',
    'For auditors': 'docs/for_auditors.md',
    'Extending': 'docs/extending.md',
    'Your own data': 'docs/own_data.md',
    'Own data: a notebook': 'nbs/tutorial_own_data.md',
    'Any groups': 'docs/any_groups.md',
    'Reading a report': 'docs/reading_a_report.md',
    'Tuning the experts': 'moe_expert/EXPERT_TUNING_README.md',
    'Options': 'docs/options.md',
    'When something goes wrong': 'docs/when_something_goes_wrong.md',
    'The study': 'docs/study.md',
    'The study: all tables': 'docs/study_appendix.md',
    'The first study': 'docs/study_first.md',
    'Templates': {'Model card': 'docs/model_card.md', 'Data card': 'docs/data_card.md'},
    'Contributing': 'CONTRIBUTING.md',
    'Changes': 'CHANGELOG.md',
    'All documents': 'docs/README.md',
}
COPIED = ('docs/*.png', 'docs/study/*.png', 'docs/*.yaml', 'LICENSE', 'CITATION.cff')

CONFIG = {
    'site_name': 'moe_expert',
    'docs_dir': str(SOURCE),
    'site_dir': str(SITE),
    'use_directory_urls': False,
    'theme': {
        'name': 'material',
        'font': False,
        'features': ['navigation.top', 'navigation.footer', 'toc.follow', 'content.code.copy'],
    },
    'plugins': ['search', 'offline'],
    'extra_css': ['assets/site.css'],
    'extra_javascript': ['assets/site.js', 'assets/mathjax.js'],
    'markdown_extensions': [
        'admonition',
        'attr_list',
        'md_in_html',
        'tables',
        {'toc': {'permalink': True}},
        {'pymdownx.arithmatex': {'generic': True}},
        {'pymdownx.highlight': {'use_pygments': True}},
        'pymdownx.superfences',
    ],
    'validation': {
        'links': {'not_found': 'warn', 'anchors': 'warn', 'unrecognized_links': 'ignore'},
        'nav': {'omitted_files': 'warn'},
    },
}

EXAMPLE_PAGE = 'synthetic-1000_moe_report.html'

STYLE = """
.md-grid { max-width: 76rem; }
.cell-label { font-size: .65rem; opacity: .6; margin: 1em 0 -.9em; }
.output { border-left: 3px solid #d0d7de; margin: -.4em 0 1em; padding-left: .8em; }
.output { overflow-x: auto; }
.output pre { background: none; font-size: .68rem; margin: .3em 0; white-space: pre; }
.output img { display: block; height: auto; max-width: 100%; }
.output table { border-collapse: collapse; font-size: .68rem; }
.output th, .output td { padding: .2em .7em; text-align: right; }
.output tr:nth-child(even) { background: #8881; }
.md-typeset table:not([class]) td code { white-space: nowrap; }
.rooms { max-width: 100%; height: auto; }
.arithmatex { overflow-x: auto; overflow-y: hidden; }
"""

SCRIPT = """
window.MathJax = {
  tex: {inlineMath: [['\\\\(', '\\\\)']], displayMath: [['\\\\[', '\\\\]']]},
  options: {ignoreHtmlClass: '.*|', processHtmlClass: 'arithmatex', enableMenu: false},
  svg: {fontCache: 'local', scale: 0.92}
};
"""
# A worker for pages opened as files, where browsers allow none; the theme loads one from elsewhere.
WORKER = """
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement('iframe');
    frame.hidden = true;
    document.body.appendChild(frame);
    this.inside = frame.contentWindow;
    this.inside.answer = data => {
      const event = new MessageEvent('message', {data});
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    };
    const script = code => '<script' + code + '</' + 'script>';
    const setup = 'postMessage = data => answer(data);' +
      'importScripts = (...urls) => Promise.all(urls.map(url => new Promise((done, failed) => {' +
      'const s = document.createElement("script"); s.src = url; s.onload = done;' +
      's.onerror = failed; document.body.appendChild(s); })));';
    this.ready = new Promise(done => { this.inside.started = done; });
    this.inside.document.open();
    this.inside.document.write('<body>' + script('>' + setup) +
      script(' onload="started()" src="' + new URL(url, document.baseURI) + '">'));
    this.inside.document.close();
  }
  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', {data})));
  }
  terminate() { this.inside.frameElement.remove(); }
};
"""
SHIM = 'https://unpkg.com/iframe-worker/shim'


# --- Pages ----------------------------------------------------------------------------------------


def output_html(output, picture):
    "One output of a cell as HTML; `picture` keeps an image and returns where."
    data = output.get('data', {})
    if 'image/png' in data:
        return f'<img alt="output of the cell above" src="{picture(data["image/png"])}">'
    if 'image/svg+xml' in data:
        return ''.join(data['image/svg+xml'])
    if 'text/html' in data:  # what the example links to is not on the site
        return re.sub(r'<a href="(?!#|\w+:)[^"]*">(.*?)</a>', r'\1', ''.join(data['text/html']))
    text = ''.join(output.get('text') or data.get('text/plain', ''))
    return f'<pre>{html.escape(text)}</pre>' if text.strip() else ''


def code_block(text):
    "A code cell, with a mark where it is exported to the package."
    lines = text.splitlines()
    exported = any(re.match(r'#\| exports?i?\b', line) for line in lines)
    code = '\n'.join(line for line in lines if not line.startswith('#|')).strip('\n')
    label = '<p class="cell-label">in the package</p>\n\n' if exported else ''
    return f'{label}```python\n{code}\n```' if code else ''


def notebook_page(path, target):
    "A notebook as Markdown, its pictures beside it."
    notebook, parts, number = json.loads(path.read_text(encoding='utf-8')), [], 0

    def picture(value):
        nonlocal number
        number += 1
        name = f'{target.stem}_{number}.png'
        target.with_name(name).write_bytes(base64.b64decode(''.join(value)))
        return name

    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(text)
            continue
        if re.search(r'^#\| hide\b', text, flags=re.M):
            continue
        parts.append(code_block(text))
        shown = [output_html(o, picture) for o in cell['outputs']]
        if any(shown):
            # one line: Markdown inside the block is left alone, blank lines would end it
            block = '\n'.join(filter(None, shown)).replace('\n\n', '\n&#8203;\n')
            parts.append(f'<div class="output">\n{block}\n</div>')
    return '\n\n'.join(filter(None, parts)) + '\n'


def room_drawing(match):
    "The mermaid drawing of the rooms as SVG: rooms from top to bottom, arrows beside them."
    arrows = re.findall(r'(\w+)\s*-->\s*(\w+)', match[1])
    order = [r for r in rooms.ROOMS if any(r in a for a in arrows)][::-1]
    place = {room: 24 + 52 * i for i, room in enumerate(order)}
    width, height = 460, 52 * len(order) + 20
    drawn = [
        f'<svg class="rooms" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="Which room imports which" xmlns="http://www.w3.org/2000/svg">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
    ]
    for a, b in arrows:
        y, z = place[a] + 17, place[b] + 17
        near = abs(order.index(b) - order.index(a)) == 1
        bend = 170 + 26 * abs(order.index(b) - order.index(a))
        line = (
            f'M85 {place[a] + 34}L85 {place[b]}'
            if near
            else f'M150 {y}C{bend} {y} {bend} {z} 152 {z}'
        )
        drawn.append(f'<path d="{line}" fill="none" stroke="#57606a" marker-end="url(#tip)"/>')
    for room, y in place.items():
        drawn.append(
            f'<rect x="20" y="{y}" width="130" height="34" rx="5" fill="#f6f8fa" stroke="#57606a"/>'
            f'<text x="85" y="{y + 22}" text-anchor="middle" font-size="14" fill="#24292f">'
            f'{room}</text>'
        )
    return ''.join([*drawn, '</svg>']) + '\n'


def document_page(path):
    "A document as it is, but for the drawing and, on the landing page, the report it shows."
    text = re.sub(
        r'```mermaid\n(.*?)```', room_drawing, path.read_text(encoding='utf-8'), flags=re.S
    )
    if path == ROOT / PAGES['Home']:
        text = re.sub(
            r'^(!\[[^]]*\]\(docs/report\.png\))$', with_example, text, count=1, flags=re.M
        )
    return text


def with_example(match):
    "The picture of a report, linked to a whole one."
    page = f'example/{EXAMPLE_PAGE}'
    return f'[{match[1]}]({page})\n\n[Open the whole page]({page}) (1,000 generated people).'


def with_links(text, path):
    "Links to notebooks lead to their pages; others to what is not here are text."

    def link(match):
        label, target = match[1], match[2]
        if urlsplit(target).scheme or target.startswith('#'):
            return match[0]
        name, _, anchor = target.partition('#')
        there = (path.parent / name).resolve()
        page = there.with_suffix('.md') if there.suffix == '.ipynb' else there
        if not (SOURCE / page.relative_to(ROOT)).is_file():
            return label
        name = re.sub(r'\.ipynb$', '.md', name)
        return f'[{label}]({name}{"#" + anchor if anchor else ""})'

    fences = re.split(r'(```.*?```|<div class="output">.*?</div>)', text, flags=re.S)
    pattern = r'(?<!!)\[([^\]]*)\]\(([^)\s]+)\)'
    fences[::2] = [re.sub(pattern, link, part) for part in fences[::2]]
    return ''.join(fences)


def documents():
    yield from (ROOT / p for p in flat(PAGES) if not p.startswith('nbs/'))
    yield ROOT / 'docs/how_it_works.md'


def flat(nav):
    for value in nav.values():
        yield from flat(value) if isinstance(value, dict) else [value]


def navigation():
    "Documents, then the chapters by room."
    by_room = [
        {
            rooms.ROOMS[room][0]: [
                {title.replace('`', ''): f'nbs/{name[:-6]}.md'} for name, _, title, _ in found
            ]
        }
        for room, found in rooms.chapters().items()
    ]
    entries = [
        {k: [{n: p} for n, p in v.items()] if isinstance(v, dict) else v} for k, v in PAGES.items()
    ]
    how = {'How it works': [{'Overview': 'docs/how_it_works.md'}, *by_room]}
    after = list(PAGES).index('Reading a report') + 1
    return [*entries[:after], how, *entries[after:]]


def assets():
    folder = SOURCE / 'assets'
    folder.mkdir(parents=True)
    (folder / 'site.css').write_text(STYLE)
    (folder / 'site.js').write_text(SCRIPT)
    (folder / 'worker.js').write_text(WORKER)
    mathjax = Path(find_spec('mathjax').submodule_search_locations[0])
    shutil.copy(mathjax / 'static/mathjax/es5/tex-svg.js', folder / 'mathjax.js')


def example():
    "A small run and its pages, with a picture of the first screen where Chromium is installed."
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    run = ['run', 'synthetic-1000', '--preset', 'quick', '--quiet', '--cache_dir', str(EXAMPLE)]
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
    command = [sys.executable, '-m', 'moe_expert.cli', *run]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    folder = SOURCE / 'example'
    folder.mkdir(parents=True)
    for pattern in ('*.html', '*_report.ipynb'):
        for path in EXAMPLE.glob(pattern):
            shutil.copy(path, folder)
    for path in (BUILD / 'browser').glob('task_*.png'):  # what .ci/docs saw
        shutil.copy(path, folder)
    if shutil.which('chromium'):
        picture = [ROOT / 'docs/picture.py', EXAMPLE / EXAMPLE_PAGE, SOURCE / 'docs/report.png']
        subprocess.run([sys.executable, *map(str, picture)], check=True)


def write_sources():
    "Everything that mkdocs reads."
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    assets()
    pages = {path: document_page(path) for path in documents()}
    (SOURCE / 'nbs').mkdir()
    for path in chapters.chapters():
        pages[path] = notebook_page(path, SOURCE / 'nbs' / f'{path.stem}.md')
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            copy = SOURCE / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    example()
    for once_more in (False, True):  # links are made when all pages are there
        for path, text in pages.items():
            target = (SOURCE / path.relative_to(ROOT)).with_suffix('.md')
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(with_links(text, path) if once_more else text, encoding='utf-8')


def build():
    "Have mkdocs make the pages. CalledProcessError where it finds a fault."
    write_sources()
    config = BUILD / 'mkdocs.yml'
    config.write_text(json.dumps(CONFIG | {'nav': navigation()}, indent=1))  # JSON is YAML
    command = [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--strict', '-f', str(config)]
    subprocess.run(command, check=True)
    for path in SITE.rglob('*.html'):
        up = '../' * (len(path.relative_to(SITE).parts) - 1)
        text = path.read_text(encoding='utf-8')
        path.write_text(text.replace(SHIM, f'{up}assets/worker.js'), encoding='utf-8')


# --- What is checked ------------------------------------------------------------------------------

RESOURCE = re.compile(
    r'<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|srcset|data)="([^"]+)"'
    r'|<link\b(?=[^>]*\brel="(?!canonical|prev|next)[^"]*")[^>]*?\bhref="([^"]+)"'
    r'|url\(["\']?([^"\')]+)'
    r'|@import\s+["\']([^"\']+)',
    flags=re.I,
)


def loaded(text):
    "Addresses of what a page or a style sheet loads."
    return [next(filter(None, groups)) for groups in RESOURCE.findall(text)]


def faults(site):
    "Resources on other hosts, and links inside the site that lead nowhere."
    wrong = []
    for path in sorted(site.rglob('*')):
        if path.suffix not in ('.html', '.css'):
            continue
        text = path.read_text(encoding='utf-8')
        where = path.relative_to(site)
        for address in loaded(text):
            if re.match(r'(?:https?:)?//', address):
                wrong.append(f'{where} loads {address}')
        if path.suffix == '.html' and path.name != '404.html':
            for address in loaded(text) + re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text):
                parts = urlsplit(html.unescape(address))
                local = not (parts.scheme or parts.netloc) and parts.path
                if local and not (path.parent / unquote(parts.path)).exists():
                    wrong.append(f'{where} links to {address}')
    return wrong


def main():
    build()
    wrong = faults(SITE)
    if wrong:
        return '\n'.join(wrong[:40])
    size = sum(p.stat().st_size for p in SITE.rglob('*') if p.is_file()) / 1e6
    print(f'{len(list(SITE.rglob("*.html")))} pages, {size:.1f} MB: open {SITE / "index.html"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
