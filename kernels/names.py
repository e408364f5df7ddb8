"""The names of what the kernels can do.  Importing this file needs nothing."""

CHUNK = 256  # terms of a sum that are added up on their own: part of the numerics contract, on every machine
ACTIVATIONS = (
    "identity", "sigmoid", "tanh", "scaled_tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus",
)  # fmt: skip
SAVES_Z = frozenset({"gelu", "silu"})  # activations whose f'(z) is no function of a: z is saved for them
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "absolute_error", "huber")
RULES: dict[str, tuple[str, ...]] = {  # of an update: what each keeps for every parameter
    "sgd": (),
    "momentum": ("velocity",),
    "nesterov": ("velocity",),
    "rmsprop": ("square",),
    "adam": ("mean", "square"),
}
HYPER = ("learning_rate", "l2", "l1", "decay", "beta1", "gain1", "beta2", "gain2", "epsilon")  # the numbers of an update
DTYPES = ("float32", "float64")
