"""How the demo model is made: its corpus, its tokenizer, its training and its examination."""
