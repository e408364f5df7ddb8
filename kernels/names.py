"""The names of what the kernels can do.  Importing this file needs nothing."""

ACTIVATIONS = (
    "identity", "sigmoid", "tanh", "scaled_tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus",
)  # fmt: skip
SAVES_Z = frozenset({"gelu", "silu"})  # activations whose f'(z) is no function of a: z is saved for them
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "absolute_error", "huber")
RULES = ("sgd", "momentum", "nesterov")
