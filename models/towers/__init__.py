"""Pretrained text and vision towers behind one interface each."""
