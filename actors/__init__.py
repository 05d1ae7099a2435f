"""The actors of a company, and the company itself as data: cores that decide, thin shells that move mail."""
