"""QUESTIONS: what each one asks about an image, what it teaches, and how an answer scores between 0 and 1."""
