__version__ = "0.1.0"

__all__ = ['ExpertTuner', 'FairMoEClassifier', 'MoETrainer']

_HOMES = {'ExpertTuner': 'tune_experts', 'FairMoEClassifier': 'estimator', 'MoETrainer': 'trainer'}


def __getattr__(name):
    "Import the main class on first use, so that `import moe_expert` alone loads nothing heavy."
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__():
    return sorted(set(globals()) | set(__all__))
