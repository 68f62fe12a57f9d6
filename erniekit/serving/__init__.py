"""A server with OpenAI's API to try models, and the commands for production engines."""
