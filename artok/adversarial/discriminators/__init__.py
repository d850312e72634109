"""Networks that score how real images look; one file a kind."""
