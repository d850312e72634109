"""How a next token is drawn: truncation, guidance."""
