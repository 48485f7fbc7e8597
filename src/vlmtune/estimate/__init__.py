"""FORESEE: parameters, memory, time, price, without loading weights."""
