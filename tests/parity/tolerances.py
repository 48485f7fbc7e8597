"""The few tolerances of the parity tests, all fp32, each with its reason. Values are relative to the largest entry."""

# One operator or layer: summation order differs between our packed rows and the peer's padded batch.
LAYER = 2e-5
# A whole tower or decoder: those errors add up over the layers.
MODEL = 1e-4
# A loss is one mean of many terms.
LOSS = 1e-5
# A gradient passes the whole network twice.
GRADIENT = 1e-4
# The same at 450M: sums over 65,536 logits and 28 layers, in another order.
FULL_SIZE_GRADIENT = 5e-4
