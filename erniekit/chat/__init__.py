"""Chatting with a model in the terminal."""
