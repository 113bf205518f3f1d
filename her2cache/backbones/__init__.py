"""Frozen embedders: the AlexNet trunks of the paper, networks of torchvision and timm, and third parties'."""
