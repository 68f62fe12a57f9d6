"""A server with the interface of OpenAI, and the commands for the engines that serve models in production."""
