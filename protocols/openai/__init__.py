"""OpenAI's documents as types: what clients send, what they get back, and how a body is read."""
