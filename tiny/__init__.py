"""How `builtin:tiny` was made: drawn images, a tokenizer, pretraining. Run from a clone, not part of the library."""
