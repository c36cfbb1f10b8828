"""Write the tables and cells that come from `moe_expert.parameters`.

With `--check` only name the stale ones. Tables stand between `<!-- parameters: DOOR, … -->` and
`<!-- end of parameters -->` in Markdown files and cells. The cell tagged `parameters` of a notebook
holds the options of the door with its name.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moe_expert.parameters import COMMANDS, NOTEBOOKS, markdown_table, parameters_cell  # noqa: E402

DOCUMENTS = ('README.md', 'docs/options.md', 'moe_expert/EXPERT_TUNING_README.md')
TABLE = re.compile(r'(<!-- parameters: (.+?) -->\n)(.*?)(<!-- end of parameters -->)', re.DOTALL)


def with_tables(
    text: str,  # Markdown
) -> str:
    "The text with every table as the definitions have it."

    def table(match):
        doors = [d.strip() for d in match[2].split(',')]
        heads = ['parameter']
        if len(doors) > 1:
            heads = ['command' if d in COMMANDS else 'notebook' for d in doors]
        return f'{match[1]}\n{markdown_table(*doors, heads=heads)}\n\n{match[4]}'

    return TABLE.sub(table, text)


def with_cells(
    text: str,  # a notebook
    door: str,  # its name
) -> str:
    "The notebook with its tables and its `parameters` cell as the definitions have them."
    notebook = json.loads(text)
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            source = with_tables(source)
        elif 'parameters' in cell['metadata'].get('tags', []):
            source = parameters_cell(door)
        cell['source'] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


def written() -> dict[Path, str]:
    "Each file with the text that it should have."
    documents = [ROOT / name for name in DOCUMENTS if (ROOT / name).exists()]
    files = {path: with_tables(path.read_text('utf-8')) for path in documents}
    for door in NOTEBOOKS:
        path = ROOT / 'nbs' / door
        files[path] = with_cells(path.read_text('utf-8'), door)
    return files


def main() -> int:
    "Write what is stale; with `--check` only name it."
    stale = {path: text for path, text in written().items() if path.read_text('utf-8') != text}
    if '--check' in sys.argv:
        for path in stale:
            print(f'{path.relative_to(ROOT)} is stale: run .ci/parameters.py (or make export)')
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, 'utf-8')
        print(f'{path.relative_to(ROOT)} is written')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
