"""bpgpu: multilayer perceptrons trained by backpropagation, with the same bits on CPU and GPU.

net = bpgpu.MLP([784, 1024, 1024, 10], activation="relu", loss="cross_entropy", backend="cpu")
net.fit(X, y, epochs=10, optimizer=bpgpu.SGD(0.05, momentum=0.9), validation_data=(X_val, y_val))
net.predict(X_new)
"""

from typing import TYPE_CHECKING, Any

from . import plots, schedules
from .backend import Backend, BackendUnavailable
from .callbacks import AdaptiveRate, Callback, Checkpoint, EarlyStopping, Log, ProgressBar, TensorBoard
from .data import Data, load_data, mnist10k
from .devices import backends, get_backend
from .distort import Distort
from .export import from_torch_state_dict, to_numpy_function, to_onnx, to_torch_state_dict
from .files import load
from .fitting import Diverged, History, Progress
from .health import Health
from .kernels.names import ACTIVATIONS, LOSSES
from .lbfgs import fit_lbfgs
from .mlp import MLP
from .optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from .passes import Backward, Passes
from .per_example import ExampleNorms, NoiseScale
from .reverse import Reverse, Reversed

if TYPE_CHECKING:
    from .estimators import MLPClassifier as MLPClassifier
    from .estimators import MLPRegressor as MLPRegressor
    from .estimators import from_sklearn as from_sklearn
    from .estimators import to_sklearn as to_sklearn

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS", "LOSSES", "MLP", "SGD", "Adagrad", "Adam", "AdamW", "AdaptiveRate", "Backend", "BackendUnavailable",
    "Backward", "Callback", "Checkpoint", "Data", "Distort", "Diverged", "EarlyStopping", "ExampleNorms", "Health", "History",
    "Log", "NoiseScale", "Optimizer", "Passes", "Progress", "ProgressBar", "RMSprop", "Reverse", "Reversed", "TensorBoard",
    "backends", "fit_lbfgs", "from_torch_state_dict", "get_backend", "load", "load_data", "mnist10k", "plots", "schedules",
    "to_numpy_function", "to_onnx", "to_torch_state_dict",
]  # fmt: skip


_ESTIMATORS = ("MLPClassifier", "MLPRegressor", "from_sklearn", "to_sklearn")


def __getattr__(name: str) -> Any:
    """What needs scikit-learn (the extra `sklearn`) is imported when it is asked for."""
    if name in _ESTIMATORS:
        from . import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'bpgpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the estimators, that completion may find them; they are not in __all__, for `import *` needs no scikit-learn."""
    return sorted({*globals(), *_ESTIMATORS})
