"""LORA: wrap, merge, and files in PEFT's layout."""
