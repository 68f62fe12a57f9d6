"""Conversations, the chat templates that render them, and which of their tokens are trained."""
