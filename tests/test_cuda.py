"""The engine on a GPU.

Without one: a step mixes no devices and waits for none. With one: it gives what the CPU gives."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import PopulationTrainer, TrainConfig, TrainSettings
from moe_expert.experts.training import reference_floor, train_population
from moe_expert.scores.evaluation import Evaluator
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.settings import TuneSettings

LAMBDAS = {k: 0.5 for spec in EXPERTS.values() for k in spec.lambdas}
CONFIGS = [
    TrainConfig(3e-3, 1e-5, seed=1, **LAMBDAS),
    TrainConfig(3e-3, seed=2, lambda_fair=1.0),
    TrainConfig(1e-3, seed=2),
]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')


class OneDevice(TorchDispatchMode):
    "Operations on tensors of two devices are errors: matrix products let those of 'meta' pass."

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = tree_leaves((args, kwargs or {}))
        devices = {t.device.type for t in found if isinstance(t, torch.Tensor) and t.ndim}
        if len(devices) > 1:
            raise RuntimeError(f'{operation}: {" and ".join(sorted(devices))}')
        return operation(*args, **(kwargs or {}))


def without_content(trainer):
    """The trainer's state on the device 'meta': shapes without content.

    Mixing it with tensors of the CPU is an error. So is reading a value, which on a GPU would wait
    for everything that is queued."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.to('meta')
        if is_dataclass(value):
            return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return tuple(map(move, value)) if isinstance(value, tuple) else value

    for part, names in (
        (trainer, ('x', 'y', 'sens', 'whole', 'coefficients', 'buffers')),
        (trainer.adam, ('flat', 'mean', 'square', 'down', 'weight_decay')),
    ):
        for name in names:
            setattr(part, name, move(getattr(part, name)))
    trainer.adam._view()
    trainer.stream = trainer._endless()  # of the batch that was moved
    trainer.masks.device = torch.device('meta')
    return trainer


def trainer(**settings):
    return without_content(
        PopulationTrainer(
            make_synthetic(1000), CONFIGS, TrainSettings(**settings), torch.device('cpu'), 0
        )
    )


@pytest.mark.parametrize('batch_size', [None, 100])
@pytest.mark.parametrize('warm', [True, False])
def test_a_step_stays_on_the_device_and_never_waits(batch_size, warm):
    t = trainer(batch_size=batch_size, epochs=500)
    with OneDevice():
        t.epoch(warm)
        t.epoch(warm)
    assert t.adam.flat.device.type == 'meta' and t.adam.t == 2 * (
        4 if batch_size else 1
    )  # 499 training nodes: 99 are left over


@pytest.mark.parametrize('name', ['x', 'y', 'sens', 'absx', 'weights', 'coefficients'])
def test_a_stranger_from_the_cpu_is_noticed(name):
    t, other = (
        trainer(),
        PopulationTrainer(make_synthetic(1000), CONFIGS, TrainSettings(), torch.device('cpu'), 0),
    )
    with pytest.raises(RuntimeError, match='item|meta'):
        t.x.sum().item()
    if name == 'coefficients':
        t.coefficients = other.coefficients
    else:
        t.whole = replace(t.whole, **{name: getattr(other.whole, name)})
        t.stream = t._endless()
    with pytest.raises((RuntimeError, NotImplementedError), match='meta'), OneDevice():
        t.epoch(False)


@on_gpu
@pytest.mark.parametrize('expert', list(EXPERTS))
def test_gpu_gives_what_the_cpu_gives(expert):
    data, settings = (
        make_synthetic(1000),
        TrainSettings(epochs=200, val_every=50, dropout=0.0),
    )  # each device draws its own dropout
    floor = reference_floor(data, settings=settings)
    cpu, gpu = (
        train_population(data, CONFIGS, EXPERTS[expert], floor=floor, settings=settings, device=d)
        for d in ('cpu', 'cuda')
    )
    for a, b in zip(cpu, gpu):
        assert (a.epoch, a.epochs_run, a.feasible) == (b.epoch, b.epochs_run, b.feasible)
        assert a.metrics == pytest.approx(b.metrics, abs=1e-6)


@on_gpu
def test_tuned_on_a_gpu_loaded_on_the_cpu(tmp_path):
    data = make_synthetic(1000)
    tuner = ExpertTuner(
        data,
        cache_dir=tmp_path,
        device='cuda',
        settings=TuneSettings(TrainSettings(epochs=200, val_every=50)),
    )
    results = tuner.tune_all_experts(3)
    for expert, result in results.items():
        model, _ = load_expert(tmp_path, data.name, expert)
        assert Evaluator(data, 'val').scores(model)[result['objective']].item() == pytest.approx(
            result['best_score'], abs=1e-6
        )
