"""erniekit: fine-tune ERNIE 4.5 models on PaddlePaddle."""

__version__ = "0.1.0"
