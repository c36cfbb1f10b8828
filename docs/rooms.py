"""Write the list of chapters in docs/how_it_works.md: `python docs/rooms.py` (--check compares).

Titles and subtitles come from the numbered notebooks, rooms from the modules that they export to.
"""

import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NBS = DOCS.parent / 'nbs'
PAGE = DOCS / 'how_it_works.md'
START, END = '<!-- chapters -->', '<!-- end of chapters -->'

ROOMS = {  # room -> (title, what it does); in reading order
    'errors': ('Errors', 'Every exception of the package.'),
    'parameters': ('Parameters', 'Everything that a user can set, defined once.'),
    'data': (
        'Data',
        'From tables and cards to a graph with features, outcomes, groups and a split.',
    ),
    'scores': ('Scores', 'How well a model predicts, how evenly, and for which reasons.'),
    'experts': ('Experts', 'Networks, losses, and the training of many configurations at once.'),
    'tuning': ('Tuning', 'Trials, studies, checkpoints and result files.'),
    'mixture': ('Mixture', 'The gate, the integration of experts and gate, and the final test.'),
    'report': ('Reports', 'From result files to notebooks and pages. Reports only read.'),
    'commands': ('Commands', 'What is run from a terminal.'),
    'estimator': ('scikit-learn', 'All three stages as one classifier.'),
    'study': ('The study', 'The mixture compared with simpler methods; in a clone only.'),
}
DOORS = {  # modules that keep their names outside the rooms -> the room behind them
    'datasets': 'data',
    'own_data': 'data',
    'audit_predictions': 'scores',
    'metrics': 'scores',
    'explain': 'scores',
    'tune_experts': 'tuning',
    'trainer': 'mixture',
    'run_expert_tuning': 'commands',
    'run_moe': 'commands',
    'run_notebook': 'commands',
    'cli': 'commands',
    '__main__': 'commands',
}


def room_of(module):
    "The room of a module, by its name below the package."
    first = module.split('.')[0]
    return DOORS.get(first, first)


def module_of(notebook):
    "The module that a notebook exports to, below the package."
    code = '\n'.join(''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code')
    return re.search(r'^#\| default_exp (\S+)', code, flags=re.M)[1].removesuffix('.__init__')


def heading(notebook):
    "(title, subtitle) of a notebook; the subtitle may take several lines."
    first = ''.join(notebook['cells'][0]['source'])
    title = re.search(r'^# (.*)$', first, flags=re.M)[1]
    quoted = re.search(r'(?:^>.*\n?)+', first, flags=re.M)[0]
    return title, ' '.join(line.lstrip('> ').strip() for line in quoted.splitlines())


def chapters():
    "{room: [(file name, module, title, subtitle)]}, in reading order."
    listed = {room: [] for room in ROOMS}
    for path in sorted(NBS.glob('[0-9]*.ipynb')):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        module = module_of(notebook)
        listed[room_of(module)].append((path.name, module, *heading(notebook)))
    return {room: found for room, found in listed.items() if found}


def listing():
    "The list as Markdown: a section per room with a table of its chapters."
    lines = []
    for room, found in chapters().items():
        title, job = ROOMS[room]
        lines += ['', f'### {title}', '', job, '', '| chapter | module | |', '|---|---|---|']
        for name, module, title, subtitle in found:
            cell = subtitle.replace('|', '\\|')
            lines.append(f'| [{title}](../nbs/{name}) | `{module}` | {cell} |')
    return '\n'.join([START, *lines, '', END])


def page():
    "The page with a fresh list."
    old = PAGE.read_text(encoding='utf-8')
    return re.sub(f'{START}.*{END}', lambda _: listing(), old, flags=re.S)


if __name__ == '__main__':
    if '--check' not in sys.argv:
        PAGE.write_text(page(), encoding='utf-8')
    elif page() != PAGE.read_text(encoding='utf-8'):
        sys.exit('docs/how_it_works.md does not list the chapters as they are: run `make docs`')
