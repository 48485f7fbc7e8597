"""WHAT TO RUN: the experiment file, its defaults and its checks."""
