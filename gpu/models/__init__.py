"""Models: a Llama family of our own, whatever else `transformers` knows, and what tells which one serves."""
