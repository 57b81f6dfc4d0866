"""Pictures of the README, and the scripts that draw them."""
