"""qwenproxy: your own signed-in Qwen Chat accounts as an API on this computer."""

__version__ = "0.1.0"
