"""Networks that score how real images look; one file per kind."""
