"""SHIP: a trained run as PEFT adapter, merged folder or GGUF files, each judged by the export gate; push to the hub."""
