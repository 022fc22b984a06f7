"""Fine-tune large language models on a Ray cluster from one job file."""

__version__ = "0.1.0"
