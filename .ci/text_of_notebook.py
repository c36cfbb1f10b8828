"Print the cells of a notebook without outputs, for `git diff` (see `make hooks`)."

import json
import sys

for cell in json.load(open(sys.argv[1], encoding='utf-8'))['cells']:
    print(f'--- {cell["cell_type"]} {cell.get("id", "")}')
    print(''.join(cell['source']))
