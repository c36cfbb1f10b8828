"A saved model predicts in a new process without loading what only training and reports need."

import pickle
import subprocess
import sys
import warnings

import numpy as np

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.initialisation import init_population
from moe_expert.mixture.gate import uniform_mixture

HEAVY = 'optuna sqlalchemy torch_geometric matplotlib papermill IPython sympy networkx fairlearn'
CODE = """
import pickle, sys
import numpy as np
from moe_expert.mixture.checkpoints import load_mixture, predict_proba

def loaded():
    return sorted(set(heavy) & set(sys.modules))

mixture, about = load_mixture(f'{folder}/mixture.pt')
print(predict_proba(mixture, np.zeros((2, 5), dtype='float32'), about['recipe']).tolist())
print([*loaded(), *({'sklearn'} & set(sys.modules))])
with open(f'{folder}/model.pickle', 'rb') as file:
    model = pickle.load(file)
print(model.predict_proba(np.load(f'{folder}/x.npy')).tolist())
print(loaded())
"""


def test_saved_models_predict_without_heavy_modules(tmp_path, repo_root):
    from moe_expert import FairMoEClassifier
    from moe_expert.mixture.checkpoints import mixture_state
    from moe_expert.tuning.artifacts import save_checkpoint

    mixture = uniform_mixture(init_population([1, 2, 3], in_features=5), 5)
    settings = dict(dataset='people', seed=0)
    backbone = dict(name='mlp', in_features=5, hidden=8, dropout=0.0)
    payload = dict(kind='mixture', stage='gate', dataset='people', settings=settings, config={})
    experts = {f'expert{k}': 'a' * 64 for k in (1, 2, 3)}
    payload |= dict(experts=experts, metrics={}, backbone=backbone, temperature=1.0, recipe=None)
    payload |= dict(state_dict=mixture_state(mixture), feature_names=list('abcde'))
    save_checkpoint(tmp_path / 'mixture.pt', payload)
    people = make_synthetic(120, seed=0)
    x, y = people.x.numpy(), people.y.numpy()
    model = FairMoEClassifier(epochs=20, on_missing_groups='ignore', random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.fit(x, y)
    (tmp_path / 'model.pickle').write_bytes(pickle.dumps(model))
    np.save(tmp_path / 'x.npy', x[:3])
    done = subprocess.run(
        [sys.executable, '-c', f'folder, heavy = {str(tmp_path)!r}, {HEAVY.split()!r}\n{CODE}'],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    of_file, heavy, of_pickle, more = done.stdout.splitlines()
    assert of_file == '[[0.5, 0.5], [0.5, 0.5]]' and heavy == '[]'
    assert of_pickle == str(model.predict_proba(x[:3]).tolist()) and more == '[]'
