"""OUTGROW this machine: rented GPUs."""
