"""The two older repositories' experiment files, read only here."""
