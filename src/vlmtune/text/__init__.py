"""PROMPTS: tokenizer, chat template, and a prompt cut into token segments."""
