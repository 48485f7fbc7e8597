"""SHIP: an HTTP API, compatible with OpenAI's, and a web page over the same scorer that evaluation uses."""
